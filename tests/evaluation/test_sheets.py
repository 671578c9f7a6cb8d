import numpy as np
import pytest

from promptir_basicsr.core.arrays import to_bytes
from promptir_basicsr.evaluation.sheets import ContactRow, contact_sheet, middle, side_by_side


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
@pytest.mark.parametrize('size', [(3, 5), (300, 100), (64, 64)])
def test_a_contact_sheet_holds_the_middle_of_each_picture(size, channels):
    image = np.random.default_rng(0).random((*size, channels))
    rows = [ContactRow('noise', [image, image], ['input', 'restored']), ContactRow('rain', [image], ['input'])]
    sheet = contact_sheet(rows, side=64)
    cut = to_bytes(middle(image, 64))
    top = 4 + 16 + 4
    assert (sheet[top : top + cut.shape[0], 4 : 4 + cut.shape[1]] == cut).all()
    assert sheet.shape[1] == 2 * 64 + 3 * 4
