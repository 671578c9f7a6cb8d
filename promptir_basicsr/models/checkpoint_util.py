"""Files of a run: written whole or not at all."""

import json
import os
from typing import Any

import torch


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
