"""Location of weights: a file, a folder in Hugging Face Hub format, or a Hub repository."""

import json
import logging
import os
import re
from pathlib import Path
from typing import Any

from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.core.messages import first_line

WEIGHTS = 'model.safetensors'
CONFIG = 'config.json'
CARD = 'README.md'

_REPOSITORY = re.compile(r'(?P<id>[A-Za-z0-9][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?')
_FILES = ('.pth', '.pt', '.ckpt', '.pkl', '.bin', '.safetensors')
_LARGEST_CONFIG = 1_000_000


def find_weights(path: str) -> str:
    """Resolve a path to a weights file.

    Args:
        path: a file; a folder with `model.safetensors`; or, if no such path exists, a Hub repository `OWNER/NAME` or
            `OWNER/NAME@REVISION`, which is downloaded to the Hub's cache.

    Raises:
        OptionError: the repository, or the library that reads it, is not available.
    """
    if os.path.isdir(path) and os.path.isfile(os.path.join(path, WEIGHTS)):
        return os.path.join(path, WEIGHTS)
    meant = _REPOSITORY.fullmatch(path)
    if os.path.exists(path) or meant is None or path.lower().endswith(_FILES) or os.path.isdir(os.path.dirname(path)):
        return path
    return _downloaded(meant['id'], meant['revision'])


def _downloaded(repository: str, revision: str | None) -> str:
    nothing = f"'{repository}' does not exist as a file or folder"
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        advice = "To download it from the Hugging Face Hub, run pip install 'promptir_basicsr[hub]'"
        raise OptionError(f'{nothing}. {advice}') from error
    logging.getLogger('huggingface_hub').setLevel(logging.ERROR)  # it logs every attempt
    try:
        hf_hub_download(repository, CONFIG, revision=revision)
        return str(hf_hub_download(repository, WEIGHTS, revision=revision))
    except Exception as error:  # of the library, the network or the file system
        raise OptionError(
            f'{nothing}, and a repository of this name is not available on the Hugging Face Hub: '
            f'{type(error).__name__}: {first_line(error)}'
        ) from error


def network_beside(path: str) -> dict[str, Any] | None:
    """`network_g` of the `config.json` next to a `model.safetensors`; None if there is none."""
    file = Path(path).with_name(CONFIG)
    if os.path.basename(path) != WEIGHTS or not file.is_file() or file.stat().st_size > _LARGEST_CONFIG:
        return None
    try:
        network = json.loads(file.read_bytes())['network_g']
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return network if isinstance(network, dict) else None
