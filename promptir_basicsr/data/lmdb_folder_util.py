"""The folder that an LMDB is: who may write it, and how it comes into its place and out of it."""

import fcntl
import os
from pathlib import Path

from promptir_basicsr.data.lmdb_util import META_INFO, PART

_OLD = '.old'
_FILES = ('data.mdb', 'lock.mdb', META_INFO)


class PrepareError(RuntimeError):
    """A database cannot be made of these images or on this disk; the message says why and how to go on."""


def part_of(path: Path) -> Path:
    """The folder that a database is written in."""
    return path.with_name(path.name + PART)


class DatabaseLock:
    """The right to write a database.

    It is the process's own: worker processes do not inherit it, and it ends with the process.

    Raises:
        PrepareError: another process has it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.with_name(path.name + '.lock')
        while True:
            self._file = open(self._path, 'a')  # noqa: SIM115  (open until it is released)
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError) as error:
                self._file.close()
                raise PrepareError(
                    f"'{path}' is being written by another `basicsr prepare`. Wait for it, or choose another --out."
                ) from error
            # Whoever had it before may have removed the file in between.
            if os.path.exists(self._path) and os.path.samestat(os.fstat(self._file.fileno()), os.stat(self._path)):
                return
            self._file.close()

    def release(self) -> None:
        if not self._file.closed:
            self._path.unlink(missing_ok=True)
            self._file.close()


def put_in_place(path: Path) -> None:
    """Give the finished database its name; one that has the name already is removed after that."""
    for file in part_of(path).iterdir():
        _sync(file)
    _sync(part_of(path))
    replaces = os.path.lexists(path)
    if replaces:
        os.rename(path, _old(path))
    os.rename(part_of(path), path)
    _sync(path.parent)
    if replaces:
        remove_database(_old(path))


def undo_exchange(path: Path) -> None:
    """After a kill amid `put_in_place`: bring the replaced database back, or remove it."""
    if os.path.lexists(_old(path)):
        if os.path.lexists(path):
            remove_database(_old(path))
        else:
            os.rename(_old(path), path)


def remove_database(path: Path) -> None:
    check_removable(path)
    for file in path.iterdir():
        file.unlink()
    path.rmdir()


def check_removable(path: Path) -> None:
    """Only what looks like a database is ever removed.

    Raises:
        PrepareError: something else is there.
    """
    if path.is_symlink() or not path.is_dir():
        raise PrepareError(f"'{path}' is no folder and not removed. Move it away, or choose another --out.")
    strange = sorted(file.name for file in path.iterdir() if file.name not in _FILES)
    if strange:
        raise PrepareError(
            f"'{path}' holds '{strange[0]}', which is not part of a database, and is not removed. Move it away."
        )


def _old(path: Path) -> Path:
    return path.with_name(path.name + _OLD)


def _sync(path: Path) -> None:
    """Have a file or the names in a folder written to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
