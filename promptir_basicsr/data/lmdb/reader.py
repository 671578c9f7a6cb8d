"""Images in an LMDB: how it is laid out, and the source that reads it.

A database is a folder `NAME.lmdb`. Its records are images under keys that are made from their names. The index stands
beside them under keys that begin with a zero byte, which no name does: a header, and columns of what is known of each
image, one compressed chunk a transaction. docs/prepare.md describes the layout for other readers.
"""

import bisect
import hashlib
import json
import os
import re
import threading
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import lmdb
import numpy as np

from promptir_basicsr.core.errors import ImageError
from promptir_basicsr.core.vocabulary import MAX_PIXELS
from promptir_basicsr.data.images import EncodedImage, PixelImage

FORMAT = 1
HEADER_KEY = b'\0header'
INDEX_PREFIX = b'\0index/'
META_INFO = 'meta_info.txt'
PART = '.part'
"""What the name of a database ends in while it is being written."""

STEM, PATH, HASH, CUT_AT_DOT = range(4)
"""How the key of an image is made from its name, see `key_of`."""

_LONGEST = 480  # bytes of a key; LMDB allows 511
_READABLE = re.compile(r'([!-\-/-?A-~]+)\.[A-Za-z0-9]+')  # neither a further dot, nor @, nor space, in ASCII


class Record(NamedTuple):
    """What the index knows of an image.

    Attributes:
        name: relative path with forward slashes.
        key: how its key is made from the name, see `key_of`.
        height, width: in pixels.
        bits: of a value, 8 or 16.
        bytes: of the stored image.
        source_bytes, source_time: of the file it was made from; time of last change in nanoseconds.
    """

    name: str
    key: int
    height: int
    width: int
    bits: int
    bytes: int
    source_bytes: int
    source_time: int


def key_of(name: str, kind: int) -> bytes:
    """The key of an image.

    STEM: the path without extension, as BasicSR would have it. PATH: the whole path in UTF-8, bytes that are no UTF-8
    as they are. HASH: of a path too long for LMDB; begins with `/`, as no relative path does. CUT_AT_DOT: what
    BasicSR makes of the names in its own databases.
    """
    if kind in (STEM, CUT_AT_DOT):
        return name.partition('.')[0].encode(errors='surrogateescape')
    path = name.encode(errors='surrogateescape')
    return path if kind == PATH else b'/' + hashlib.blake2b(path).hexdigest().encode()


def key_kinds(names: Sequence[str], encoded: bool) -> list[int]:
    """How to make keys for these names: unique, and wherever possible such that BasicSR finds them.

    Args:
        encoded: whether the records are image files, which are all that BasicSR can read.
    """
    stems = [match[1] if encoded and (match := _READABLE.fullmatch(name)) else '' for name in names]
    often = Counter(stems)
    kinds = []
    for name, stem in zip(names, stems, strict=True):
        if stem and often[stem] == 1 and len(stem) <= _LONGEST:
            kinds.append(STEM)
        else:
            kinds.append(PATH if len(name.encode(errors='surrogateescape')) <= _LONGEST else HASH)
    return kinds


def pack_records(records: Iterable[Record]) -> bytes:
    """A chunk of the index."""
    columns = dict(zip(Record._fields, map(list, zip(*records, strict=True)), strict=True))
    return zlib.compress(json.dumps(columns, separators=(',', ':')).encode('ascii'))


def unpack_records(chunk: bytes) -> list[Record]:
    """The records of a chunk of the index."""
    columns: dict[str, list[Any]] = json.loads(zlib.decompress(chunk))
    return [Record(*row) for row in zip(*(columns[field] for field in Record._fields), strict=True)]


