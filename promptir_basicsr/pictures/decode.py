"""Decode image files to pixels and metadata; TIFF is in `tiff`."""

import io
import re
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, BinaryIO

import cv2
import numpy as np
import PIL.Image
import PIL.ImageCms

from promptir_basicsr.pictures.exif import orientation_of, turn_upright, turned_block
from promptir_basicsr.pictures.picture import UNREAD, Picture, PictureError

READABLE = ('PNG', 'JPEG', 'TIFF', 'WEBP', 'BMP', 'PPM', 'GIF', 'AVIF')
"""Formats by Pillow's names."""

_ALLOWED = 'Allowed: PNG, JPEG, TIFF, WebP, HEIC, AVIF, BMP, PPM, single GIF.'

_FOREIGN = (
    (0, b'#?', 'a Radiance HDR image: its values are floating-point numbers'),
    (0, b'v/1\x01', 'an OpenEXR image: its values are floating-point numbers'),
    (4, b'ftyp', 'a video, or a HEIC or AVIF file that cannot be read here'),
    (0, b'\0\0\0\x0cjP', 'a JPEG 2000 image'),
    (0, b'\xff\x0a', 'a JPEG XL image'),
    (0, b'%PDF', 'a PDF document'),
    (0, b'8BPS', 'a Photoshop document'),
    (0, b'version https://git-lfs', 'a pointer of git LFS; `git lfs pull` fetches the file itself'),
)
_COLOURS = {'1': 'L', 'P': 'RGB', 'PA': 'RGBA', 'RGBX': 'RGB', 'La': 'LA', 'RGBa': 'RGBA', 'YCbCr': 'RGB'}
_PNG_CHUNKS = (b'cHRM', b'gAMA', b'sRGB', b'cICP', b'mDCV', b'cLLI', b'tEXt', b'zTXt', b'iTXt')
_PNM = re.compile(rb'(P[56])(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)\s')


def open_image(stream: BinaryIO, formats: Sequence[str] = READABLE) -> PIL.Image.Image:
    """Open as `PIL.Image.open`, without its process-wide limit; see `check_pixels`."""
    PIL.Image.init()
    start = stream.read(16)
    for name in formats:
        factory, accept = PIL.Image.OPEN[name]
        if accept is None or accept(start) is True:
            stream.seek(0)
            with suppress(SyntaxError, IndexError, TypeError, struct.error):
                return factory(stream, '')
    raise PIL.UnidentifiedImageError('not an image')


def check_pixels(height: int, width: int, where: str, most: int) -> None:
    """Reject an image with too many pixels.

    Raises:
        PictureError: it has too many.
    """
    if height * width > most:
        raise PictureError(
            f'{where} has {width:,}x{height:,} = {height * width:,} pixels; {most:,} are allowed (`--max-pixels` of '
            '`basicsr restore`, `max_pixels` of a data set).'
        )


def is_heif(content: bytes) -> bool:
    """Return whether a file is HEIC or another HEIF, except AVIF."""
    brands = content[8 : min(int.from_bytes(content[:4], 'big'), 128)] if content[4:8] == b'ftyp' else b''
    return b'avi' not in brands and any(brand in brands for brand in (b'hei', b'hev', b'mif1', b'msf1'))


def open_heif(content: bytes, where: str) -> Any:
    """Open as `pillow_heif.HeifFile`, without decoding.

    Raises:
        PictureError: pillow-heif is not installed.
    """
    if 'heic' in UNREAD:
        raise PictureError(f'{where} is a HEIC file. {UNREAD["heic"][1].replace("them", "it")}')
    import pillow_heif

    return pillow_heif.open_heif(io.BytesIO(content), convert_hdr_to_8bit=False)


def _read_heif(content: bytes, where: str, most: int) -> Picture:
    """Read a HEIF file; the decoder turns it upright, regardless of its EXIF block."""
    file = open_heif(content, where)
    check_pixels(file.size[1], file.size[0], where, most)
    image, notes = file[file.primary_index], ('the first of several images in the file',) if len(file) > 1 else ()
    if image.mode.partition(';')[0] not in ('L', 'I', 'LA', 'RGB', 'RGBA'):
        raise PictureError(f'{where} has pixels of the kind {image.mode}; only grey and RGB images can be restored.')
    pixels, bits = np.asarray(image), image.info['bit_depth']
    if pixels.dtype == np.uint16:  # the decoder uses the upper bits
        pixels = _full_range(pixels >> 16 - bits, 2**bits - 1)
    exif = exif_of(image)
    return upright(
        Picture(pixels, 'PNG', image.info.get('icc_profile'), exif, as_bytes(image.info.get('xmp')), notes=notes), 1
    )


