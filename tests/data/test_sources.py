"""Image files of every kind, written by Pillow or OpenCV, give the pixels that went in."""

import io
import os
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pillow_heif
import pytest
import skimage.data
from PIL import Image

from promptir_basicsr.checks.images import Wanted, fingerprint, image_size, inspect_image
from promptir_basicsr.core.arrays import to_float
from promptir_basicsr.core.errors import ImageError
from promptir_basicsr.data.allinone_dataset import AllInOneDataset
from promptir_basicsr.data.images import decode
from promptir_basicsr.data.sources import FolderSource, resolve
from promptir_basicsr.pictures.picture import EXTENSIONS


@pytest.fixture(scope='module')
def rgb(photographs) -> np.ndarray:
    return photographs[1][:41, :67]


def by_pillow(image: Image.Image, kind: str, **options) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def by_opencv(bgr: np.ndarray, extension: str) -> bytes:
    return cv2.imencode(extension, bgr)[1].tobytes()


def three(grey: np.ndarray) -> np.ndarray:
    return np.dstack([grey] * 3)


@pytest.mark.parametrize('kind', ['PNG', 'BMP', 'TIFF', 'PPM', 'WEBP'])
def test_colour(kind, rgb) -> None:
    options = {'lossless': True} if kind == 'WEBP' else {}
    decoded = decode(by_pillow(Image.fromarray(rgb), kind, **options), 'x')
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, rgb)


@pytest.mark.parametrize('kind', ['PNG', 'BMP', 'TIFF', 'PPM'])
def test_grey_becomes_three_equal_channels(kind, rgb) -> None:
    grey = rgb[..., 1]
    np.testing.assert_array_equal(decode(by_pillow(Image.fromarray(grey), kind), 'x'), three(grey))


@pytest.mark.parametrize('kind', ['PNG', 'BMP', 'TIFF'])
def test_one_bit(kind, rgb) -> None:
    bits = Image.fromarray(rgb).convert('1')
    np.testing.assert_array_equal(decode(by_pillow(bits, kind), 'x'), three(np.asarray(bits) * np.uint8(255)))


@pytest.mark.parametrize(
    ('kind', 'options'), [('PNG', {}), ('PNG', {'transparency': 3}), ('BMP', {}), ('TIFF', {})], ids=str
)
def test_palette_gives_its_colours(kind, options, rgb) -> None:
    palette = Image.fromarray(rgb).quantize(32)
    decoded = decode(by_pillow(palette, kind, **options), 'x')
    np.testing.assert_array_equal(decoded, np.asarray(palette.convert('RGB')))


@pytest.mark.parametrize('kind', ['PNG', 'BMP', 'WEBP'])
def test_alpha_is_dropped_and_leaves_the_colours_alone(kind, rgb) -> None:
    alpha = np.broadcast_to(np.linspace(0, 255, rgb.shape[1]).astype(np.uint8), rgb.shape[:2])
    options = {'lossless': True, 'exact': True} if kind == 'WEBP' else {}
    content = by_pillow(Image.fromarray(np.dstack([rgb, alpha])), kind, **options)
    np.testing.assert_array_equal(decode(content, 'x'), rgb)


def test_grey_with_alpha(rgb) -> None:
    grey = rgb[..., 0]
    content = by_pillow(Image.fromarray(np.dstack([grey, 255 - grey])), 'PNG')
    np.testing.assert_array_equal(decode(content, 'x'), three(grey))


@pytest.mark.parametrize('extension', ['.png', '.tif', '.ppm'])
def test_16_bit_keeps_all_bits(extension, rgb) -> None:
    deep = rgb.astype(np.uint16) * 251 + 7
    decoded = decode(by_opencv(deep[..., ::-1], extension), 'x')
    assert decoded.dtype == np.uint16
    np.testing.assert_array_equal(decoded, deep)


@pytest.mark.parametrize('kind', ['PNG', 'TIFF'])
def test_16_bit_grey_keeps_all_bits(kind, rgb) -> None:
    deep = rgb[..., 2].astype(np.uint16) * 251 + 7
    np.testing.assert_array_equal(decode(by_pillow(Image.fromarray(deep), kind), 'x'), three(deep))


def test_16_bit_with_alpha(rgb) -> None:
    deep = rgb.astype(np.uint16) * 251 + 7
    bgra = np.dstack([deep[..., ::-1], deep[..., 0]])
    np.testing.assert_array_equal(decode(by_opencv(bgra, '.png'), 'x'), deep)


@pytest.mark.parametrize('subsampling', [0, 1, 2])
@pytest.mark.parametrize('progressive', [False, True])
def test_jpeg_is_decoded_as_by_pillow(subsampling, progressive, photographs) -> None:
    for photograph in photographs:
        for quality in (20, 75, 95):
            content = by_pillow(
                Image.fromarray(photograph[:83, :91]),
                'JPEG',
                quality=quality,
                subsampling=subsampling,
                progressive=progressive,
            )
            assert largest_difference(content) <= 1


