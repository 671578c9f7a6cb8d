"""Every pixel of a file is read as other programs read it, and everything beside the pixels comes back."""

import functools
import io
import struct
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import PIL.ImageCms
import pillow_heif
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageSequence

from promptir_basicsr.core.errors import SaveError
from promptir_basicsr.pictures.encode import encode_picture
from promptir_basicsr.pictures.exif import orientation_of, turned_block
from promptir_basicsr.pictures.io import decode_picture, measure_picture, read_picture, write_picture
from promptir_basicsr.pictures.picture import Picture, PictureError
from tests.pictures.picture_files import (
    by_opencv,
    by_pillow,
    chunk,
    cmyk_profile,
    exif,
    opencv_pixels,
    photograph,
    png,
    turned,
)

XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6" dc:title="t"/></x:xmpmeta>'


def tiff(image: np.ndarray, **options) -> bytes:
    content = io.BytesIO()
    tifffile.imwrite(content, image, **{'photometric': 'rgb' if image.ndim == 3 else 'minisblack', **options})
    return content.getvalue()


def pnm(image: np.ndarray, most: int, kind: bytes = b'P6') -> bytes:
    height, width = image.shape[:2]
    pixels = image.astype('>u2') if most > 255 else image.astype(np.uint8)
    return b'%s\n# made here\n%d %d\n%d\n' % (kind, width, height, most) + pixels.tobytes()


@functools.cache
def profile() -> bytes:
    """Made once: it has the second in which it was made."""
    return PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile('sRGB')).tobytes()


# reading: pixels


def lossless() -> dict[str, tuple[bytes, np.ndarray]]:
    """Files, and what is in them."""
    files = {}
    for channels in (1, 2, 3, 4):
        for depth in (8, 16):
            image = photograph(channels=channels, depth=depth)
            files[f'png {channels} {depth}'] = (png(image), image)
            options = {'extrasamples': ['unassalpha'], 'planarconfig': 'contig'} if channels in (2, 4) else {}
            options['photometric'] = 'rgb' if channels > 2 else 'minisblack'
            for compression in (None, 'zlib'):
                content = tiff(image, compression=compression, **options)
                files[f'tiff {channels} {depth} {compression}'] = (content, image)
            if channels != 2:
                files[f'tiff {channels} {depth} lzw'] = (by_opencv(image, '.tif'), image)
                files[f'png {channels} {depth} opencv'] = (by_opencv(image, '.png'), image)
    eight, deep = photograph(), photograph(depth=16)
    grey, deep_grey = photograph(channels=1), photograph(channels=1, depth=16)
    apart = {'planarconfig': 'separate'}
    files |= {
        'tiff planes 8': (tiff(np.moveaxis(eight, 2, 0).copy(), **apart), eight),
        'tiff planes 16': (tiff(np.moveaxis(deep, 2, 0).copy(), **apart), deep),
        'tiff tiles': (tiff(deep, tile=(16, 16)), deep),
        'tiff big-endian': (tiff(deep, byteorder='>'), deep),
        'bigtiff': (tiff(deep, bigtiff=True), deep),
        'tiff white is zero': (tiff(255 - grey, photometric='miniswhite'), grey),
        'tiff white is zero 16': (tiff(65535 - deep_grey, photometric='miniswhite'), deep_grey),
        'tiff packbits': (by_pillow(eight, 'TIFF', compression='packbits'), eight),
        'webp': (by_pillow(eight, 'WEBP', lossless=True), eight),
        'webp alpha': (by_pillow(photograph(channels=4), 'WEBP', lossless=True, exact=True), photograph(channels=4)),
        'bmp': (by_pillow(eight, 'BMP'), eight),
        'bmp grey': (by_pillow(grey, 'BMP'), grey),
        'bmp alpha': (by_opencv(photograph(channels=4), '.bmp'), photograph(channels=4)),
        'ppm': (pnm(eight, 255), eight),
        'ppm 16': (pnm(deep, 65535), deep),
        'pgm': (pnm(grey, 255, b'P5'), grey),
        'pgm 16': (pnm(deep_grey, 65535, b'P5'), deep_grey),
        'ppm 10 bits': (pnm(deep >> 6, 1023), np.rint((deep >> 6) * (65535 / 1023)).astype(np.uint16)),
        'gif': (by_pillow(grey, 'GIF'), np.dstack([grey] * 3)),
    }
    return files


LOSSLESS = lossless()


