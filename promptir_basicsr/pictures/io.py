"""People's pictures: read from any common file and written back with everything that is not pixels.

What of a file is kept, what is changed and what is refused is listed in `docs/restore.md`.
"""

import os
from typing import BinaryIO

import PIL

from promptir_basicsr.core.files import atomic_write, open_regular
from promptir_basicsr.core.messages import first_line, printable
from promptir_basicsr.core.vocabulary import MAX_PIXELS
from promptir_basicsr.pictures.decode import exif_of, is_heif, open_heif, open_image, read_picture_file, what_it_is
from promptir_basicsr.pictures.encode import encode_picture
from promptir_basicsr.pictures.exif import orientation_of
from promptir_basicsr.pictures.picture import EXTENSIONS, Picture, PictureError, format_of
from promptir_basicsr.pictures.tiff import TIFF_MAGIC, measure_tiff, read_tiff

__all__ = [
    'EXTENSIONS',
    'Picture',
    'PictureError',
    'decode_picture',
    'encode_picture',
    'measure_picture',
    'read_picture',
    'write_picture',
]


def read_picture(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> Picture:
    """Read a file; its content counts, not its name.

    Args:
        max_pixels: a picture of more pixels is refused before it is decoded.

    Raises:
        PictureError: it cannot be read, is damaged, too large, no picture, several pictures, or of a kind that is
            refused.
    """
    where = f"'{printable(os.fspath(path))}'"
    try:
        with open_regular(path) as stream:
            content = stream.read()
    except OSError as error:
        raise PictureError(f'{where} cannot be read: {error.strerror or error}.') from error
    return decode_picture(content, where, max_pixels)


def decode_picture(content: bytes, where: str = 'the picture', max_pixels: int = MAX_PIXELS) -> Picture:
    """The picture in the bytes of a file; `where` is its name in messages.

    Raises:
        PictureError: as of `read_picture`.
    """
    if not content:
        raise PictureError(f'{where} is empty (0 bytes).')
    try:
        read = read_tiff if content[:4] in TIFF_MAGIC else read_picture_file
        return read(content, where, max_pixels)
    except PictureError:
        raise
    except PIL.UnidentifiedImageError as error:
        raise PictureError(f'{where} {what_it_is(content)}') from error
    except MemoryError as error:
        raise PictureError(f'{where} needs more memory than there is.') from error
    except Exception as error:  # decoders meet damage in many ways
        raise PictureError(f'{where} is damaged or cut off ({len(content):,} bytes): {first_line(error)}.') from error


def measure_picture(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Height and width of the upright picture, from the beginning of its file; None where that does not tell."""
    try:
        with open_regular(path) as stream:
            return measure_stream(stream)
    except Exception:  # reading it will tell
        return None


def measure_stream(stream: BinaryIO) -> tuple[int, int]:
    """Height and width of the upright picture; many exceptions mean that its beginning does not tell."""
    start = stream.read(128)
    stream.seek(0)
    if start[:4] in TIFF_MAGIC:
        return measure_tiff(stream)
    if is_heif(start):
        width, height = open_heif(stream.read(), '').size
        return height, width
    with open_image(stream) as file:
        width, height = file.size
        return (width, height) if orientation_of(exif_of(file) or b'') >= 5 else (height, width)


def write_picture(path: str | os.PathLike[str], picture: Picture, kind: str | None = None) -> None:
    """Write a file, whole or not at all; its folder is made. An existing file is replaced.

    Args:
        kind: one of the values of PICTURE_FORMATS. Default: what the extension of `path` says, or the picture's own
            format where that says nothing.

    Raises:
        PictureError: the format cannot hold the picture.
        OSError: the file could not be written.
    """
    path = os.fspath(path)
    kind = kind or format_of(path) or picture.format
    content = encode_picture(picture, kind, f"'{printable(path)}'")
    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
    atomic_write(content, path)
