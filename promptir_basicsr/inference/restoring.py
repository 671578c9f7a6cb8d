"""Restore images of any size: padding, tiles, self-ensemble and precision, the same for every command.

Tiles limit the memory that an image needs. Whole-image statistics of a network (see `global_statistics`) are still
computed for the whole image, depending on `Settings.statistics`:

| statistics | tiles are restored with | passes of the network |
|:--|:--|:--|
| tile | their own statistics, as if each were an image | one over the tiles |
| reduced | those of the image reduced to the area of a tile | one more, of that image |
| tiles | sums over all tiles, starting from those of the reduced image | that, and `passes` over the tiles |
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
"""The eight symmetries of a square: quarter turns, optionally after a reflection."""

LEAST_TILE = 64
"""The smallest side of the tiles of 'auto', in pixels."""

_NEEDS: WeakKeyDictionary[nn.Module, dict[Any, Need]] = WeakKeyDictionary()
"""Measured memory of networks, by device, batch and settings."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Settings:
    """Settings of inference.

    Attributes:
        tile: side of the tiles in pixels, rounded down to the size multiple; 'auto' for the largest that fits the
            free memory; None for whole images. Images that are not larger are restored whole.
        overlap: of adjacent tiles, in pixels; at most half a tile is used.
        statistics: one of STATISTICS.
        passes: number of passes over the tiles for 'tiles'; each computes the sums with those of the previous pass.
        ensemble: average over the eight rotations and reflections of the image; takes eight times as long.
        precision: one of PRECISIONS.
        kernels: 'triton' for the kernels of `archs.fast.kernels`. Default: the setting of the process.
        size_multiple: multiple of the sides. Default: the network's `size_multiple` or `window_size`, or 1.

    Raises:
        OptionError: lists all mistakes, one per line.

    Examples:
        >>> from promptir_basicsr.inference import Restorer, Settings
        >>> restorer = Restorer('net_g_latest.pth', settings=Settings(tile=32, overlap=8, ensemble=True))
        >>> restorer.settings.tile
        32
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
                replace(each, message=f'{each.message} Or use auto.') for each in check_count('tile', self.tile)
            ]
        problems += check_count('overlap', self.overlap, least=0)
        if not problems and isinstance(self.tile, int) and self.overlap >= self.tile:
            message = f'{self.overlap} pixels, but a tile has {self.tile}. Use larger tiles, or a smaller overlap.'
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
        net: in evaluation mode; any network that preserves the size of its input.
        x: (B, 3, H, W), RGB, [0, 1], on any device; only the tile being processed is on the network's device.
        settings: see `Settings`.
        degradation: passed to networks that accept one. None: their sensor predicts it, once for all tiles.
        strength: for networks that accept a degradation.
        progress: called with (done, total) after each pass of the network.

    Returns:
        (B, 3, H, W) on x's device, RGB, not clamped, in float32, or float64 where x is.

    Raises:
        ValueError: a tile is smaller than the network's size multiple, or the degradation is invalid.

    Examples:
        >>> from promptir_basicsr.archs import PromptIR
        >>> from promptir_basicsr.inference import Settings, restore_images
        >>> net = PromptIR(dim=8, num_blocks=[1, 1, 1, 1], heads=[1, 1, 1, 1], prompt_sizes=[4, 4, 4]).eval()
        >>> restore_images(net, torch.rand(1, 3, 45, 70), Settings(tile=32, overlap=8)).shape
        torch.Size([1, 3, 45, 70])
    """
    with float32_as(settings.precision), kernels_of(settings.kernels):
        restoration = _Restoration(net, x, settings, degradation, strength, progress)
        while True:
            try:
                return restoration.images()
            except torch.OutOfMemoryError as error:
                restoration.make_smaller(error)
            torch.cuda.empty_cache()  # here, where the error no longer references computed tensors