@pytest.mark.parametrize('name', LOSSLESS)
def test_pixels_are_read_exactly(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    content, image = LOSSLESS[name]
    picture = decode_picture(content)
    assert picture.image.dtype == image.dtype
    np.testing.assert_array_equal(picture.image, image)
    assert picture.notes == ()
    said = capfd.readouterr()
    assert said.out == ''
    if name != 'tiff 4 16 lzw':  # OpenCV writes it without saying what the fourth channel is, and reads it with a word
        assert said.err == ''


@pytest.mark.parametrize('mode', ['RGB', 'L'])
@pytest.mark.parametrize('options', [{'quality': 30}, {'quality': 95, 'progressive': True}, {'subsampling': 0}])
def test_a_jpeg_is_read_as_opencv_reads_it(mode: str, options: dict[str, int]) -> None:
    content = by_pillow(photograph(), 'JPEG', mode, **options)
    picture = decode_picture(content)
    np.testing.assert_array_equal(picture.image, opencv_pixels(content))
    assert picture.format == 'JPEG'


@pytest.mark.parametrize('bits', [1, 2, 4, 8])
def test_a_palette_becomes_its_colours(bits: int) -> None:
    draw = np.random.default_rng(bits)
    numbers = draw.integers(0, 2**bits, (9, 13))
    palette = draw.integers(0, 256, (2**bits, 3), dtype=np.uint8)
    colours = (b'PLTE', palette.tobytes())
    picture = decode_picture(png(numbers, colours, colours=3, bits=bits))
    np.testing.assert_array_equal(picture.image, palette[numbers])
    one_clear = np.where(np.arange(2**bits) == 1, 0, 255).astype(np.uint8)
    for clear in (draw.integers(0, 256, 2**bits, dtype=np.uint8), one_clear):
        picture = decode_picture(png(numbers, colours, (b'tRNS', clear.tobytes()), colours=3, bits=bits))
        np.testing.assert_array_equal(picture.image, np.dstack([palette[numbers], clear[numbers]]))


@pytest.mark.parametrize('bits', [1, 2, 4])
def test_few_bits_of_grey_become_eight(bits: int) -> None:
    numbers = np.random.default_rng(bits).integers(0, 2**bits, (9, 13))
    picture = decode_picture(png(numbers, colours=0, bits=bits))
    np.testing.assert_array_equal(picture.image, numbers * 255 // (2**bits - 1))
    assert picture.image.dtype == np.uint8


@pytest.mark.parametrize('bits', [1, 2, 4])
def test_a_transparent_value_of_few_bits_becomes_alpha(bits: int) -> None:
    numbers = np.random.default_rng(bits).integers(0, 2**bits, (9, 13))
    picture = decode_picture(png(numbers, (b'tRNS', struct.pack('>H', 1)), colours=0, bits=bits))
    np.testing.assert_array_equal(picture.image[..., 0], numbers * 255 // (2**bits - 1))
    np.testing.assert_array_equal(picture.image[..., 1], np.where(numbers == 1, 0, 255))


@pytest.mark.parametrize(('channels', 'depth'), [(1, 8), (3, 8), (1, 16), (3, 16)])
def test_a_transparent_colour_becomes_alpha(channels: int, depth: int) -> None:
    image = photograph(channels=channels, depth=depth)
    image[5:9, 5:9] = image[3, 3]
    key = np.atleast_1d(image[3, 3])
    picture = decode_picture(png(image, (b'tRNS', key.astype('>u2').tobytes())))
    hidden = (image.reshape(37, 50, -1) == key).all(axis=2)
    assert hidden.sum() >= 17
    np.testing.assert_array_equal(picture.image[..., :-1], image.reshape(37, 50, -1))
    np.testing.assert_array_equal(picture.image[..., -1], np.where(hidden, 0, 2**depth - 1))


def test_premultiplied_alpha_is_divided_out() -> None:
    image = photograph(channels=4, depth=16)
    image[..., 3] |= 0x8000
    stored = image.copy()
    stored[..., :3] = np.rint(image[..., :3] * (image[..., 3:] / 65535))
    picture = decode_picture(tiff(stored, extrasamples=['assocalpha']))
    assert abs(picture.image.astype(int) - image).max() <= 1
    np.testing.assert_array_equal(picture.image[..., 3], image[..., 3])


def test_cmyk_without_a_profile() -> None:
    content = by_pillow(photograph(), 'JPEG', 'CMYK', quality=95)
    picture = decode_picture(content)
    inks = np.asarray(Image.open(io.BytesIO(content))).astype(float)
    expected = (255 - inks[..., :3]) * (255 - inks[..., 3:]) / 255
    assert abs(picture.image - expected).max() <= 1
    assert picture.notes == ('CMYK converted to RGB without a profile',)
    assert (picture.format, picture.profile) == ('JPEG', None)


@pytest.mark.parametrize('kind', ['JPEG', 'TIFF'])
def test_cmyk_by_its_profile(kind: str) -> None:
    inks = np.zeros((16, 32, 4), np.uint8)
    inks[:, 8:16, 3] = 255
    inks[:, 16:, 0] = 255
    content = io.BytesIO()
    Image.fromarray(inks, 'CMYK').save(
        content, kind, icc_profile=cmyk_profile(), **({'quality': 100} if kind == 'JPEG' else {})
    )
    picture = decode_picture(content.getvalue())
    assert picture.notes == ('CMYK converted to sRGB by its profile',)
    assert picture.image.shape == (16, 32, 3)
    paper, black, cyan = (picture.image[8, column].astype(int) for column in (2, 12, 24))
    assert paper.min() > 250
    assert black.max() < 5
    assert cyan[2] - cyan[0] > 20  # a dark blue; plainly it would be (0, 255, 255)
    assert cyan[1] < 90
    assert 'sRGB' in PIL.ImageCms.getProfileDescription(PIL.ImageCms.ImageCmsProfile(io.BytesIO(picture.profile)))


def test_a_damaged_ink_profile_is_reported() -> None:
    picture = decode_picture(by_pillow(photograph(), 'JPEG', 'CMYK', icc_profile=profile()))
    assert picture.notes == ('CMYK converted to RGB without a profile, because it is damaged',)
    assert picture.profile is None


# reading: which way up


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('order', ['<', '>'])
@pytest.mark.parametrize('name', ['jpeg', 'png', 'png 16', 'webp', 'tiff', 'tiff 16', 'tiff 16 lzw', 'bigtiff'])
def test_a_picture_is_turned_upright_once(name: str, order: str, orientation: int, tmp_path: Path) -> None:
    depth = 16 if '16' in name or name == 'bigtiff' else 8
    image, block = photograph(depth=depth), exif(orientation, order)
    tags = {'extratags': [(274, 'H', 1, orientation, True)], 'byteorder': order}
    content = {
        'jpeg': lambda: by_pillow(image, 'JPEG', exif=b'Exif\0\0' + block),
        'png': lambda: png(image, (b'eXIf', block)),
        'png 16': lambda: png(image, (b'eXIf', block)),
        'webp': lambda: by_pillow(image, 'WEBP', lossless=True, exif=block),
        'tiff': lambda: tiff(image, **tags),
        'tiff 16': lambda: tiff(image, compression='zlib', **tags),
        'tiff 16 lzw': lambda: with_tag(by_opencv(image, '.tif'), 274, orientation),
        'bigtiff': lambda: tiff(image, bigtiff=True, **tags),
    }[name]()
    stored = opencv_pixels(content) if name == 'jpeg' else image
    picture = decode_picture(content)
    np.testing.assert_array_equal(picture.image, turned(stored, orientation))
    path = tmp_path / 'x'
    path.write_bytes(content)
    assert measure_picture(path) == picture.size
    again = decode_picture(encode_picture(picture, picture.format))
    assert again.size == picture.size
    if name != 'jpeg':
        np.testing.assert_array_equal(again.image, picture.image)
    assert orientation_of(picture.exif or b'') == 1


def with_tag(content: bytes, tag: int, value: int) -> bytes:
    """A small TIFF with a short tag in place of RowsPerStrip's neighbour that nothing needs."""
    offset = struct.unpack_from('<I', content, 4)[0]
    count = struct.unpack_from('<H', content, offset)[0]
    places = [offset + 2 + 12 * number for number in range(count)]
    entries = [content[place : place + 12] for place in places]
    entries.append(struct.pack('<HHIHH', tag, 3, 1, value, 0))
    entries.sort(key=lambda entry: struct.unpack_from('<H', entry)[0])
    moved = content + struct.pack('<H', count + 1) + b''.join(entries) + bytes(4)
    return moved[:4] + struct.pack('<I', len(content)) + moved[8:]


@pytest.mark.parametrize('order', ['<', '>'])
@pytest.mark.parametrize('orientation', [1, 3, 6])
def test_the_rest_of_exif_stays(orientation: int, order: str) -> None:
    block = exif(orientation, order)
    changed = turned_block(block)
    assert len(changed) == len(block)
    before, after = Image.Exif(), Image.Exif()
    before.load(b'Exif\0\0' + block)
    after.load(b'Exif\0\0' + changed)
    assert (after[0x0112], after[0x010F]) == (1, 'Makers of cameras')
    old, new = before.get_ifd(0x8769), after.get_ifd(0x8769)
    assert (new[0xA002], new[0xA003]) == ((37, 50) if orientation == 6 else (50, 37))
    assert {tag: old[tag] for tag in (0x927C, 0x9003)} == {tag: new[tag] for tag in (0x927C, 0x9003)}


def test_camera_settings_of_a_tiff_are_known_to_other_formats() -> None:
    content = io.BytesIO()
    block = Image.Exif()
    block.load(b'Exif\0\0' + exif(6))
    Image.fromarray(photograph()).save(content, 'TIFF', exif=block)
    with Image.open(io.BytesIO(encode_picture(decode_picture(content.getvalue()), 'JPEG'))) as file:
        found = file.getexif()
        assert (found[0x0112], found[0x010F]) == (1, 'Makers of cameras')
        inner = found.get_ifd(0x8769)
        assert (inner[0xA002], inner[0xA003], inner[0x9003]) == (37, 50, '2020:02:03 04:05:06')


def test_the_thumbnail_of_the_picture_before_is_let_go() -> None:
    small = by_pillow(photograph(12, 16), 'JPEG')
    block = exif(1)
    offset = struct.unpack_from('<I', block, 4)[0]
    entries = struct.unpack_from('<H', block, offset)[0]
    inner = struct.pack('<HHHIIHHII', 2, 0x0201, 4, 1, len(block) + 30, 0x0202, 4, 1, len(small)) + bytes(4)
    with_small = bytearray(block + inner + small)
    struct.pack_into('<I', with_small, offset + 2 + 12 * entries, len(block))
    loaded = Image.Exif()
    loaded.load(b'Exif\0\0' + bytes(with_small))
    assert loaded.get_ifd(ExifTags.IFD.IFD1)[0x0202] == len(small)  # as Pillow sees it before
    loaded.load(b'Exif\0\0' + turned_block(bytes(with_small)))
    assert dict(loaded.get_ifd(ExifTags.IFD.IFD1)) == {}


@pytest.mark.parametrize('block', [b'', b'II', b'II*\0\xff\xff\xff\xff', b'MM\0*\0\0\0\x08\xff\xff', b'x' * 50])
def test_a_damaged_block_turns_nothing(block: bytes) -> None:
    assert orientation_of(block) == 1
    assert len(turned_block(block)) == len(block)


@given(st.binary(max_size=60))
def test_any_block(block: bytes) -> None:
    assert orientation_of(b'II*\0\x08\0\0\0' + block) in range(1, 9)
    assert len(turned_block(b'MM\0*\0\0\0\x08' + block)) == len(block) + 8


# what comes back


FORMATS = {'PNG': (8, 16), 'TIFF': (8, 16), 'WEBP': (8,), 'BMP': (8,), 'PPM': (8, 16)}


WRITTEN = [
    (kind, depth, channels)
    for kind, depths in FORMATS.items()
    for depth in depths
    for channels in ((1, 3) if kind == 'PPM' else (1, 2, 3, 4))
]


@pytest.mark.parametrize(('kind', 'depth', 'channels'), WRITTEN)
def test_what_is_written_is_read_by_others(kind: str, depth: int, channels: int) -> None:
    image = photograph(61, 47, channels, depth)
    content = encode_picture(Picture(image), kind)
    grey_lost = (kind, channels) in (('WEBP', 1), ('WEBP', 2), ('BMP', 2))  # these have no grey, or none with alpha
    if depth == 8:
        seen = np.asarray(Image.open(io.BytesIO(content)))
    elif channels == 2 and kind == 'TIFF':
        seen = tifffile.imread(io.BytesIO(content))
    else:
        seen = opencv_pixels(content)
    if grey_lost or (channels == 2 and seen.shape[2] == 4):  # as OpenCV shows grey with alpha
        assert (seen[..., 0] == seen[..., 1]).all()
        assert (seen[..., 0] == seen[..., 2]).all()
        seen = seen[..., 0] if channels == 1 else seen[..., [0, 3]]
    assert seen.dtype == image.dtype
    np.testing.assert_array_equal(seen, image)
    if not grey_lost:
        np.testing.assert_array_equal(decode_picture(content).image, image)


def test_a_jpeg_is_written_at_95_without_halving_colours() -> None:
    image = photograph(64, 64)
    content = encode_picture(Picture(image), 'JPEG')
    with Image.open(io.BytesIO(content)) as file:
        assert file.layer[0][1:3] == file.layer[1][1:3] == (1, 1)
        assert file.quantization == Image.open(io.BytesIO(by_pillow(image, 'JPEG', quality=95))).quantization
    assert abs(opencv_pixels(content).astype(int) - image).mean() < 2.5


@pytest.mark.parametrize('size', [(1, 1), (1, 200), (200, 1), (65, 3), (64, 64), (129, 67)])
@pytest.mark.parametrize('depth', [8, 16])
def test_png_rows_of_any_number(size: tuple[int, int], depth: int) -> None:
    draw = np.random.default_rng(0)
    image = draw.integers(0, 2**depth, (*size, 3)).astype(np.uint16 if depth == 16 else np.uint8)
    np.testing.assert_array_equal(opencv_pixels(encode_picture(Picture(image), 'PNG')), image)


def described(kind: str) -> bytes:
    image, block = photograph(), exif(6)
    with_all = {'icc_profile': profile(), 'dpi': (300, 150)}
    if kind == 'PNG':
        density = struct.pack('>IIB', round(300 / 0.0254), round(150 / 0.0254), 1)
        by_others = by_pillow(image, 'PNG', icc_profile=profile())
        icc = by_others[by_others.index(b'iCCP') - 4 :]
        icc = icc[8 : 8 + struct.unpack_from('>I', icc)[0]]
        text = (b'iTXt', b'XML:com.adobe.xmp\0\0\0\0\0' + XMP)
        words = (b'tEXt', b'Author\0somebody')
        return png(image, (b'iCCP', icc), (b'pHYs', density), (b'eXIf', block), text, words)
    if kind == 'TIFF':
        return tiff(
            image,
            iccprofile=profile(),
            resolution=(300, 150),
            resolutionunit='INCH',
            metadata=None,
            extratags=[
                (274, 'H', 1, 6, True),
                (271, 's', 0, 'Makers of cameras', True),
                (700, 'B', len(XMP), XMP, True),
            ],
        )
    return by_pillow(image, kind, xmp=XMP, exif=b'Exif\0\0' + block, **with_all)


@pytest.mark.parametrize('target', ['PNG', 'JPEG', 'TIFF', 'WEBP'])
@pytest.mark.parametrize('source', ['PNG', 'JPEG', 'TIFF', 'WEBP'])
def test_image_metadata_is_preserved(source: str, target: str) -> None:
    content = encode_picture(decode_picture(described(source)), target)
    with Image.open(io.BytesIO(content)) as file:
        file.load()
        assert file.size == (37, 50)
        assert file.info['icc_profile'] == profile()
        block = file.getexif()
        assert block.get(0x0112, 1) == 1
        assert block[0x010F] == 'Makers of cameras'
        if 'WEBP' not in (source, target):  # which has no resolution
            assert tuple(float(value) for value in file.info['dpi']) == pytest.approx((150, 300), abs=0.02)
        xmp = file.info['xmp']
        assert b'tiff:Orientation="1" dc:title="t"' in (xmp if isinstance(xmp, bytes) else xmp.encode())
        if 'TIFF' not in (source, target):
            inner = block.get_ifd(0x8769)
            assert (inner[0x927C], inner[0xA002]) == (b'NOTE\0\1\2\3 with offsets', 37)
        if source == target == 'PNG':
            assert file.info['Author'] == 'somebody'


def test_how_a_png_means_its_colours_comes_back() -> None:
    chunks = [(b'gAMA', struct.pack('>I', 45455)), (b'cHRM', struct.pack('>8I', *range(30000, 38000, 1000)))]
    content = encode_picture(decode_picture(png(photograph(depth=16), *chunks)), 'PNG')
    assert all(chunk(*one) in content for one in chunks)


# what is refused


def animated(kind: str) -> bytes:
    content = io.BytesIO()
    frames = [Image.fromarray(photograph() // number) for number in (1, 2, 3)]
    frames[0].save(content, kind, save_all=True, append_images=frames[1:])
    return content.getvalue()


FLOATS = photograph().astype(np.float32) / 255
EIGHT = 'RGB images can be restored'
REFUSED = {
    'gif': (lambda: animated('GIF'), 'is animated: 3 frames. Use single images'),
    'apng': (lambda: animated('PNG'), 'is animated: 3 frames'),
    'webp': (lambda: animated('WEBP'), 'is animated: 3 frames'),
    'pages': (lambda: animated('TIFF'), 'has 3 pages. Use single images'),
    'empty': (lambda: b'', r'is empty \(0 bytes\)'),
    'text': (lambda: b'hello, this is text', 'is text'),
    'bytes': (lambda: bytes(range(256)), 'is not a readable image'),
    'float': (lambda: tiff(FLOATS), f'has floating-point values; .*{EIGHT}'),
    'float grey': (lambda: tiff(FLOATS[..., 0]), 'has floating-point values'),
    'half': (lambda: tiff(FLOATS.astype(np.float16)), 'has floating-point values'),
    'signed': (lambda: tiff(photograph().astype(np.int16)), 'has signed or complex values'),
    '32 bits': (lambda: tiff(photograph().astype(np.uint32)), f'has 32 bits per value; .*{EIGHT}'),
    'inks 16': (lambda: tiff(photograph(channels=4, depth=16), photometric='separated'), 'SEPARATED'),
    'preview': (lambda: tiff(photograph(), subfiletype=1), 'starts with a preview of another image'),
    'five channels': (lambda: tiff(np.dstack([photograph(depth=16)] * 2)), 'has 16 bits in 6 channels'),
    'text of 16 bits': (lambda: b'P3\n1 1\n65535\n1 2 3\n', 'only the binary formats'),
    'hdr': (lambda: cv2.imencode('.hdr', FLOATS)[1].tobytes(), 'is a Radiance HDR image: .*floating-point'),
    'exr': (lambda: b'v/1\x01' + bytes(50), 'is an OpenEXR image'),
    'video': (lambda: b'\0\0\0\x18ftypisom' + bytes(50), 'is a video, or a HEIC or AVIF file that cannot be read'),
    'heic': (lambda: b'\0\0\0\x18ftypheic' + bytes(50), 'is damaged or truncated'),
    'lfs': (lambda: b'version https://git-lfs.github.com/spec/v1\n', 'git lfs pull'),
    'bomb': (lambda: png_of_size(60000, 60000), 'has 60,000x60,000 = .* pixels; 178,956,970 are'),
    'tiff bomb': (lambda: tiff_of_size(60000, 60000), 'has 60,000x60,000 = .* pixels; 178,956,970 are'),
}


def png_of_size(width: int, height: int) -> bytes:
    content = png(photograph())
    return content[:8] + chunk(b'IHDR', struct.pack('>II', width, height) + content[24:29]) + content[33:]


def tiff_of_size(width: int, height: int) -> bytes:
    content = bytearray(by_opencv(photograph(depth=16), '.tif'))
    offset = struct.unpack_from('<I', content, 4)[0]
    for number in range(struct.unpack_from('<H', content, offset)[0]):
        place = offset + 2 + 12 * number
        tag = struct.unpack_from('<H', content, place)[0]
        if tag in (256, 257):
            struct.pack_into('<HI I', content, place + 2, 4, 1, width if tag == 256 else height)
    return bytes(content)


@pytest.mark.parametrize('name', REFUSED)
def test_what_cannot_be_restored_is_refused_in_words(name: str, tmp_path: Path, capfd) -> None:
    make, words = REFUSED[name]
    (tmp_path / 'odd\nname.png').write_bytes(make())
    with pytest.raises(PictureError, match=rf"(?s)^'{tmp_path}/odd\\nname\.png' .*{words}") as refused:
        read_picture(tmp_path / 'odd\nname.png')
    assert '\n' not in str(refused.value)
    assert capfd.readouterr() == ('', '')


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"x\.png' cannot be read: No such file"):
        read_picture(tmp_path / 'x.png')
    with pytest.raises(PictureError, match='cannot be read: Is a directory'):
        read_picture(tmp_path)
    assert measure_picture(tmp_path) is None


def heic(image: np.ndarray, mode: str, **options) -> bytes:
    content = io.BytesIO()
    pillow_heif.from_bytes(mode, image.shape[1::-1], image.tobytes()).save(content, quality=-1, chroma=444, **options)
    return content.getvalue()


@pytest.mark.parametrize(('channels', 'mode'), [(1, 'L'), (3, 'RGB'), (4, 'RGBA')])
@pytest.mark.parametrize('depth', [8, 16])
def test_heic(channels: int, mode: str, depth: int) -> None:
    """To within what the conversion to YCbCr costs; of 16 bits the encoder keeps 10."""
    image = photograph(64, 96, channels, depth)
    picture = decode_picture(heic(image, mode + ';16' * (depth == 16), exif=b'Exif\0\0' + exif(1)))
    assert (picture.image.dtype, picture.image.shape, picture.format) == (image.dtype, image.shape, 'PNG')
    assert np.abs(picture.image.astype(float) - image).max() <= (4 if depth == 8 else 4 * 65535 / 1023)
    assert b'Makers of cameras' in (picture.exif or b'')


def test_white_of_heic_and_avif_is_white() -> None:
    white = np.full((64, 64, 3), 65535, np.uint16)
    stored = cv2.imencode('.avif', white >> 6, [cv2.IMWRITE_AVIF_DEPTH, 10])[1].tobytes()
    for content in (heic(white, 'RGB;16'), stored):
        image = decode_picture(content).image
        assert image.dtype == np.uint16
        assert image.max() == 65535
        assert image.min() > 65535 * 0.995


@pytest.mark.parametrize('orientation', range(1, 9))
def test_heic_and_avif_are_turned_once(orientation: int, tmp_path: Path) -> None:
    image = photograph(64, 96)
    other = Image.Exif()
    other[0x0112] = orientation
    (tmp_path / 'turned.heic').write_bytes(heic(image, 'RGB', exif=other.tobytes()))
    Image.fromarray(image).save(tmp_path / 'turned.avif', quality=100, subsampling='4:4:4', exif=other)
    for name in ('turned.heic', 'turned.avif'):
        read = read_picture(tmp_path / name)
        expected = turned(image, orientation)
        assert measure_picture(tmp_path / name) == read.size == expected.shape[:2]
        assert np.abs(read.image.astype(int) - expected).mean() < 3
        assert orientation_of(read.exif or b'') == 1


def test_without_the_extra_heic_is_named_with_what_to_install(tmp_path: Path) -> None:
    """In a process that does not find the library."""
    (tmp_path / 'a.heic').write_bytes(heic(photograph(64, 96), 'RGB'))
    code = """if True:
        import importlib.util as util
        find = util.find_spec
        util.find_spec = lambda name, *more: None if name == 'pillow_heif' else find(name, *more)
        from promptir_basicsr.pictures.io import read_picture
        from promptir_basicsr.pictures.picture import EXTENSIONS, unread_pictures
        assert 'heic' not in EXTENSIONS
        print(*unread_pictures(['x/1.HEIC', '2.heif', '3.png']))
        try:
            read_picture('a.heic')
        except ValueError as error:
            print(error)
    """
    said = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == [
        "2 HEIC files skipped. To read them: pip install 'promptir_basicsr[heif]'",
        "'a.heic' is a HEIC file. To read it: pip install 'promptir_basicsr[heif]'",
    ]


@pytest.mark.parametrize('part', [0.1, 0.5, 0.9])
@pytest.mark.parametrize(
    'name',
    [
        'png 3 8',
        'png 3 16',
        'png 1 16',
        'tiff 3 8 zlib',
        'tiff 3 16 zlib',
        'tiff 3 16 lzw',
        'webp',
        'bmp',
        'ppm',
        'ppm 16',
    ],
)
def test_a_file_that_was_cut_off(name: str, part: float) -> None:
    content = LOSSLESS[name][0]
    with pytest.raises(PictureError, match=r'^the picture (is damaged|is not a readable image|claims|has|is a)'):
        decode_picture(content[: int(part * len(content))])


@pytest.mark.parametrize('part', [0.3, 0.6, 0.95])
def test_a_jpeg_that_was_cut_off(part: float) -> None:
    content = by_pillow(photograph(200, 200), 'JPEG')
    with pytest.raises(PictureError, match=r'is damaged or truncated \([\d,]+ bytes\): image file is truncated'):
        decode_picture(content[: int(part * len(content))])


def test_a_tiff_whose_height_is_there_twice_is_damaged() -> None:
    """tifffile reads the first of the two tags, and Pillow, which would give one row, the last."""
    content = bytearray(tiff(photograph(40, 37)))
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        compression = file.pages[0].tags[259].offset  # its value is 1
    struct.pack_into('<H', content, compression, 257)
    with pytest.raises(PictureError, match='is damaged: its tags contradict each other'):
        decode_picture(bytes(content))


def test_previews_and_second_views_are_not_pages() -> None:
    content = io.BytesIO()
    with tifffile.TiffWriter(content) as file:
        file.write(photograph(), photometric='rgb')
        file.write(photograph(9, 9), photometric='rgb', subfiletype=1)
    np.testing.assert_array_equal(decode_picture(content.getvalue()).image, photograph())
    content = io.BytesIO()
    Image.fromarray(photograph()).save(content, 'MPO', save_all=True, append_images=[Image.fromarray(photograph())])
    picture = decode_picture(content.getvalue())
    assert picture.notes == ('the first of several images in the file',)
    assert (picture.format, picture.size) == ('JPEG', (37, 50))
    with Image.open(io.BytesIO(encode_picture(picture, 'JPEG'))) as file:
        assert len(list(ImageSequence.Iterator(file))) == 1


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.data_too_large])
@given(st.data())
def test_whatever_bytes_are_wrong(data: st.DataObject) -> None:
    """A picture or a PictureError, and nothing else."""
    files = [content for content, _ in LOSSLESS.values()] + [by_pillow(photograph(), 'JPEG', exif=exif(6))]
    content = bytearray(data.draw(st.sampled_from(files)))
    for _ in range(data.draw(st.integers(1, 4))):
        head = data.draw(st.booleans())
        content[data.draw(st.integers(0, min(len(content), 200 if head else len(content)) - 1))] = data.draw(
            st.integers(0, 255)
        )
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        size = measure_picture(file.name)
    assert size is None or [type(side) for side in size] == [int, int]
    with suppress(PictureError):
        picture = decode_picture(bytes(content))
        assert picture.image.dtype in (np.uint8, np.uint16)
        assert picture.image.ndim in (2, 3)


# files


@pytest.mark.parametrize(
    ('image', 'name', 'words'),
    [
        (photograph(depth=16), 'x.jpg', 'JPEG stores 8 bits, the image has 16. Use one of PNG, TIFF, PPM'),
        (photograph(channels=4), 'x.jpg', 'JPEG has no alpha channel'),
        (photograph(depth=16), 'x.webp', 'WEBP stores 8 bits'),
        (photograph(channels=2), 'x.ppm', 'PPM has no alpha channel'),
        (np.zeros((1, 16384, 3), np.uint8), 'x.webp', 'WEBP cannot store the image of 16384x1 pixels'),
    ],
)
def test_a_format_that_cannot_hold_a_picture(image: np.ndarray, name: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=words):
        write_picture(tmp_path / name, Picture(image))
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_written_by_its_extension(tmp_path: Path) -> None:
    picture = Picture(photograph(), 'BMP')
    for name, kind in {'a.PNG': 'PNG', 'sub/b.jpeg': 'JPEG', 'c.tif': 'TIFF', 'd.xyz': 'BMP', 'e': 'BMP'}.items():
        write_picture(tmp_path / name, picture)
        assert Image.open(tmp_path / name).format == kind
    write_picture(tmp_path / 'f.jpg', picture, 'PNG')
    assert Image.open(tmp_path / 'f.jpg').format == 'PNG'


def test_the_longest_names_and_other_files_in_the_folder(tmp_path: Path) -> None:
    path, beside = tmp_path / f'{"a" * 251}.png', tmp_path / 'b.png.tmp'
    beside.write_bytes(b'mine')
    write_picture(path, Picture(photograph()))
    write_picture(tmp_path / 'b.png', Picture(photograph()))
    assert beside.read_bytes() == b'mine'
    assert path.stat().st_mode == (tmp_path / 'b.png').stat().st_mode == beside.stat().st_mode


def test_a_disk_without_room_leaves_what_was_there(tmp_path: Path) -> None:
    resource = pytest.importorskip('resource', reason='limits the size of files')
    path = tmp_path / 'x.png'
    path.write_bytes(b'before')
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        with pytest.raises(SaveError, match='could not be written: File too large'):
            write_picture(path, Picture(image))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == b'before'
    assert list(tmp_path.iterdir()) == [path]
