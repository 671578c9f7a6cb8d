import cv2
import numpy as np
import pytest
import torch

from promptir_basicsr.core.arrays import pad_to_multiple, save_picture, to_bytes, to_grey


@pytest.mark.parametrize('multiple', [1, 8, 16])
@pytest.mark.parametrize('size', [(1, 1), (1, 9), (3, 8), (5, 7), (16, 16), (17, 30)])
def test_padding_and_cutting_back_gives_the_image_again(size, multiple):
    image = torch.rand(2, 3, *size)
    padded = pad_to_multiple(image, multiple)
    assert all(
        side % multiple == 0 and side - multiple < given for side, given in zip(padded.shape[-2:], size, strict=True)
    )
    assert torch.equal(padded[..., : size[0], : size[1]], image)


def test_it_reflects_as_far_as_the_image_goes_and_then_repeats_the_border():
    row = torch.tensor([1.0, 2.0, 3.0])[None, None, None]
    assert pad_to_multiple(row, 8)[0, 0, 0].tolist() == [1, 2, 3, 2, 1, 1, 1, 1]


def test_a_padding_shorter_than_the_image_is_numpys_reflection():
    image = torch.rand(1, 3, 13, 21)
    expected = np.pad(image.numpy(), ((0, 0), (0, 0), (0, 3), (0, 3)), mode='reflect')
    assert np.array_equal(pad_to_multiple(image, 8), expected)


def test_an_image_that_fits_is_not_copied():
    image = torch.rand(1, 3, 16, 24)
    assert pad_to_multiple(image, 8) is image


def test_a_picture_is_written_in_rgb(tmp_path):
    image = np.zeros((4, 5, 3), np.uint8)
    image[..., 0] = 200
    save_picture(image, tmp_path / 'new' / 'red.png')
    assert cv2.imread(str(tmp_path / 'new' / 'red.png'))[0, 0].tolist() == [0, 0, 200]


def test_floats_are_clipped_and_rounded():
    assert to_bytes(np.array([-1.0, 0.4999 / 255, 0.5001 / 255, 1.5])).tolist() == [0, 0, 1, 255]


@pytest.mark.parametrize('kind', [np.uint8, np.uint16])
def test_three_equal_colours_keep_their_value_as_grey(kind):
    values = np.arange(np.iinfo(kind).max + 1, dtype=kind).reshape(-1, 64, 1)
    assert np.array_equal(to_grey(np.repeat(values, 3, axis=2)), values)


@pytest.mark.parametrize(
    ('kind', 'most', 'error'), [(np.uint8, 255, 0.51), (np.uint16, 65535, 2), (np.float32, 1, 1e-6)]
)
def test_grey_is_the_luma_of_bt_601_in_full_range(kind, most, error):
    image = (np.random.default_rng(0).random((40, 30, 3)) * most).astype(kind)
    grey = to_grey(image)
    assert (grey.shape, grey.dtype) == ((40, 30, 1), kind)
    assert np.abs(grey[..., 0] - image.astype(np.float64) @ (0.299, 0.587, 0.114)).max() <= error


@pytest.mark.parametrize('kind', [np.uint8, np.uint16])
def test_a_grey_picture_is_written_in_grey(kind, tmp_path):
    image = np.arange(20, dtype=kind).reshape(4, 5, 1) * 11
    save_picture(image, tmp_path / 'grey.png')
    read = cv2.imread(str(tmp_path / 'grey.png'), cv2.IMREAD_UNCHANGED)
    assert read.dtype == kind
    assert np.array_equal(read, image[..., 0])
