"""Restore images of any size: padding, tiles, self-ensemble and precision, the same for every command.

Tiles bound the memory that an image takes. What a network learns from the whole image (see `global_statistics`) is
worked out for the whole image all the same, in a way that `Settings.statistics` names:

| statistics | what the tiles are restored with | passes of the network |
|:--|:--|:--|
| tile | each with its own, as if it were an image | one over the tiles |
| reduced | those of the image reduced to the area of a tile | one of that image more |
| tiles | sums over all tiles, begun with those of the reduced image | that, and `passes` over the tiles |
"""

import logging
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptir_basicsr.archs.fast.kernels import kernels_of
from promptir_basicsr.archs.layers.global_statistics import Place, WholeImage
from promptir_basicsr.archs.traits import Conditioned, traits_of, unwrapped
from promptir_basicsr.core.arrays import pad_to_multiple
from promptir_basicsr.core.errors import raise_problems
from promptir_basicsr.core.messages import check_count, unknown
from promptir_basicsr.core.problems import Problem, problem
from promptir_basicsr.core.vocabulary import KERNELS, PRECISIONS, STATISTICS
from promptir_basicsr.inference.tiles import Grid, spread
from promptir_basicsr.runtime.compilation import eagerly
from promptir_basicsr.runtime.memory import Need
from promptir_basicsr.runtime.precision import autocast, float32_as

logger = logging.getLogger('basicsr')

VARIANTS = tuple((turns, mirrored) for mirrored in (False, True) for turns in range(4))
"""The eight ways to lay a square on itself: quarter turns, and a reflection before."""

LEAST_TILE = 64
"""The smallest side of the tiles of 'auto', in pixels."""

