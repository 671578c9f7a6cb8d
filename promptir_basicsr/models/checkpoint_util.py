"""Files of a run: written whole or not at all."""

import json
import os
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from promptir_basicsr.option_util import OptionError


def atomic_save(content: Any, path: str) -> None:
    """`torch.save` under a temporary name, flushed, then renamed: a kill leaves the file before or the file after.

    Raises:
        OSError, RuntimeError: the file could not be written; what stood at `path` is untouched.
    """
    _replace(path, lambda temporary: torch.save(content, temporary))


def atomic_write(text: str, path: str) -> None:
    """The same for text."""

    def write(temporary: str) -> None:
        with open(temporary, 'w', encoding='utf-8') as file:
            file.write(text)

    _replace(path, write)


def _replace(path: str, write: Any) -> None:
    temporary = f'{path}.tmp'
    try:
        write(temporary)
        with open(temporary, 'rb+') as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def read_json(path: str) -> dict[str, Any] | None:
    """The mapping in a file, or None where there is no file."""
    if not os.path.exists(path):
        return None
    with open(path, encoding='utf-8') as file:
        return json.load(file)


def read_weights(
    path: str, keys: Sequence[str | None], device: str = 'cpu', where: str = 'path.pretrain_network_g'
) -> tuple[dict[str, Tensor], str]:
    """The weights of a checkpoint by name, without the prefix `module.` of a parallel wrapper; the file stays as it is.

    Args:
        path: the file.
        keys: which weights of it, such as `params_ema`: the first of them that is there, then `params`. A bare state
            dict is taken whatever the keys.
        device: where the tensors are wanted; on `meta` they have names, sizes and types alone.
        where: the option that names the file, for messages.

    Returns:
        The weights, and the key they were found under; empty for a bare state dict.

    Raises:
        OptionError: the file cannot be read, or holds no such weights.
    """
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        first_line = str(error).partition('\n')[0]
        raise OptionError([f"{where}: '{path}' cannot be read ({first_line})."]) from error
    content = content if isinstance(content, Mapping) else {}
    for name in (*keys, 'params'):
        if _are_weights(content.get(name)):
            return _without_prefix(content[name]), str(name)
    if _are_weights(content):
        return _without_prefix(content), ''
    held = [str(name) for name, value in content.items() if _are_weights(value)]
    advice = f'Take `param_key_g: {held[0]}`.' if held else 'It is no checkpoint of a network.'
    where = where.replace('pretrain_network_g', 'param_key_g')
    raise OptionError([f"{where}: '{path}' holds no weights under '{keys[0]}'. {advice}"])


def _are_weights(value: object) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(part, Tensor) for part in value.values())


def _without_prefix(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix('module.'): value for name, value in weights.items()}
