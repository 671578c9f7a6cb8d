"""Whole-image statistics for modules that process an image in tiles.

Some modules use all pixels of an image: the attention over channels (products and norms of queries and keys), the
weights of PromptIR's prompts (the mean feature), PIP's prompts (features at S x S points), global average pooling. For
a tile their results would differ. Here they sum over the tiles and use the statistics of the whole image.

Prompts that are resized to the size of the features are cropped from the prompt of the whole image at the tile's place.

Shapes: B batch, C channels, H W height and width of a tile's features, h heads, c = C / h channels per head, D
prompt channels, S prompt size.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-12  # of the norm of a channel of q or k over the pixels, as in torch.nn.functional.normalize


class SeesWhole:
    """A module that uses all pixels of an image.

    Attributes:
        whole: statistics of the image of the current tile; None for whole images.
    """

    whole: 'Quantity | None' = None


@dataclass(frozen=True)
class Place:
    """Position of a tile in its image, in pixels.

    Attributes:
        size: H, W of the image.
        start: row, column of the tile's first pixel.
        tile: H, W of the tile.
        core: (top, bottom), (left, right) in the tile: its part of the image. The cores of all tiles are the image.
    """

    size: tuple[int, int]
    start: tuple[int, int]
    tile: tuple[int, int]
    core: tuple[tuple[int, int], tuple[int, int]]

    @classmethod
    def of_all(cls, height: int, width: int) -> 'Place':
        """Return the place of a tile that is the whole image."""
        return cls((height, width), (0, 0), (height, width), ((0, height), (0, width)))


class WholeImage:
    """Statistics of a batch of images that a network processes tile by tile.

        whole = WholeImage(net, len(x))
        with whole.attached():
            for place in places:  # while `recording`, sums are updated
                whole.at(place)
                net(tile_at(place))
            whole.settle()  # from here on the modules use the sums
            whole.recording = False
            ...

    During the first pass, a module uses the sums of the tiles so far; for the rest of the image, settled sums that are
    `rough`, such as those of the reduced image, are used if there are any.

    A network can be attached to one such object at a time, and by one thread.

    Attributes:
        place: of the current tile.
        recording: whether sums are updated.
        rough: whether the settled sums are an estimate.
    """

    place: Place

    def __init__(self, net: nn.Module, batch: int) -> None:
        self.batch = batch
        self.recording = True
        self.rough = False
        self._seen = self._settled_pixels = 0
        self._modules = list(_with_quantities(net))
        self._quantities = [Quantity(self) for _ in self._modules]

    def __len__(self) -> int:
        """Return the number of modules that use the whole image."""
        return len(self._modules)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Context manager in which the network's modules use this object; always restores them at the end.

        Raises:
            RuntimeError: they already use another one.
        """
        if any(getattr(module, 'whole', None) for module in self._modules):
            raise RuntimeError(
                'The network is already restoring an image in tiles. Threads that share it must take turns.'
            )
        hooks = []
        try:
            for module, quantity in zip(self._modules, self._quantities, strict=True):
                if isinstance(module, SeesWhole):
                    module.whole = quantity
                else:
                    hooks.append(module.register_forward_hook(partial(_pooled, quantity)))
            yield
        finally:
            for module in self._modules:
                if isinstance(module, SeesWhole):
                    vars(module).pop('whole', None)
            for hook in hooks:
                hook.remove()

    def at(self, place: Place) -> None:
        """Set the place of the next tile."""
        self.place = place
        if self.recording:
            (top, bottom), (left, right) = place.core
            self._seen += (bottom - top) * (right - left)

    def settle(self, rough: bool = False) -> None:
        """Use the completed sums from now on, and start new sums."""
        for quantity in self._quantities:
            quantity.settle()
        self.rough, self._settled_pixels, self._seen = rough, self._seen, 0

    @property
    def estimating(self) -> bool:
        """Whether the sums so far are better than the settled ones."""
        return self.recording and (self.rough or not self._settled_pixels)

    @property
    def unseen(self) -> float:
        """Ratio of the pixels that are not in any tile so far to those of the settled sums."""
        height, width = self.place.size
        return max(height * width - self._seen, 0) / self._settled_pixels


