"""The verb `basicsr export`."""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table

from promptir_basicsr.checkpoints.checkpoint import Checkpoint, build, read_checkpoint
from promptir_basicsr.core.console import table_console
from promptir_basicsr.core.errors import need_extra, raise_problems
from promptir_basicsr.core.files import megabytes, target_problems
from promptir_basicsr.core.messages import printable
from promptir_basicsr.core.version import __version__
from promptir_basicsr.core.vocabulary import EXPORT_FORMATS
from promptir_basicsr.export.exporter import PACKAGES, Difference, ExportMismatch, export_onnx, export_program

_SIZE = re.compile(r'(?:([1-9]\d*)x)?([1-9]\d*)x([1-9]\d*)')


def main(args: argparse.Namespace) -> int:
    """The verb `basicsr export`.

    Returns:
        Exit status: 0; 1 if the exported file does not compute the same as the network.

    Raises:
        OptionError: wrong arguments, or a network that cannot be exported.
        SaveError: the file could not be written.
    """
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
        sys.stderr.write(f'{printable(error)}\n')
        return 1
    _report(differences)
    sys.stdout.write(f'{printable(path)}: {megabytes(os.path.getsize(path))}\n')
    return 0


def _told(checkpoint: Checkpoint) -> dict[str, Any]:
    """The network and the checkpoint's metadata."""
    return {**checkpoint.metadata, 'network_g': checkpoint.network, 'package': __version__}


def _target(args: argparse.Namespace) -> tuple[str, str]:
    """The file to write, and its format.

    Raises:
        OptionError: the file exists already, or its ending does not match the format.
    """
    path = os.path.expanduser(args.output)
    ending = os.path.splitext(path)[1].lower()
    kind = args.to or next((kind for kind, usual in EXPORT_FORMATS.items() if usual == ending), None)
    problems = []
    if kind is None:
        problems.append(f"'{path}': unknown ending. Use NAME.onnx or NAME.pt2, or set `--to`.")
    elif kind == 'torch' and args.opset is not None:
        problems.append('--opset: only for ONNX. Omit it for torch.')
    raise_problems(problems + target_problems(path, args.overwrite))
    return path, str(kind)


def _sizes(args: argparse.Namespace) -> tuple[list[tuple[int, int, int]], tuple[int, int] | None]:
    """The sizes to verify, and the fixed size if there is one.

    Raises:
        OptionError: a size cannot be parsed.
    """
    problems = []
    for flag, texts in (('--sizes', args.sizes), ('--fixed', [args.fixed] if args.fixed else [])):
        for text in texts:
            found = _SIZE.fullmatch(text)
            if not found or (flag == '--fixed' and found[1]):
                problems.append(f"{flag}: '{text}' is not a size. Write height x width in pixels, such as 96x128.")
    raise_problems(problems)
    sizes = [(int(found[1] or 1), int(found[2]), int(found[3])) for found in map(_SIZE.fullmatch, args.sizes) if found]
    fixed = tuple(map(int, args.fixed.split('x'))) if args.fixed else None
    return sizes, fixed  # type: ignore[return-value]


def _report(differences: Sequence[Difference]) -> None:
    """Print a table of the differences."""
    table = Table(box=box.SIMPLE)
    for title in ('images', 'height', 'width', 'largest difference', 'largest value'):
        table.add_column(title, justify='right', no_wrap=True)
    for one in differences:
        table.add_row(str(one.batch), str(one.height), str(one.width), f'{one.largest:.1e}', f'{one.reach:.2f}')
    table_console().print(table)
