"""Reading stored images: size, pixels and crops.

Pixels are (H, W, 3) RGB arrays, uint8 [0, 255] or uint16 [0, 65535].
"""

import io
import struct
import zlib
from collections.abc import Sequence
from typing import BinaryIO

import cv2
import numpy as np
import PIL.Image

from promptir_basicsr.core.errors import ImageError
from promptir_basicsr.core.vocabulary import MAX_PIXELS
from promptir_basicsr.pictures.decode import check_pixels, open_image
from promptir_basicsr.pictures.io import decode_picture, measure_stream
from promptir_basicsr.pictures.picture import PictureError
from promptir_basicsr.pictures.tiff import TIFF_MAGIC

_READ = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
_MARGIN = 16  # rows below a crop that the colour upsampling of a JPEG may read
_WORTHWHILE = 0.85  # of the rows; above, OpenCV decodes the whole image as fast
_LARGE = 1 << 25  # pixels; Pillow warns about larger images
_STRIP = 1024  # rows
_MOST_A_BYTE = (1024, 8256)  # pixels per byte of a JPEG and of a PNG; deflate expands a byte to at most 1032


class PixelImage:
    """An image whose pixels are in memory, or memory-mapped."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self._array.shape[0], self._array.shape[1]

    def pixels(self) -> np.ndarray:
        """The whole image. Read only."""
        return self._array

    def crop(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """An area of the image. Read only."""
        return self._array[top : top + height, left : left + width]


class EncodedImage:
    """An image file in memory.

    Args:
        content: the file.
        where: its name in messages.
        max_pixels: largest number of pixels to decode.

    Raises:
        ImageError: the image has more than `max_pixels`.
    """

    def __init__(self, content: bytes, where: str, max_pixels: int = MAX_PIXELS) -> None:
        self._content, self._where, self._max_pixels = content, where, max_pixels
        self._array: np.ndarray | None = None
        self._header = read_header(content)
        if self._header is not None:
            check_size((self._header.height, self._header.width), where, max_pixels)

    @property
    def content(self) -> bytes:
        """The file."""
        return self._content

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        if self._header is None:
            return self.pixels().shape[0], self.pixels().shape[1]
        return self._header.height, self._header.width

    def pixels(self) -> np.ndarray:
        """The whole image, see `decode`."""
        if self._array is None:
            self._array = decode(self._content, self._where, self._max_pixels)
        return self._array

    def crop(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """An area of the image, with the same pixels as in the whole image; decodes only the rows it needs."""
        rows = top + height + _MARGIN
        header = self._header
        if self._array is None and header is not None and header.partial and rows < _WORTHWHILE * header.height:
            return _decode_rows(self._content, header, rows, (left, top, left + width, top + height), self._where)
        return self.pixels()[top : top + height, left : left + width]


class Header:
    """Header of a JPEG or PNG file.

    Attributes:
        height, width: in pixels.
        place: offset of the height in the file.
        partial: whether the upper rows can be decoded alone: three channels of 8 bits, not interlaced.
    """

    __slots__ = ('height', 'partial', 'place', 'png', 'width')

    def __init__(self, height: int, width: int, place: int, partial: bool, png: bool) -> None:
        self.height, self.width, self.place, self.png = height, width, place, png
        self.partial = partial and height * width < _LARGE

    def exceeds(self, length: int) -> bool:
        """Whether there are more pixels than a file of this length can contain; decoders would fill them in."""
        return self.height * self.width > max(_LARGE / 2, _MOST_A_BYTE[self.png] * length)

    def cut(self, content: bytes, rows: int) -> bytes:
        """The same file with fewer rows in its header."""
        changed = bytearray(content)
        if self.png:
            struct.pack_into('>I', changed, self.place, rows)
            struct.pack_into('>I', changed, 29, zlib.crc32(changed[12:29]))
        else:
            struct.pack_into('>H', changed, self.place, rows)
        return bytes(changed)


def read_header(content: bytes) -> Header | None:
    """Read the header of a JPEG or PNG; None for other files and for damaged headers."""
    if content[:8] == b'\x89PNG\r\n\x1a\n' and content[12:16] == b'IHDR' and len(content) > 33:
        width, height, depth, colour, _, _, interlace = struct.unpack_from('>IIBBBBB', content, 16)
        return Header(height, width, 20, (depth, colour, interlace) == (8, 2, 0), png=True)
    if content[:2] != b'\xff\xd8':
        return None
    place = 2
    while place + 10 <= len(content) and content[place] == 0xFF:
        marker = content[place + 1]
        if marker == 0xFF:  # padding
            place += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # start of frame
            depth, height, width, channels = struct.unpack_from('>BHHB', content, place + 4)
            kind = marker in (0xC0, 0xC1, 0xC2)  # Huffman-coded, sequential or progressive
            return Header(height, width, place + 5, kind and (depth, channels) == (8, 3), png=False) if height else None
        else:
            place += 2 + int(struct.unpack_from('>H', content, place + 2)[0])
    return None


def _decode_rows(content: bytes, header: Header, rows: int, box: tuple[int, int, int, int], where: str) -> np.ndarray:
    """Decode an area of the upper `rows`; Pillow ignores the data after them."""
    try:
        with PIL.Image.open(io.BytesIO(header.cut(content, rows)), formats=('JPEG', 'PNG')) as image:
            if image.mode == 'RGB':
                return np.asarray(image.crop(box))
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's errors about damaged files
        raise _unreadable(content, where) from error
    left, top, right, bottom = box
    return decode(content, where)[top:bottom, left:right]


def check_size(size: tuple[int, int], where: str, max_pixels: int) -> None:
    """Check the number of pixels of an image (height, width).

    Raises:
        ImageError: the image has more than `max_pixels`.
    """
    try:
        check_pixels(*size, f'{where}:', max_pixels)
    except PictureError as error:
        raise ImageError(str(error)) from error


def decode(content: bytes, where: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode an image file to (H, W, 3) RGB, uint8 [0, 255] or uint16 [0, 65535].

    Grey becomes three equal channels, a palette its colours, an alpha channel is dropped, EXIF orientation is ignored
    (both images of a pair are used as stored, as in the published pipelines). TIFF is an exception: OpenCV applies its
    orientation tag and multiplies the colours by a separate (unassociated) 8-bit alpha channel. HEIC, AVIF and GIF are
    read as by `read_picture`: upright, and no animations.

    Raises:
        ImageError: not an image, more than `max_pixels`, or beyond OpenCV's limits; the message contains `where`.
    """
    if content[4:8] == b'ftyp' or content[:4] == b'GIF8':
        return _by_pictures(content, where, max_pixels)
    header = read_header(content)
    if header is not None and header.exceeds(len(content)):
        raise _unreadable(content, where)
    if size := (header.height, header.width) if header else measured(io.BytesIO(content)):
        check_size(size, where, max_pixels)
    whole = _still(content) if header is not None and header.png else content
    try:
        image = cv2.imdecode(np.frombuffer(whole, np.uint8), _READ) if whole else None
    except cv2.error as error:  # more pixels than OpenCV allows
        raise ImageError(f'{where}: OpenCV refuses the image ({error.err}).') from error
    if image is None:
        raise _unreadable(content, where)
    if image.dtype not in (np.uint8, np.uint16):
        raise ImageError(f'{where}: unsupported pixel type {image.dtype}. Convert it to 8-bit or 16-bit integers.')
    for top in range(0, len(image), _STRIP):  # in place, because memory may not suffice for a second image
        strip = image[top : top + _STRIP]
        cv2.cvtColor(strip, cv2.COLOR_BGR2RGB, dst=strip)
    return image


