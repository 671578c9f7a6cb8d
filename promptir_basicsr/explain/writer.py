"""Output of `basicsr explain`: figures, tables, `report.json`, and scores as text."""

import csv
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Drawing

from promptir_basicsr.core.files import atomic_write
from promptir_basicsr.explain.experiments import Findings
from promptir_basicsr.explain.figures import save_both
from promptir_basicsr.explain.page.model import Figure, Report, Table
from promptir_basicsr.explain.prompted import PromptedNet, Sample
from promptir_basicsr.explain.scores import Score

SCORE_COLUMNS = ('value', 'images', 'shuffled', 'p', 'untrained networks', 'untrained mean', 'untrained most', 'found')


@dataclass
class Writer:
    """Writes figures and tables to a folder.

    Attributes:
        files: name of a CSV file -> its table, for `report.json`.
    """

    folder: Path
    files: dict[str, Table] = field(default_factory=dict)

    def figure(self, name: str, title: str, drawing: Drawing, caption: str) -> Figure:
        """Write NAME.png and NAME.svg; the drawing must be made within `style`."""
        return Figure(title, *save_both(drawing, self.folder, name), caption)

    def table(
        self, name: str, title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], caption: str
    ) -> Table:
        """Write NAME.csv with all digits."""
        table = Table(title, list(columns), [[_plain(value) for value in row] for row in rows], caption)
        text = StringIO()
        writer = csv.writer(text, lineterminator='\n')
        writer.writerow(table.columns)
        writer.writerows([['' if value is None else value for value in row] for row in table.rows])
        atomic_write(text.getvalue(), self.folder / f'{name}.csv')
        self.files[f'{name}.csv'] = table
        return table

    def json(self, report: Report) -> None:
        """Write everything as `report.json`; non-finite numbers are null."""
        content = {
            'title': report.title,
            'facts': {name: _finite(value) for name, value in report.facts},
            'sections': [
                {
                    'title': section.title,
                    'text': section.text,
                    'figures': [{**vars(each), 'png': each.png.name, 'svg': each.svg.name} for each in section.figures],
                    'comparisons': [each.title for each in section.comparisons],
                }
                for section in report.sections
            ],
            'tables': {
                name: {**vars(table), 'rows': [list(map(_finite, row)) for row in table.rows]}
                for name, table in self.files.items()
            },
        }
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + '\n'
        atomic_write(text, self.folder / 'report.json')


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class Study:
    """Input of the chapters.

    Attributes:
        tasks: names of the T tasks.
        ids: (n,), the task of each sample.
    """

    prompted: PromptedNet
    samples: Sequence[Sample]
    tasks: Sequence[str]
    ids: np.ndarray
    found: Findings
    untrained: Sequence[Findings]
    seed: int
    permutations: int

    @property
    def chance(self) -> dict[str, int]:
        return {'seed': self.seed, 'permutations': self.permutations}

    def means(self, values: np.ndarray) -> np.ndarray:
        """The mean of each task: (n,) -> (T,)."""
        return np.array([values[self.ids == task].mean() for task in range(len(self.tasks))])

    def photographs(self) -> np.ndarray | None:
        """The photograph of each sample as (n,) ids, by its target; None unless each is in several tasks."""
        targets = [sample.gt.numpy().tobytes() for sample in self.samples]  # names may be the same by chance
        tasks: dict[bytes, set[str]] = {}
        for sample, target in zip(self.samples, targets, strict=True):
            tasks.setdefault(target, set()).add(sample.task)
        if len(tasks) < 2 or min(map(len, tasks.values())) < 2:
            return None
        ids = {target: number for number, target in enumerate(tasks)}
        return np.array([ids[target] for target in targets])

    def sizes(self) -> str:
        """Number of images in words: `10 images, 2 of each of 5 tasks`."""
        counts = sorted(set(np.bincount(self.ids).tolist()))
        each = f'{counts[0]}' if len(counts) == 1 else f'{counts[0]} to {counts[-1]}'
        return f'{len(self.ids)} images, {each} of each of {len(self.tasks)} tasks'


SCORE_WORDS = (
    '"Shuffled": mean with the tasks shuffled among the images; p: how often that reaches the value. "Untrained": '
    'networks with the same options and random weights.'
)
CHANCE_CAPTION = (
    'Diamonds: this network. Circles: mean with the tasks shuffled among the images. Lines: each untrained network.'
)


def score_cells(score: Score) -> list[Any]:
    theirs = score.untrained
    mean, most = (sum(theirs) / len(theirs), max(theirs)) if theirs else (None, None)
    return [score.value, score.n, score.chance, score.p, len(theirs), mean, most, score.verdict]


def shown(value: float) -> str:
    """Format with three decimals, or two digits for smaller values; rounding errors are 0."""
    size = abs(value)
    return f'{value:.2g}' if 1e-9 < size < 0.01 else f'{value if size >= 0.01 else 0:.3f}'


def told(score: Score, unit: str = '') -> str:
    """A score: `0.812 bits (shuffled 0.031, p = 0.001; 19 untrained networks 0.002 to 0.144; N = 50): learned`."""
    unit = f' {unit}' if unit else ''
    chance = f'shuffled {shown(score.chance)}, p = {score.p:.3f}'
    if score.untrained:
        count = len(score.untrained)
        many = f'{count} untrained network{"s" * (count > 1)}'
        chance += f'; {many} {shown(min(score.untrained))} to {shown(max(score.untrained))}'
    return f'{shown(score.value)}{unit} ({chance}; N = {score.n}): {score.verdict}'


def verdict(what: str, score: Score) -> str:
    if score.learned:
        return f'{what} separate the tasks more than in any untrained network.'
    if score.depends and not score.untrained:
        return f'{what} depend on the task. Whether this was learned is unknown without untrained networks.'
    if score.depends:
        return f'{what} depend on the task no more than in an untrained network, so this is not a sign of learning.'
    return f'{what} depend on the task no more than by chance.'