def chunks(transaction: lmdb.Transaction) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of the chunks of the index, in order."""
    with transaction.cursor() as cursor:
        found = cursor.set_range(INDEX_PREFIX)
        while found and bytes(cursor.key()).startswith(INDEX_PREFIX):
            yield bytes(cursor.key()), bytes(cursor.value())
            found = cursor.next()


class LmdbSource:
    """Images in an LMDB, of `basicsr prepare` or of BasicSR's own tool.

    Constructing it reads the index. The records are opened where the first image is asked for, in each process anew,
    and stay open: raw pixels are views of the memory map.

    Args:
        path: the folder of the database.

    Raises:
        ValueError: it cannot be read; says what was found and how to mend it.

    Attributes:
        root: the folder.
        max_pixels: images of files with more are refused.
        storage: `original`, `lossless` or `raw`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.root, self.max_pixels = Path(path), MAX_PIXELS
        self.unread: list[str] = []
        self._prefix = f'{self.root}/'
        self._reader: Reader | None = None
        try:
            with borrowed_reader(self.root) as reader:
                self._identity = reader.identity
                self._index = _Index.of(self.root, reader)
        except (lmdb.Error, zlib.error, json.JSONDecodeError, LookupError) as error:
            raise ValueError(f"the LMDB '{self.root}' is damaged ({error}). {_AGAIN}") from error
        self.storage: str = self._index.header['storage']

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_reader': None}

    def names(self) -> list[str]:
        """All images, sorted."""
        return list(self._index.names)

    def where(self, name: str) -> str:
        """The path to show for a name."""
        return self._prefix + name

    def open(self, name: str) -> EncodedImage | PixelImage:
        """The image called `name`."""
        row = self._index.row(name)
        if row is None:
            raise ImageError(f'{self.where(name)}: is not in the database.')
        key, height, width, bits, size = row
        value = self._value(name, key, size)
        if self.storage != 'raw':
            return EncodedImage(bytes(value), self.where(name), self.max_pixels)
        kind = np.dtype('<u2' if bits == 16 else np.uint8)
        expected = height * width * 3 * kind.itemsize
        if len(value) != expected:
            raise self._damaged(name, f'{len(value):,} bytes, {expected:,} are {width}x{height} pixels')
        pixels = np.frombuffer(value, kind).reshape(height, width, 3)
        # LMDB aligns what is larger than half a page, which all but the tiniest images are.
        return PixelImage(pixels if pixels.flags.aligned else pixels.copy())

    def _value(self, name: str, key: int, size: int) -> memoryview:
        """The record of an image; its size is 0 where that is not known."""
        try:
            if self._reader is None:
                self._reader = _reader(self.root)
            if self._reader.identity != self._identity:
                raise ImageError(f'{self.root}: was replaced since its index was read. Start again.')
            value = self._reader.get(key_of(name, key))
        except (lmdb.Error, ValueError) as error:
            raise self._damaged(name, str(error)) from error
        if value is None:
            raise self._damaged(name, 'the record is missing')
        if size and len(value) != size:
            raise self._damaged(name, f'{len(value):,} bytes instead of {size:,}')
        return value

    def _damaged(self, name: str, reason: str) -> ImageError:
        return ImageError(f'{self.where(name)}: damaged record ({reason}). {_AGAIN}')


_AGAIN = 'Write the database again with `basicsr prepare ... --overwrite`.'


_ROW = np.dtype([('key', 'u1'), ('height', 'u4'), ('width', 'u4'), ('bits', 'u1'), ('bytes', 'u8')])
"""What reading takes of a `Record`, its fields after the name."""


class _Index(NamedTuple):
    """What reading takes, sorted by name; rows: of _ROW."""

    header: Mapping[str, Any]
    names: list[str]
    rows: np.ndarray

    def row(self, name: str) -> tuple[int, ...] | None:
        place = bisect.bisect_left(self.names, name)
        return self.rows[place].item() if place < len(self.names) and self.names[place] == name else None

    @classmethod
    def of(cls, path: Path, reader: 'Reader') -> '_Index':
        with reader.environment.begin() as transaction:
            header = read_header(path, transaction)
            if header is None:
                return cls._of_basicsr(path, reader)
            if not header['complete']:
                raise ValueError(f"the LMDB '{path}' was not written to its end. {_AGAIN}")
            names: list[str] = []
            parts = [np.empty(0, _ROW)]
            for _, chunk in chunks(transaction):
                records = unpack_records(chunk)
                names += [record.name for record in records]
                parts.append(np.array([record[1:6] for record in records], _ROW))
        if len(names) != header['images']:
            raise ValueError(
                f"the LMDB '{path}' is damaged: {len(names):,} of {header['images']:,} images in its index. {_AGAIN}"
            )
        order = sorted(range(len(names)), key=names.__getitem__)
        return cls(header, [names[row] for row in order], np.concatenate(parts)[order])

    @classmethod
    def _of_basicsr(cls, path: Path, reader: 'Reader') -> '_Index':
        """Of a database that BasicSR's own tool made: the names are in a text file, the sizes are not needed."""
        try:
            lines = (path / META_INFO).read_text(encoding='utf-8', errors='surrogateescape').splitlines()
        except OSError as error:
            raise ValueError(
                f"the LMDB '{path}' has neither the index of `basicsr prepare` nor {META_INFO}: what is in it is not "
                'known. Was it copied completely?'
            ) from error
        names = sorted({line.rsplit(' ', 2)[0] for line in lines if line})
        keys = Counter(key_of(name, CUT_AT_DOT) for name in names)
        shared = [name for name in names if keys[key_of(name, CUT_AT_DOT)] > 1]
        if shared:
            raise ValueError(
                f"the LMDB '{path}' has lost images: BasicSR cuts names at their first dot, which leaves the same key "
                f'for {", ".join(shared[:3])}. Prepare the folder with `basicsr prepare`.'
            )
        stored = reader.environment.stat()['entries']
        if stored < len(names):
            raise ValueError(f"the LMDB '{path}' holds {stored:,} of the {len(names):,} images in its {META_INFO}.")
        rows = np.zeros(len(names), _ROW)
        rows['key'] = CUT_AT_DOT
        return cls({'storage': 'original'}, names, rows)


