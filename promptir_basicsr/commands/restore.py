"""The verb `basicsr restore`. See `docs/restore.md`."""

import argparse
import warnings
from typing import Any

from promptir_basicsr.core.errors import OptionError, problems_of, raise_problems
from promptir_basicsr.core.messages import check_count
from promptir_basicsr.core.problems import Problem
from promptir_basicsr.core.vocabulary import PICTURE_FORMATS
from promptir_basicsr.inference.batch import Reporter, measured, restore_files
from promptir_basicsr.inference.plan import Plan, plan_restoration
from promptir_basicsr.inference.restorer import Restorer
from promptir_basicsr.inference.restoring import Settings
from promptir_basicsr.pictures.picture import format_problems


def main(args: argparse.Namespace) -> int:
    """The verb `basicsr restore`.

    Returns:
        Exit status: 0; 1 if an image could not be restored; 130 after Ctrl-C.

    Raises:
        OptionError: wrong arguments; nothing has been written.
    """
    problems = _problems(args)
    made: list[Any] = []
    for understand in (lambda args: parse_labels(args.labels), _settings, _plan):
        try:
            made.append(understand(args))
        except OptionError as error:
            problems += error.problems
    raise_problems(problems)
    labels, settings, plan = made
    restorer = Restorer(args.weights, args.opt, args.device, settings, args.key)
    try:
        restorer.check_labels(labels, args.strength)
    except ValueError as error:
        raise OptionError(f'--labels: {problem}' for problem in problems_of('', error)) from error
    least = restorer.traits.size_multiple
    if isinstance(args.tile, int) and args.tile < least:
        raise OptionError(f'--tile: {args.tile}, but the network needs multiples of {least}. Use 128 or more.')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of decoders; the report lists the relevant ones
        plan = measured(plan)
        reporter = Reporter(plan)
        reporter.tell_network(restorer)
        if args.dry_run:
            reporter.tell_plan()
            return 0
        with reporter:
            outcome = restore_files(
                restorer, plan, reporter, labels, args.strength, args.batch, args.overwrite, args.max_pixels
            )
    return reporter.tell_outcome(outcome)


def _problems(args: argparse.Namespace) -> list[Problem | str]:
    """Problems of single arguments."""
    problems: list[Problem | str] = [*check_count('--batch', args.batch)]
    if args.format:
        problems += format_problems('--format', args.format)
    if not args.weights:
        problems.append(
            '--weights: missing. Pass the weights of a trained network: docs/weights.md lists pretrained weights and '
            'how to train your own; `basicsr train -opt options/demo.yml` trains a small network in minutes.'
        )
    return problems


def _plan(args: argparse.Namespace) -> Plan:
    extension = args.format if args.format in PICTURE_FORMATS else None  # others are reported elsewhere
    return plan_restoration(
        args.input, args.out, args.recursive, args.suffix, extension, args.overwrite, args.skip_existing
    )


def _settings(args: argparse.Namespace) -> Settings:
    try:
        names = ('tile', 'overlap', 'statistics', 'ensemble', 'precision', 'kernels')
        return Settings(**{name: getattr(args, name) for name in names})
    except OptionError as error:
        raise OptionError(f'--{problem}' for problem in error.problems) from error


def parse_labels(text: str | None) -> Any:
    """Parse `derain`, `derain:0.5,denoise:0.5`, or `blind` (None: use the sensor, or no label).

    Raises:
        OptionError: the text is none of these.
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
            told = 'Pass a label, or a mixture such as derain:0.7,dehaze:0.3, with each label once.'
            raise OptionError(f"--labels: cannot parse '{text}'. {told}")
        labels[key] = value
    return next(iter(labels)) if len(labels) == 1 and ':' not in text else labels
