"""The verb `basicsr restore`. `docs/restore.md` tells how."""

import argparse
import sys
import warnings
from typing import Any

from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.core.messages import check_count
from promptir_basicsr.inference.batch import Reporter, measure_sources, restore_files
from promptir_basicsr.inference.plan import Plan, plan_restoration
from promptir_basicsr.inference.restorer import Restorer
from promptir_basicsr.inference.restoring import Settings, size_multiple_of
from promptir_basicsr.pictures.picture import FORMATS, format_problems
from promptir_basicsr.runtime.precision import PRECISIONS


def main() -> int:
    """The verb `basicsr restore`.

    Returns:
        Exit status: 0; 1 where a picture could not be restored; 130 after Ctrl-C.

    Raises:
        OptionError: mistakes in the arguments; nothing has been written then.
    """
    args = argument_parser().parse_args()
    for stream in (sys.stdout, sys.stderr):  # names of files may be anything
        getattr(stream, 'reconfigure', lambda **_: None)(errors='backslashreplace')
    problems = _problems(args)
    made: list[Any] = []
    for understand in (_labels, _settings, _plan):
        try:
            made.append(understand(args))
        except OptionError as error:
            problems += error.problems
    if problems:
        raise OptionError(problems)
    labels, settings, plan = made
    restorer = Restorer(args.weights, args.opt, args.device, settings, args.key)
    try:
        restorer.check_labels(labels, args.strength)
    except ValueError as error:
        raise OptionError([f'--labels: {line}' for line in str(error).splitlines()]) from error
    least = size_multiple_of(restorer.net)
    if isinstance(args.tile, int) and args.tile < least:
        raise OptionError([f'--tile: {args.tile}; the network wants tiles of multiples of {least}. Take 128 or more.'])
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of decoders; what matters is in the report
        sizes = measure_sources(plan)
        reporter = Reporter(plan, sizes)
        reporter.tell_network(restorer)
        if args.dry_run:
            reporter.tell_plan()
            return 0
        with reporter:
            outcome = restore_files(restorer, plan, reporter, sizes, labels, args.strength, args.batch, args.overwrite)
    return reporter.tell_outcome(outcome)


def _problems(args: argparse.Namespace) -> list[str]:
    """Mistakes in single arguments."""
    problems = check_count('--batch', args.batch)
    if args.format:
        problems += format_problems('--format', args.format)
    if not args.weights:
        problems.append(
            '--weights: is missing: the file of a trained network. docs/weights.md tells where there are some and how '
            'to train them; `basicsr train -opt options/demo.yml` trains a small one in minutes.'
        )
    return problems


def _labels(args: argparse.Namespace) -> Any:
    return parse_labels(args.labels)


def _plan(args: argparse.Namespace) -> Plan:
    extension = args.format if args.format in FORMATS else None  # others are told elsewhere
    return plan_restoration(
        args.input, args.out, args.recursive, args.suffix, extension, args.overwrite, args.skip_existing
    )


def _settings(args: argparse.Namespace) -> Settings:
    try:
        return Settings(
            tile=args.tile,
            overlap=args.overlap,
            statistics=args.statistics,
            ensemble=args.ensemble,
            precision=args.precision,
        )
    except OptionError as error:
        raise OptionError(f'--{problem}' for problem in error.problems) from error


def parse_labels(text: str | None) -> Any:
    """`derain`, `derain:0.5,denoise:0.5`, or `blind` for None: the sensor, or a network that takes none.

    Raises:
        OptionError: it is none of these.
    """
    if text is None or text.strip() == 'blind':
        return None
    labels: dict[str | int, float] = {}
    for part in text.split(','):
        name, _, weight = (piece.strip() for piece in part.partition(':'))
        try:
            value = float(weight) if weight else 1.0
        except ValueError:
            value = float('nan')
        key = int(name) if name.isdecimal() else name
        if not name or key in labels or not 0 <= value < float('inf'):
            told = 'Give a label, or a mixture like derain:0.7,dehaze:0.3, with each label once.'
            raise OptionError([f"--labels: '{text}' is not understood. {told}"])
        labels[key] = value
    return next(iter(labels)) if len(labels) == 1 and ':' not in text else labels


def argument_parser() -> argparse.ArgumentParser:
    """The command line of `basicsr restore`."""
    parser = argparse.ArgumentParser(prog='basicsr restore', description='Restore pictures of any size.')
    parser.add_argument('input', nargs='+', metavar='INPUT', help='files, folders, patterns in quotes')
    parser.add_argument('-o', '--out', required=True, metavar='OUT', help='folder; for a single file also a file')
    network = parser.add_argument_group('the network')
    network.add_argument('--weights', metavar='FILE', help='weights of a trained network')
    network.add_argument('-opt', metavar='FILE', help='option file with network_g, where weights do not tell theirs')
    network.add_argument('--key', metavar='NAME', help='which weights of the file; default: params_ema, then params')
    network.add_argument(
        '--labels', metavar='LABELS', help='degradation, or a mixture like derain:0.7,dehaze:0.3, or blind (a sensor)'
    )
    network.add_argument('--strength', type=float, default=1.0, metavar='X', help='of the prompts; default: 1')
    how = parser.add_argument_group('how it is computed')
    how.add_argument('--ensemble', action='store_true', help='mean of the 8 flips and rotations; 8 times the time')
    how.add_argument(
        '--tile', type=_tile, default='auto', metavar='auto|none|N', help='side of the tiles of large pictures'
    )
    how.add_argument('--overlap', type=int, default=32, metavar='N', help='of tiles, pixels; default: %(default)s')
    how.add_argument(
        '--statistics', default='tiles', metavar='KIND', help='what tiles know of the whole; docs/tiles.md'
    )
    how.add_argument('--precision', choices=PRECISIONS, default='fp32', help='default: %(default)s')
    how.add_argument('--device', default='auto', help='auto, cpu, cuda, cuda:1; default: %(default)s')
    how.add_argument('--batch', type=int, default=1, metavar='N', help='pictures of equal size at once; default: 1')
    files = parser.add_argument_group('files')
    files.add_argument('-r', '--recursive', action='store_true', help='folders below folders, too')
    files.add_argument('--suffix', default='', metavar='TEXT', help='goes behind the names of files')
    files.add_argument('--format', type=_format, metavar='EXT', help=f'{", ".join(FORMATS)}; default: as the input')
    there = files.add_mutually_exclusive_group()
    there.add_argument('--overwrite', action='store_true', help='replace files that are there (never an input)')
    there.add_argument('--skip-existing', action='store_true', help='leave out what is there, e.g. to go on')
    files.add_argument('--dry-run', action='store_true', help='tell what would be done')
    return parser


def _format(text: str) -> str:
    return text.lower().removeprefix('.')


def _tile(text: str) -> int | str | None:
    if text in ('auto', 'none'):
        return None if text == 'none' else text
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is none of auto, none and a whole number of pixels')
    return int(text)
