"""Tiles cover an image evenly, and their windows add up to 1 everywhere."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from promptir_basicsr.inference.tiles import Grid, Line, spread

MULTIPLES = st.sampled_from([1, 2, 8, 16])


@st.composite
def lines(draw: st.DrawFn) -> tuple[Line, int, int]:
    """A line, its overlap and the multiple."""
    multiple = draw(MULTIPLES)
    length = multiple * draw(st.integers(1, 80))
    tile = draw(st.integers(multiple, 40 * multiple))
    overlap = draw(st.integers(0, 20 * multiple))
    return Line.over(length, tile, overlap, multiple), overlap, multiple


@given(lines())
@settings(deadline=None)
def test_tiles_along_a_side(drawn: tuple[Line, int, int]) -> None:
    line, overlap, multiple = drawn
    assert line.tile % multiple == 0
    assert all(start % multiple == 0 for start in (*line.starts, *line.cuts))
    assert line.starts[0] == 0
    assert line.starts[-1] + line.tile == line.length
    shared = min(-(-overlap // multiple) * multiple, line.tile // 2 // multiple * multiple)
    assert all(0 < after - before <= line.tile - shared for before, after in pairwise(line.starts))
    counted = torch.zeros(line.length, dtype=torch.int64)
    for number, start in enumerate(line.starts):
        begin, end = line.core(number)
        assert 0 <= begin < end <= line.tile
        counted[start + begin : start + end] += 1
    assert (counted == 1).all()


@given(lines())
@settings(deadline=None)
def test_windows_add_up_to_one(drawn: tuple[Line, int, int]) -> None:
    line, *_ = drawn
    total = torch.zeros(line.length, dtype=torch.float64)
    for number, start in enumerate(line.starts):
        window = line.window(number)
        assert window.min() >= -1e-15
        assert window.max() <= 1
        total[start : start + line.tile] += window
        # What lies near an edge of a tile inside the image does not count.
        margin = math.floor(line.blend / 2)
        assert number == 0 or not window[:margin].any()
        assert number == len(line.starts) - 1 or not window[line.tile - margin :].any()
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-12)


@given(height=st.integers(1, 60), width=st.integers(1, 60), tile=st.integers(8, 30), overlap=st.integers(0, 29))
@settings(deadline=None, max_examples=40)
def test_a_grid(height: int, width: int, tile: int, overlap: int) -> None:
    grid = Grid.over(height, width, tile, overlap)
    total = torch.zeros(height, width, dtype=torch.float64)
    pixels, places = 0, list(grid.places())
    for place, window in places:
        assert window.shape == place.tile == (min(tile, height), min(tile, width))
        (top, left), (rows, columns) = place.start, place.core
        total[top : top + place.tile[0], left : left + place.tile[1]] += window
        pixels += (rows[1] - rows[0]) * (columns[1] - columns[0])
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-12)
    assert pixels == height * width
    assert len(places) == len(grid)
    assert len(grid) == 1 or max(height, width) > tile


def test_one_tile_counts_whole() -> None:
    ((place, window),) = Grid.over(40, 24, 64, 16, 8).places()
    assert (place.size, place.tile, place.start) == ((40, 24), (40, 24), (0, 0))
    assert (window == 1).all()


def test_windows_go_over_smoothly() -> None:
    """No step of more than pi / 2 over the pixels that are blended, the steepest of a squared sine."""
    line = Line.over(512, 128, 64)
    assert line.blend == 32
    assert max(line.window(number).diff().abs().max() for number in range(len(line.starts))) <= torch.pi / 2 / 32


def test_tiles_that_cannot_be() -> None:
    with pytest.raises(ValueError, match='must be at least 8'):
        Line.over(64, 7, 0, 8)
    with pytest.raises(ValueError, match='overlap: -1'):
        Line.over(64, 16, -1)


@given(st.integers(0, 200))
def test_spread_is_another_order(count: int) -> None:
    assert sorted(spread(list(range(count)))) == list(range(count))


def test_spread_goes_everywhere_soon() -> None:
    """Of 100 items the first ten are one of about every ten."""
    first = sorted(spread(list(range(100)))[:10])
    assert max(after - before for before, after in pairwise(first)) <= 20
