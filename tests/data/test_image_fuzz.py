"""Whatever stands in an image file: pixels of the size that it tells, or an error that names it; for data sets and for
pictures that are restored. Memory stays below twice what the file claims to hold, or 1 GB.

Files are made from photographs and then damaged in every way that disks, networks and people have. 300 of them in the
ordinary tests, 20,000 with `-m slow`.
"""

import functools
import io
import os
import re
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import pillow_heif
import pytest
import skimage.data
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from promptir_basicsr.checks.images import ImageFacts, Wanted, image_size, inspect_image
from promptir_basicsr.core.errors import ImageError
from promptir_basicsr.data.images import EncodedImage, decode, read_header
from promptir_basicsr.data.sources import FolderSource
from promptir_basicsr.pictures.io import decode_picture, measure_picture
from promptir_basicsr.pictures.picture import PictureError

LONGEST = 20.0  # seconds of the processor for one file; the largest that OpenCV decodes at all takes some
SIZES = (0, 1, 2, 7, 8, 255, 256, 4095, 4096, 16384, 23170, 30000, 32767, 32768, 65500, 65535, 65536, 2**24, 2**31 - 1)


def saved(image: np.ndarray, kind: str, mode: str = 'RGB', **options: Any) -> bytes:
    content = io.BytesIO()
    PIL.Image.fromarray(image).convert(mode).save(content, kind, **options)
    return content.getvalue()


def heic(image: np.ndarray, **options: Any) -> bytes:
    content = io.BytesIO()
    kind = 'RGB;16' if image.dtype == np.uint16 else 'RGB'
    pillow_heif.from_bytes(kind, image.shape[1::-1], image.tobytes()).save(content, **options)
    return content.getvalue()


def cv_saved(image: np.ndarray, extension: str, *options: int) -> bytes:
    return cv2.imencode(extension, image[..., ::-1], options)[1].tobytes()


@functools.cache
def files() -> dict[str, bytes]:
    """Whole files of all kinds; the name tells the kind."""
    cat = skimage.data.chelsea()[60:157, 110:231]
    small, deep = cat[:40, :37], cat[:40, :37].astype(np.uint16) * 251 + 7
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned
    return {
        'baseline.jpg': saved(cat, 'JPEG', quality=90),
        'progressive.jpg': saved(cat, 'JPEG', quality=50, progressive=True),
        'full colour.jpg': saved(cat, 'JPEG', quality=95, subsampling=0, exif=exif),
        'restart.jpg': cv_saved(cat, '.jpg', cv2.IMWRITE_JPEG_RST_INTERVAL, 3),
        'grey.jpg': saved(cat, 'JPEG', 'L'),
        'cmyk.jpg': saved(cat, 'JPEG', 'CMYK'),
        'rgb.png': saved(cat, 'PNG'),
        'stored.png': saved(small, 'PNG', compress_level=0),
        'alpha.png': saved(small, 'PNG', 'RGBA'),
        'palette.png': saved(small, 'PNG', 'P'),
        'bits.png': saved(small, 'PNG', '1'),
        'deep.png': cv_saved(deep, '.png'),
        'animated.png': saved(small, 'PNG', save_all=True, append_images=[PIL.Image.fromarray(255 - small)]),
        'rgb.bmp': saved(cat, 'BMP'),
        'palette.bmp': saved(small, 'BMP', 'P'),
        'raw.tif': saved(small, 'TIFF'),
        'lzw.tif': saved(cat, 'TIFF', compression='tiff_lzw'),
        'jpeg.tif': saved(cat, 'TIFF', compression='jpeg'),
        'deep.tif': cv_saved(deep, '.tif'),
        'alpha.tif': saved(small, 'TIFF', 'RGBA'),
        'lossy.webp': saved(cat, 'WEBP', quality=70),
        'lossless.webp': saved(small, 'WEBP', lossless=True),
        'alpha.webp': saved(small, 'WEBP', 'RGBA', quality=60),
        'colour.ppm': saved(small, 'PPM'),
        'single.gif': saved(small, 'GIF'),
        'rgb.heic': heic(cat, quality=80),
        'deep.heic': heic(deep, quality=90),
        'turned.heic': heic(cat[:64, :96], quality=50, exif=exif.tobytes()),
        'rgb.avif': saved(cat, 'AVIF', quality=80),
        'deep.avif': cv_saved(deep >> 6, '.avif', cv2.IMWRITE_AVIF_DEPTH, 10, cv2.IMWRITE_AVIF_SPEED, 10),
        'grey.avif': saved(small, 'AVIF', 'L', exif=exif, speed=10),
    }