def read_picture_file(content: bytes, where: str, most: int) -> Picture:
    """Read the image in any file except TIFF; errors of Pillow are not converted here."""
    if is_heif(content):
        return _read_heif(content, where, most)
    with open_image(io.BytesIO(content)) as file:
        check_pixels(file.height, file.width, where, most)
        kind = file.format
        frames = getattr(file, 'n_frames', 1)
        if frames > 1 and kind != 'MPO':
            raise PictureError(f'{where} is animated: {frames:,} frames. Use single images.')
        file.load()
        notes: tuple[str, ...] = ('the first of several images in the file',) if kind == 'MPO' and frames > 1 else ()
        if _is_deep(content):
            pixels, profile = _deep_pixels(content, file.info.get('transparency'), where), file.info.get('icc_profile')
        else:
            if kind == 'PNG' and content[24:26] in (b'\2\0', b'\4\0') and 'transparency' in file.info:
                file.info['transparency'] *= 255 // (2 ** content[24] - 1)  # for grey Pillow scales only the pixels
            pixels, profile, more = pixels_of(file, where)
            notes += more
        exif, xmp = exif_of(file), file.info.get('xmp')
        dpi = resolution_of(file.info.get('dpi'))
        chunks = _png_chunks(content) if kind == 'PNG' else ()
    kind = {'MPO': 'JPEG', 'GIF': 'PNG', 'AVIF': 'PNG'}.get(str(kind), str(kind))
    picture = Picture(pixels, kind, profile or None, exif, as_bytes(xmp), dpi, chunks, notes)
    return upright(picture, orientation_of(exif or b''))


def pixels_of(file: PIL.Image.Image, where: str) -> tuple[np.ndarray, bytes | None, tuple[str, ...]]:
    """Return the stored pixels, their profile, and notes on changes; the file must be loaded."""
    profile, mode = file.info.get('icc_profile'), file.mode
    if mode == 'CMYK':
        return _from_cmyk(file, profile)
    if mode.startswith('I;16'):
        return np.asarray(file).astype(np.uint16), profile, ()
    if mode in ('F', 'I', 'LAB', 'HSV'):
        told = {'F': 'floating-point', 'I': '32-bit', 'LAB': 'CIE Lab'}.get(mode, mode)
        raise PictureError(f'{where} has {told} values; only 8-bit and 16-bit grey and RGB images can be restored.')
    wanted = _COLOURS.get(mode, mode)
    if 'transparency' in file.info and mode in ('1', 'L', 'P', 'RGB'):
        wanted = {'L': 'LA', 'RGB': 'RGBA'}[wanted]
    return np.asarray(file if wanted == mode else file.convert(wanted)), profile, ()


def _from_cmyk(file: PIL.Image.Image, profile: bytes | None) -> tuple[np.ndarray, bytes | None, tuple[str, ...]]:
    """Convert CMYK to RGB: to sRGB by the profile, or by the plain formula without a working profile."""
    if profile:
        try:
            screen = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile('sRGB'))
            converted = PIL.ImageCms.profileToProfile(
                file,
                PIL.ImageCms.ImageCmsProfile(io.BytesIO(profile)),
                screen,
                renderingIntent=PIL.ImageCms.Intent.RELATIVE_COLORIMETRIC,
                outputMode='RGB',
                flags=PIL.ImageCms.Flags.BLACKPOINTCOMPENSATION,
            )
            assert converted is not None
            return np.asarray(converted), screen.tobytes(), ('CMYK converted to sRGB by its profile',)
        except (PIL.ImageCms.PyCMSError, OSError):
            return (
                np.asarray(file.convert('RGB')),
                None,
                ('CMYK converted to RGB without a profile, because it is damaged',),
            )
    return np.asarray(file.convert('RGB')), None, ('CMYK converted to RGB without a profile',)


def _is_deep(content: bytes) -> bool:
    """Return whether the file has more than 8 bits per value, which Pillow silently rounds to 8."""
    if content[:8] == b'\x89PNG\r\n\x1a\n':
        return content[24:25] == b'\x10'
    if content[4:8] == b'ftyp':
        return _avif_bits(content) > 8
    return content[:2] in (b'P2', b'P3', b'P5', b'P6') and _pnm_most(content) > 255


