"""The verb `basicsr measure`."""

import argparse
import inspect
import os
import sys
from collections.abc import Iterator
from typing import Any

from basicsr.utils.registry import METRIC_REGISTRY

from promptir_basicsr.core.errors import ImageError, OptionError, raise_problems
from promptir_basicsr.core.files import target_problems
from promptir_basicsr.core.messages import printable, unknown_name
from promptir_basicsr.data.allinone_dataset import AllInOneDataset
from promptir_basicsr.data.protocol import load_protocol
from promptir_basicsr.evaluation.measuring import Pairs, measure_pairs, pairs_by_rule, pairs_of_task
from promptir_basicsr.evaluation.record import Results, TaskResult, circumstances
from promptir_basicsr.evaluation.results import Row, aligned, markdown_table
from promptir_basicsr.metrics.paper_metric import definition
from promptir_basicsr.metrics.pyiqa_metric import know_metric, lower_is_better
from promptir_basicsr.options.pairing import pairing_rule

_SHORT = {'psnr': 'calculate_paper_psnr', 'ssim': 'calculate_paper_ssim'}


def main(args: argparse.Namespace) -> int:
    """The verb `basicsr measure`.

    Raises:
        OptionError: wrong arguments, or images without a target.
        SaveError: the results could not be written.

    Returns:
        Exit status: 0; 1 if an image cannot be read, or two images differ in size.
    """
    metrics = dict(map(_metric, args.metrics))
    raise_problems(_problems(args))
    tasks = []
    for pairs, made_by in _pairs(args):
        try:
            values = measure_pairs(pairs, metrics)
        except ImageError as error:
            sys.stderr.write(f'{printable(error)}\n')
            return 1
        tasks.append(TaskResult('', pairs.name, len(pairs.names), made_by, values))
    rows = [Row('', task.task, task.images, dict(task.values)) for task in tasks]
    sys.stdout.writelines(f'{printable(line)}\n' for line in aligned(markdown_table(rows, list(metrics))))
    if args.out:
        name = args.name or os.path.basename(os.path.abspath(args.restored))
        facts = {'protocol': args.protocol, 'measured': args.restored, **circumstances()}
        known = {key: value for key, value in facts.items() if value}
        lower = [name for name, options in metrics.items() if lower_is_better(options)]
        defined = {name: definition(options) for name, options in metrics.items()}
        Results(name, known, defined, lower, tasks).write(args.out)
        sys.stdout.write(f'{printable(args.out)}: for `basicsr compare`\n')
    return 0


def _metric(word: str) -> tuple[str, dict[str, Any]]:
    """Name and options of a metric: `psnr`, `ssim`, or a metric registered with BasicSR."""
    kind = _SHORT.get(word, word)
    try:
        know_metric(kind)
    except OptionError as error:
        raise OptionError(f'--metrics: {error}') from error
    if kind not in METRIC_REGISTRY:
        raise OptionError(f'--metrics: {unknown_name("metric", word, [*_SHORT, *METRIC_REGISTRY.keys()])}')
    border = inspect.signature(METRIC_REGISTRY.get(kind)).parameters.get('crop_border')
    needed = border is not None and border.default is border.empty  # BasicSR's have no default
    return word, {'type': kind, **({'crop_border': 0} if needed else {})}


def _problems(args: argparse.Namespace) -> list[str]:
    problems = []
    if (args.target is None) == (args.protocol is None):
        problems.append('pass either --target (the folder of ground-truth images) or --protocol.')
    if args.protocol and (args.pairing or args.crop_multiple):
        problems.append('--protocol: sets the pairing rules and crops. Omit --pairing and --crop-multiple.')
    if args.dataroot and not args.protocol:
        problems.append('--dataroot: the root folder of --protocol. Pass --protocol as well, or omit it.')
    if args.pairing and len(args.pairing) > 2:
        problems.append('--pairing: pass a rule name, or two templates: for restored and for ground-truth images.')
    return problems + (target_problems(args.out, args.overwrite) if args.out else [])


def _pairs(args: argparse.Namespace) -> Iterator[tuple[Pairs, str]]:
    """Pairs to measure, and how their inputs were made if that is known."""
    if args.target:
        given = args.pairing or ['same_name']
        rule = pairing_rule(given[0] if len(given) == 1 else dict(zip(('lq', 'gt'), given, strict=True)))
        yield pairs_by_rule(args.restored, args.target, rule, args.crop_multiple or 1), ''
        return
    protocol = load_protocol(args.protocol)
    if protocol.test is None:
        raise OptionError(f"--protocol: '{args.protocol}' has no test part.")
    names = [task['name'] for task in protocol.test.options['tasks']]
    there = [name for name in names if os.path.isdir(os.path.join(args.restored, name))]
    if not there:
        raise OptionError(f"RESTORED: '{args.restored}' contains none of the task folders {', '.join(names)}.")
    changes = {name: None for name in names if name not in there}
    opt = {'name': 'measure', 'phase': 'test', 'protocol': args.protocol, 'dataroot': args.dataroot or '.'}
    dataset = AllInOneDataset({**opt, **({'tasks': changes} if changes else {})})
    for task in dataset.tasks:
        yield pairs_of_task(args.restored, task, dataset.crop_multiple), dataset.made_by[task.name]
