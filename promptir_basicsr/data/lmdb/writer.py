"""Write images to an LMDB so that a kill at any time loses at most the last transaction.

Data is written to `NAME.lmdb.part`, which is renamed when all images are complete and on disk.
"""

import fcntl
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import lmdb
import numpy as np

from promptir_basicsr.core.errors import ImageError
from promptir_basicsr.core.files import atomic_write, is_unfinished
from promptir_basicsr.core.messages import first_few
from promptir_basicsr.data.images import EncodedImage
from promptir_basicsr.data.lmdb.reader import (
    FORMAT,
    HEADER_KEY,
    INDEX_PREFIX,
    META_INFO,
    PART,
    STEM,
    Record,
    borrowed_reader,
    chunks,
    key_kinds,
    key_of,
    pack_records,
    read_header,
    unpack_records,
)
from promptir_basicsr.data.sources import Source

_OLD = '.old'
_FILES = ('data.mdb', 'lock.mdb', META_INFO)

logger = logging.getLogger('basicsr')

PNG_LEVEL = 4
"""PNG level of lossless storage. Higher levels save little for photographs and are much slower."""

COMMIT_BYTES = 64 << 20
COMMIT_RECORDS = 1024
MAP_SIZE = 1 << 30
"""Initial address space; doubled when it is full."""

Value = bytes | memoryview


class PrepareError(RuntimeError):
    """A database cannot be written from these images or to this disk; the lines say why and how to continue."""

    def __str__(self) -> str:
        return '\n'.join(self.args)


def part_of(path: Path) -> Path:
    """The folder in which a database is written."""
    return path.with_name(path.name + PART)


class DatabaseLock:
    """Lock for writing a database.

    It belongs to the process: worker processes do not inherit it, and it is released when the process ends.

    Raises:
        PrepareError: another process holds it.
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
                    f"'{path}' is being written by another `basicsr prepare`. Wait for it, or set another --out."
                ) from error
            # The previous holder may have removed the file in between.
            if os.path.exists(self._path) and os.path.samestat(os.fstat(self._file.fileno()), os.stat(self._path)):
                return
            self._file.close()

    def release(self) -> None:
        if not self._file.closed:
            self._path.unlink(missing_ok=True)
            self._file.close()


def put_in_place(path: Path) -> None:
    """Rename the finished database to its name, then remove an older database of this name."""
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
    """Recover from a kill during `put_in_place`: restore the replaced database, or remove it."""
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
    """Check that a folder looks like a database; nothing else is ever removed.

    Raises:
        PrepareError: the folder is something else.
    """
    if path.is_symlink() or not path.is_dir():
        raise PrepareError(f"'{path}' is not a folder and is not removed. Move it away, or set another --out.")
    names = [file.name for file in path.iterdir()]
    strange = sorted(name for name in names if name not in _FILES and not is_unfinished(name))
    if strange:
        raise PrepareError(
            f"'{path}' contains '{strange[0]}', which is not part of a database, and is not removed. Move it away."
        )


def _old(path: Path) -> Path:
    return path.with_name(path.name + _OLD)


def _sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class DatabasePlan:
    """Planned content of a database.

    Attributes:
        path: its folder, `NAME.lmdb`.
        source: source of the images.
        names: names of the images to store, sorted.
        storage: `original` (the files as they are), `lossless` (PNG) or `raw` (pixels).
    """

    path: Path
    source: Source
    names: Sequence[str]
    storage: str

    def stamp(self, name: str) -> tuple[int, int]:
        """Size and modification time (ns) of an image's file, or of the database for an image in an LMDB."""
        path = self.source.where(name)
        if self.source.root.suffix == '.lmdb':
            path = str(self.source.root / 'data.mdb')
        try:
            stat = os.stat(path)
        except OSError:  # reading it reports the reason
            return -1, -1
        return stat.st_size, stat.st_mtime_ns


def make_record(plan: DatabasePlan, name: str, kind: int) -> tuple[Record, Value]:
    """Read and decode an image; return its entry of the index and its stored value.

    Args:
        kind: how its key is computed, see `key_of`.

    Raises:
        ImageError: the image is missing or damaged.
    """
    stamp = plan.stamp(name)
    stored = plan.source.open(name)
    pixels = stored.pixels()
    value: Value
    if plan.storage == 'original':
        if not isinstance(stored, EncodedImage):
            raise ImageError(f'{plan.source.where(name)}: is stored as pixels, without its original bytes.')
        value = stored.content
    elif plan.storage == 'raw':
        value = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder('<')).reshape(-1).view(np.uint8).data
    else:
        bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
        written, content = cv2.imencode('.png', bgr, [cv2.IMWRITE_PNG_COMPRESSION, PNG_LEVEL])
        assert written
        value = content.data
    height, width = pixels.shape[:2]
    return Record(name, kind, height, width, 8 * pixels.itemsize, len(value), *stamp), value


