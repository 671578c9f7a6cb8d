"""What `basicsr check` found, and its tables for people."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from promptir_basicsr.models.lr_curve_util import RatePoint

ERROR, NOTE = 'error', 'note'
SCHEMA = 1
NAMES_SHOWN = 10


@dataclass
class Finding:
    """Something to know about the options or the data.

    Attributes:
        severity: `error` where training would be wrong, else `note`.
        kind: a word for programs, see docs/check.md.
        where: place in the option file: of a task, of a data set, or '' for anything else.
        message: for people; begins with the place.
        items: what it is about, each with a name and a detail.
    """

    severity: str
    kind: str
    where: str
    message: str
    items: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class TaskReport:
    """A task as found; `images` is 0 and `draws` and `share` are None where its options do not make a task.

    Attributes:
        where: place in the option file.
        images: whole images, or pairs, that are there.
        expected_images: the published count, if the options give it.
        samples: of an epoch, before `dataset_enlarge_ratio`.
        share: samples over those of the epoch, 0 to 1.
        draws: samples over images (pieces, where images are stored as pieces).
        in_batch: samples in every batch; 0 where batches are mixed at random.
        made_by: how its degraded images are made; `pairs` where they are files.
    """

    where: str
    name: str
    type: str = ''
    label: int | None = None
    images: int = 0
    expected_images: int | None = None
    samples: int = 0
    share: float | None = None
    draws: float | None = None
    in_batch: int = 0
    made_by: str = ''


@dataclass
class DatasetReport:
    """A data set of the file; `checked` is false for one of another type, which is not looked into."""

    where: str
    name: str
    type: str
    checked: bool
    samples: int = 0
    tasks: list[TaskReport] = field(default_factory=list)


@dataclass
class EpochReport:
    """The length of the run.

    Attributes:
        samples: of an epoch, over all processes.
        batch: over all processes and GPUs.
        iterations: of an epoch.
        epochs: that total_iter amounts to.
    """

    samples: int
    batch: int
    iterations: int
    total_iter: int
    epochs: float
    total_samples: int
    processes: int


@dataclass
class Duplicates:
    """Clear images that a task of training and a task of a test set have in common, as (test, training) paths.

    Attributes:
        test_images: how many clear images the test task has.
    """

    training_task: str
    test_dataset: str
    test_task: str
    test_images: int
    pairs: list[tuple[str, str]]


@dataclass
class Report:
    """All of it. `duplicates` and `learning_rate` are None where they could not be looked at."""

    file: str
    training: bool
    decoded: bool
    datasets: list[DatasetReport] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    epoch: EpochReport | None = None
    schedule: str = ''
    learning_rate: list[RatePoint] | None = None
    duplicates: list[Duplicates] | None = None

    def of(self, severity: str) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == severity]

    @property
    def right(self) -> bool:
        return not self.of(ERROR)

    def as_json(self) -> dict[str, Any]:
        """The document that `--json` prints."""
        rates = self.learning_rate
        return {
            'schema': SCHEMA,
            'file': self.file,
            'right': self.right,
            'training': self.training,
            'decoded': self.decoded,
            'datasets': [
                {**vars(dataset), 'tasks': [vars(task) for task in dataset.tasks]} for dataset in self.datasets
            ],
            'findings': [
                {**vars(finding), 'items': [{'name': name, 'detail': detail} for name, detail in finding.items]}
                for finding in self.findings
            ],
            'epoch': vars(self.epoch) if self.epoch else None,
            'schedule': self.schedule,
            'learning_rate': None if rates is None else [point._asdict() for point in rates],
            'duplicates': None
            if self.duplicates is None
            else [
                {**vars(found), 'pairs': [{'test': test, 'training': training} for test, training in found.pairs]}
                for found in self.duplicates
            ],
        }


def print_report(report: Report, console: Console) -> None:
    """For people: tables, then errors, notes and the verdict."""
    for dataset in report.datasets:
        if dataset.checked:
            samples = f'{dataset.samples:,} samples{" an epoch" if dataset.where == "datasets.train" else ""}'
            _say(console, f"{dataset.where} '{dataset.name}': {samples}", 'bold')
            console.print(_tasks_table(dataset, report))
    if report.epoch:
        _say(console, _epoch_sentence(report.epoch))
    if report.learning_rate:
        _say(console, f'Learning rate: {report.schedule}', 'bold')
        console.print(_rate_table(report.learning_rate))
    for severity, title, style in ((ERROR, 'Errors', 'bold red'), (NOTE, 'Notes', 'bold')):
        findings = report.of(severity)
        if findings:
            console.print(Text(f'{title}: {len(findings):,}', style))
            for lines in _grouped(findings):
                for line in lines:
                    _say(console, line.lstrip(), indent=len(line) - len(line.lstrip()) + 2)
            console.print()
    purpose, errors = ('Training' if report.training else 'The test'), len(report.of(ERROR))
    if errors:
        _say(console, f'{purpose} would be wrong: {errors:,} {"error" if errors == 1 else "errors"}.', 'bold red')
    else:
        limit = '' if report.decoded else ' as far as the beginnings of the files tell (--fast)'
        _say(console, f'{purpose} would be right{limit}.', 'bold green')


def _say(console: Console, sentence: str, style: str = '', indent: int = 0) -> None:
    """A sentence: folded at words on a terminal, a line in a file."""
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
            Text(task.name),
            *cells,
            *[f'{task.in_batch}'] * fixed,
            Text(_state(found), 'red' if ERROR in found else ''),
        )
    return table


def _state(found: Sequence[str]) -> str:
    counts = [(found.count(severity), severity) for severity in (ERROR, NOTE)]
    return ', '.join(f'{count} {word}{"s" * (count > 1)}' for count, word in counts if count) or 'right'


def _epoch_sentence(epoch: EpochReport) -> str:
    of = f' of {epoch.processes} processes' if epoch.processes > 1 else ''
    return (
        f'An epoch: {epoch.samples:,} samples, {epoch.iterations:,} iterations at batch {epoch.batch:,}{of}. '
        f'The run: {epoch.total_iter:,} iterations, {epoch.epochs:,.1f} epochs, {epoch.total_samples:,} samples.'
    )


def _rate_table(points: Sequence[RatePoint]) -> Table:
    table = Table(box=SIMPLE, pad_edge=False)
    table.add_column('iteration', justify='right')
    table.add_column('rate', justify='right')
    table.add_column()
    for point in points:
        table.add_row(f'{point.iteration:,}', f'{point.rate:.4g}', point.event)
    return table


def _grouped(findings: Sequence[Finding]) -> Iterator[list[str]]:
    """Lines of the findings; those about the same items follow one another, and the items are named once."""
    ordered: dict[tuple[Any, ...], list[Finding]] = {}
    for number, finding in enumerate(findings):
        ordered.setdefault((finding.kind, *finding.items) if finding.items else (number,), []).append(finding)
    for group in ordered.values():
        items = group[0].items
        if all(name in group[0].message and not detail for name, detail in items):
            items = []  # the sentence names them
        width = min(48, max((len(name) for name, _ in items[:NAMES_SHOWN]), default=0))
        names = [f'    {f"{name:{width}}  {detail}" if detail else name}' for name, detail in items[:NAMES_SHOWN]]
        more = [f'    and {len(items) - NAMES_SHOWN:,} more'] if len(items) > NAMES_SHOWN else []
        yield list(itertools.chain((finding.message for finding in group), names, more))
