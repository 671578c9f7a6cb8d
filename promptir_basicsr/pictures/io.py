"""Read images of any common format, and write them with their metadata.

`docs/restore.md` lists what is preserved, changed and rejected.
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
    """Read an image file; the content determines its format, not the name.

    Args:
        max_pixels: larger images are rejected before decoding.

    Raises:
        PictureError: it cannot be read, is damaged, too large, not an image, several images, or of an unsupported
            kind.

    Examples:
        >>> from promptir_basicsr.pictures import read_picture
        >>> picture = read_picture('photo.jpg')
        >>> picture.image.shape, picture.image.dtype, picture.format
        ((48, 64, 3), dtype('uint8'), 'JPEG')
    """
    where = f"'{printable(os.fspath(path))}'"
    try:
        with open_regular(path) as stream:
            content = stream.read()
    except OSError as error:
        raise PictureError(f'{where} cannot be read: {error.strerror or error}.') from error
    return decode_picture(content, where, max_pixels)


def decode_picture(content: bytes, where: str = 'the picture', max_pixels: int = MAX_PIXELS) -> Picture:
    """Decode the image in the bytes of a file; `where` is its name in messages.

    Raises:
        PictureError: see `read_picture`.
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
        raise PictureError(f'{where} needs more memory than available.') from error
    except Exception as error:  # decoders raise various errors for damaged files
        raise PictureError(f'{where} is damaged or truncated ({len(content):,} bytes): {first_line(error)}.') from error


def measure_picture(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Return height and width of the upright image from the header of its file; None if the header is not enough."""
    try:
        with open_regular(path) as stream:
            return measure_stream(stream)
    except Exception:  # reading the file will report it
        return None


def measure_stream(stream: BinaryIO) -> tuple[int, int]:
    """Return height and width of the upright image; various exceptions if the header is not enough."""
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
    """Write an image file atomically; creates its folder and replaces an existing file.

    Args:
        kind: one of the values of PICTURE_FORMATS. Default: from the extension of `path`, or the image's own format
            for unknown extensions.

    Raises:
        PictureError: the format cannot store the image.
        OSError: the file could not be written.

    Examples:
        >>> from promptir_basicsr.pictures import Picture, read_picture, write_picture
        >>> write_picture('black.png', Picture(np.zeros((4, 6, 3), np.uint16)))
        >>> read_picture('black.png').image.dtype
        dtype('uint16')
    """
    path = os.fspath(path)
    kind = kind or format_of(path) or picture.format
    content = encode_picture(picture, kind, f"'{printable(path)}'")
    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
    atomic_write(content, path)
