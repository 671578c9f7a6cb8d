"""Write images into an LMDB so that a kill at any moment costs no more than the last transaction.

Everything happens in `NAME.lmdb.part`; the folder gets its name when all images are in it and on the disk.
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
"""Of lossless storage. Higher levels save little on photographs and take much longer to write."""

COMMIT_BYTES = 64 << 20
COMMIT_RECORDS = 1024
MAP_SIZE = 1 << 30
"""Address space to begin with; it is doubled whenever it is full."""

Value = bytes | memoryview


class PrepareError(RuntimeError):
    """A database cannot be made of these images or on this disk; the lines say why and how to go on."""

    def __str__(self) -> str:
        return '\n'.join(self.args)


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
    names = [file.name for file in path.iterdir()]
    strange = sorted(name for name in names if name not in _FILES and not is_unfinished(name))
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


@dataclass(frozen=True)
class DatabasePlan:
    """What a database is to hold.

    Attributes:
        path: its folder, `NAME.lmdb`.
        source: where the images come from.
        names: which of them, sorted.
        storage: `original` (the files as they are), `lossless` (PNG) or `raw` (pixels).
    """

    path: Path
    source: Source
    names: Sequence[str]
    storage: str

    def stamp(self, name: str) -> tuple[int, int]:
        """Size and time of last change (ns) of an image's file; of one in an LMDB, of the database."""
        path = self.source.where(name)
        if self.source.root.suffix == '.lmdb':
            path = str(self.source.root / 'data.mdb')
        try:
            stat = os.stat(path)
        except OSError:  # reading it will say more
            return -1, -1
        return stat.st_size, stat.st_mtime_ns


def make_record(plan: DatabasePlan, name: str, kind: int) -> tuple[Record, Value]:
    """Read and decode an image; its entry of the index, and what is stored of it.

    Args:
        kind: how its key is made, see `key_of`.

    Raises:
        ImageError: it is not there, or damaged.
    """
    stamp = plan.stamp(name)
    stored = plan.source.open(name)
    pixels = stored.pixels()
    value: Value
    if plan.storage == 'original':
        if not isinstance(stored, EncodedImage):
            raise ImageError(f'{plan.source.where(name)}: is stored as pixels, its original bytes are gone.')
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
    """Writes those images of a plan that are not in its database yet.

    Images go in by `add`, in the order of `missing`; `complete` gives the database its name. Before that nothing but
    `NAME.lmdb.part` changes.

    Args:
        overwrite: replace a database of other content.

    Attributes:
        plan: what the database is to hold.
        finished: whether it was there already, complete and of the same content.
        kinds: how the keys of its images are made.
        records: the index of what is in it, by name.
        missing: names of the images that are not in it.

    Raises:
        PrepareError: another process writes it, the disk refuses, or a database of other content is there; says what
            differs.
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
        """Take an image in; now and then a transaction is written."""
        self._pending.append((record, value))
        self._pending_bytes += record.bytes
        if len(self._pending) >= COMMIT_RECORDS or self._pending_bytes >= COMMIT_BYTES:
            self.commit()

    def commit(self) -> None:
        """Write what was taken in, and its chunk of the index, in one transaction."""
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
        """Put the database into its place."""
        self.commit()
        assert len(self.records) == len(self.plan.names)
        with self._told():
            self._write_meta_info()
            self._transact(lambda transaction: self._put_header(transaction, complete=True))
            self._close_environment()
            put_in_place(self.plan.path)

    def close(self) -> None:
        """Leave what is written as it is."""
        self._close_environment()
        self._lock.release()

    # What is there

    def _is_there(self, overwrite: bool) -> bool:
        path = self.plan.path
        if not os.path.lexists(path):
            return False
        try:
            with borrowed_reader(path) as reader, reader.environment.begin() as transaction:
                header = read_header(path, transaction)
                records, _ = _read_records(transaction)
        except (ValueError, lmdb.Error) as error:
            differences = [f'it cannot be read ({error})']
        else:
            differences = self._differences(header, records)
        if not differences:
            self.records = records
            return True
        if not overwrite:
            raise PrepareError(
                f"'{path}' is there already and differs: {'; '.join(differences)}. "
                'Replace it with --overwrite, or choose another --out.'
            )
        check_removable(path)
        return False

    def _differences(self, header: Mapping[str, Any] | None, records: Mapping[str, Record]) -> list[str]:
        """In words, what else there is in a database than this plan says."""
        if header is None or not header['complete']:
            return ['it is not one that `basicsr prepare` has finished']
        if header['storage'] != self.plan.storage:
            return [f'storage {header["storage"]} instead of {self.plan.storage}']
        images = {
            'missing in it': [name for name in self.plan.names if name not in records],
            'not wanted in it': [name for name in records if name not in self.kinds],
            'changed since': [name for name in self.plan.names if name in records and not self._holds(records[name])],
        }
        return [f'{len(names):,} images {what} ({first_few(names)})' for what, names in images.items() if names]

    def _holds(self, record: Record) -> bool:
        """Whether an entry of the index is the one that this plan would write."""
        return self.kinds.get(record.name) == record.key and self.plan.stamp(record.name) == (
            record.source_bytes,
            record.source_time,
        )

    def _begin(self) -> None:
        """Open what an earlier run has left, without what is of no use any more; or begin."""
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
                logger.warning(f"'{self._part}' was begun with other settings; it is begun anew.")
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

    # The disk

    def _open(self) -> lmdb.Environment:
        return lmdb.open(str(self._part), map_size=MAP_SIZE, lock=False)

    def _transact(self, write: Callable[[lmdb.Transaction], object]) -> None:
        """Run in one transaction, in as much address space as it takes."""
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
        # Pages that were taken and given back in one transaction are not written: at the end they would be missing.
        if os.path.getsize(self._part / 'data.mdb') < size:
            os.truncate(self._part / 'data.mdb', size)

    def _write_meta_info(self) -> None:
        """List for BasicSR what it can read."""
        readable = [self.records[name] for name in self.plan.names if self.kinds[name] == STEM]
        if readable:
            lines = []
            for record in readable:
                stem, _, extension = record.name.rpartition('.')  # what is readable has one dot, see `key_kinds`
                extension, level = ('png', PNG_LEVEL) if self.plan.storage == 'lossless' else (extension, 0)
                lines.append(f'{stem}.{extension} ({record.height},{record.width},3) {level}\n')
            atomic_write(''.join(lines), self._part / META_INFO)
        logger.info(
            f"BasicSR's own LMDB backend can read {len(readable):,} of the {len(self.records):,} images in "
            f"'{self.plan.path}'."
        )

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Say a refusal of the disk in words."""
        try:
            yield
        except (OSError, lmdb.Error) as error:
            folder = next(folder for folder in self.plan.path.absolute().parents if folder.is_dir())
            free = shutil.disk_usage(folder).free
            message = f"'{self.plan.path}' cannot be written ({error}). {free:,} bytes are free there"
            if self._pending:
                message += f', {self._pending_bytes:,} are to be written next'
            if self._part.is_dir():
                message += f". What is written stays in '{self._part}': make room and run the command again to continue"
            raise PrepareError(f'{message}.') from error


def _read_records(transaction: lmdb.Transaction) -> tuple[dict[str, Record], int]:
    """The index of a database by name, and the number of the next chunk."""
    records: dict[str, Record] = {}
    last = -1
    for key, chunk in chunks(transaction):
        records.update((record.name, record) for record in unpack_records(chunk))
        last = int(key[len(INDEX_PREFIX) :])
    return records, last + 1
