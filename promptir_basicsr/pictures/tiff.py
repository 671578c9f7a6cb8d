"""TIFF files. No single library reads all kinds: Pillow is used for 8 bits, tifffile and OpenCV for 16."""

import io
import logging
from typing import Any, BinaryIO

import cv2
import numpy as np
import PIL.Image
import tifffile

from promptir_basicsr.pictures.decode import as_bytes, check_pixels, open_image, pixels_of, resolution_of, upright
from promptir_basicsr.pictures.exif import orientation_of, with_upright_orientation
from promptir_basicsr.pictures.picture import Picture, PictureError

logging.getLogger('tifffile').addHandler(logging.NullHandler())  # damage is reported in one message, or not at all

TIFF_MAGIC = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')
_WORDS = (270, 271, 272, 305, 306, 315, 33432)  # description, camera, program, date, artist, copyright


def read_tiff(content: bytes, where: str, most: int) -> Picture:
    """Read a TIFF with one image; other pages may be reduced versions of it."""
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        pages: list[Any] = [page.keyframe for page in file.pages]
        page: Any = file.pages[0]
        if sum(not page.subfiletype & 1 for page in pages) > 1:  # the others are previews
            raise PictureError(f'{where} has {len(pages):,} pages. Use single images.')
        if page.subfiletype & 1:  # like raw files of cameras
            raise PictureError(f'{where} starts with a preview of another image. Use the image itself.')
        check_pixels(page.imagelength, page.imagewidth, where, most)
        _check_tiff(page, where)
        tags = {tag.code: tag.value for tag in page.tags}
        profile: Any = tags.get(34675)
        notes: tuple[str, ...] = ()
        turnable = with_upright_orientation(content)  # Pillow and OpenCV would rotate it, in different ways
        if page.bitspersample == 16:
            pixels = _deep_tiff(page, turnable, where)
        else:
            with open_image(io.BytesIO(turnable), ('TIFF',)) as stored:
                stored.load()
                pixels, profile, notes = pixels_of(stored, where)
    if pixels.shape[:2] != (page.imagelength, page.imagewidth):  # a tag is there twice, and each library takes another
        raise PictureError(f'{where} is damaged: its tags contradict each other.')
    held = pixels.shape[2] if pixels.ndim == 3 else 1
    if page.photometric in (0, 1, 2) and held < page.samplesperpixel:
        notes = (*notes, 'channels without a defined meaning are omitted')
    exif, xmp = _described(content), as_bytes(tags.get(700))
    picture = Picture(pixels, 'TIFF', as_bytes(profile), exif, xmp, _resolution(tags), (), notes)
    return upright(picture, orientation_of(content))


def measure_tiff(stream: BinaryIO) -> tuple[int, int]:
    """Return height and width of the upright image."""
    stream.seek(0)
    with tifffile.TiffFile(stream) as file:
        page: Any = file.pages[0]
        orientation = page.tags[274].value if 274 in page.tags else 1
        height, width = int(page.imagelength), int(page.imagewidth)  # arbitrary in damaged files
    return (width, height) if orientation >= 5 else (height, width)


def tiff_of(picture: Picture) -> bytes:
    """Encode with lossless compression; texts, camera and date of the EXIF block become tags of the file."""
    tags = _tiff_tags(picture)
    if picture.xmp:
        tags.append((700, 1, len(picture.xmp), picture.xmp, True))
    content = io.BytesIO()
    colours = picture.image.ndim == 3 and picture.image.shape[2] >= 3
    more: dict[str, Any] = {'extrasamples': ['unassalpha'], 'planarconfig': 'contig'} if picture.has_alpha else {}
    if picture.dpi:
        more |= {'resolution': picture.dpi, 'resolutionunit': 'INCH'}
    tifffile.imwrite(
        content,
        picture.image,
        photometric='rgb' if colours else 'minisblack',
        compression='zlib',
        predictor=True,
        iccprofile=picture.profile,
        metadata=None,
        software=False,
        extratags=tags,
        **more,
    )
    return content.getvalue()