class Quantity:
    """Statistics of the images for one module: sums over their pixels."""

    def __init__(self, image: WholeImage) -> None:
        self._image = image
        self._sums: tuple[Tensor, ...] | None = None
        self._settled: tuple[Tensor, ...] | None = None

    @property
    def known(self) -> bool:
        """Whether the current tile has nothing to add."""
        return self._settled is not None and not self._image.recording

    def settle(self) -> None:
        self._settled, self._sums = self._sums or self._settled, None

    def core(self, height: int, width: int) -> tuple[slice, slice]:
        """Return the core of the tile in its features of H, W."""
        place = self._image.place
        rows, columns = (
            slice(*(round(edge * side / tile) for edge in core))
            for core, side, tile in zip(place.core, (height, width), place.tile, strict=True)
        )
        return rows, columns

    def of_whole(self, *parts: Tensor, first: int = 0) -> tuple[Tensor, ...]:
        """Return sums over all pixels.

        Args:
            parts: sums over the core of the tile, each (b, ...) for b images of the batch.
            first: index of the first of them.

        Returns:
            Sums of the same shapes; see `WholeImage` for which.
        """
        images = slice(first, first + len(parts[0]))
        self._add(parts, images)
        if not self._image.estimating or self._sums is None:
            return self.settled(first, len(parts[0]))
        if self._settled is None:
            return tuple(total[images] for total in self._sums)
        pairs = zip(self._sums, self._settled, strict=True)
        return tuple(total[images] + self._image.unseen * rough[images] for total, rough in pairs)

    def _add(self, parts: Sequence[Tensor], images: slice) -> None:
        if not self._image.recording:
            return
        if self._sums is None:
            self._sums = tuple(_wide_zeros(self._image.batch, part) for part in parts)
        for total, part in zip(self._sums, parts, strict=True):
            total[images] += part

    def settled(self, first: int = 0, count: int | None = None) -> tuple[Tensor, ...]:
        """Return the settled sums of `count` images."""
        assert self._settled is not None
        count = self._image.batch - first if count is None else count
        return tuple(total[first : first + count] for total in self._settled)

    def similarity(self, q: Tensor, k: Tensor, temperature: Tensor) -> Tensor:
        """Return `restormer.channel_similarity` of the whole image.

        Args:
            q, k: (B, C, H, W) of a tile.
            temperature: (h, 1, 1).

        Returns:
            (B, h, c, c), in the type of the sums.
        """
        if self.known:
            return similarity_of(self.settled(), temperature)
        rows, columns = self.core(*q.shape[-2:])
        dtype = torch.promote_types(q.dtype, torch.float32)
        with torch.autocast(q.device.type, enabled=False):
            q, k = (
                x[..., rows, columns].flatten(-2).unflatten(1, (len(temperature), -1)).to(dtype) for x in (q, k)
            )  # (B, h, c, core's pixels)
            sums = q @ k.transpose(-2, -1), q.square().sum(-1), k.square().sum(-1)
            return similarity_of(self.of_whole(*sums), temperature)

    def mean(self, x: Tensor) -> Tensor:
        """Return the mean of features x: (B, C, H, W) over the pixels of the whole image: (B, C)."""
        if self.known:
            total, count = self.settled()
        else:
            rows, columns = self.core(*x.shape[-2:])
            wide = x[..., rows, columns].to(torch.promote_types(x.dtype, torch.float32))
            pixels = wide.shape[-2] * wide.shape[-1]
            total, count = self.of_whole(wide.sum(dim=(-2, -1)), wide.new_full((len(x), 1), pixels))
        return (total / count).to(x.dtype)

    def sample(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """Return the features of the whole image, resized to S x S points as by `interpolate`.

        Args:
            x: (B, C, H, W) of a tile.
            size: S, S.

        Returns:
            (B, C, S, S).
        """
        if self.known:
            return self.settled()[0].to(x.dtype)
        cores = self.core(*x.shape[-2:])
        wide, matrices = x.to(torch.promote_types(x.dtype, torch.float32)), []
        for axis, (core, points) in enumerate(zip(cores, size, strict=True)):
            start, whole = self._in_features(axis, x.shape[axis - 2])
            matrix = bilinear_matrix(whole, points)[:, start + core.start : start + core.stop]
            used = matrix.any(dim=0).nonzero().flatten()  # a few rows and columns
            wide = wide.index_select(axis - 2, (used + core.start).to(x.device))
            matrices.append(matrix[:, used].to(wide))
        with torch.autocast(x.device.type, enabled=False):
            sampled = matrices[0] @ wide @ matrices[1].T
            seen = (matrices[0].sum(1)[:, None] * matrices[1].sum(1)).expand(len(x), 1, -1, -1)
            self._add((sampled, seen), slice(None))
        if not self._image.estimating or self._sums is None:
            return self.settled()[0].to(x.dtype)
        total, seen = self._sums
        if self._settled is not None:
            total = total + (1 - seen) * self._settled[0]
        return total.to(x.dtype)

    def resized(self, prompt: Tensor, size: Sequence[int], conv: nn.Module) -> Tensor:
        """Return the tile's part of a prompt resized to the whole image's features and convolved.

        Args:
            prompt: (B, D, S, S).
            size: H, W of the tile's features.
            conv: 3x3, without a bias, with a border of zeros.

        Returns:
            (B, D, H, W).
        """
        matrices = []
        for axis, side in enumerate(size):
            start, whole = self._in_features(axis, side)
            matrices.append(bilinear_matrix(prompt.shape[axis - 2], whole, start - 1, start + side + 1))
        with torch.autocast(prompt.device.type, enabled=False):
            wide = prompt.to(torch.promote_types(prompt.dtype, torch.float32))
            rows, columns = (matrix.to(wide) for matrix in matrices)
            around = (rows @ wide @ columns.T).to(prompt.dtype)  # one pixel more on each side
        return F.conv2d(around, conv.get_parameter('weight'))

    def _in_features(self, axis: int, side: int) -> tuple[int, int]:
        """Return the start of the tile and the length of the image, in features of which the tile has `side`."""
        place = self._image.place
        stride = place.tile[axis] / side
        return round(place.start[axis] / stride), round(place.size[axis] / stride)


def similarity_of(sums: Sequence[Tensor], temperature: Tensor) -> Tensor:
    """Return cosines of channels times temperature.

    Args:
        sums: over the pixels: the products q k^T of channels (B, h, c, c), and the squares of q's and of k's (B, h, c).
        temperature: (h, 1, 1).

    Returns:
        (B, h, c, c), in the type of the products.
    """
    products, *squares = sums
    norm_q, norm_k = (each.sqrt().clamp_min(NORM_EPS) for each in squares)
    return products / (norm_q[..., :, None] * norm_k[..., None, :]) * temperature


def bilinear_matrix(before: int, after: int, start: int = 0, stop: int | None = None) -> Tensor:
    """Return the matrix of bilinear resizing of a line, as by `interpolate` with align_corners=False.

    Args:
        before: number of input points.
        after: number of output points.
        start, stop: range of output points; points outside the line are 0. Default: all.

    Returns:
        (stop - start, before) in float64, on the CPU.
    """
    places = torch.arange(start, after if stop is None else stop)
    source = ((places.double() + 0.5) * before / after - 0.5).clamp(0, before - 1)
    lower = source.floor().long()
    upper, share = (lower + 1).clamp_max(before - 1), source - lower
    matrix = torch.zeros(len(places), before, dtype=torch.float64)
    matrix.scatter_add_(1, lower[:, None], (1 - share)[:, None])
    matrix.scatter_add_(1, upper[:, None], share[:, None])
    return matrix * ((places >= 0) & (places < after))[:, None]


def _with_quantities(net: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules that use all pixels, except those with only prompts as input, which all tiles share."""
    if getattr(net, 'sees_prompts_alone', False):
        return
    pools = isinstance(net, nn.AdaptiveAvgPool2d) and net.output_size in (1, (1, 1))
    if pools or isinstance(net, SeesWhole):
        yield net
    for name, part in net.named_children():
        if name != 'sensor':  # called once, for the whole image
            yield from _with_quantities(part)


def _pooled(quantity: Quantity, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Forward hook of global average pooling."""
    return quantity.mean(args[0])[..., None, None].to(output.dtype)


def _wide_zeros(batch: int, part: Tensor) -> Tensor:
    # Apple's GPUs do not support float64.
    dtype = torch.float32 if part.device.type == 'mps' else torch.float64
    return torch.zeros(batch, *part.shape[1:], dtype=dtype, device=part.device)
