"""Files of a run: written whole or not at all."""

import errno
import json
import os
import pickle
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, BinaryIO

import torch
from torch import Tensor

from promptir_basicsr.option_util import OptionError

NOT_SAVED = 4
"""Exit status of a run that ends because a file could not be written."""
_UNFINISHED = '.tmp'


class SaveError(OSError):
    """A file could not be written; what stood at its place is untouched."""


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
    temporary = path + _UNFINISHED
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


def damage(path: str) -> str:
    """What is wrong with a file of `torch.save`, down to a single bit; '' where it is whole.

    torch itself notices where a file was cut off, but not where it has changed.
    """
    try:
        with zipfile.ZipFile(path) as file:
            torn = file.testzip()
    except FileNotFoundError:
        return 'it does not exist'
    except (OSError, RuntimeError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        return (str(error) or type(error).__name__).partition('\n')[0]
    return f'{torn} in it has changed' if torn else ''


def remove_unfinished(folders: Iterable[str]) -> list[str]:
    """Remove what a kill has left of files that were being written; the names."""
    found = []
    for folder in filter(os.path.isdir, folders):
        for name in sorted(os.listdir(folder)):
            if name.endswith(_UNFINISHED):
                os.remove(os.path.join(folder, name))
                found.append(name)
    return found


def saved_iterations(folder: str, before: str, after: str) -> list[int]:
    """The iterations N of the files `before` N `after` in a folder, the newest first."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    middles = [
        name[len(before) : len(name) - len(after)] for name in names if name.startswith(before) and name.endswith(after)
    ]
    return sorted((int(middle) for middle in middles if middle.isdecimal()), reverse=True)


def remove_older(models: str, states: str, newest: int, keep: int) -> list[int]:
    """Of the checkpoints up to an iteration, remove all but the newest few. A state goes before its weights.

    Args:
        models: folder of `net_g_ITER.pth`.
        states: folder of `ITER.state`.
        newest: the iteration that was just saved; nothing is removed unless both of its files are whole.
        keep: how many are kept; what was saved at later iterations, before a resume, stays as well.

    Returns:
        The iterations that were removed.

    Raises:
        SaveError: the newest files are damaged.
    """
    saved = set(saved_iterations(states, '', '.state')) | set(saved_iterations(models, 'net_g_', '.pth'))
    older = sorted(iteration for iteration in saved if iteration <= newest)[:-keep]
    if not older:
        return []
    for path in (os.path.join(models, f'net_g_{newest}.pth'), os.path.join(states, f'{newest}.state')):
        wrong = damage(path)
        if wrong:
            raise SaveError(f"'{path}' was written, but cannot be read back: {wrong}. Older files are all kept.")
    for iteration in older:
        for path in (os.path.join(states, f'{iteration}.state'), os.path.join(models, f'net_g_{iteration}.pth')):
            with suppress(FileNotFoundError):
                os.remove(path)
    return older


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
        foreign = isinstance(error, pickle.UnpicklingError) and zipfile.is_zipfile(path)
        hint = f' {_convert(path)}' if foreign else ''
        raise OptionError([f"{where}: '{path}' cannot be read ({first_line}).{hint}"]) from error
    content = content if isinstance(content, Mapping) else {}
    for name in (*keys, 'params'):
        if _are_weights(content.get(name)):
            return _without_prefix(content[name]), str(name)
    if _are_weights(content):
        return _without_prefix(content), ''
    held = [str(name) for name, value in content.items() if _are_weights(value)]
    advice = f'Take `param_key_g: {held[0]}`.' if held else 'It is no checkpoint of a network.'
    if 'state_dict' in held:
        advice += f' {_convert(path)}'
    where = where.replace('pretrain_network_g', 'param_key_g')
    raise OptionError([f"{where}: '{path}' holds no weights under '{keys[0]}'. {advice}"])


def _convert(path: str) -> str:
    return f"If it is of a released program: `basicsr convert '{path}' NEW.pth` makes a file that is read here."


def _are_weights(value: object) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(part, Tensor) for part in value.values())


def _without_prefix(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix('module.'): value for name, value in weights.items()}
