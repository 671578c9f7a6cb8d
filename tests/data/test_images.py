"""A crop of a stored image is the very pixels of the whole, however little of the file is decoded."""

import io
import pickle

import cv2
import numpy as np
import pytest
import skimage.data
from PIL import Image

from promptir_basicsr.core.errors import ImageError
from promptir_basicsr.data import images
from promptir_basicsr.data.images import EncodedImage, PixelImage, decode, read_header


@pytest.fixture(scope='module')
def coffee() -> np.ndarray:
    return skimage.data.coffee()[:203, :171]


def encoded(image: np.ndarray, kind: str, **options) -> bytes:
    content = io.BytesIO()
    Image.fromarray(image).save(content, kind, **options)
    return content.getvalue()


def cv_encoded(image: np.ndarray, extension: str, *options: int) -> bytes:
    return cv2.imencode(extension, image[..., ::-1], options)[1].tobytes()


JPEGS = [
    {'subsampling': sampling, 'quality': quality, 'progressive': progressive}
    for sampling in (0, 1, 2)
    for quality, progressive in ((95, False), (40, True))
]


@pytest.fixture
def decoded_rows(monkeypatch) -> list[int]:
    """How many rows each partial decoding was told to take."""
    rows: list[int] = []
    original = images.Header.cut
    monkeypatch.setattr(images.Header, 'cut', lambda self, content, n: rows.append(n) or original(self, content, n))
    return rows


def assert_crops_are_exact(content: bytes) -> None:
    whole = decode(content, 'x')
    height, width = whole.shape[:2]
    for top in (0, 1, 7, 15, 16, 33, 64, 100, height - 40):
        for left in (0, 13, width - 40):
            crop = EncodedImage(content, 'x').crop(top, left, 40, 40)
            np.testing.assert_array_equal(crop, whole[top : top + 40, left : left + 40])
            assert crop.dtype == whole.dtype


@pytest.mark.parametrize('options', JPEGS, ids=str)
def test_a_crop_of_a_jpeg(options, coffee, decoded_rows, capfd) -> None:
    assert_crops_are_exact(encoded(coffee, 'JPEG', **options))
    assert len(decoded_rows) == 8 * 3  # all but the lowest
    assert max(decoded_rows) < 0.85 * 203
    assert capfd.readouterr() == ('', '')  # libjpeg has nothing to say about the rows that are left


def test_a_crop_of_a_jpeg_with_restart_markers(coffee, decoded_rows) -> None:
    assert_crops_are_exact(cv_encoded(coffee, '.jpg', cv2.IMWRITE_JPEG_RST_INTERVAL, 5))
    assert decoded_rows


@pytest.mark.parametrize('level', [0, 1, 9])
def test_a_crop_of_a_png(level, coffee, decoded_rows, capfd) -> None:
    assert_crops_are_exact(encoded(coffee, 'PNG', compress_level=level))
    assert len(decoded_rows) == 8 * 3
    assert capfd.readouterr() == ('', '')


def test_a_crop_of_any_other_file(coffee, decoded_rows) -> None:
    grey = coffee[..., 1]
    alpha = np.dstack([coffee, grey])
    deep = coffee.astype(np.uint16) * 251 + 7
    cmyk = io.BytesIO()
    Image.fromarray(coffee).convert('CMYK').save(cmyk, 'JPEG')
    for content in (
        encoded(grey, 'JPEG'),
        cmyk.getvalue(),
        encoded(grey, 'PNG'),
        encoded(alpha, 'PNG'),
        cv_encoded(deep, '.png'),
        cv_encoded(coffee, '.bmp'),
        cv_encoded(deep, '.tif'),
        encoded(coffee, 'WEBP', lossless=True),
    ):
        assert_crops_are_exact(content)
    assert decoded_rows == []


def test_the_size_is_known_before_anything_is_decoded(coffee, monkeypatch) -> None:
    monkeypatch.setattr(images, 'decode', None)
    for content in (encoded(coffee, 'JPEG'), encoded(coffee, 'JPEG', progressive=True), encoded(coffee, 'PNG')):
        assert EncodedImage(content, 'x').size == (203, 171)
    assert PixelImage(coffee).size == (203, 171)


@pytest.mark.parametrize('kind', ['BMP', 'TIFF', 'WEBP', 'PPM'])
def test_the_size_of_other_files(kind, coffee) -> None:
    assert EncodedImage(encoded(coffee, kind), 'x').size == (203, 171)


def test_a_crop_above_the_damage_of_a_file_does_not_see_it(coffee) -> None:
    whole = encoded(coffee, 'JPEG', quality=95)
    content = whole[: int(0.6 * len(whole))]
    np.testing.assert_array_equal(EncodedImage(content, 'x').crop(0, 0, 40, 40), decode(whole, 'x')[:40, :40])
    with pytest.raises(ImageError, match=r'here/a\.jpg: not a readable image'):
        EncodedImage(content, 'here/a.jpg').crop(100, 0, 40, 40)
    with pytest.raises(ImageError, match=r'here/a\.jpg: not a readable image'):
        EncodedImage(content, 'here/a.jpg').pixels()


@pytest.mark.parametrize('kind', ['JPEG', 'PNG'])
def test_damaged_files_are_image_errors(kind, coffee) -> None:
    """Whatever byte is wrong: a crop of the right shape, or an ImageError."""
    whole = encoded(coffee, kind)
    rng = np.random.default_rng(0)
    errors = 0
    for trial in range(600):
        content = bytearray(whole)
        for place in rng.integers(2, len(whole) if trial % 3 else 700, 1 + trial % 4):
            content[place] = rng.integers(256)
        damaged = bytes(content[: rng.integers(20, len(whole))] if trial % 5 == 0 else content)
        try:
            image = EncodedImage(damaged, 'a')
            height, width = image.size
            if height >= 80 and width >= 40:
                assert image.crop(30, 0, 40, 40).shape == (40, 40, 3)
        except ImageError:
            errors += 1
    assert 50 < errors < 600


def test_bytes_that_are_not_a_header() -> None:
    for content in (b'', b'\xff\xd8', b'\xff\xd8\xff', b'\x89PNG\r\n\x1a\n', b'\xff\xd8\xff\xc0\x00\x11\x08', b'text'):
        assert read_header(content) is None


def test_an_image_error_of_a_worker_is_one_sentence() -> None:
    error = ImageError('a.png: not a readable image.')
    assert str(pickle.loads(pickle.dumps(error))) == 'a.png: not a readable image.'
    # What torch makes of it, see `torch._utils.ExceptionWrapper`.
    message = (
        f'Caught ImageError in DataLoader worker process 3.\nOriginal Traceback (most recent call last):\n  {error!r}'
    )
    assert str(ImageError(f'{message}\npromptir_basicsr.core.errors.ImageError: {error}\n')) == str(error)