def _by_pictures(content: bytes, where: str, max_pixels: int) -> np.ndarray:
    try:
        image = decode_picture(content, f'{where}:', max_pixels).image
    except PictureError as error:
        raise ImageError(str(error)) from error
    channels = image.reshape(*image.shape[:2], -1)
    return channels[..., [0, 0, 0] if channels.shape[2] < 3 else [0, 1, 2]]


def measured(stream: BinaryIO) -> tuple[int, int] | None:
    """Height and width as after `decode`, from the header of a file that Pillow supports; else None."""
    try:
        start = stream.read(8)
        stream.seek(0)
        if start[:4] in TIFF_MAGIC or start[4:] == b'ftyp':
            return measure_stream(stream)
        with open_image(stream) as image:
            return image.height, image.width
    except Exception:  # OpenCV supports more formats and decides in the end
        return None


def _still(content: bytes) -> bytes:
    """Remove the animation of a PNG; b'' if a chunk claims to be longer than the file.

    OpenCV allocates the claimed length before it reads, which may be gigabytes for a few hundred bytes. For damaged
    animations, OpenCV's animation reader returns uninitialised rows.
    """
    parts, place, animated, pixels = [content[:8]], 8, False, False
    while place + 8 <= len(content):
        length, kind = struct.unpack_from('>I4s', content, place)
        if length > len(content):
            return b''
        pixels |= kind == b'IDAT'
        animated |= kind == b'acTL' and not pixels
        if kind == b'IEND':
            break
        stop = place + 12 + length
        if kind not in (b'acTL', b'fcTL', b'fdAT'):
            parts.append(content[place:stop])
        place = stop
    return b''.join([*parts, content[place:]]) if animated else content


def _unreadable(content: bytes, where: str) -> ImageError:
    size = f'{len(content):,} bytes' if content else 'empty file'
    return ImageError(f'{where}: not a readable image ({size}). Replace the file, or remove it from the list.')


def centre_area(size: Sequence[int], multiple: int) -> tuple[int, int, int, int]:
    """Top, left, height and width of the central area whose sides are multiples.

    A side shorter than one multiple is kept.
    """
    height, width = (side - side % multiple if side >= multiple else side for side in size)
    return (size[0] - height) // 2, (size[1] - width) // 2, height, width


def without_border(size: tuple[int, int], border: int) -> tuple[int, int]:
    """Height and width without a border of some pixels at each side; at least 0."""
    return max(0, size[0] - 2 * border), max(0, size[1] - 2 * border)


def centre_crop(image: np.ndarray, multiple: int) -> np.ndarray:
    """Crop at the centre to sides that are multiples, see `centre_area`."""
    top, left, height, width = centre_area(image.shape[:2], multiple)
    return image[top : top + height, left : left + width]


def reflect_to(image: np.ndarray, size: int) -> np.ndarray:
    """Pad an image by reflection at the right and bottom until both sides are at least `size`."""
    missing = [(0, max(0, size - side)) for side in image.shape[:2]]
    return np.pad(image, [*missing, (0, 0)], mode='reflect')


def flip_rotate(image: np.ndarray, mode: int) -> np.ndarray:
    """Apply one of the eight flips and rotations of a square.

    Bits of mode: 1 horizontal flip, 2 vertical flip, 4 then a rotation by 90 degrees, counter-clockwise. Returns a
    contiguous copy.
    """
    if mode & 4:  # a rotation is a transposition and then a vertical flip
        image = cv2.transpose(image)
        mode = (mode & 1) << 1 ^ 2 | (mode & 2) >> 1
    if mode & 3:
        return cv2.flip(image, {1: 1, 2: 0, 3: -1}[mode & 3])
    return np.ascontiguousarray(image)