def test_released_jpegs_are_decoded_as_by_pillow() -> None:
    photographs = [path for path in resolve('skimage://').iterdir() if path.suffix == '.jpg']
    assert len(photographs) >= 3
    for path in photographs:
        assert largest_difference(path.read_bytes()) <= 1


def largest_difference(content: bytes) -> int:
    """Between this decoder and Pillow, in grey levels. Both are libjpeg-turbo: 0 wherever it was measured."""
    pillow = np.asarray(Image.open(io.BytesIO(content)).convert('RGB'))
    return int(np.abs(decode(content, 'x').astype(int) - pillow).max())


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP'])
@pytest.mark.parametrize('orientation', [3, 6])
def test_exif_orientation_is_ignored(kind, orientation, rgb) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    options = {'JPEG': {'quality': 95}, 'PNG': {}, 'WEBP': {'lossless': True}}[kind]
    turned = by_pillow(Image.fromarray(rgb), kind, exif=exif, **options)
    assert Image.open(io.BytesIO(turned)).getexif()[0x112] == orientation
    np.testing.assert_array_equal(decode(turned, 'x'), decode(by_pillow(Image.fromarray(rgb), kind, **options), 'x'))


# Files that cannot be used


@pytest.mark.parametrize(
    ('content', 'expected'),
    [
        (b'', 'not a readable image (empty file)'),
        (b'<html>404</html>', 'not a readable image (16 bytes)'),
        (b'P6\n40000 40000\n255\n' + bytes(99), 'has 40,000x40,000 = 1,600,000,000 pixels; 178,956,970 are'),
    ],
    ids=['empty', 'a web page', 'larger than is allowed'],
)
def test_no_image(content, expected, tmp_path) -> None:
    path = tmp_path / 'broken.png'
    path.write_bytes(content)
    with pytest.raises(ImageError) as raised:
        FolderSource(tmp_path).open('broken.png').pixels()
    assert str(raised.value).startswith(f'{path}: {expected}')


@pytest.mark.parametrize('name', ['a.png', 'a.jpg', 'a.bmp', 'a.tif', 'a.webp', 'a.heic', 'a.avif', 'a.gif'])
def test_one_limit_of_pixels_for_every_kind(name, rgb, tmp_path) -> None:
    height, width = rgb.shape[:2]
    if name == 'a.heic':
        pillow_heif.from_bytes('RGB', (width, height), rgb.tobytes()).save(tmp_path / name)
    else:
        Image.fromarray(rgb).save(tmp_path / name)
    source = FolderSource(tmp_path)
    assert source.names() == [name]
    source.max_pixels = height * width
    assert source.open(name).pixels().shape == rgb.shape
    source.max_pixels -= 1
    with pytest.raises(ImageError, match=rf'^{tmp_path}/{name}: has .* pixels; .* allowed .*max_pixels. of a data set'):
        source.open(name).pixels()
    with pytest.raises(ImageError, match='allowed'):
        image_size(source, name)


def test_the_limit_is_an_option_of_the_data_set(rgb, tmp_path) -> None:
    Image.fromarray(rgb).save(tmp_path / 'a.png')
    task = {'type': 'denoise', 'clean': str(tmp_path), 'degrade': {'type': 'gaussian_noise', 'sigma': 15}}
    with pytest.raises(ImageError, match=r'a\.png: has .* 10 are allowed'):
        AllInOneDataset({'phase': 'val', 'tasks': [task], 'max_pixels': 10})[0]
    assert AllInOneDataset({'phase': 'val', 'tasks': [task]})[0]['bits'] == 8


def test_what_is_not_read_is_named(rgb, tmp_path, log) -> None:
    Image.fromarray(rgb).save(tmp_path / 'a.png')
    for name in ('b.CR3', 'c.nef', 'd.jxl', 'e.txt', '.f.cr3'):
        (tmp_path / name).touch()
    task = {'type': 'denoise', 'clean': str(tmp_path), 'degrade': {'type': 'gaussian_noise', 'sigma': 15}}
    AllInOneDataset({'phase': 'val', 'tasks': [task]})
    notes = [record.getMessage() for record in log if 'skipped' in record.getMessage()]
    assert notes == [
        f"  Note: '{tmp_path}': 2 camera RAW files skipped. Convert them to PNG or TIFF first.",
        f"  Note: '{tmp_path}': 1 JPEG XL file skipped. Convert them to PNG or TIFF first.",
    ]


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='there are no FIFOs')
def test_a_fifo_is_an_error_and_not_waited_for(tmp_path) -> None:
    os.mkfifo(tmp_path / 'a.png')
    for read in (FolderSource(tmp_path).open, lambda name: image_size(FolderSource(tmp_path), name)):
        with pytest.raises(ImageError, match=r'a\.png: cannot be read \(Not a regular file\)'):
            read('a.png')


