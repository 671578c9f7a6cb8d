"""Checkpoint files of a run: write them, detect damage, and remove older ones."""

import os
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from promptir_basicsr.checkpoints.unpickling import open_archive
from promptir_basicsr.core.errors import SaveError
from promptir_basicsr.core.files import atomic_write, is_unfinished
from promptir_basicsr.core.messages import first_line


def atomic_save(content: Any, path: str | os.PathLike[str]) -> None:
    """Write a checkpoint or a training state by `torch.save`, atomically.

    Raises:
        SaveError: the file could not be written; an existing file at `path` is unchanged.
    """
    atomic_write(lambda file: torch.save(content, file), path, bytes_of(content))


def bytes_of(content: Any) -> int:
    """Approximate file size of the tensors of a checkpoint or training state."""
    if isinstance(content, Tensor):
        return content.numel() * content.element_size()
    if isinstance(content, Mapping):
        return sum(map(bytes_of, content.values()))
    return sum(map(bytes_of, content)) if isinstance(content, (list, tuple)) else 8


def damage(path: str) -> str:
    """Damage of a file of `torch.save`, down to a single bit; '' if it is intact.

    torch itself detects a cut-off file, but not a changed one.
    """
    try:
        with open_archive(path) as file:
            torn = file.testzip()
    except FileNotFoundError:
        return 'it does not exist'
    except (OSError, RuntimeError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        return first_line(error)
    return f'{torn} in it has changed' if torn else ''


def remove_unfinished(folders: Iterable[str]) -> list[str]:
    """Remove unfinished files of killed runs of this package, and no others; return their paths."""
    found = []
    for folder in filter(os.path.isdir, folders):
        with os.scandir(folder) as entries:
            paths = [each.path for each in entries if is_unfinished(each.name) and each.is_file(follow_symlinks=False)]
        for path in sorted(paths):
            with suppress(FileNotFoundError):
                os.remove(path)
                found.append(path)
    return found


def saved_iterations(folder: str, before: str, after: str) -> list[int]:
    """The iterations N of the files `before` N `after` in a folder, newest first."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    middles = [
        name[len(before) : len(name) - len(after)] for name in names if name.startswith(before) and name.endswith(after)
    ]
    return sorted((int(middle) for middle in middles if middle.isdecimal()), reverse=True)


def remove_older(models: str, states: str, newest: int, keep: int) -> list[int]:
    """Remove all but the newest checkpoints up to an iteration. A state is removed before its weights.

    Args:
        models: folder of `net_g_ITER.pth`.
        states: folder of `ITER.state`.
        newest: the iteration that was just saved; nothing is removed unless both of its files are intact.
        keep: number of checkpoints to keep; those of later iterations, saved before a resume, are kept as well.

    Returns:
        The removed iterations.

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
            raise SaveError(f"'{path}' was written, but cannot be read back: {wrong}. All older files are kept.")
    for iteration in older:
        for path in (os.path.join(states, f'{iteration}.state'), os.path.join(models, f'net_g_{iteration}.pth')):
            with suppress(FileNotFoundError):
                os.remove(path)
    return older