_NEEDS: WeakKeyDictionary[nn.Module, dict[Any, Need]] = WeakKeyDictionary()
"""What networks were found to need, by device, batch and settings."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Settings:
    """How images are restored.

    Attributes:
        tile: side of the tiles in pixels, rounded down to what the network wants; 'auto' for the largest that fits the
            free memory; None for whole images. An image that is not larger is restored whole.
        overlap: of neighbouring tiles, in pixels; at most half a tile is used.
        statistics: one of STATISTICS.
        passes: of 'tiles', over the tiles: in each the sums are worked out with those of the pass before.
        ensemble: the mean over the eight rotations and reflections of the image; eight times the time.
        precision: one of PRECISIONS.
        kernels: 'triton' for the kernels of `archs.fast.kernels`. Default: as the process is set.
        size_multiple: what sides must be multiples of. Default: the network's `size_multiple` or `window_size`, or 1.

    Raises:
        OptionError: what is wrong, a line each.
    """

    tile: int | str | None = None
    overlap: int = 32
    statistics: str = 'tiles'
    passes: int = 1
    ensemble: bool = False
    precision: str = 'fp32'
    kernels: str | None = None
    size_multiple: int | None = None

    def __post_init__(self) -> None:
        problems: list[Problem] = []
        if self.tile is not None and self.tile != 'auto':
            problems += [
                replace(each, message=f'{each.message} Or give auto.') for each in check_count('tile', self.tile)
            ]
        problems += check_count('overlap', self.overlap, least=0)
        if not problems and isinstance(self.tile, int) and self.overlap >= self.tile:
            message = f'{self.overlap} pixels, and a tile has {self.tile}. Take larger tiles, or a smaller overlap.'
            problems.append(problem('overlap', message))
        if self.statistics not in STATISTICS:
            problems.append(unknown('statistics', 'choice', self.statistics, STATISTICS))
        problems += check_count('passes', self.passes)
        if self.precision not in PRECISIONS:
            problems.append(unknown('precision', 'precision', self.precision, PRECISIONS))
        if self.kernels not in (None, *KERNELS):
            problems.append(unknown('kernels', 'choice', self.kernels, KERNELS))
        if self.size_multiple is not None:
            problems += check_count('size_multiple', self.size_multiple)
        raise_problems(problems)


@torch.no_grad()
def restore_images(
    net: nn.Module,
    x: Tensor,
    settings: Settings = Settings(),
    degradation: Any = None,
    strength: float | Mapping[str, float] = 1.0,
    progress: Progress | None = None,
) -> Tensor:
    """Restore a batch of images of any size.

    Args:
        net: in evaluation mode; any network that keeps the size of its input.
        x: (B, 3, H, W), RGB, [0, 1], on any device; only what the network works on lies on the network's.
        settings: how.
        degradation: for networks that take one, as they take it. None: their sensor is asked, once for all tiles.
        strength: for networks that take a degradation.
        progress: called with (done, total) after each pass of the network.

    Returns:
        (B, 3, H, W) on x's device, RGB, not clamped, in float32, or float64 where x is.

    Raises:
        ValueError: a tile is smaller than what the network wants, or what is said of the degradation is not understood.
    """
    with float32_as(settings.precision), kernels_of(settings.kernels):
        restoration = _Restoration(net, x, settings, degradation, strength, progress)
        while True:
            try:
                return restoration.images()
            except torch.OutOfMemoryError as error:
                restoration.make_smaller(error)
            torch.cuda.empty_cache()  # here, where the error no longer holds what was computed


class _Restoration:
    """Of one batch of images."""

    def __init__(
        self,
        net: nn.Module,
        x: Tensor,
        settings: Settings,
        degradation: Any,
        strength: float | Mapping[str, float],
        progress: Progress | None,
    ) -> None:
        self.net, self.x, self.settings, self.progress = net, x, settings, progress
        weights = next((p for p in net.parameters() if p.is_floating_point()), x)
        self.device, self.dtype = weights.device, weights.dtype
        self.traits = traits_of(net)
        self.multiple = settings.size_multiple or self.traits.size_multiple
        self.told = self._told(degradation, strength)
        self.done = self.total = 0
        self.tile = self._tile()

    def images(self) -> Tensor:
        """The images, restored."""
        variants = VARIANTS if self.settings.ensemble else VARIANTS[:1]
        self.done, self.total = 0, sum(self._count(_laid(self.x, *variant)) for variant in variants)
        if not self.settings.ensemble:
            return self._restored(self.x)
        mean = torch.zeros_like(self.x, dtype=torch.promote_types(self.x.dtype, torch.float32))
        for variant in variants:
            mean += _laid_back(self._restored(_laid(self.x, *variant)), *variant) / len(variants)
        return mean

    def make_smaller(self, error: torch.OutOfMemoryError) -> None:
        """Take tiles of half the side.

        Raises:
            OutOfMemoryError: that is not wanted, or they are as small as they can be.
        """
        sides = '{}x{}'.format(*self.x.shape[-2:])
        if self.settings.tile != 'auto':
            raise torch.OutOfMemoryError(
                f'{sides} pixels (HxW) with tile {self.settings.tile} need more memory than there is. Set tile to '
                f"'auto', or to fewer pixels. {error}"
            ) from error
        before = self.tile or max(self.x.shape[-2:])
        after = before // 2 // self.multiple * self.multiple
        if after < LEAST_TILE:
            raise error
        self.tile = after
        logger.warning(f'{sides} pixels (HxW): out of memory with tiles of {before} pixels; going on with {after}.')

    def _tile(self) -> int | None:
        """The side of the tiles; None for whole images."""
        tile = self.settings.tile
        if not isinstance(tile, int):
            return self._largest_tile() if tile == 'auto' else None
        if tile < self.multiple:
            raise ValueError(
                f'tile: {tile}; {type(self.net).__name__} wants sides that are multiples of {self.multiple}. Take '
                f'{max(self.multiple, LEAST_TILE)} or more.'
            )
        return tile

    def _largest_tile(self) -> int | None:
        """The side of the largest tiles that the free memory allows."""
        tried = -(-LEAST_TILE // self.multiple) * self.multiple
        height, width = self.x.shape[-2:]
        if height * width <= (2 * tried) ** 2:
            return None
        needs = _NEEDS.setdefault(self.net, {})
        kind = (self.device, self.x.shape[:2], self.settings.precision, self.settings.statistics == 'tile')
        if kind not in needs:
            needs[kind] = Need.measured(self._try, self.x, tried, self.device)
        # The image, a padded one and the restored one are there as well.
        kept = 3 * self.x.nbytes if self.x.device == self.device else 0
        pixels = needs[kind].pixels(self.device, kept)
        if height * width <= pixels:
            return None
        return max(tried, math.isqrt(pixels) // self.multiple * self.multiple)

    def _try(self, x: Tensor) -> None:
        """What takes the most memory: a pass over a tile that adds to the quantities of the whole image."""
        whole = WholeImage(self.net, len(x))
        whole.at(Place.of_all(*x.shape[-2:]))
        with eagerly(self.traits.compiled), whole.attached() if self.settings.statistics != 'tile' else nullcontext():
            self._pass(x)

    def _told(self, degradation: Any, strength: float | Mapping[str, float]) -> tuple[Any, ...]:
        """What the network is given beside the image."""
        if not self.traits.takes_degradation:
            return ()
        if degradation is None and self.traits.holds_sensor:
            net: Conditioned = unwrapped(self.net)
            degradation = net.degradation_weights(self.x.to(self.device, self.dtype))
        return (degradation,) if strength == 1.0 else (degradation, strength)

    def _count(self, x: Tensor) -> int:
        """How many passes of the network an image takes."""
        tiles, settings = len(self._grid(x)), self.settings
        if tiles == 1 or settings.statistics == 'tile' or not WholeImage(self.net, 1):
            return tiles
        return 1 + tiles + (settings.passes * tiles if settings.statistics == 'tiles' else 0)

    def _grid(self, x: Tensor) -> Grid:
        height, width = (-(-side // self.multiple) * self.multiple for side in x.shape[-2:])
        tile = self.tile or max(height, width)
        return Grid.over(height, width, tile, self.settings.overlap, self.multiple)

    def _restored(self, x: Tensor) -> Tensor:
        """An image: (B, 3, H, W), of any size."""
        height, width = x.shape[-2:]
        padded, grid = pad_to_multiple(x, self.multiple), self._grid(x)
        if len(grid) == 1:
            output = self._pass(padded)
        elif self.settings.statistics == 'tile' or not (whole := WholeImage(self.net, len(x))):
            output = self._blended(padded, grid)
        else:
            with eagerly(self.traits.compiled), whole.attached():
                self._record(whole, padded, grid)
                output = self._blended(padded, grid, whole)
        return output[..., :height, :width]

    def _blended(self, x: Tensor, grid: Grid, whole: WholeImage | None = None) -> Tensor:
        """An image put together of its restored tiles."""
        output = torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
        for place, window in grid.places():
            if whole is not None:
                whole.at(place)
            restored = self._pass(_tile_at(x, place))
            _tile_at(output, place).add_(restored * window.to(restored))
        return output

    def _record(self, whole: WholeImage, x: Tensor, grid: Grid) -> None:
        """Work out the quantities of the whole image."""
        statistics, image = self.settings.statistics, self._reduced(x, grid)
        whole.at(Place.of_all(*image.shape[-2:]))
        self._pass(image)
        whole.settle(rough=statistics == 'tiles')
        if statistics == 'tiles':
            # Neighbours are alike: in another order the first few tiles show more of the image.
            places = spread([place for place, _ in grid.places()])
            for _ in range(self.settings.passes):
                for place in places:
                    whole.at(place)
                    self._pass(_tile_at(x, place))
                whole.settle()
        whole.recording = False

    def _reduced(self, x: Tensor, grid: Grid) -> Tensor:
        """An image reduced to the area of a tile."""
        height, width = x.shape[-2:]
        factor = (grid.rows.tile * grid.columns.tile / (height * width)) ** 0.5
        sides = [max(1, int(side * factor / self.multiple)) * self.multiple for side in (height, width)]
        return F.interpolate(x.to(torch.promote_types(x.dtype, torch.float32)), size=sides, mode='area')

    def _pass(self, x: Tensor) -> Tensor:
        """What the network makes of an image that it can take, on the device of the image."""
        layout = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
        given = x.to(self.device, self.dtype).contiguous(memory_format=layout)
        with autocast(self.settings.precision, self.device):
            output = self.net(given, *self.told)
        self.done += 1
        if self.progress is not None and self.total:
            self.progress(self.done, self.total)
        return output.to(x.device, torch.promote_types(x.dtype, torch.float32))


def _tile_at(x: Tensor, place: Place) -> Tensor:
    (top, left), (height, width) = place.start, place.tile
    return x[..., top : top + height, left : left + width]


def _laid(x: Tensor, turns: int, mirrored: bool) -> Tensor:
    return torch.rot90(x.flip(-1) if mirrored else x, turns, (-2, -1))


def _laid_back(x: Tensor, turns: int, mirrored: bool) -> Tensor:
    x = torch.rot90(x, -turns, (-2, -1))
    return x.flip(-1) if mirrored else x
