"""Write files: the only place where this package creates, replaces or renames a file; and open them safely.

A file is written under a temporary name in the folder of its target and replaces the target when it is complete, so
that under its own name there is the file before or the file after, never a part of one. A process that is killed leaves
at most a file (or a folder) with a name of `is_unfinished`.
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
    """Whether a file name is one of those that files have here while they are written."""
    return _UNFINISHED.fullmatch(name) is not None


def is_regular(path: str | os.PathLike[str]) -> bool:
    """Whether a file can be read to its end: no FIFO, socket or device. True for what is not there, too."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return True


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file for reading; of a FIFO, which would wait for a writer, a socket or a device that is an error.

    Raises:
        OSError: the file cannot be opened, or is no regular file.
    """
    # The stream has the path as its name, which tifffile asks for.
    stream = open(path, 'rb', opener=lambda name, flags: os.open(name, flags | getattr(os, 'O_NONBLOCK', 0)))  # noqa: SIM115
    if stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        return stream
    stream.close()
    raise OSError(errno.EINVAL, 'Not a regular file')


def atomic_write(
    content: str | bytes | Callable[[BinaryIO], object], path: str | os.PathLike[str], size: int | None = None
) -> None:
    """Write a file, flush it to the disk and put it in the place of `path`: complete or not at all.

    A new file has the permissions of the umask, a replaced one those that it had. A symbolic link is replaced, not
    followed.

    Args:
        content: bytes; text, written in UTF-8 with its line ends as they are and escapes for what UTF-8 does not have;
            or a function that writes to the binary stream it is passed.
        size: bytes that a function writes, approximately, for the message of an error. Default: unknown.

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
    """A new folder to write into, which takes the place of `path`, with all it holds, at the end of the block.

    After an error in the block, `path` is unchanged and the new folder removed.
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
    """The permissions of a file that is to be replaced; None where there is none.

    Raises:
        OSError: what is there is not a file.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EEXIST, 'It is not a regular file', path)
    return stat.S_IMODE(status.st_mode) & 0o777


def _cause(error: BaseException) -> OSError | None:
    """The refusal of the system behind an error. torch reports positions in the file where there was no space."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, OSError):
        found = found.__cause__ or found.__context__
    return found


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


def _failure(path: str, cause: OSError, size: int | None) -> str:
    line = f"'{printable(path)}' could not be written: {printable(cause.strerror or str(cause))}"
    if size is not None:
        line += f'. It needs {megabytes(size)}'
    with suppress(OSError):
        line += f', {megabytes(shutil.disk_usage(os.path.dirname(path) or ".").free)} are free there'
    if cause.errno == errno.EFBIG:
        line += '; the system limits the size of files, see `ulimit -f`'
    return f'{line}. All files that were there before are whole.'


def fitting_name(stem: str, ending: str) -> str:
    """The name of a file, of at most the 255 bytes that file systems allow: a longer stem is cut, with its hash."""
    content, room = os.fsencode(stem), 255 - len(os.fsencode(ending))
    if len(content) <= room:
        return stem + ending
    mark = f'~{hashlib.blake2b(content, digest_size=4).hexdigest()}'
    return content[: room - len(mark)].decode('utf-8', 'ignore') + mark + ending


def target_problems(path: str, overwrite: bool) -> list[str]:
    """Why a verb must not write a file: a folder or, without `--overwrite`, a file of this name is there."""
    if os.path.isdir(path):
        return [f"'{path}' is a folder. Give the name of a file."]
    there = os.path.exists(path) and not overwrite
    return [f"'{path}' is there already. Take another name, or replace it with `--overwrite`."] if there else []


def megabytes(size: int) -> str:
    """`135.4 MB` of bytes."""
    return f'{size / 1e6:,.1f} MB'


def in_units(count: float) -> str:
    """Bytes in words."""
    for unit in ('bytes', 'kB', 'MB', 'GB'):
        if count < 1000:
            return f'{count:,.0f} {unit}' if unit == 'bytes' else f'{count:.3g} {unit}'
        count /= 1000
    return f'{count:.3g} TB'
