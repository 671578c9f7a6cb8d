"""Folder locks between processes on one or several machines, held by the operating system."""

import errno
import hashlib
import os
import socket
import time
from contextlib import suppress

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from promptir_basicsr.core.messages import printable

_held: set[str] = set()  # the system lets a process acquire its own lock twice


class LockedError(RuntimeError):
    """Another process, or this one, holds the lock; the message is `process NUMBER on HOST, since TIME`."""


class FolderLock:
    """Exclusive lock on writing to a folder, held until it is released or the process ends in any way.

    The lock is a file next to the folder, which need not exist and may be renamed meanwhile. It is a record lock of
    `fcntl`: forked processes do not inherit it, and NFS applies it across machines.

    Raises:
        LockedError: the lock is held elsewhere.
        OSError: the file system has no locks, or the file cannot be created.
    """

    def __init__(self, folder: str) -> None:
        parent, name = os.path.split(os.path.abspath(folder))
        shown = name if len(os.fsencode(name)) < 200 else hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
        self.path = os.path.join(os.path.realpath(parent), f'.{shown}.lock')
        if fcntl is None:
            raise OSError(errno.ENOTSUP, 'This system has no record locks', self.path)
        if self.path in _held:
            raise LockedError(_owner())
        self._made = []  # created folders, removed again if still empty
        missing = parent
        while not os.path.isdir(missing):
            self._made.append(missing)
            missing = os.path.dirname(missing)
        os.makedirs(parent, exist_ok=True)
        while True:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_in_place():
                    break
            except OSError as error:
                owner = os.read(self._file, 500).decode('utf-8', 'replace')
                os.close(self._file)
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    raise LockedError(printable(owner) or 'another process') from error
                raise
            os.close(self._file)
        os.ftruncate(self._file, 0)
        os.write(self._file, _owner().encode())
        _held.add(self.path)

    def _is_in_place(self) -> bool:
        """Return whether the file still has its name; releasing a lock removes it."""
        with suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(self._file), os.stat(self.path))
        return False

    def release(self) -> None:
        """Release the lock. Further calls have no effect."""
        if self.path in _held:
            _held.discard(self.path)
            with suppress(OSError):
                os.remove(self.path)
            os.close(self._file)
            with suppress(OSError):
                for folder in self._made:
                    os.rmdir(folder)


def _owner() -> str:
    return f'process {os.getpid()} on {socket.gethostname()}, since {time.strftime("%Y-%m-%d %H:%M:%S")}'