class DatabaseWriter:
    """Writes those images of a plan that its database lacks.

    `add` adds images in the order of `missing`; `complete` renames the database to its name. Before that only
    `NAME.lmdb.part` changes.

    Args:
        overwrite: replace a database with other content.

    Attributes:
        plan: planned content of the database.
        finished: whether it existed already, complete and with the same content.
        kinds: how the keys of its images are computed.
        records: index of its images, by name.
        missing: names of the images that it lacks.

    Raises:
        PrepareError: another process writes it, a disk error, or an existing database with other content; the message
            lists the differences.
    """

    def __init__(self, plan: DatabasePlan, overwrite: bool = False) -> None:
        self.plan = plan
        self.kinds = dict(zip(plan.names, key_kinds(plan.names, plan.storage != 'raw'), strict=True))
        self.records: dict[str, Record] = {}
        self._part = part_of(plan.path)
        self._environment: lmdb.Environment | None = None
        self._chunk = 0
        self._pending: list[tuple[Record, Value]] = []
        self._pending_bytes = 0
        with self._told():
            plan.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = DatabaseLock(plan.path)
        try:
            with self._told():
                undo_exchange(plan.path)
                self.finished = self._is_there(overwrite)
                if not self.finished:
                    self._begin()
        except BaseException:
            self.close()
            raise
        self.missing = [name for name in plan.names if name not in self.records]

    def __enter__(self) -> 'DatabaseWriter':
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def add(self, record: Record, value: Value) -> None:
        """Add an image; writes a transaction from time to time."""
        self._pending.append((record, value))
        self._pending_bytes += record.bytes
        if len(self._pending) >= COMMIT_RECORDS or self._pending_bytes >= COMMIT_BYTES:
            self.commit()

    def commit(self) -> None:
        """Write the added images, and their chunk of the index, in one transaction."""
        if not self._pending:
            return

        def write(transaction: lmdb.Transaction) -> None:
            for record, value in self._pending:
                transaction.put(key_of(record.name, record.key), value)
            transaction.put(INDEX_PREFIX + b'%08d' % self._chunk, pack_records(record for record, _ in self._pending))

        self._transact(write)
        self.records.update((record.name, record) for record, _ in self._pending)
        self._chunk, self._pending, self._pending_bytes = self._chunk + 1, [], 0

    def complete(self) -> None:
        """Finish the database and rename it to its name."""
        self.commit()
        assert len(self.records) == len(self.plan.names)
        with self._told():
            self._write_meta_info()
            self._transact(lambda transaction: self._put_header(transaction, complete=True))
            self._close_environment()
            put_in_place(self.plan.path)

    def close(self) -> None:
        """Close the database; written data is kept."""
        self._close_environment()
        self._lock.release()

    # existing data

    def _is_there(self, overwrite: bool) -> bool:
        path = self.plan.path
        if not os.path.lexists(path):
            return False
        try:
            with borrowed_reader(path) as reader, reader.environment.begin() as transaction:
                header = read_header(path, transaction)
                records, _ = _read_records(transaction)
        except (ValueError, lmdb.Error) as error:
            differences = [f'not readable ({error})']
        else:
            differences = self._differences(header, records)
        if not differences:
            self.records = records
            return True
        if not overwrite:
            raise PrepareError(
                f"'{path}' exists already and differs: {'; '.join(differences)}. "
                'Replace it with --overwrite, or set another --out.'
            )
        check_removable(path)
        return False

    def _differences(self, header: Mapping[str, Any] | None, records: Mapping[str, Record]) -> list[str]:
        """Messages about differences between a database and this plan."""
        if header is None or not header['complete']:
            return ['not a complete database of `basicsr prepare`']
        if header['storage'] != self.plan.storage:
            return [f'storage {header["storage"]} instead of {self.plan.storage}']
        images = {
            'missing': [name for name in self.plan.names if name not in records],
            'unexpected': [name for name in records if name not in self.kinds],
            'changed': [name for name in self.plan.names if name in records and not self._holds(records[name])],
        }
        return [f'{len(names):,} images {what} ({first_few(names)})' for what, names in images.items() if names]

    def _holds(self, record: Record) -> bool:
        """Whether an entry of the index equals the one that this plan would write."""
        return self.kinds.get(record.name) == record.key and self.plan.stamp(record.name) == (
            record.source_bytes,
            record.source_time,
        )

    def _begin(self) -> None:
        """Open the data of an interrupted run and drop its stale images, or start from scratch."""
        if os.path.lexists(self._part):
            header = None
            try:
                self._environment = self._open()
                with self._environment.begin() as transaction:
                    header = read_header(self._part, transaction)
                    records, self._chunk = _read_records(transaction)
                usable = header is not None and header['storage'] == self.plan.storage
            except (ValueError, lmdb.InvalidError, lmdb.VersionMismatchError, lmdb.CorruptedError):
                usable = False
            if usable:
                self._drop_stale(records)
                return
            if header is not None:
                logger.warning(f"'{self._part}' was started with other settings; starting from scratch.")
            self._close_environment()
            remove_database(self._part)
        self._part.mkdir()
        self._environment, self._chunk = self._open(), 0
        self._transact(lambda transaction: self._put_header(transaction, complete=False))

    def _drop_stale(self, records: Mapping[str, Record]) -> None:
        self.records = {name: record for name, record in records.items() if self._holds(record)}
        stale = [record for name, record in records.items() if name not in self.records]

        def write(transaction: lmdb.Transaction) -> None:
            self._put_header(transaction, complete=False)
            for record in stale:
                transaction.delete(key_of(record.name, record.key))
            for key, chunk in list(chunks(transaction)):
                kept = [record for record in unpack_records(chunk) if record.name in self.records]
                transaction.put(key, pack_records(kept)) if kept else transaction.delete(key)

        if stale:
            self._transact(write)

    # disk access

    def _open(self) -> lmdb.Environment:
        return lmdb.open(str(self._part), map_size=MAP_SIZE, lock=False)

    def _transact(self, write: Callable[[lmdb.Transaction], object]) -> None:
        """Run one transaction, and enlarge the address space if needed."""
        assert self._environment is not None
        with self._told():
            while True:
                try:
                    with self._environment.begin(write=True) as transaction:
                        write(transaction)
                    return
                except lmdb.MapFullError:
                    self._environment.set_mapsize(2 * self._environment.info()['map_size'])

    def _put_header(self, transaction: lmdb.Transaction, complete: bool) -> None:
        header: dict[str, Any] = {'format': FORMAT, 'storage': self.plan.storage, 'complete': complete}
        if complete:
            header['images'] = len(self.records)
            header['bytes'] = sum(record.bytes for record in self.records.values())
        transaction.put(HEADER_KEY, json.dumps(header).encode('ascii'))

    def _close_environment(self) -> None:
        if self._environment is None:
            return
        size = (self._environment.info()['last_pgno'] + 1) * self._environment.stat()['psize']
        self._environment.close()
        self._environment = None
        # Pages that were allocated and freed in one transaction are not written, so the file may be too short.
        if os.path.getsize(self._part / 'data.mdb') < size:
            os.truncate(self._part / 'data.mdb', size)

    def _write_meta_info(self) -> None:
        """Write the list of images that BasicSR can read."""
        readable = [self.records[name] for name in self.plan.names if self.kinds[name] == STEM]
        if readable:
            lines = []
            for record in readable:
                stem, _, extension = record.name.rpartition('.')  # readable names have one dot, see `key_kinds`
                extension, level = ('png', PNG_LEVEL) if self.plan.storage == 'lossless' else (extension, 0)
                lines.append(f'{stem}.{extension} ({record.height},{record.width},3) {level}\n')
            atomic_write(''.join(lines), self._part / META_INFO)
        logger.info(
            f"BasicSR's own LMDB backend can read {len(readable):,} of the {len(self.records):,} images in "
            f"'{self.plan.path}'."
        )

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Convert disk errors to PrepareError."""
        try:
            yield
        except (OSError, lmdb.Error) as error:
            folder = next(folder for folder in self.plan.path.absolute().parents if folder.is_dir())
            free = shutil.disk_usage(folder).free
            message = f"'{self.plan.path}' cannot be written ({error}). {free:,} bytes are free there"
            if self._pending:
                message += f', the next write needs {self._pending_bytes:,}'
            if self._part.is_dir():
                message += f". Written data stays in '{self._part}': free space and run the command again to continue"
            raise PrepareError(f'{message}.') from error


def _read_records(transaction: lmdb.Transaction) -> tuple[dict[str, Record], int]:
    """The index of a database by name, and the number of the next chunk."""
    records: dict[str, Record] = {}
    last = -1
    for key, chunk in chunks(transaction):
        records.update((record.name, record) for record in unpack_records(chunk))
        last = int(key[len(INDEX_PREFIX) :])
    return records, last + 1
