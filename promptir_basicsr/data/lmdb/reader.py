"""LMDBs of images: layout, and the source that reads them.

A database is a folder `NAME.lmdb`. Its records are images, with keys computed from their names. The index is stored in
the same database, with keys that start with a zero byte, unlike any name: a header, and columns with data of each
image, one compressed chunk per transaction. docs/prepare.md describes the layout for other readers.
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
"""Suffix of a database's name while it is being written."""

STEM, PATH, HASH, CUT_AT_DOT = range(4)
"""Ways to compute the key of an image from its name, see `key_of`."""

_LONGEST = 480  # bytes of a key; LMDB allows 511
_READABLE = re.compile(r'([!-\-/-?A-~]+)\.[A-Za-z0-9]+')  # ASCII without a further dot, @ or space


class Record(NamedTuple):
    """Entry of the index.

    Attributes:
        name: relative path with forward slashes.
        key: how its key is computed from the name, see `key_of`.
        height, width: in pixels.
        bits: bit depth, 8 or 16.
        bytes: size of the stored image.
        source_bytes, source_time: size and modification time (ns) of the source file.
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

    STEM: the path without extension, as in BasicSR. PATH: the whole path in UTF-8, with bytes that are not UTF-8
    unchanged. HASH: for a path too long for LMDB; starts with `/`, unlike any relative path. CUT_AT_DOT: BasicSR's key
    in its own databases.
    """
    if kind in (STEM, CUT_AT_DOT):
        return name.partition('.')[0].encode(errors='surrogateescape')
    path = name.encode(errors='surrogateescape')
    return path if kind == PATH else b'/' + hashlib.blake2b(path).hexdigest().encode()


def key_kinds(names: Sequence[str], encoded: bool) -> list[int]:
    """Kinds of keys for these names: unique, and readable by BasicSR if possible.

    Args:
        encoded: whether the records are image files; BasicSR cannot read others.
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
    """Encode a chunk of the index."""
    columns = dict(zip(Record._fields, map(list, zip(*records, strict=True)), strict=True))
    return zlib.compress(json.dumps(columns, separators=(',', ':')).encode('ascii'))


def unpack_records(chunk: bytes) -> list[Record]:
    """Decode a chunk of the index."""
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
    """Images in an LMDB, written by `basicsr prepare` or by BasicSR's own tool.

    The constructor reads the index. Each process opens the records when it requests the first image, and they stay
    open: raw pixels are views of the memory map.

    Args:
        path: the folder of the database.

    Raises:
        ValueError: the database cannot be read; the message says what was found and how to fix it.

    Attributes:
        root: the folder.
        max_pixels: image files with more pixels are refused.
        storage: `original`, `lossless` or `raw`.

    Examples:
        >>> from promptir_basicsr.data import LmdbSource
        >>> source = LmdbSource('database/val/skimage.lmdb')  # of `basicsr prepare -opt mine.yml --out database`
        >>> source.names(), source.open('microaneurysms.png').pixels().shape
        (['microaneurysms.png'], (102, 102, 3))
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
        """The path of a name, for messages."""
        return self._prefix + name

    def open(self, name: str) -> EncodedImage | PixelImage:
        """Open the image `name`."""
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
        # LMDB aligns records larger than half a page, so all but tiny images.
        return PixelImage(pixels if pixels.flags.aligned else pixels.copy())

    def _value(self, name: str, key: int, size: int) -> memoryview:
        """The record of an image; `size` is 0 if unknown."""
        try:
            if self._reader is None:
                self._reader = _reader(self.root)
            if self._reader.identity != self._identity:
                raise ImageError(f'{self.root}: was replaced after its index was read. Restart the run.')
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
"""Fields of a `Record` that reading needs, after the name."""


class _Index(NamedTuple):
    """The part of the index that reading needs, sorted by name; rows: of _ROW."""

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
                raise ValueError(f"the LMDB '{path}' is incomplete. {_AGAIN}")
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
        """Index of a database written by BasicSR's tool: the names are in a text file, sizes are not needed."""
        try:
            lines = (path / META_INFO).read_text(encoding='utf-8', errors='surrogateescape').splitlines()
        except OSError as error:
            raise ValueError(
                f"the LMDB '{path}' has no index of `basicsr prepare` and no {META_INFO}, so its content is unknown. "
                'Copy the whole folder again.'
            ) from error
        names = sorted({line.rsplit(' ', 2)[0] for line in lines if line})
        keys = Counter(key_of(name, CUT_AT_DOT) for name in names)
        shared = [name for name in names if keys[key_of(name, CUT_AT_DOT)] > 1]
        if shared:
            raise ValueError(
                f"the LMDB '{path}' has lost images: BasicSR cuts names at their first dot, so it uses the same key "
                f'for {", ".join(shared[:3])}. Write it with `basicsr prepare` instead.'
            )
        stored = reader.environment.stat()['entries']
        if stored < len(names):
            raise ValueError(f"the LMDB '{path}' has {stored:,} of the {len(names):,} images in its {META_INFO}.")
        rows = np.zeros(len(names), _ROW)
        rows['key'] = CUT_AT_DOT
        return cls({'storage': 'original'}, names, rows)


def read_header(path: Path, transaction: lmdb.Transaction) -> dict[str, Any] | None:
    """Read the header; None if there is none.

    Raises:
        ValueError: a newer format, or a database of image patches, which earlier versions could write.
    """
    content = transaction.get(HEADER_KEY)
    if content is None:
        return None
    header: dict[str, Any] = json.loads(bytes(content))
    if header['format'] > FORMAT:
        raise ValueError(
            f"the LMDB '{path}' has format {header['format']}, but this release supports up to {FORMAT}. "
            'Update promptir_basicsr.'
        )
    if header.get('sub_images'):
        raise ValueError(f"the LMDB '{path}' contains image patches, which are no longer supported. {_AGAIN}")
    return header


class Reader:
    """An open database. Forked processes continue to use it: read-only and without LMDB's locks a fork does not break
    it, and closing it would unmap the memory of arrays in use."""

    def __init__(self, path: Path) -> None:
        self._path, data = path, path / 'data.mdb'
        try:
            stat = os.stat(data)
            # No lock is needed, because a database is complete before it gets its name.
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
        if found < self._size:  # reading further would crash the process
            raise ValueError(
                f"the LMDB '{self._path}' is cut off: data.mdb has {found:,} of {self._size:,} bytes. "
                'Copy it again, or write it again with `basicsr prepare`.'
            )

    def get(self, key: bytes) -> memoryview | None:
        """A view of a record."""
        self._check_size()  # the file may be overwritten during the training
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
            f"the LMDB '{path}' is incomplete: it is being written, or writing was interrupted. "
            'Run `basicsr prepare` again to continue.'
        )
    return f"the LMDB '{path}' {'is a file' if path.exists() else 'does not exist'}."


# LMDB allows a process to open a database only once.
_READERS: dict[tuple[int, int, int], Reader] = {}
_LOCKS = [threading.Lock()]
if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=lambda: _LOCKS.__setitem__(0, threading.Lock()))


def _reader(path: Path) -> Reader:
    """The process's reader of a database."""
    with _LOCKS[0]:
        known = _known(path)
        if known is None:
            known = Reader(path)
            _READERS[known.identity] = known
        return known


@contextmanager
def borrowed_reader(path: Path) -> Iterator[Reader]:
    """A temporary reader, so that nothing is open when worker processes start."""
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
    """Identity of a file; its inode number alone may be reused after it is removed."""
    return stat.st_dev, stat.st_ino, stat.st_mtime_ns
