"""Write a network for other programs: as ONNX, or as a graph of PyTorch (torch.export) that needs no code of ours.

A file is read back and run on images of several sizes before it is written; `docs/export.md` tells how to use it.

Shapes: B batch, H W height and width, T degradations.
"""

import argparse
import copy
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from promptir_basicsr import __version__
from promptir_basicsr.checkpoints import Checkpoint, build, plain, read_checkpoint
from promptir_basicsr.export_util import Run, Traced, onnx_bytes, program_bytes, run_onnx, run_program, trace
from promptir_basicsr.models.checkpoint_util import atomic_write, megabytes
from promptir_basicsr.models.inference_util import restore_images, size_multiple_of
from promptir_basicsr.option_util import OptionError, need_extra

FORMATS = {'onnx': '.onnx', 'torch': '.pt2'}
"""What can be written, and how the files are called."""

TOLERANCE = 1e-4
"""The largest difference from the network that a file may have, where values reach 1; more where they reach further."""

SIZES = ((1, 64, 64), (2, 96, 128), (1, 200, 152), (3, 37, 61))
"""(B, H, W) of the images that a file is tried with."""

PACKAGES = ('onnx', 'onnxruntime', 'onnxscript')
"""Of the extra `export`."""

_SIZE = re.compile(r'(?:([1-9]\d*)x)?([1-9]\d*)x([1-9]\d*)')


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
    sizes: Iterable[tuple[int, int, int]] = SIZES,
    *,
    labels: bool = False,
    fixed: tuple[int, int] | None = None,
    opset: int | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> list[Difference]:
    """Write a network as ONNX, whole or not at all; a file that is there is replaced.

    Inputs of the file: `image` (B, 3, H, W), float32, RGB, [0, 1], of any size; and for networks that are told the
    degradation `degradation` (B, T), float32 weights that are divided by their sum. Output: `restored` (B, 3, H, W),
    not clamped, or `logits` (B, T) of a sensor.

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
    sizes: Iterable[tuple[int, int, int]] = SIZES,
    *,
    labels: bool = False,
    fixed: tuple[int, int] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> list[Difference]:
    """Write a network as a graph of PyTorch, for `torch.export.load`; see `export_onnx`."""
    return _export(net, path, sizes, labels, fixed, metadata, program_bytes, run_program)


def main() -> int:
    """The verb `basicsr export`.

    Returns:
        Exit status: 0; 1 where the file would not compute what the network does.

    Raises:
        OptionError: mistakes in the arguments, or a network that cannot be exported.
        SaveError: the file could not be written.
    """
    args = argument_parser().parse_args()
    path, kind = _target(args)
    sizes, fixed = _sizes(args)
    if kind == 'onnx':
        need_extra('ONNX', PACKAGES, 'export')
    checkpoint = read_checkpoint(args.weights, args.opt, args.key)
    net = build(checkpoint)
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    options: dict[str, Any] = {'labels': args.labels, 'fixed': fixed, 'metadata': _told(checkpoint)}
    try:
        if kind == 'onnx':
            differences = export_onnx(net, path, sizes, opset=args.opset, **options)
        else:
            differences = export_program(net, path, sizes, **options)
    except ExportMismatch as error:
        _report(error.differences)
        sys.stderr.write(f'{error}\n')
        return 1
    _report(differences)
    sys.stdout.write(f'{path}: {megabytes(os.path.getsize(path))}\n')
    return 0


def argument_parser() -> argparse.ArgumentParser:
    """The command line of `basicsr export`."""
    parser = argparse.ArgumentParser(
        prog='basicsr export',
        description='Write a network as ONNX or as a graph of PyTorch, checked against the network.',
    )
    endings = ', '.join(f'{ending} {kind}' for kind, ending in FORMATS.items())
    parser.add_argument('weights', metavar='WEIGHTS', help='.pth, .pt, .ckpt or .safetensors')
    parser.add_argument('output', metavar='OUT', help='the file to write')
    parser.add_argument('--to', choices=FORMATS, help=f'format; default: by the ending of OUT ({endings})')
    parser.add_argument('-opt', metavar='FILE', help='option file with network_g, where it is not told from WEIGHTS')
    parser.add_argument('--key', metavar='NAME', help='which weights of WEIGHTS; default: params_ema first')
    parser.add_argument(
        '--sizes',
        nargs='+',
        metavar='HxW',
        default=['x'.join(map(str, size)) for size in SIZES],
        help='images that the file is tried with, HxW or BxHxW; default: %(default)s',
    )
    parser.add_argument('--fixed', metavar='HxW', help='take one image of this size only')
    parser.add_argument('--labels', action='store_true', help='ask for the degradation, not the sensor in the network')
    parser.add_argument('--opset', type=int, metavar='N', help='of ONNX; default: that of PyTorch')
    parser.add_argument('--overwrite', action='store_true', help='replace OUT')
    return parser


def describe(net: nn.Module, metadata: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What a file tells about its network, as JSON has it; in ONNX whatever is no text is written as JSON."""
    told = {
        'package': __version__,
        'size_multiple': size_multiple_of(net),
        'degradations': getattr(net, 'degradations', None),
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
    takes = bool(getattr(net, 'takes_degradation', False))
    if labels and not takes:
        raise OptionError([f'labels: {type(net).__name__} takes no degradation. Leave it out.'])
    labels = takes and (labels or getattr(net, 'sensor', None) is None)
    traced = trace(net, labels, fixed)
    shape = 'any' if fixed is None else [1, 3, *fixed]
    content = write(traced, describe(net, {**(metadata or {}), 'image': shape}))
    sizes = [(1, *fixed)] if fixed else sizes
    differences = _compare(net, read(content), sizes, labels)
    if not all(one.agrees for one in differences):
        raise ExportMismatch(os.fspath(path), differences)
    atomic_write(content, os.fspath(path))
    return differences


def _compare(net: nn.Module, run: Run, sizes: Iterable[tuple[int, int, int]], labels: bool) -> list[Difference]:
    """What a file gives against what a network gives, as it is used for restoring, on the CPU."""
    net = copy.deepcopy(net).cpu().float().eval()
    differences = []
    for number, (batch, height, width) in enumerate(sizes):
        draw = torch.Generator().manual_seed(number)
        image = _pictures((batch, 3, height, width), draw)
        degradation = torch.rand(batch, int(net.num_degradations), generator=draw) if labels else None  # type: ignore[arg-type]
        with torch.no_grad():
            classifies = hasattr(net, 'probabilities')
            expected = net(image) if classifies else restore_images(net, image, degradation=degradation)
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


def _told(checkpoint: Checkpoint) -> dict[str, Any]:
    """The network and what the training has told about it."""
    return {**checkpoint.metadata, 'network_g': checkpoint.network, 'package': __version__}


def _target(args: argparse.Namespace) -> tuple[str, str]:
    """The file to write, and its format.

    Raises:
        OptionError: it is there already, or its ending says something else.
    """
    path = os.path.expanduser(args.output)
    ending = os.path.splitext(path)[1].lower()
    kind = args.to or next((kind for kind, usual in FORMATS.items() if usual == ending), None)
    problems = []
    if kind is None:
        problems.append(f"'{path}': its ending tells no format. Call it NAME.onnx or NAME.pt2, or give `--to`.")
    elif kind == 'torch' and args.opset is not None:
        problems.append('--opset: is of ONNX; leave it out for torch.')
    if os.path.isdir(path):
        problems.append(f"'{path}' is a folder. Give the name of a file.")
    elif os.path.exists(path) and not args.overwrite:
        problems.append(f"'{path}' is there already. Take another name, or replace it with `--overwrite`.")
    if problems:
        raise OptionError(problems)
    return path, str(kind)


def _sizes(args: argparse.Namespace) -> tuple[list[tuple[int, int, int]], tuple[int, int] | None]:
    """The sizes to try, and the only one.

    Raises:
        OptionError: one is none.
    """
    problems = []
    for flag, texts in (('--sizes', args.sizes), ('--fixed', [args.fixed] if args.fixed else [])):
        for text in texts:
            found = _SIZE.fullmatch(text)
            if not found or (flag == '--fixed' and found[1]):
                problems.append(f"{flag}: '{text}' is no size; height x width in pixels is 96x128.")
    if problems:
        raise OptionError(problems)
    sizes = [(int(found[1] or 1), int(found[2]), int(found[3])) for found in map(_SIZE.fullmatch, args.sizes) if found]
    fixed = tuple(map(int, args.fixed.split('x'))) if args.fixed else None
    return sizes, fixed  # type: ignore[return-value]


def _report(differences: Sequence[Difference]) -> None:
    """A table of the differences."""
    table = Table(box=box.SIMPLE)
    for title in ('images', 'height', 'width', 'largest difference', 'largest value'):
        table.add_column(title, justify='right', no_wrap=True)
    for one in differences:
        table.add_row(str(one.batch), str(one.height), str(one.width), f'{one.largest:.1e}', f'{one.reach:.2f}')
    Console(highlight=False, width=None if sys.stdout.isatty() else 120).print(table)
