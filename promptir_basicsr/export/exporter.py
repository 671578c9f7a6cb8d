"""Export a network as ONNX, or as a PyTorch graph (torch.export) that does not need this package.

The export is verified on images of several sizes before the file is written. See `docs/export.md`.

Shapes: B batch, H W height and width, T degradations.
"""

import copy
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptir_basicsr.archs.traits import traits_of
from promptir_basicsr.checkpoints.reading import plain
from promptir_basicsr.core.errors import OptionError, need_extra
from promptir_basicsr.core.files import atomic_write
from promptir_basicsr.core.version import __version__
from promptir_basicsr.core.vocabulary import EXPORT_SIZES
from promptir_basicsr.export.graphs import Run, Traced, onnx_bytes, program_bytes, run_onnx, run_program, trace
from promptir_basicsr.inference.restoring import restore_images

TOLERANCE = 1e-4
"""Largest allowed difference from the network for values up to 1; scaled up for larger values."""


PACKAGES = ('onnx', 'onnxruntime', 'onnxscript')
"""Packages of the extra `export`."""


@dataclass(frozen=True)
class Difference:
    """Difference between the outputs of a file and of the network for one image size.

    Attributes:
        batch, height, width: of the images.
        largest: absolute difference; NaN for another shape, or for non-finite output for an image of one colour.
        reach: largest absolute value of the network's output.

    Examples:
        >>> from promptir_basicsr.export import Difference
        >>> Difference(batch=1, height=64, width=64, largest=1e-6, reach=1.0).largest < 1e-4
        True
    """

    batch: int
    height: int
    width: int
    largest: float
    reach: float

    @property
    def agrees(self) -> bool:
        return self.largest <= TOLERANCE * max(1.0, self.reach)

    def __str__(self) -> str:
        return f'{self.batch}x{self.height}x{self.width}: {self.largest:.1e}'


class ExportMismatch(RuntimeError):
    """A graph does not compute the same as the network; nothing was written.

    Attributes:
        differences: for all sizes.
    """

    def __init__(self, path: str, differences: Sequence[Difference]) -> None:
        self.differences = list(differences)
        wrong = ', '.join(str(one) for one in differences if not one.agrees)
        super().__init__(
            f"'{path}' was not written: its output differs from the network's by more than {TOLERANCE:g} for values "
            f'up to 1 ({wrong}).'
        )