def test_a_large_image_is_decoded_and_known_without_a_second_one(tmp_path) -> None:
    image = np.zeros((5000, 5000, 3), np.uint8)
    image[:2500] = 200
    content = cv2.imencode('.png', image)[1].tobytes()
    Path(tmp_path / 'a.png').write_bytes(content)
    tracemalloc.start()
    fact = inspect_image(FolderSource(tmp_path), Wanted(0, 'a.png', True))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert fact.fingerprint == fingerprint(cv2.resize(image, (500, 500), interpolation=cv2.INTER_AREA))
    assert most < 1.5 * image.nbytes


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'BMP', 'TIFF', 'WEBP'])
def test_half_a_file(kind, rgb, tmp_path) -> None:
    content = by_pillow(Image.fromarray(rgb), kind)
    (tmp_path / 'half.png').write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match='not a readable image'):
        FolderSource(tmp_path).open('half.png').pixels()


def test_a_file_that_has_gone(tmp_path) -> None:
    (tmp_path / 'link.png').symlink_to(tmp_path / 'nothing.png')
    source = FolderSource(tmp_path)
    assert source.names() == ['link.png']
    for name in ('link.png', 'never.png'):
        with pytest.raises(ImageError) as raised:
            source.open(name).pixels()
        assert str(raised.value) == f'{tmp_path / name}: cannot be read (No such file or directory).'


@pytest.mark.parametrize('kind', [np.float32, np.int16, np.float64])
def test_pixels_that_are_not_8_or_16_bit_integers(kind, rgb) -> None:
    with pytest.raises(ImageError, match=rf'^x: unsupported pixel type {np.dtype(kind)}\. Convert'):
        decode(by_opencv(rgb.astype(kind), '.tif'), 'x')


# Folders


def test_every_extension_is_listed_in_any_case(tmp_path) -> None:
    names = [f'a.{extension}' for extension in EXTENSIONS] + [f'b.{e.upper()}' for e in EXTENSIONS]
    for name in [*names, 'a.gif', 'a.txt', 'png', 'a.png~']:
        (tmp_path / name).touch()
    assert FolderSource(tmp_path).names() == sorted(names)


def test_names_are_sorted_relative_paths_on_any_file_system(tmp_path) -> None:
    names = ['a/2.png', 'a/10.png', 'b.png', 'B.png', 'a.png', 'ä/ö.png', 'a/b/c.png']
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert FolderSource(tmp_path).names() == sorted(names)


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path) -> None:
    (tmp_path / 'real').mkdir()
    (tmp_path / 'real' / '1.png').touch()
    (tmp_path / 'data').mkdir()
    for name in ('one', 'two'):
        (tmp_path / 'data' / name).symlink_to(tmp_path / 'real')
    (tmp_path / 'data' / 'round').symlink_to(tmp_path / 'data')
    assert FolderSource(tmp_path / 'data').names() == ['one/1.png', 'two/1.png']


def test_paths_of_options(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv('HOME', str(tmp_path))
    assert resolve('a/b') == Path('a/b')
    assert resolve('a/b', '/data') == Path('/data/a/b')
    assert resolve('/a/b', '/data') == Path('/a/b')
    assert resolve('a', '~/data') == tmp_path / 'data' / 'a'
    assert resolve('~/a', '/data') == tmp_path / 'a'
    assert (resolve('skimage://', '/data') / 'chelsea.png').is_file()
    np.testing.assert_array_equal(
        FolderSource(resolve('skimage://')).open('chelsea.png').pixels(), skimage.data.chelsea()
    )


def test_float_images_span_0_to_1() -> None:
    for kind in (np.uint8, np.uint16):
        levels = np.iinfo(kind).max
        image = to_float(np.array([[[0, 1, levels]]], kind))
        assert image.dtype == np.float32
        np.testing.assert_allclose(image, [[[0, 1 / levels, 1]]], rtol=1e-6)


@pytest.mark.skipif(os.name != 'posix', reason='names are bytes on POSIX only')
def test_names_that_are_not_unicode(tmp_path, rgb) -> None:
    path = os.fsencode(tmp_path) + b'/\xb0\xa1.png'
    try:
        Path(os.fsdecode(path)).write_bytes(by_pillow(Image.fromarray(rgb), 'PNG'))
    except OSError:
        pytest.skip('the file system wants Unicode names')
    (name,) = FolderSource(tmp_path).names()
    np.testing.assert_array_equal(FolderSource(tmp_path).open(name).pixels(), rgb)