def read_header(path: Path, transaction: lmdb.Transaction) -> dict[str, Any] | None:
    """The header; None where there is none.

    Raises:
        ValueError: of a later format, or of a database of pieces of images, which earlier versions could write.
    """
    content = transaction.get(HEADER_KEY)
    if content is None:
        return None
    header: dict[str, Any] = json.loads(bytes(content))
    if header['format'] > FORMAT:
        raise ValueError(
            f"the LMDB '{path}' has format {header['format']}, this release reads up to {FORMAT}. "
            'Update promptir_basicsr.'
        )
    if header.get('sub_images'):
        raise ValueError(f"the LMDB '{path}' holds pieces of images, which are no longer supported. {_AGAIN}")
    return header


class Reader:
    """An open database. A process that is forked reads on through it: read-only and without LMDB's locks there is
    nothing in it that a fork breaks, and closing it there would take the memory from under arrays in use."""

    def __init__(self, path: Path) -> None:
        self._path, data = path, path / 'data.mdb'
        try:
            stat = os.stat(data)
            # Readers are no writers' business here: a database is complete before it has its name.
            self.environment = lmdb.open(str(path), readonly=True, lock=False, readahead=False, meminit=False)
        except OSError as error:
            raise ValueError(_not_there(path, error)) from error
        except lmdb.Error as error:
            raise ValueError(f"'{path}' cannot be opened as an LMDB ({error}).") from error
        self.identity = _identity(stat)
        self._size = (self.environment.info()['last_pgno'] + 1) * self.environment.stat()['psize']
        self._file = data.open('rb')
        try:
            self._check_size()
        except ValueError:
            self._file.close()
            self.environment.close()
            raise
        self._transaction = self.environment.begin(buffers=True)

    def _check_size(self) -> None:
        found = os.fstat(self._file.fileno()).st_size
        if found < self._size:  # reading on would end the process
            raise ValueError(
                f"the LMDB '{self._path}' is cut off: data.mdb has {found:,} of {self._size:,} bytes. "
                'Copy it once more, or write it again with `basicsr prepare`.'
            )

    def get(self, key: bytes) -> memoryview | None:
        """A view of a record."""
        self._check_size()  # somebody may copy over it during the training
        with _LOCKS[0]:
            return self._transaction.get(key)

    def close(self) -> None:
        self._transaction.abort()
        self.environment.close()
        self._file.close()


def _not_there(path: Path, error: OSError) -> str:
    if path.is_dir():
        return f"'{path}' is not an LMDB: data.mdb cannot be read ({error.strerror})."
    if path.with_name(path.name + PART).is_dir():
        return (
            f"the LMDB '{path}' is not complete: it is being written, or that was interrupted. "
            '`basicsr prepare` continues where it stopped.'
        )
    return f"the LMDB '{path}' {'is a file' if path.exists() else 'does not exist'}."


# LMDB allows a database to be open once in a process.
_READERS: dict[tuple[int, int, int], Reader] = {}
_LOCKS = [threading.Lock()]
if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=lambda: _LOCKS.__setitem__(0, threading.Lock()))


def _reader(path: Path) -> Reader:
    """The process's own reader of a database."""
    with _LOCKS[0]:
        known = _known(path)
        if known is None:
            known = Reader(path)
            _READERS[known.identity] = known
        return known


@contextmanager
def borrowed_reader(path: Path) -> Iterator[Reader]:
    """A reader for a moment, so that nothing is open when worker processes start."""
    with _LOCKS[0]:
        known = _known(path)
        reader = known or Reader(path)
        try:
            yield reader
        finally:
            if known is None:
                reader.close()


def _known(path: Path) -> Reader | None:
    try:
        stat = os.stat(path / 'data.mdb')
    except OSError:
        return None
    return _READERS.get(_identity(stat))


def _identity(stat: os.stat_result) -> tuple[int, int, int]:
    """Of a file; its number alone is given to another one when it is gone."""
    return stat.st_dev, stat.st_ino, stat.st_mtime_ns
