"""The verb `basicsr check`, and its report as tables."""

import argparse
import itertools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from promptir_basicsr.checks.check import check_file
from promptir_basicsr.checks.report import ERROR, NOTE, DatasetReport, EpochReport, Finding, Report, StageReport
from promptir_basicsr.core.console import plain_console
from promptir_basicsr.core.errors import ImageError
from promptir_basicsr.core.messages import printable
from promptir_basicsr.optim.rates import RatePoint

NAMES_SHOWN = 10


def main(args: argparse.Namespace) -> int:
    """The verb `basicsr check`."""
    try:
        report = check_file(
            args.opt,
            args.force_yml,
            decode=not args.fast,
            workers=args.workers,
            processes=args.processes,
            allow_counts=args.allow_counts,
            progress=True,
        )
    except ImageError as error:
        sys.stderr.write(f'{printable(error)}\n')
        return 1
    try:
        if args.json:
            sys.stdout.write(json.dumps(report.as_json(), indent=2) + '\n')
        else:
            print_report(report, plain_console(soft_wrap=False))
        sys.stdout.flush()
    except BrokenPipeError:  # such as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0 if report.right else 1


def print_report(report: Report, console: Console) -> None:
    """Print tables, then errors, notes and the verdict."""
    for dataset in report.datasets:
        if dataset.checked:
            samples = f'{dataset.samples:,} samples{" per epoch" if dataset.where == "datasets.train" else ""}'
            _say(console, f"{dataset.where} '{dataset.name}': {samples}", 'bold')
            console.print(_tasks_table(dataset, report))
    if report.epoch:
        _say(console, _epoch_sentence(report.epoch))
        for n, stage in enumerate(report.epoch.stages, 1):
            _say(console, _stage_sentence(n, stage, report.epoch.processes), indent=2)
    if report.learning_rate:
        _say(console, f'Learning rate: {report.schedule}', 'bold')
        console.print(_rate_table(report.learning_rate))
    for severity, title, style in ((ERROR, 'Errors', 'bold red'), (NOTE, 'Notes', 'bold')):
        findings = report.of(severity)
        if findings:
            console.print(Text(f'{title}: {len(findings):,}', style))
            for lines in _grouped(findings):
                for line in lines:
                    _say(console, line.lstrip(' '), indent=len(line) - len(line.lstrip(' ')) + 2)
            console.print()
    purpose, errors = ('training' if report.training else 'testing'), len(report.of(ERROR))
    if errors:
        found = f'{errors:,} {"error" if errors == 1 else "errors"}'
        _say(console, f'Check failed: {found} to fix before {purpose}.', 'bold red')
    else:
        limit = '' if report.decoded else ' (--fast: images were not decoded)'
        _say(console, f'Check passed: ready for {purpose}{limit}.', 'bold green')


def _say(console: Console, sentence: str, style: str = '', indent: int = 0) -> None:
    """Print a sentence: wrapped at words on a terminal, as one line in a file."""
    sentence = printable(sentence)
    if console.is_terminal:
        console.print(Padding(Text(sentence, style, overflow='fold'), (0, 0, 0, indent)))
    else:
        console.print(Text(' ' * indent + sentence, style), soft_wrap=True)


def _tasks_table(dataset: DatasetReport, report: Report) -> Table:
    training = dataset.where == 'datasets.train'
    fixed = any(task.in_batch for task in dataset.tasks)
    table = Table(box=SIMPLE, pad_edge=False)
    table.add_column('task', overflow='fold')
    headers = ['images', 'expected', *(['draws', 'samples', 'share'] if training else [])]
    for header in headers + ['in batch'] * fixed:
        table.add_column(header, justify='right')
    table.add_column('found')
    for task in dataset.tasks:
        cells = [f'{task.images:,}', f'{task.expected_images:,}' if task.expected_images else '-']
        if training:
            draws, share = task.draws, task.share
            cells += ['-' if draws is None else f'{draws:.4g}', f'{task.samples:,}']
            cells += ['-' if share is None else f'{share:.1%}']
        found = [finding.severity for finding in report.findings if finding.where == task.where]
        table.add_row(
            Text(printable(task.name)),
            *cells,
            *[f'{task.in_batch}'] * fixed,
            Text(_state(found), 'red' if ERROR in found else ''),
        )
    return table


def _state(found: Sequence[str]) -> str:
    counts = [(found.count(severity), severity) for severity in (ERROR, NOTE)]
    return ', '.join(f'{count} {word}{"s" * (count > 1)}' for count, word in counts if count) or 'right'


def _epoch_sentence(epoch: EpochReport) -> str:
    of = _of(epoch.processes)
    first = '' if epoch.stages else f', {epoch.iterations:,} iterations at batch {epoch.batch:,}{of}'
    return (
        f'An epoch: {epoch.samples:,} samples{first}. '
        f'The run: {epoch.total_iter:,} iterations, {epoch.epochs:,.1f} epochs, {epoch.total_samples:,} samples.'
    )


def _stage_sentence(number: int, stage: StageReport, processes: int) -> str:
    return (
        f'Stage {number}, to iteration {stage.until:,}: crops of {stage.gt_size}, {stage.iterations:,} iterations an '
        f'epoch at batch {stage.batch:,}{_of(processes)}, {stage.epochs:,.1f} epochs.'
    )


def _of(processes: int) -> str:
    return f' of {processes} processes' if processes > 1 else ''


def _rate_table(points: Sequence[RatePoint]) -> Table:
    table = Table(box=SIMPLE, pad_edge=False)
    table.add_column('iteration', justify='right')
    table.add_column('rate', justify='right')
    table.add_column()
    for point in points:
        table.add_row(f'{point.iteration:,}', f'{point.rate:.4g}', point.event)
    return table


def _grouped(findings: Sequence[Finding]) -> Iterator[list[str]]:
    """Lines of the findings; findings about the same items are grouped, and the items are listed once."""
    ordered: dict[tuple[Any, ...], list[Finding]] = {}
    for number, finding in enumerate(findings):
        ordered.setdefault((finding.kind, *finding.items) if finding.items else (number,), []).append(finding)
    for group in ordered.values():
        items = group[0].items
        if all(name in group[0].message and detail in group[0].message for name, detail in items):
            items = []  # the sentence already lists them
        width = min(48, max((len(name) for name, _ in items[:NAMES_SHOWN]), default=0))
        names = [f'    {f"{name:{width}}  {detail}" if detail else name}' for name, detail in items[:NAMES_SHOWN]]
        more = [f'    and {len(items) - NAMES_SHOWN:,} more'] if len(items) > NAMES_SHOWN else []
        yield list(itertools.chain((finding.message for finding in group), names, more))
