import numpy as np
import pytest

from promptir_basicsr.core.arrays import to_bytes
from promptir_basicsr.evaluation.sheets import ContactRow, contact_sheet, side_by_side, thumbnail


def test_images_are_placed_side_by_side_with_a_white_gap():
    black, grey = np.zeros((6, 5, 3)), np.full((6, 5, 3), 0.5)
    both = side_by_side([black, grey])
    assert both.shape == (6, 5 + 4 + 5, 3)
    assert both[:, :5].max() == 0
    assert both[:, 5:9].min() == 255
    assert (both[:, 9:] == 128).all()


def test_grey_images_are_placed_side_by_side_in_grey():
    both = side_by_side([np.zeros((6, 5, 1)), np.full((6, 5, 1), 0.5)])
    assert both.shape == (6, 5 + 4 + 5, 1)
    assert [both[0, column, 0] for column in (0, 5, 9)] == [0, 255, 128]


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize(
    ('size', 'shown', 'scale'),
    [
        ((3, 5), (3, 5), 1),
        ((64, 64), (64, 64), 1),
        ((128, 160), (64, 64), 2),
        ((300, 400), (64, 64), 2),
        ((40, 200), (40, 64), 1),
    ],
)
def test_a_thumbnail_shrinks_by_half_at_most_then_crops_at_the_centre(channels, size, shown, scale):
    image = np.random.default_rng(0).random((*size, channels))
    found = thumbnail(image, 64)
    assert found.shape == (*shown, channels)
    whole = image.reshape(size[0] // scale, scale, size[1] // scale, scale, channels).mean(axis=(1, 3))
    top, left = ((length - part) // 2 for length, part in zip(whole.shape, shown, strict=False))
    assert np.allclose(found, whole[top : top + shown[0], left : left + shown[1]])


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('size', [(3, 5), (300, 100), (64, 64)])
def test_a_contact_sheet_holds_the_middle_of_each_picture(size, channels):
    image = np.random.default_rng(0).random((*size, channels))
    rows = [ContactRow('noise', [image, image], ['input', 'restored']), ContactRow('rain', [image], ['input'])]
    sheet = contact_sheet(rows, side=64)
    cut = to_bytes(thumbnail(image, 64))
    top = 4 + 16 + 4
    assert (sheet[top : top + cut.shape[0], 4 : 4 + cut.shape[1]] == cut).all()
    assert sheet.shape[1] == 2 * 64 + 3 * 4
