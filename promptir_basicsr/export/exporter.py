"""Write a network for other programs: as ONNX, or as a graph of PyTorch (torch.export) that needs no code of ours.

A file is read back and run on images of several sizes before it is written; `docs/export.md` tells how to use it.

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
"""The largest difference from the network that a file may have, where values reach 1; more where they reach further."""


PACKAGES = ('onnx', 'onnxruntime', 'onnxscript')
"""Of the extra `export`."""


@dataclass(frozen=True)
class Difference:
    """What a file gives for images of a size, against what the network gives.

    Attributes:
        batch, height, width: of the images.
        largest: absolute difference; NaN where the file gives another shape, or none for a picture of one colour.
        reach: largest absolute value of the network's output.
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
    """A graph that does not compute what the network does; nothing was written.

    Attributes:
        differences: of all sizes.
    """

    def __init__(self, path: str, differences: Sequence[Difference]) -> None:
        self.differences = list(differences)
        wrong = ', '.join(str(one) for one in differences if not one.agrees)
        super().__init__(
            f"'{path}' was not written: what it computes differs from the network by more than {TOLERANCE:g}, "
            f'of values that reach 1 ({wrong}).'
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
    """Write a network as ONNX, whole or not at all; a file that is there is replaced.

    Inputs of the file: `image` (B, C, H, W), float32, [0, 1], C = 3 RGB or 1 grey as the network has, of any size; and
    for networks that are told the degradation `degradation` (B, T), float32 weights that are divided by their sum.
    Output: `restored` (B, C, H, W), not clamped, or `logits` (B, T) of a sensor.

    Args:
        net: stays as it is.
        path: of the file.
        sizes: (B, H, W) of images that the file is tried with.
        labels: ask for `degradation` though the network has a sensor that would find it.
        fixed: height and width of the only image that the file takes, for networks that need that.
        opset: of ONNX. Default: PyTorch's.
        metadata: what is told about the network in the file, beside what the network itself tells.

    Returns:
        The difference from the network, on the CPU, for each size.

    Raises:
        OptionError: the network cannot be exported, an argument is wrong, or a package is missing.
        ExportMismatch: the file would compute something else.
        SaveError: the file could not be written.
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
    """Write a network as a graph of PyTorch, for `torch.export.load`; see `export_onnx`."""
    return _export(net, path, sizes, labels, fixed, metadata, program_bytes, run_program)


def describe(net: nn.Module, metadata: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What a file tells about its network, as JSON has it; in ONNX whatever is no text is written as JSON."""
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
    """Trace, write to memory, read that back, compare, and only then write to the disk."""
    traits = traits_of(net)
    if labels and not traits.takes_degradation:
        raise OptionError(f'labels: {type(net).__name__} takes no degradation. Leave it out.')
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
    """What a file gives against what a network gives, as it is used for restoring, on the CPU."""
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
    """Soft shapes with some noise."""
    coarse = torch.rand(*shape[:2], 6, 8, generator=draw)
    soft = F.interpolate(coarse, size=shape[2:], mode='bicubic', align_corners=False)
    return (soft + 0.05 * torch.randn(shape, generator=draw)).clamp(0, 1)


def _bears_flat(run: Run, image: Tensor, degradation: Tensor | None) -> bool:
    """Whether pictures of one colour, whose variances are 0, give numbers. They are too sensitive to be compared."""
    return bool(run(image[:, :, :1, :1].expand_as(image).contiguous(), degradation).isfinite().all())