class _Restoration:
    """Restoration of one batch of images."""

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
        """Return the restored images."""
        variants = VARIANTS if self.settings.ensemble else VARIANTS[:1]
        self.done, self.total = 0, sum(self._count(_laid(self.x, *variant)) for variant in variants)
        if not self.settings.ensemble:
            return self._restored(self.x)
        mean = torch.zeros_like(self.x, dtype=torch.promote_types(self.x.dtype, torch.float32))
        for variant in variants:
            mean += _laid_back(self._restored(_laid(self.x, *variant)), *variant) / len(variants)
        return mean

    def make_smaller(self, error: torch.OutOfMemoryError) -> None:
        """Halve the side of the tiles.

        Raises:
            OutOfMemoryError: `tile` does not allow it, or they have the minimum size.
        """
        sides = '{}x{}'.format(*self.x.shape[-2:])
        if self.settings.tile != 'auto':
            raise torch.OutOfMemoryError(
                f'{sides} pixels (HxW) with tile {self.settings.tile} need more memory than available. Set tile to '
                f"'auto', or to fewer pixels. {error}"
            ) from error
        before = self.tile or max(self.x.shape[-2:])
        after = before // 2 // self.multiple * self.multiple
        if after < LEAST_TILE:
            raise error
        self.tile = after
        logger.warning(f'{sides} pixels (HxW): out of memory with tiles of {before} pixels; continuing with {after}.')

    def _tile(self) -> int | None:
        """Return the side of the tiles; None for whole images."""
        tile = self.settings.tile
        if not isinstance(tile, int):
            return self._largest_tile() if tile == 'auto' else None
        if tile < self.multiple:
            raise ValueError(
                f'tile: {tile}; {type(self.net).__name__} needs sides that are multiples of {self.multiple}. Use '
                f'{max(self.multiple, LEAST_TILE)} or more.'
            )
        return tile

    def _largest_tile(self) -> int | None:
        """Return the side of the largest tiles that fit the free memory."""
        tried = -(-LEAST_TILE // self.multiple) * self.multiple
        height, width = self.x.shape[-2:]
        if height * width <= (2 * tried) ** 2:
            return None
        needs = _NEEDS.setdefault(self.net, {})
        kind = (self.device, self.x.shape[:2], self.settings.precision, self.settings.statistics == 'tile')
        if kind not in needs:
            needs[kind] = Need.measured(self._try, self.x, tried, self.device)
        # The image, a padded copy and the restored image need memory as well.
        kept = 3 * self.x.nbytes if self.x.device == self.device else 0
        pixels = needs[kind].pixels(self.device, kept)
        if height * width <= pixels:
            return None
        return max(tried, math.isqrt(pixels) // self.multiple * self.multiple)

    def _try(self, x: Tensor) -> None:
        """Run the step with the peak memory: a pass over a tile that updates the whole-image statistics."""
        whole = WholeImage(self.net, len(x))
        whole.at(Place.of_all(*x.shape[-2:]))
        with eagerly(self.traits.compiled), whole.attached() if self.settings.statistics != 'tile' else nullcontext():
            self._pass(x)

    def _told(self, degradation: Any, strength: float | Mapping[str, float]) -> tuple[Any, ...]:
        """Return the arguments of the network in addition to the image."""
        if not self.traits.takes_degradation:
            return ()
        if degradation is None and self.traits.holds_sensor:
            net: Conditioned = unwrapped(self.net)
            degradation = net.degradation_weights(self.x.to(self.device, self.dtype))
        return (degradation,) if strength == 1.0 else (degradation, strength)

    def _count(self, x: Tensor) -> int:
        """Return the number of passes of the network per image."""
        tiles, settings = len(self._grid(x)), self.settings
        if tiles == 1 or settings.statistics == 'tile' or not WholeImage(self.net, 1):
            return tiles
        return 1 + tiles + (settings.passes * tiles if settings.statistics == 'tiles' else 0)

    def _grid(self, x: Tensor) -> Grid:
        height, width = (-(-side // self.multiple) * self.multiple for side in x.shape[-2:])
        tile = self.tile or max(height, width)
        return Grid.over(height, width, tile, self.settings.overlap, self.multiple)

    def _restored(self, x: Tensor) -> Tensor:
        """Restore an image: (B, 3, H, W), of any size."""
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
        """Restore an image in tiles and blend them."""
        output = torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
        for place, window in grid.places():
            if whole is not None:
                whole.at(place)
            restored = self._pass(_tile_at(x, place))
            _tile_at(output, place).add_(restored * window.to(restored))
        return output

    def _record(self, whole: WholeImage, x: Tensor, grid: Grid) -> None:
        """Compute the statistics of the whole image."""
        statistics, image = self.settings.statistics, self._reduced(x, grid)
        whole.at(Place.of_all(*image.shape[-2:]))
        self._pass(image)
        whole.settle(rough=statistics == 'tiles')
        if statistics == 'tiles':
            # Adjacent tiles are similar: in another order the first few tiles represent the image better.
            places = spread([place for place, _ in grid.places()])
            for _ in range(self.settings.passes):
                for place in places:
                    whole.at(place)
                    self._pass(_tile_at(x, place))
                whole.settle()
        whole.recording = False

    def _reduced(self, x: Tensor, grid: Grid) -> Tensor:
        """Reduce an image to the area of a tile."""
        height, width = x.shape[-2:]
        factor = (grid.rows.tile * grid.columns.tile / (height * width)) ** 0.5
        sides = [max(1, int(side * factor / self.multiple)) * self.multiple for side in (height, width)]
        return F.interpolate(x.to(torch.promote_types(x.dtype, torch.float32)), size=sides, mode='area')

    def _pass(self, x: Tensor) -> Tensor:
        """Run the network on an image of a valid size and return the output on the image's device."""
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
