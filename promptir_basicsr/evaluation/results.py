"""Results of a validation: one row per task and their average, for the log, a CSV file and a Markdown table."""

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from promptir_basicsr.core.files import atomic_write


@dataclass
class Row:
    """Mean metrics of one task.

    Attributes:
        dataset: name of its dataset.
        task: name of the task.
        images: number of measured images.
        values: metric name -> mean over the images, of restored image and target.
        inputs: the same for the degraded images.
    """

    dataset: str
    task: str
    images: int = 0
    values: dict[str, float] = field(default_factory=dict)
    inputs: dict[str, float] = field(default_factory=dict)


class Mean:
    """Means by name; sums are exact, so the order of images does not matter."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = {}

    def add(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._values.setdefault(name, []).append(float(value))

    def result(self) -> dict[str, float]:
        return {name: math.fsum(values) / len(values) for name, values in self._values.items()}


def average(rows: Sequence[Row]) -> Row:
    """The mean over tasks, with equal weights whatever their numbers of images, as in papers."""
    values, inputs = Mean(), Mean()
    for row in rows:
        values.add(row.values)
        inputs.add(row.inputs)
    return Row('', 'average', sum(row.images for row in rows), values.result(), inputs.result())


def markdown_table(rows: Sequence[Row], metrics: Sequence[str]) -> list[str]:
    """Lines of a table: one row per task and the average, with `restored (input)` in each metric's column."""
    several = len({row.dataset for row in rows}) > 1
    inputs = ' (input)' if any(row.inputs for row in rows) else ''
    lines = [
        f'| task | images | {" | ".join(f"{metric}{inputs}" for metric in metrics)} |',
        f'|:--|--:|{"--:|" * len(metrics)}',
    ]
    for row in [*rows, average(rows)]:
        name = f'{row.dataset}: {row.task}' if several and row.dataset else row.task
        cells = [number(metric, row.values, row.inputs) for metric in metrics]
        lines.append(f'| {name} | {row.images:,} | {" | ".join(cells)} |')
    return lines


def number(metric: str, values: Mapping[str, float], inputs: Mapping[str, float]) -> str:
    """A cell such as `31.31 (20.17)`."""
    shown = in_digits(values[metric]) if metric in values else '-'
    return f'{shown} ({in_digits(inputs[metric])})' if metric in inputs else shown


def in_digits(value: float, beside: float | None = None) -> str:
    """Format a value with two decimals, or four if it is below 2; or with as many as the value `beside`."""
    return f'{value:.4f}' if abs(value if beside is None else beside) < 2 else f'{value:.2f}'


def aligned(table: Sequence[str]) -> list[str]:
    """A Markdown table in aligned columns, without its second line."""
    cells = [[cell.strip() for cell in line.strip('|').split('|')] for line in table]
    del cells[1]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    return [
        '  '.join(cell.ljust(width) if not column else cell.rjust(width) for column, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(line, widths, strict=True)) for line in cells)
    ]


def append_csv(
    path: str,
    iteration: int | str,
    rows: Iterable[Row],
    metrics: Sequence[str],
    inputs: bool = True,
    known: str = '',
) -> str:
    """Add rows to `metrics.csv`; a new file starts with a header. The columns of the inputs are optional.

    Rows of this iteration are replaced. A file with other columns, or one that another program has changed, is renamed
    to `metrics.csv.old`. The rows are written atomically.

    Args:
        known: previous text of the file, in case another program has changed it.

    Returns:
        The text of the file.
    """
    measured = [f'input_{metric}' for metric in metrics] if inputs else []
    header = ['iter', 'dataset', 'task', 'images', *metrics, *measured]
    text = read_table(path)
    before = _lines(known if text is None else text)
    if text is None or (before and before[0] != header):
        atomic_write(Path(path).read_bytes(), f'{path}.old')
    if before and before[0] != header:
        before = []
    kept = [line for line in before[1:] if line[:1] != [str(iteration)] or not isinstance(iteration, int)]
    new = [
        [
            iteration,
            row.dataset,
            row.task,
            row.images,
            *(
                repr(found[metric]) if metric in found else ''
                for found in (row.values, row.inputs)[: 1 + inputs]
                for metric in metrics
            ),
        ]
        for row in rows
    ]
    text = _text([header, *kept, *new])
    atomic_write(text, path)
    return text


def read_best(path: str) -> dict[str, Any] | None:
    """Metric, value and iter of the best average in `net_g_best.json`; None for a missing or damaged file."""
    try:
        best = json.loads(Path(path).read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    kinds = {'metric': str, 'value': float, 'iter': int}
    sound = isinstance(best, dict) and all(isinstance(best.get(key), kind) for key, kind in kinds.items())
    return best if sound else None


def has_iteration(table: str, iteration: int) -> bool:
    """Whether the text of a `metrics.csv` has rows of an iteration."""
    return any(line[:1] == [str(iteration)] for line in _lines(table))


def up_to(table: str, iteration: int) -> str:
    """The text of a `metrics.csv` without the rows of later iterations."""
    lines = _lines(table)
    kept = [line for line in lines if not (line and line[0].isdecimal() and int(line[0]) > iteration)]
    return table if len(kept) == len(lines) else _text(kept)


def read_table(path: str) -> str | None:
    """The text of a `metrics.csv`: '' if it does not exist, None if another program has changed it."""
    if not os.path.exists(path):
        return ''
    try:
        text = Path(path).read_bytes().decode('utf-8')
        header, *lines = _lines(text)
        for line in lines:
            list(map(float, filter(None, line[3:])))
    except ValueError:
        return None
    return text if tuple(header[:4]) == _TEXTS and {len(line) for line in lines} <= {len(header)} else None


def _lines(table: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(table, newline='')))


def _text(lines: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(lines)
    return text.getvalue()


def measured(iteration: int | str, rows: Sequence[Row]) -> dict[str, Any]:
    """A validation as a mapping, with rows of dataset, task, images and the mean of each metric."""
    return {
        'iteration': iteration,
        'rows': [
            {
                'dataset': row.dataset,
                'task': row.task,
                'images': row.images,
                **{name: float(value) for name, value in row.values.items()},
                **{f'input_{name}': float(value) for name, value in row.inputs.items()},
            }
            for row in rows
        ],
    }


def last_measured(table: str) -> dict[str, Any] | None:
    """`measured` for the last validation in the text of a `metrics.csv`, or None."""
    rows = list(csv.DictReader(io.StringIO(table, newline='')))
    iterations = [row['iter'] for row in rows if row.get('iter', '').isdecimal()]
    if not iterations:
        return None
    last = max(iterations, key=int)
    told = []
    for row in rows:
        if row['iter'] == last:
            values = {name: float(text) for name, text in row.items() if name not in _TEXTS and text}
            told.append({'dataset': row['dataset'], 'task': row['task'], 'images': int(row['images']), **values})
    return {'iteration': int(last), 'rows': told}


_TEXTS = ('iter', 'dataset', 'task', 'images')
