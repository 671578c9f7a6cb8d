"""People's pictures: read from any common file and written back with everything that is not pixels.

What of a file is kept, what is changed and what is refused is listed in `docs/restore.md`.
"""

import os
from pathlib import Path

import PIL.Image

from promptir_basicsr.core.files import atomic_write
from promptir_basicsr.core.messages import printable
from promptir_basicsr.pictures.decode import READABLE, exif_of, read_picture_file, what_it_is
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


def read_picture(path: str | os.PathLike[str]) -> Picture:
    """Read a file; its content counts, not its name.

    Raises:
        PictureError: it cannot be read, is damaged, no picture, several pictures, or of a kind that is refused.
    """
    where = f"'{printable(os.fspath(path))}'"
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise PictureError(f'{where} cannot be read: {error.strerror or error}.') from error
    return decode_picture(content, where)


def decode_picture(content: bytes, where: str = 'the picture') -> Picture:
    """The picture in the bytes of a file; `where` is its name in messages.

    Raises:
        PictureError: as of `read_picture`.
    """
    if not content:
        raise PictureError(f'{where} is empty (0 bytes).')
    try:
        return read_tiff(content, where) if content[:4] in TIFF_MAGIC else read_picture_file(content, where)
    except PictureError:
        raise
    except PIL.UnidentifiedImageError as error:
        raise PictureError(f'{where} {what_it_is(content)}') from error
    except PIL.Image.DecompressionBombError as error:
        most = 2 * (PIL.Image.MAX_IMAGE_PIXELS or 0)
        raise PictureError(f'{where} claims more pixels than the {most:,} that are allowed; not read.') from error
    except MemoryError as error:
        raise PictureError(f'{where} needs more memory than there is.') from error
    except Exception as error:  # decoders meet damage in many ways
        reason = printable(str(error).partition('\n')[0] or type(error).__name__)
        raise PictureError(f'{where} is damaged or cut off ({len(content):,} bytes): {reason}.') from error


def measure_picture(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Height and width of the upright picture, from the beginning of its file; None where that does not tell."""
    try:
        with open(path, 'rb') as stream:
            if stream.read(4) in TIFF_MAGIC:
                return measure_tiff(stream)
            stream.seek(0)
            with PIL.Image.open(stream, formats=READABLE) as file:
                width, height = file.size
                return (width, height) if orientation_of(exif_of(file) or b'') >= 5 else (height, width)
    except Exception:  # reading it will tell
        return None


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
