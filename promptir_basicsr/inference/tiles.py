"""Layout and blending of the tiles of an image.

Tiles have one size and are evenly spaced, at multiples of the network's size multiple, and overlap their neighbours by
at least `overlap` pixels. The outer pixels of a tile are the least accurate, because the network saw a border that the
image does not have: the middle half of an overlap is blended, the outer quarters are discarded.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import TypeVar

import torch
from torch import Tensor

from promptir_basicsr.archs.layers.global_statistics import Place

T = TypeVar('T')

GOLDEN = (math.sqrt(5) - 1) / 2  # its multiples are spread evenly over a circle

BLENDED = 0.5
"""The fraction of an overlap in which a tile is blended into the next."""


@dataclass(frozen=True)
class Line:
    """Tiles along one side of an image, in pixels.

    Attributes:
        length: of the side.
        tile: of each tile.
        starts: where the tiles start.
        middles: of the overlaps; one fewer than tiles.
        cuts: boundaries between the cores of tiles: the middles, rounded down to multiples.
        blend: number of pixels around a middle in which a tile is blended into the next.
    """

    length: int
    tile: int
    starts: tuple[int, ...]
    middles: tuple[float, ...]
    cuts: tuple[int, ...]
    blend: float

    @classmethod
    def over(cls, length: int, tile: int, overlap: int, multiple: int = 1) -> 'Line':
        """Return the fewest tiles of one length that cover a side.

        Args:
            length: a multiple of `multiple`.
            tile: maximum length; rounded down to a multiple.
            overlap: minimum overlap of adjacent tiles; rounded up to a multiple, at most half of a tile.
            multiple: of starts and lengths.

        Raises:
            ValueError: a tile is shorter than a multiple, or the overlap is negative.
        """
        assert length % multiple == 0, f'{length} is not a multiple of {multiple}'
        if tile < multiple or overlap < 0:
            raise ValueError(f'tile: {tile}, overlap: {overlap}; must be at least {multiple} and 0 pixels.')
        tile = min(tile // multiple * multiple, length)
        overlap = min(-(-overlap // multiple) * multiple, tile // 2 // multiple * multiple)
        count = 1 + max(0, -(-(length - tile) // (tile - overlap)))
        starts = tuple((length - tile) * number // max(count - 1, 1) // multiple * multiple for number in range(count))
        middles = tuple((before + tile + after) / 2 for before, after in pairwise(starts))
        cuts = tuple(int(middle) // multiple * multiple for middle in middles)
        return cls(length, tile, starts, middles, cuts, BLENDED * overlap)

    def core(self, number: int) -> tuple[int, int]:
        """Return start and end of the core of a tile, in the tile."""
        edges = (0, *self.cuts, self.length)
        return edges[number] - self.starts[number], edges[number + 1] - self.starts[number]

    def window(self, number: int) -> Tensor:
        """Return the weights of the pixels of a tile, (tile,) in float64; those of all tiles sum to 1 everywhere."""
        places = torch.arange(self.tile, dtype=torch.float64) + self.starts[number] + 0.5
        edges = (-math.inf, *self.middles, math.inf)
        return self._beyond(places, edges[number]) - self._beyond(places, edges[number + 1])

    def _beyond(self, places: Tensor, middle: float) -> Tensor:
        """Increase smoothly from 0 before the middle of an overlap to 1 after it."""
        if not self.blend:
            return (places > middle).double()
        return torch.sin(((places - middle) / self.blend + 0.5).clamp(0, 1) * torch.pi / 2).square()


@dataclass(frozen=True)
class Grid:
    """The tiles of an image."""

    rows: Line
    columns: Line

    @classmethod
    def over(cls, height: int, width: int, tile: int, overlap: int, multiple: int = 1) -> 'Grid':
        """Return square tiles, where the image is large enough; arguments as for `Line.over`."""
        return cls(Line.over(height, tile, overlap, multiple), Line.over(width, tile, overlap, multiple))

    def __len__(self) -> int:
        return len(self.rows.starts) * len(self.columns.starts)

    def places(self) -> Iterator[tuple[Place, Tensor]]:
        """Yield each tile's place and window: (tile height, tile width) in float64."""
        rows, columns = self.rows, self.columns
        for row, column in product(range(len(rows.starts)), range(len(columns.starts))):
            place = Place(
                (rows.length, columns.length),
                (rows.starts[row], columns.starts[column]),
                (rows.tile, columns.tile),
                (rows.core(row), columns.core(column)),
            )
            yield place, rows.window(row)[:, None] * columns.window(column)


def spread(items: Sequence[T]) -> list[T]:
    """Return the items in an order in which adjacent items are far apart and any first few are spread evenly."""
    count = len(items)
    step = max(1, round(count * GOLDEN))
    while math.gcd(step, count) > 1:
        step += 1
    return [items[number * step % count] for number in range(count)]
