"""Files that are written whole or not at all."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, BinaryIO

import torch
from torch import Tensor

from promptir_basicsr.core.errors import SaveError

UNFINISHED = '.tmp'


def atomic_save(content: Any, path: str) -> None:
    """`torch.save` under a temporary name, flushed, then renamed: a kill leaves the file before or the file after.

    Raises:
        SaveError: the file could not be written, for want of space as a rule; what stood at `path` is untouched.
    """
    _replace(path, lambda file: torch.save(content, file), bytes_of(content))


def atomic_write(text: str | bytes, path: str) -> None:
    """The same for bytes, or for text in UTF-8 with its line ends as they are."""
    content = text.encode('utf-8') if isinstance(text, str) else text
    _replace(path, lambda file: file.write(content), len(content))


def _replace(path: str, write: Callable[[BinaryIO], Any], size: int) -> None:
    temporary = path + UNFINISHED
    try:
        with open(temporary, 'wb') as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _flush_folder(os.path.dirname(path) or '.')
    except (OSError, RuntimeError) as error:
        # torch speaks of positions in the file where the system had no room for it.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        with suppress(OSError):
            os.remove(temporary)  # its space is free again
        raise SaveError(_failure(path, cause, size)) from error
    finally:
        with suppress(OSError):
            os.remove(temporary)


def _flush_folder(folder: str) -> None:
    """A name that was only just given may be lost with the power otherwise. Not every system has this."""
    if os.name == 'posix':
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems
                raise
        finally:
            os.close(handle)


def _failure(path: str, cause: OSError, size: int) -> str:
    line = f"'{path}' could not be written: {cause.strerror or cause}. It needs {megabytes(size)}"
    with suppress(OSError):
        line += f', {megabytes(shutil.disk_usage(os.path.dirname(path) or ".").free)} are free there'
    if cause.errno == errno.EFBIG:
        line += '; the system limits the size of files, see `ulimit -f`'
    return f'{line}. All files that were there before are whole.'


def megabytes(size: int) -> str:
    """`135.4 MB` of bytes."""
    return f'{size / 1e6:,.1f} MB'


def bytes_of(content: Any) -> int:
    """About the size of a file with the tensors of a checkpoint or training state."""
    if isinstance(content, Tensor):
        return content.numel() * content.element_size()
    if isinstance(content, Mapping):
        return sum(map(bytes_of, content.values()))
    return sum(map(bytes_of, content)) if isinstance(content, (list, tuple)) else 8


def read_json(path: str) -> dict[str, Any] | None:
    """The mapping in a file, or None where there is no file."""
    if not os.path.exists(path):
        return None
    with open(path, encoding='utf-8') as file:
        return json.load(file)
