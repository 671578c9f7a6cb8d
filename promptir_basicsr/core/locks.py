"""Locks that processes of one or of several machines respect, held by the operating system."""

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

_held: set[str] = set()  # a process may take its own lock twice, as far as the system is concerned


class LockedError(RuntimeError):
    """Another process, or this one, holds the lock; the message is `process NUMBER on HOST, since TIME`."""


class FolderLock:
    """The right to write to a folder, which one process at a time has until it releases it or ends in whatever way.

    The lock is a file beside the folder, which need not exist and may be renamed meanwhile. It is a record lock of
    `fcntl`: processes that are forked do not inherit it, and NFS passes it on to other machines.

    Raises:
        LockedError: the right is another's.
        OSError: the file system has no locks, or the file cannot be made there.
    """

    def __init__(self, folder: str) -> None:
        parent, name = os.path.split(os.path.abspath(folder))
        shown = name if len(os.fsencode(name)) < 200 else hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
        self.path = os.path.join(os.path.realpath(parent), f'.{shown}.lock')
        if fcntl is None:
            raise OSError(errno.ENOTSUP, 'This system has no record locks', self.path)
        if self.path in _held:
            raise LockedError(_owner())
        self._made = []  # folders that are removed again where nothing else has been written there
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
        """Whether the file has its name still: whoever releases a lock removes it."""
        with suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(self._file), os.stat(self.path))
        return False

    def release(self) -> None:
        """Give the right back. Harmless when called again."""
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