def cut(content: bytes, draw: Callable[..., Any]) -> bytes:
    return content[: draw(st.integers(0, len(content)))]


def flipped(content: bytes, draw: Callable[..., Any]) -> bytes:
    """Other bytes at a few places, or a single bit, most often near the beginning."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 6))):
        reach = draw(st.sampled_from([32, 64, 256, len(content)]))
        place = draw(st.integers(0, max(0, min(reach, len(content)) - 1)))
        if place < len(changed):
            changed[place] ^= draw(st.sampled_from([1, 2, 4, 8, 16, 32, 64, 128]) | st.integers(1, 255))
    return bytes(changed)


def zeroed(content: bytes, draw: Callable[..., Any]) -> bytes:
    """A range of zeros (or ones, or blanks), as a lost block of a disk."""
    start = draw(st.integers(0, len(content)))
    length = draw(st.sampled_from([1, 4, 512, 4096]) | st.integers(0, len(content)))
    fill = draw(st.sampled_from([b'\0', b'\xff', b' ']))
    return content[:start] + fill * len(content[start : start + length]) + content[start + length :]


def garbage(content: bytes, draw: Callable[..., Any]) -> bytes:
    """Something else before, within or behind; or the file twice, or another file behind it."""
    other = draw(st.binary(max_size=64) | st.sampled_from(sorted(files().values(), key=len)))
    place = draw(st.sampled_from([0, len(content)]) | st.integers(0, len(content)))
    return content[:place] + other + content[place:]


def moved(content: bytes, draw: Callable[..., Any]) -> bytes:
    """A piece is missing, doubled, or stands elsewhere."""
    start, stop = sorted(draw(st.integers(0, len(content))) for _ in range(2))
    kind = draw(st.sampled_from(['missing', 'doubled', 'elsewhere']))
    piece, rest = content[start:stop], content[:start] + content[stop:]
    if kind == 'missing':
        return rest
    place = stop if kind == 'doubled' else draw(st.integers(0, len(rest)))
    return content[:place] + piece + content[place:] if kind == 'doubled' else rest[:place] + piece + rest[place:]


def lying(content: bytes, draw: Callable[..., Any]) -> bytes:
    """Another height or width where the file tells them, and checksums to match."""
    changed = bytearray(content)
    sides = st.sampled_from(SIZES) | st.integers(1, 300)
    height, width = draw(sides), draw(sides)
    which = draw(st.sampled_from(['height', 'width', 'both']))
    place, form = size_place(content)
    if place is None or place + 2 * struct.calcsize(form) > len(content):
        return flipped(content, draw)
    limit = 256 ** struct.calcsize(form) - 1
    sides_now = list(struct.unpack_from(form[0] + form[1] * 2, content, place))
    first_is_width = form[1:] in ('I', 'i') or form == '<H'
    for side, value in (('height', height), ('width', width)):
        if which in (side, 'both'):
            sides_now[(side == 'height') == first_is_width] = min(value, limit >> (form[1] == 'i'))
    struct.pack_into(form[0] + form[1] * 2, changed, place, *sides_now)
    if content[:4] == b'\x89PNG' and len(changed) >= 33:
        struct.pack_into('>I', changed, 29, zlib.crc32(changed[12:29]))
    return bytes(changed)


def size_place(content: bytes) -> tuple[int | None, str]:
    """Where the two sides stand in a file, and how they are written."""
    if content[:4] == b'\x89PNG':
        return 16, '>I'  # width, height
    if content[:2] == b'\xff\xd8':
        header = read_header(content)
        return (header.place if header else None), '>H'  # height, width
    if content[:2] == b'BM':
        return 18, '<i'  # width, height
    if content[:4] == b'RIFF' and content[12:16] == b'VP8 ':
        return 26, '<H'  # width, height
    return None, '>H'


def renamed(content: bytes, draw: Callable[..., Any]) -> bytes:
    """As it is; the name that it gets is drawn elsewhere."""
    return content


DAMAGES = (cut, flipped, flipped, zeroed, garbage, moved, lying, lying, renamed)


@st.composite
def damaged(draw: Callable[..., Any]) -> tuple[str, bytes]:
    """A name and a file with up to three damages."""
    name = draw(st.sampled_from(sorted(files())))
    content = files()[name]
    for damage in draw(st.lists(st.sampled_from(DAMAGES), min_size=1, max_size=3)):
        content = damage(content, draw)
    if draw(st.integers(0, 3)) == 0:
        name = draw(st.sampled_from(['a.png', 'a.jpg', 'a.bmp', 'a.tiff', 'a.webp', 'a.pgm', 'ä ö.JPEG']))
    return name, content


BOXES = st.tuples(*(st.floats(0, 1) for _ in range(4)))


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FolderSource]:
    """An empty folder; decoders keep quiet."""
    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    yield FolderSource(tmp_path_factory.mktemp('damaged'))
    cv2.utils.logging.setLogLevel(level)


def attempt(read: Callable[[], Any], where: str) -> Any:
    """What it gives, or None for an ImageError, which has to name the file."""
    try:
        return read()
    except ImageError as error:
        message = str(error)
        assert message.startswith(f'{where}: '), message
        assert '\n' not in message
        return None


def hold(source: FolderSource, name: str, content: bytes, box: tuple[float, ...]) -> None:
    """The promise."""
    began = time.process_time()
    path = Path(source.where(name))
    path.write_bytes(content)
    where = str(path)
    header = read_header(content)

    size = attempt(lambda: source.open(name).size, where)
    with memory(content):
        whole = attempt(lambda: source.open(name).pixels(), where)
    with memory(content):
        hold_picture(path, content)
    if whole is not None:
        assert whole.dtype in (np.uint8, np.uint16)
        assert whole.shape == (*size, 3)
        np.testing.assert_array_equal(whole, decode(content, where))
    if header is not None:
        assert size is None or size == (header.height, header.width)

    if size is not None and min(size) > 0:
        top, left = (int(place * (side - 1)) for place, side in zip(box, size, strict=False))
        height, width = (1 + int(part * min(63, side - 1)) for part, side in zip(box[2:], size, strict=True))
        height, width = min(height, size[0] - top), min(width, size[1] - left)
        crop = attempt(lambda: EncodedImage(content, where).crop(top, left, height, width), where)
        if crop is not None:
            assert crop.shape == (height, width, 3)
        if crop is not None and whole is not None:
            np.testing.assert_array_equal(crop, whole[top : top + height, left : left + width])

    told = attempt(lambda: image_size(source, name), where)
    facts = inspect_image(source, Wanted(0, name, True))
    assert (facts.size is None) == (whole is None) == bool(facts.problem)
    if whole is not None:
        assert facts == ImageFacts(whole.shape[:2], '', facts.fingerprint)
        assert told == whole.shape[:2]
    quick = inspect_image(source, Wanted(0, name, False), decode=False)
    assert quick.size == told
    assert bool(quick.problem) == (told is None)
    os.remove(path)
    assert time.process_time() - began < LONGEST


def hold_picture(path: Path, content: bytes) -> None:
    """The promise to those who restore pictures."""
    size = measure_picture(path)
    try:
        picture = decode_picture(content, f"'{path}'")
    except PictureError as error:
        told = str(error)
    else:
        assert picture.image.dtype in (np.uint8, np.uint16)
        assert size in (picture.size, None)
        return
    assert told.startswith(f"'{path}' ")
    assert told.isprintable()


@contextmanager
def memory(content: bytes) -> Iterator[None]:
    """Reading takes less than twice what the file claims to hold, or 1 GB."""
    clear = Path('/proc/self/clear_refs')
    if not clear.exists():  # Linux alone tells
        yield
        return
    clear.write_text('5')
    before = resident('VmRSS')
    yield
    try:
        with PIL.Image.open(io.BytesIO(content)) as image:
            claim = image.width * image.height * 3
    except Exception:
        claim = 0
    assert resident('VmHWM') - before < max(2 * claim, 10**9)


def resident(field: str) -> int:
    """Bytes of this process: now (VmRSS), and at most (VmHWM) since that was last set back."""
    found = re.search(rf'{field}:\s+(\d+) kB', Path('/proc/self/status').read_text())
    assert found is not None
    return 1024 * int(found[1])


def examples(number: int) -> Callable[..., Any]:
    return settings(
        max_examples=number, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )


@pytest.mark.parametrize('name', sorted(files()))
def test_whole_files(name: str, folder: FolderSource) -> None:
    hold(folder, name, files()[name], (0.2, 0.3, 0.4, 0.5))
    assert decode(files()[name], name).std() > 10


@examples(300)
@given(file=damaged(), box=BOXES)
def test_damaged_files(file: tuple[str, bytes], box: tuple[float, ...], folder: FolderSource) -> None:
    hold(folder, *file, box)


@pytest.mark.slow
@examples(20_000)
@given(file=damaged(), box=BOXES)
def test_many_damaged_files(file: tuple[str, bytes], box: tuple[float, ...], folder: FolderSource) -> None:
    hold(folder, *file, box)


def test_a_size_that_no_file_of_this_length_can_have() -> None:
    """Decoders fill in what a JPEG lacks: gigabytes of grey for a few kilobytes."""
    content = files()['baseline.jpg']
    header = read_header(content)
    assert header is not None
    lie = bytearray(content)
    struct.pack_into('>HH', lie, header.place, 30000, 30000)
    with pytest.raises(ImageError, match=r'a\.jpg: not a readable image'):
        decode(bytes(lie), 'a.jpg')
    flat = np.full((4200, 4200, 3), 127, np.uint8)  # nothing can be packed better
    for whole in (saved(flat, 'JPEG', quality=5, progressive=True), saved(flat, 'PNG', '1', compress_level=9)):
        assert decode(whole, 'flat').shape == flat.shape


def test_no_memory_is_allocated_for_the_claimed_size_of_a_png_chunk() -> None:
    """OpenCV takes as much as the length of a chunk says; Pillow does not."""
    content = files()['stored.png']
    for place in (33, content.index(b'IDAT') - 4, content.index(b'IEND') - 4):
        lie = content[:place] + struct.pack('>I', 3_070_000_000) + content[place + 4 :]
        with memory(lie), pytest.raises(ImageError, match=r'a\.png: not a readable image'):
            decode(lie, 'a.png')


def test_a_damaged_animation_gives_no_rows_that_were_never_read() -> None:
    content = files()['animated.png']
    place = content.index(b'IDAT') + 2000
    with pytest.raises(ImageError, match=r'a\.png: not a readable image'):
        decode(content[:place] + b'\0' * 40 + content[place + 40 :], 'a.png')
    np.testing.assert_array_equal(decode(content, 'a.png'), skimage.data.chelsea()[60:100, 110:147])
