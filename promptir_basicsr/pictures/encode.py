"""Encode images as bytes of a file; `picture` defines the arrays."""

import io
import struct
import zlib
from collections.abc import Iterator

import cv2
import numpy as np
import PIL.Image

from promptir_basicsr.pictures.picture import Picture, PictureError
from promptir_basicsr.pictures.tiff import tiff_of

JPEG_QUALITY = 95
"""Quality from 0 to 100, without chroma subsampling (4:4:4): errors of one or two grey levels, 41 dB."""

_DEEP = ('PNG', 'TIFF', 'PPM')
_ALPHA = ('PNG', 'TIFF', 'WEBP', 'BMP')
_METRE = 0.0254  # metres per inch


def encode_picture(picture: Picture, kind: str, where: str = 'the picture') -> bytes:
    """Return the bytes of a file.

    Args:
        kind: PNG, JPEG, TIFF, WEBP, BMP or PPM.
        where: name of the file in messages.

    Raises:
        PictureError: the format cannot store the image.
    """
    if picture.image.dtype == np.uint16 and kind not in _DEEP:
        raise PictureError(f'{where}: {kind} stores 8 bits, the image has 16. Use one of {", ".join(_DEEP)}.')
    if picture.has_alpha and kind not in _ALPHA:
        raise PictureError(f'{where}: {kind} has no alpha channel, the image has one. Use {", ".join(_ALPHA)}.')
    try:
        return _ENCODERS[kind](picture)
    except (OSError, ValueError, struct.error, cv2.error) as error:
        height, width = picture.size
        raise PictureError(f'{where}: {kind} cannot store the image of {width}x{height} pixels ({error}).') from error


def _png(picture: Picture) -> bytes:
    """Encode a PNG of any depth and channels. Pillow does not support 16-bit colours, OpenCV not grey with alpha."""
    image = picture.image if picture.image.ndim == 3 else picture.image[..., None]
    height, width, channels = image.shape
    depth, colours = 8 * image.itemsize, {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    chunks = [(b'IHDR', struct.pack('>IIBBBBB', width, height, depth, colours, 0, 0, 0))]
    described = [chunk for chunk in picture.chunks if not (picture.profile and chunk[0] in (b'sRGB', b'iCCP'))]
    chunks += [chunk for chunk in described if chunk[0][1:] != b'TXt' and chunk[0] != b'tEXt']
    if picture.profile:
        chunks.append((b'iCCP', b'ICC profile\0\0' + zlib.compress(picture.profile)))
    if picture.dpi:
        chunks.append((b'pHYs', struct.pack('>IIB', *(round(value / _METRE) for value in picture.dpi), 1)))
    if picture.exif:
        chunks.append((b'eXIf', picture.exif))
    if picture.xmp:
        chunks.append((b'iTXt', b'XML:com.adobe.xmp\0\0\0\0\0' + picture.xmp))
    chunks += [chunk for chunk in described if chunk[0] in (b'tEXt', b'zTXt', b'iTXt')]
    chunks += [(b'IDAT', _png_pixels(image)), (b'IEND', b'')]
    return b'\x89PNG\r\n\x1a\n' + b''.join(_chunk(*chunk) for chunk in chunks)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))


def _png_pixels(image: np.ndarray) -> bytes:
    """Filter rows by the Paeth predictor (PNG specification, 9.4), which is best for photographs."""
    height, width, channels = image.shape
    bytes_ = np.ascontiguousarray(image.astype('>u2') if image.itemsize == 2 else image).view(np.uint8)
    step = channels * image.itemsize
    rows = bytes_.reshape(height, width * step)
    compressor = zlib.compressobj(6, strategy=zlib.Z_FILTERED)
    parts = [compressor.compress(block) for block in _filtered(rows, step)]
    return b''.join([*parts, compressor.flush()])


def _filtered(rows: np.ndarray, step: int, at_once: int = 64) -> Iterator[bytes]:
    """Yield blocks of rows, each row preceded by the number of its filter."""
    height, width = rows.shape
    for top in range(0, height, at_once):
        here = rows[top : top + at_once].astype(np.int16)
        around = np.zeros((len(here) + 1, width + step), np.int16)
        around[1:, step:] = here
        if top:
            around[0, step:] = rows[top - 1]
        left, up, corner = around[1:, :-step], around[:-1, step:], around[:-1, :-step]
        to_left, to_up, to_corner = abs(up - corner), abs(left - corner), abs(left + up - 2 * corner)
        guess = np.where((to_left <= to_up) & (to_left <= to_corner), left, np.where(to_up <= to_corner, up, corner))
        block = np.empty((len(here), width + 1), np.uint8)
        block[:, 0] = 4
        block[:, 1:] = here - guess
        yield block.tobytes()


def _jpeg(picture: Picture) -> bytes:
    more = {'exif': b'Exif\0\0' + picture.exif} if picture.exif else {}
    return _by_pillow(
        picture, 'JPEG', quality=JPEG_QUALITY, subsampling=0, dpi=_whole_dpi(picture), **_xmp(picture), **more
    )


def _webp(picture: Picture) -> bytes:
    """Encode lossless WebP: lossy WebP halves the resolution of colours."""
    more = {'exif': picture.exif} if picture.exif else {}
    return _by_pillow(picture, 'WEBP', lossless=True, exact=True, **_xmp(picture), **more)


def _xmp(picture: Picture) -> dict[str, bytes]:
    return {'xmp': picture.xmp} if picture.xmp else {}


def _bmp(picture: Picture) -> bytes:
    if not picture.has_alpha:
        return _by_pillow(picture, 'BMP', dpi=picture.dpi)
    image = picture.image if picture.image.shape[2] == 4 else picture.image[..., [0, 0, 0, 1]]
    return cv2.imencode('.bmp', cv2.cvtColor(image, cv2.COLOR_RGBA2BGRA))[1].tobytes()


def _ppm(picture: Picture) -> bytes:
    image = picture.image
    height, width = picture.size
    kind = 'P5' if image.ndim == 2 else 'P6'
    header = f'{kind}\n{width} {height}\n{np.iinfo(image.dtype).max}\n'
    return header.encode() + image.astype(image.dtype.newbyteorder('>')).tobytes()


def _by_pillow(picture: Picture, kind: str, **options: object) -> bytes:
    content = io.BytesIO()
    given = {name: value for name, value in options.items() if value is not None}
    if kind != 'BMP' and picture.profile:
        given['icc_profile'] = picture.profile
    PIL.Image.fromarray(picture.image).save(content, kind, **given)
    return content.getvalue()


def _whole_dpi(picture: Picture) -> tuple[int, int] | None:
    return (round(picture.dpi[0]), round(picture.dpi[1])) if picture.dpi else None


_ENCODERS = {'PNG': _png, 'JPEG': _jpeg, 'WEBP': _webp, 'BMP': _bmp, 'PPM': _ppm, 'TIFF': tiff_of}
