"""Write files atomically (only this module creates, replaces or renames files), and open them safely.

A file is written under a temporary name in the target's folder and replaces the target when complete, so the target is
always the old or the new file, never a partial one. A killed process leaves at most a file or folder whose name
`is_unfinished` matches.
"""

import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

from promptir_basicsr.core.errors import SaveError
from promptir_basicsr.core.messages import printable

_PREFIX, _SUFFIX = '.promptir-', '.part'
_UNFINISHED = re.compile(rf'{re.escape(_PREFIX)}\w+{re.escape(_SUFFIX)}', re.ASCII)
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, 'O_NOFOLLOW', 0) | getattr(os, 'O_BINARY', 0)


def is_unfinished(name: str) -> bool:
    """Return whether a file name is a temporary name of this module."""
    return _UNFINISHED.fullmatch(name) is not None


def is_regular(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is a regular file, not a FIFO, socket or device. Also True if it does not exist."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return True


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading; never blocks on a FIFO, socket or device.

    Raises:
        OSError: the file cannot be opened or is not a regular file.
    """
    # The name of the stream is the path, which tifffile needs.
    stream = open(path, 'rb', opener=lambda name, flags: os.open(name, flags | getattr(os, 'O_NONBLOCK', 0)))  # noqa: SIM115
    if stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        return stream
    stream.close()
    raise OSError(errno.EINVAL, 'Not a regular file')


def atomic_write(
    content: str | bytes | Callable[[BinaryIO], object], path: str | os.PathLike[str], size: int | None = None
) -> None:
    """Write a file atomically: flush it to disk, then replace `path`.

    A new file gets the permissions of the umask, a replaced one keeps its own. A symbolic link is replaced, not
    followed.

    Args:
        content: bytes; text, written in UTF-8 with unchanged line ends and escapes for characters that UTF-8 cannot
            encode; or a function that writes to a binary stream.
        size: approximate number of bytes that a function writes, for error messages. Default: unknown.

    Raises:
        SaveError: the file could not be written, in most cases for lack of space; what was at `path` is unchanged.
    """
    path = os.fspath(path)
    if isinstance(content, str):
        content = content.encode('utf-8', 'backslashreplace')
    if isinstance(content, bytes):
        size = len(content)
    try:
        _replace(path, content if callable(content) else partial(_put, content))
    except (OSError, RuntimeError) as error:
        cause = _cause(error)
        if cause is None:
            raise
        raise SaveError(_failure(path, cause, size)) from error


def _put(content: bytes, file: BinaryIO) -> None:
    file.write(content)


def _replace(path: str, write: Callable[[BinaryIO], object]) -> None:
    mode, folder = _mode_of(path), os.path.dirname(path) or '.'
    temporary = os.path.join(folder, f'{_PREFIX}{secrets.token_hex(8)}{_SUFFIX}')
    descriptor = os.open(temporary, _CREATE, 0o666)
    try:
        with open(descriptor, 'wb') as file:
            if mode is not None:
                with suppress(OSError, AttributeError):  # not every file system and system has permissions
                    os.fchmod(descriptor, mode)
            write(file)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.remove(temporary)
        raise
    _flush_folder(folder)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Create a new folder to write to; at the end of the block it replaces `path` and everything in it.

    After an error in the block, `path` is unchanged and the new folder is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(suffix=_SUFFIX, prefix=_PREFIX, dir=path.parent) as temporary:
        new, old = Path(temporary) / 'new', Path(temporary) / 'old'
        new.mkdir()
        yield new
        if path.exists():
            os.replace(path, old)
        try:
            os.replace(new, path)
        except OSError:
            if old.exists():
                os.replace(old, path)
            raise


def _mode_of(path: str) -> int | None:
    """Return the permissions of the file to replace; None if it does not exist.

    Raises:
        OSError: the path is not a regular file.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EEXIST, 'It is not a regular file', path)
    return stat.S_IMODE(status.st_mode) & 0o777


def _cause(error: BaseException) -> OSError | None:
    """Return the OSError that caused an error. torch reports a full disk as a wrong file position."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, OSError):
        found = found.__cause__ or found.__context__
    return found


def _flush_folder(folder: str) -> None:
    """Flush a folder, so that a new name survives a power failure. Not supported on every system."""
    if os.name == 'posix':
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems
                raise
        finally:
            os.close(handle)


def _failure(path: str, cause: OSError, size: int | None) -> str:
    line = f"'{printable(path)}' could not be written: {printable(cause.strerror or str(cause))}"
    if size is not None:
        line += f'. It needs {megabytes(size)}'
    with suppress(OSError):
        line += f', {megabytes(shutil.disk_usage(os.path.dirname(path) or ".").free)} are free there'
    if cause.errno == errno.EFBIG:
        line += '; the system limits the size of files, see `ulimit -f`'
    return f'{line}. Existing files are unchanged.'


def fitting_name(stem: str, ending: str) -> str:
    """Return a file name of at most the 255 bytes of file systems; a longer stem is cut and marked by its hash."""
    content, room = os.fsencode(stem), 255 - len(os.fsencode(ending))
    if len(content) <= room:
        return stem + ending
    mark = f'~{hashlib.blake2b(content, digest_size=4).hexdigest()}'
    return content[: room - len(mark)].decode('utf-8', 'ignore') + mark + ending


def target_problems(path: str, overwrite: bool) -> list[str]:
    """Return why a command must not write a file: a folder or, without `--overwrite`, a file of this name exists."""
    if os.path.isdir(path):
        return [f"'{path}' is a folder. Use the name of a file."]
    there = os.path.exists(path) and not overwrite
    return [f"'{path}' already exists. Use another name, or replace it with `--overwrite`."] if there else []


def megabytes(size: int) -> str:
    """Format a number of bytes as `135.4 MB`."""
    return f'{size / 1e6:,.1f} MB'


def in_units(count: float) -> str:
    """Format a number of bytes in the largest fitting unit."""
    for unit in ('bytes', 'kB', 'MB', 'GB'):
        if count < 1000:
            return f'{count:,.0f} {unit}' if unit == 'bytes' else f'{count:.3g} {unit}'
        count /= 1000
    return f'{count:.3g} TB'
