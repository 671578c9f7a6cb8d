"""The EXIF block of an image: its orientation, and the block of a rotated image.

The block is changed in place instead of rewritten, to preserve makers' notes with unknown inner offsets. A TIFF file
is such a block itself.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

_ORIENTATION, _EXIF, _WIDTH, _HEIGHT = 0x0112, 0x8769, 0xA002, 0xA003
_WHOLE_NUMBERS = {1: 'B', 3: 'H', 4: 'I'}  # types of values that are stored in the entry itself


def orientation_of(block: bytes) -> int:
    """Return the orientation, 1 to 8 as in the TIFF standard; 1 if missing or unreadable."""
    try:
        found = [_value(block, entry) for entry in _first(block).entries if entry.tag == _ORIENTATION]
    except struct.error:
        return 1
    return found[0] if found and found[0] in range(1, 9) else 1


def with_upright_orientation(block: bytes) -> bytes:
    """Return the block with only its orientation changed to 1."""
    changed = bytearray(block)
    try:
        for entry in _first(block).entries:
            if entry.tag == _ORIENTATION:
                _set(changed, entry, 1)
    except struct.error:
        return block
    return bytes(changed)


def turned_block(block: bytes) -> bytes:
    """Return the block of an image whose pixels were turned upright: orientation 1, with new width and height.

    The reference to the thumbnail, which has the old orientation, is removed.
    """
    changed, quarter = bytearray(with_upright_orientation(block)), orientation_of(block) >= 5
    try:
        first = _first(block)
        struct.pack_into(first.order + first.size, changed, first.next, 0)
        for pointer in (entry for entry in first.entries if entry.tag == _EXIF and quarter):
            sizes = [
                entry for entry in _directory(block, _value(block, pointer)).entries if entry.tag in (_WIDTH, _HEIGHT)
            ]
            if len(sizes) == 2 and all(entry.count == 1 for entry in sizes):
                for entry, other in zip(sizes, reversed(sizes), strict=True):
                    _set(changed, entry, _value(block, other))
    except struct.error:
        return bytes(changed)
    return bytes(changed)


def turn_upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turn stored pixels (H, W, ...) upright."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)


@dataclass(frozen=True)
class _Entry:
    """A tag; `place` is the position of its value, or of the value's offset."""

    tag: int
    kind: int
    count: int
    place: int


@dataclass(frozen=True)
class _Directory:
    """Entries, and the position of the offset of the next directory, in a byte order and size of offsets."""

    entries: tuple[_Entry, ...]
    next: int
    order: str
    size: str


def _first(block: bytes) -> _Directory:
    """Return the directory of the main image.

    Raises:
        struct.error: the block is invalid or truncated.
    """
    order, big = _layout(block)
    return _directory(block, struct.unpack_from(order + ('Q' if big else 'I'), block, 8 if big else 4)[0])


def _layout(block: bytes) -> tuple[str, bool]:
    """Return the byte order, and whether it is a BigTIFF."""
    order = {b'II': '<', b'MM': '>'}.get(block[:2])
    if order is None:
        raise struct.error('no TIFF header')
    magic = struct.unpack_from(order + 'H', block, 2)[0]
    if magic not in (42, 43):
        raise struct.error('no TIFF header')
    return order, magic == 43


def _directory(block: bytes, offset: int) -> _Directory:
    order, big = _layout(block)
    size, count = ('Q', 'Q') if big else ('I', 'H')
    start = offset + struct.calcsize(order + count)
    length = struct.calcsize(f'{order}HH{size}{size}')
    number = min(struct.unpack_from(order + count, block, offset)[0], len(block) // length)
    return _Directory(tuple(_entries(block, start, number, order, size)), start + number * length, order, size)


def _entries(block: bytes, start: int, number: int, order: str, size: str) -> Iterator[_Entry]:
    head = f'{order}HH{size}'
    length = struct.calcsize(head)
    for place in range(start, start + number * (length + struct.calcsize(size)), length + struct.calcsize(size)):
        tag, kind, count = struct.unpack_from(head, block, place)
        yield _Entry(tag, kind, count, place + length)


def _value(block: bytes, entry: _Entry) -> int:
    """Return a whole number that is stored in the entry; 0 for other types of values."""
    kind = _WHOLE_NUMBERS.get(entry.kind)
    return struct.unpack_from(_layout(block)[0] + kind, block, entry.place)[0] if kind else 0


def _set(block: bytearray, entry: _Entry, value: int) -> None:
    kind = _WHOLE_NUMBERS.get(entry.kind)
    if kind:
        struct.pack_into(_layout(bytes(block[:4]))[0] + kind, block, entry.place, value)