def _deep_pixels(content: bytes, clear: Any, where: str) -> np.ndarray:
    """Decode 16-bit pixels of a file that Pillow could load; `clear` is the transparent colour of a PNG."""
    if content[:1] == b'P':
        return _deep_pnm(content, where)
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None or pixels.dtype != np.uint16:
        raise PictureError(f'{where} has more than 8 bits and cannot be decoded; it may be damaged.')
    if content[4:8] == b'ftyp':
        pixels = pixels[..., [2, 1, 0, 3][: pixels.shape[2]]] if pixels.ndim == 3 else pixels
        return _full_range(pixels, 2 ** _avif_bits(content) - 1)
    kind = content[25]  # 0 grey, 2 colours, 4 grey and alpha, 6 colours and alpha
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    if kind == 4:  # OpenCV returns three channels and alpha
        return pixels[..., [0, 3]]
    pixels = pixels[..., {0: [0], 2: [2, 1, 0], 6: [2, 1, 0, 3]}[kind]]
    if clear is not None and kind in (0, 2):
        alpha = np.where((pixels == np.uint16(clear)).all(axis=2, keepdims=True), 0, 65535)
        return np.concatenate([pixels, alpha.astype(np.uint16)], axis=2)
    return pixels[..., 0] if kind == 0 else pixels


def _pnm_most(content: bytes) -> int:
    """Return the value of white in a PNM file."""
    fields = re.sub(rb'#[^\n]*\n', b'', content[:4096]).split(maxsplit=4)
    return int(fields[3]) if len(fields) > 3 and fields[3].isdigit() else 0


def _deep_pnm(content: bytes, where: str) -> np.ndarray:
    header = _PNM.match(content)
    if header is None:
        raise PictureError(f'{where} is a text PNM file with 16 bits; only the binary formats P5 and P6 can be read.')
    kind, width, height, most = header[1], int(header[2]), int(header[3]), int(header[4])
    shape = (height, width) if kind == b'P5' else (height, width, 3)
    values = np.frombuffer(content, '>u2', int(np.prod(shape)), header.end()).reshape(shape)
    return _full_range(values.astype(np.uint16), most)


def _full_range(values: np.ndarray, most: int) -> np.ndarray:
    """Scale values from 0 to `most` to 0 to 65535, by a table and in rows: a product would need 4 times the memory."""
    table = np.rint(np.minimum(np.arange(65536), most) * (65535 / most)).astype(np.uint16)
    values = np.ascontiguousarray(values)
    for row in values if most < 65535 else ():
        row[...] = table[row]
    return values


def _avif_bits(content: bytes) -> int:
    """Return the bits per value from the first AV1 configuration of the file."""
    place = content.find(b'av1C') + 6
    return (12 if content[place] & 0x20 else 10) if 6 <= place < len(content) and content[place] & 0x40 else 8


def exif_of(file: Any) -> bytes | None:
    """Return the EXIF block of an image of Pillow or pillow-heif."""
    block = file.info.get('exif')
    return bytes(block).removeprefix(b'Exif\0\0') or None if isinstance(block, bytes) else None


def _png_chunks(content: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """Return chunks that describe the image, without texts that repeat EXIF, XMP or a profile."""
    found, place = [], 8
    while place + 12 <= len(content):
        length, kind = int.from_bytes(content[place : place + 4], 'big'), content[place + 4 : place + 8]
        body = content[place + 8 : place + 8 + length]
        if kind in _PNG_CHUNKS and not body.startswith((b'Raw profile type', b'XML:com.adobe.xmp')):
            found.append((kind, body))
        place += 12 + length
    return tuple(found)


def upright(picture: Picture, orientation: int) -> Picture:
    """Turn an image upright, and update its metadata."""
    dpi = picture.dpi[::-1] if picture.dpi and orientation >= 5 else picture.dpi
    return replace(
        picture,
        image=turn_upright(picture.image, orientation),
        exif=turned_block(picture.exif) if picture.exif else None,
        xmp=re.sub(rb'(tiff:Orientation(?:="|>))\d+', rb'\g<1>1', picture.xmp) if picture.xmp else None,
        dpi=dpi,
    )


def resolution_of(dpi: Any) -> tuple[float, float] | None:
    try:
        across, down = (float(value) for value in dpi)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return (across, down) if 0 < across < 1e6 and 0 < down < 1e6 else None


def as_bytes(value: Any) -> bytes | None:
    if isinstance(value, str):
        return value.encode('utf-8')
    return bytes(value) if isinstance(value, (bytes, tuple, list)) and value else None


def what_it_is(content: bytes) -> str:
    """Describe a file that is not an image."""
    for place, magic, words in _FOREIGN:
        if content[place : place + len(magic)] == magic:
            return f'is {words}. {_ALLOWED}'
    text = not content[:512].translate(None, bytes(range(32, 127)) + b'\t\r\n')
    what = 'text' if text else 'not a readable image, or its header is damaged'
    return f'is {what} ({len(content):,} bytes). {_ALLOWED}'