def export_onnx(
    net: nn.Module,
    path: str | os.PathLike[str],
    sizes: Iterable[tuple[int, int, int]] = EXPORT_SIZES,
    *,
    labels: bool = False,
    fixed: tuple[int, int] | None = None,
    opset: int | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> list[Difference]:
    """Export a network as ONNX, atomically; replaces an existing file.

    Inputs of the file: `image` (B, C, H, W), float32, [0, 1], C = 3 RGB or 1 grey as in the network, of any size; and
    `degradation` (B, T), float32 weights that are divided by their sum, for networks with degradation labels.
    Output: `restored` (B, C, H, W), not clamped, or `logits` (B, T) of a sensor.

    Args:
        net: not changed.
        path: of the file.
        sizes: (B, H, W) of images that verify the file.
        labels: add the input `degradation` even if the network has a sensor.
        fixed: height and width of the only image size of the file, for networks that need this.
        opset: of ONNX. Default: PyTorch's.
        metadata: additional metadata for the file.

    Returns:
        The difference from the network, on the CPU, for each size.

    Raises:
        OptionError: the network cannot be exported, an argument is wrong, or a package is missing.
        ExportMismatch: the file would not compute the same as the network.
        SaveError: the file could not be written.

    Examples:
        >>> from promptir_basicsr.export import export_onnx
        >>> net = torch.nn.Conv2d(3, 3, 3, padding=1).eval()  # any network that returns an image of the same size
        >>> differences = export_onnx(net, 'net.onnx', sizes=[(1, 32, 40)])
        >>> differences[0].largest < 1e-4
        True
    """
    need_extra('ONNX', PACKAGES, 'export')
    return _export(net, path, sizes, labels, fixed, metadata, partial(onnx_bytes, opset=opset), run_onnx)


def export_program(
    net: nn.Module,
    path: str | os.PathLike[str],
    sizes: Iterable[tuple[int, int, int]] = EXPORT_SIZES,
    *,
    labels: bool = False,
    fixed: tuple[int, int] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> list[Difference]:
    """Export a network as a PyTorch graph for `torch.export.load`; see `export_onnx`.

    Examples:
        >>> from promptir_basicsr.export import export_program
        >>> differences = export_program(torch.nn.Conv2d(3, 3, 3, padding=1).eval(), 'net.pt2', sizes=[(1, 32, 40)])
        >>> torch.export.load('net.pt2').module()(torch.rand(2, 3, 24, 24)).shape
        torch.Size([2, 3, 24, 24])
    """
    return _export(net, path, sizes, labels, fixed, metadata, program_bytes, run_program)


def describe(net: nn.Module, metadata: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Metadata of a file about its network, as JSON values; ONNX stores values other than strings as JSON."""
    traits = traits_of(net)
    told = {
        'package': __version__,
        'size_multiple': traits.size_multiple,
        'degradations': traits.degradations,
        **(metadata or {}),
    }
    return {key: plain(value) for key, value in told.items() if value is not None}


def _export(
    net: nn.Module,
    path: str | os.PathLike[str],
    sizes: Iterable[tuple[int, int, int]],
    labels: bool,
    fixed: tuple[int, int] | None,
    metadata: Mapping[str, Any] | None,
    write: Callable[[Traced, Mapping[str, Any]], bytes],
    read: Callable[[bytes], Run],
) -> list[Difference]:
    """Trace, write to memory, read back, compare, and only then write to disk."""
    traits = traits_of(net)
    if labels and not traits.takes_degradation:
        raise OptionError(f'labels: {type(net).__name__} does not use degradation labels. Omit it.')
    labels = labels or traits.needs_degradation
    channels = traits_of(net, (metadata or {}).get('network_g')).image_channels
    traced = trace(net, labels, fixed, channels)
    shape = 'any' if fixed is None else [1, channels, *fixed]
    content = write(traced, describe(net, {**(metadata or {}), 'image': shape}))
    sizes = [(1, *fixed)] if fixed else sizes
    differences = _compare(net, read(content), sizes, labels, channels)
    if not all(one.agrees for one in differences):
        raise ExportMismatch(os.fspath(path), differences)
    atomic_write(content, os.fspath(path))
    return differences


def _compare(
    net: nn.Module, run: Run, sizes: Iterable[tuple[int, int, int]], labels: bool, channels: int
) -> list[Difference]:
    """Compare the outputs of a file and of the network in inference, on the CPU."""
    net, traits = copy.deepcopy(net).cpu().float().eval(), traits_of(net)
    differences = []
    for number, (batch, height, width) in enumerate(sizes):
        draw = torch.Generator().manual_seed(number)
        image = _pictures((batch, channels, height, width), draw)
        degradation = torch.rand(batch, traits.num_degradations, generator=draw) if labels else None
        with torch.no_grad():
            expected = net(image) if traits.is_sensor else restore_images(net, image, degradation=degradation)
            found = run(image, degradation)
        same = found.shape == expected.shape and (number > 0 or _bears_flat(run, image, degradation))
        largest = (found - expected).abs().max().item() if same else float('nan')
        differences.append(Difference(batch, height, width, largest, expected.abs().max().item()))
    return differences


def _pictures(shape: tuple[int, int, int, int], draw: torch.Generator) -> Tensor:
    """Random images: soft shapes with some noise."""
    coarse = torch.rand(*shape[:2], 6, 8, generator=draw)
    soft = F.interpolate(coarse, size=shape[2:], mode='bicubic', align_corners=False)
    return (soft + 0.05 * torch.randn(shape, generator=draw)).clamp(0, 1)


def _bears_flat(run: Run, image: Tensor, degradation: Tensor | None) -> bool:
    """Whether outputs for images of one colour, with zero variance, are finite; too sensitive to compare values."""
    return bool(run(image[:, :, :1, :1].expand_as(image).contiguous(), degradation).isfinite().all())