def _check_tiff(page: Any, where: str) -> None:
    """Reject kinds that cannot be restored."""
    rule = 'only 8-bit and 16-bit grey and RGB images can be restored.'
    if page.sampleformat != 1:
        kind = 'floating-point' if page.sampleformat == 3 else 'signed or complex'
        raise PictureError(f'{where} has {kind} values; {rule}')
    if page.bitspersample not in (1, 2, 4, 8, 16):
        raise PictureError(f'{where} has {page.bitspersample} bits per value; {rule}')
    if page.bitspersample == 16 and (page.photometric not in (0, 1, 2) or page.samplesperpixel > 4):
        kind = getattr(page.photometric, 'name', page.photometric)
        raise PictureError(f'{where} has 16 bits in {page.samplesperpixel} channels of kind {kind}; {rule}')


def _deep_tiff(page: Any, content: bytes, where: str) -> np.ndarray:
    """Return the stored 16-bit pixels."""
    channels, colours = page.samplesperpixel, 3 if page.photometric == 2 else 1
    if channels not in (colours, colours + 1):
        raise PictureError(
            f'{where} has {channels} channels, {colours} of them colours; only one more, alpha, is allowed.'
        )
    if page.compression in (1, 8, 32946):  # none and deflate
        pixels = page.asarray()
        if page.planarconfig == 2 and channels > 1:
            pixels = np.moveaxis(pixels, 0, -1)
        pixels = pixels.reshape(page.imagelength, page.imagewidth, -1)
    elif page.planarconfig == 1 and channels != 2:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
        if pixels is None:
            raise PictureError(f'{where} is damaged or truncated ({len(content):,} bytes).')
        pixels = pixels[..., [2, 1, 0, 3][:channels]] if pixels.ndim == 3 else pixels[..., None]
    else:
        raise PictureError(
            f'{where} has 16 bits, {channels} channels and compression {page.compression.name}, which cannot '
            'be decoded here. Save it without compression or with deflate.'
        )
    pixels = pixels.astype(np.uint16)
    if page.photometric == 0:
        pixels[..., :1] = 65535 - pixels[..., :1]
    if channels > colours and page.extrasamples and page.extrasamples[0] == 1:
        pixels = _freed(pixels)
    return pixels[..., 0] if channels == 1 else pixels


def _freed(pixels: np.ndarray) -> np.ndarray:
    """Divide premultiplied colours by alpha."""
    alpha = pixels[..., -1:].astype(np.float64)
    colours = np.divide(pixels[..., :-1] * 65535.0, alpha, out=np.zeros(pixels[..., :-1].shape), where=alpha > 0)
    return np.concatenate([np.rint(np.minimum(colours, 65535)).astype(np.uint16), pixels[..., -1:]], axis=-1)


def _described(content: bytes) -> bytes | None:
    """Return texts, date, camera and place of a TIFF as an EXIF block, without tags about the storage of pixels."""
    stored, block = PIL.Image.Exif(), PIL.Image.Exif()
    try:
        stored.load(b'Exif\0\0' + content)
        for tag in _WORDS:
            if isinstance(stored.get(tag), str):
                block[tag] = stored[tag]
        for tag in (0x8769, 0x8825):  # camera settings, place
            inner = dict(stored.get_ifd(tag))
            if inner:
                block[tag] = inner
        if not len(block):
            return None
        block[0x0112] = orientation_of(content)
        return block.tobytes().removeprefix(b'Exif\0\0')
    except Exception:  # damage here is no reason to reject the image
        return None


def _resolution(tags: dict[int, Any]) -> tuple[float, float] | None:
    """Return pixels per inch, if the unit is known."""
    per_inch = {2: 1.0, 3: 2.54}.get(tags.get(296, 2), 0.0)  # without a unit only the ratio is known
    try:
        (across, per_across), (down, per_down) = tags[282], tags[283]
        return resolution_of((across / per_across * per_inch, down / per_down * per_inch))
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def _tiff_tags(picture: Picture) -> list[tuple[int, int, int, str | bytes, bool]]:
    if not picture.exif:
        return []
    exif = PIL.Image.Exif()
    exif.load(b'Exif\0\0' + picture.exif)
    return [
        (tag, 2, 0, text, True)
        for tag, text in sorted(exif.items())
        if tag in _WORDS and isinstance(text, str) and text
    ]
