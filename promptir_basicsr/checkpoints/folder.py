"""The files of a run: those of an iteration, whole or not, and the older ones removed."""

import os
import zipfile
import zlib
from collections.abc import Iterable
from contextlib import suppress

from promptir_basicsr.core.errors import SaveError
from promptir_basicsr.core.files import UNFINISHED


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
            if name.endswith(UNFINISHED):
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
