"""Comparison of results: comparability, best and second best, means over seeds, tables for papers."""

import csv
import html
import io
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.core.messages import first_few, unknown_name
from promptir_basicsr.core.yaml_loader import load_yaml
from promptir_basicsr.evaluation.record import Results, TaskResult
from promptir_basicsr.evaluation.results import in_digits

PUBLISHED = Path(__file__).with_name('published.yml')
AVERAGE = 'average'
_MILLIONS = 'params (M)'
_SIZES = {_MILLIONS: 'parameters', 'Gops': 'gigaops_256'}  # head of a column -> fact


@dataclass(frozen=True)
class Entry:
    """A row of a comparison.

    Attributes:
        name: of the row.
        facts: facts about it, as in `Results`; `source` of a published row.
        values: (task, metric) -> value; the mean over several seeds.
        spread: sample standard deviation over several seeds.
        runs: number of its results; 0 for a published row.
    """

    name: str
    facts: Mapping[str, Any]
    values: Mapping[tuple[str, str], float]
    spread: Mapping[tuple[str, str], float] = field(default_factory=dict)
    runs: int = 1


@dataclass(frozen=True)
class Comparison:
    """Rows with the same columns.

    Attributes:
        entries: the rows.
        tasks: in the order of the first result; several tasks are followed by AVERAGE.
        metrics: of each cell.
        lower: metrics for which lower is better.
        notes: remarks on the results.
    """

    entries: Sequence[Entry]
    tasks: Sequence[str]
    metrics: Sequence[str]
    lower: Sequence[str]
    notes: Sequence[str] = ()

    @property
    def columns(self) -> list[str]:
        return [*self.tasks, AVERAGE] if len(self.tasks) > 1 else list(self.tasks)

    @property
    def heads(self) -> list[str]:
        """Heads of all columns but the first: known sizes of the networks, then `columns`."""
        return [
            head for head, fact in _SIZES.items() if any(fact in each.facts for each in self.entries)
        ] + self.columns

    def sizes(self, entry: Entry) -> list[str]:
        """The cells of a row before those of `columns`."""
        known = [(head, entry.facts.get(_SIZES[head])) for head in self.heads if head in _SIZES]
        return [
            f'{value / (1e6 if head == _MILLIONS else 1):.3g}' if isinstance(value, int | float) else '-'
            for head, value in known
        ]

    def rank(self, entry: Entry, task: str, metric: str) -> int:
        """Rank in a column by printed digits: 0 for the best, 1 for the second best, 2 for others."""
        found = {in_digits(each.values[task, metric]) for each in self.entries if (task, metric) in each.values}
        if (task, metric) not in entry.values or len(self.entries) < 2:
            return 2
        order = sorted(found, key=float, reverse=metric not in self.lower)
        return min(order.index(in_digits(entry.values[task, metric])), 2)


def compare(
    results: Sequence[Results],
    metrics: Sequence[str] | None = None,
    published: str | None = None,
    seeds: bool = False,
    anyway: bool = False,
) -> Comparison:
    """Compare results.

    Args:
        metrics: names of the metrics to show. Default: all that every result has.
        published: a protocol, whose published rows come first.
        seeds: merge results with the same recipe, which differ only by seed, name and folder, into one row; tests, by
            the seed of their training.
        anyway: also compare results that are not comparable; the reasons become notes.

    Raises:
        OptionError: the results are not comparable, have nothing in common, or two of a row have the same seed.
    """
    common = [name for name in results[0].metrics if all(name in each.metrics for each in results)]
    metrics = list(metrics or common)
    for name in metrics:
        if name not in common:
            raise OptionError(f'--metric: {unknown_name("metric of all runs", name, common)}')
    if not metrics:
        raise OptionError('the runs have no metric in common. Compare runs with the same `val.metrics`.')
    tasks = list(dict.fromkeys(task.task for task in results[0].tasks))
    tasks = [name for name in tasks if all(_find(each, name) for each in results)]
    printed = _published(published) if published else []
    if published:
        tasks = [name for name in tasks if any((name, metric) in row.values for row in printed for metric in metrics)]
    if not tasks:
        of = f" with the published rows of '{published}'" if published else ''
        raise OptionError(f'the runs have no task in common{of}. Compare runs with the same test sets.')
    reasons = differences(results, tasks, metrics)
    if reasons and not anyway:
        advice = 'Omit these runs, or compare them anyway with --anyway.'
        raise OptionError([f'not comparable: {reason}' for reason in reasons] + [advice])
    entries = [_entry(each, tasks, metrics) for each in results]
    rows_of = {each.name: each.name for each in entries}
    if seeds:
        entries, rows_of = _over_seeds(entries)
    notes = [f'Not comparable: {reason}' for reason in reasons]
    notes += dict.fromkeys(f'{rows_of[each.name]}: {remark}' for each in results for remark in each.remarks)
    notes += [f'{row.name}: {row.facts["source"]}.' for row in printed]
    lower = [name for name in metrics if any(name in each.lower_is_better for each in results)]
    rows = [_averaged(row, tasks, metrics) for row in printed] + entries
    return Comparison(rows, tasks, metrics, lower, notes)


def differences(results: Sequence[Results], tasks: Sequence[str], metrics: Sequence[str]) -> list[str]:
    """Reasons why several results are not comparable, one sentence each."""
    found = []
    for metric in metrics:
        found += _unlike(f'{metric} is', [(each.name, each.metrics[metric]) for each in results])
    for name in tasks:
        each_task = [(each.name, task) for each in results if (task := _find(each, name))]
        found += _unlike(f'{name} has', [(run, f'{task.images:,} images') for run, task in each_task])
        found += _unlike(f'the images of {name} are', [(run, task.made_by) for run, task in each_task if task.made_by])
    return found


def _unlike(what: str, said: Sequence[tuple[str, str]]) -> list[str]:
    by_text: dict[str, list[str]] = {}
    for run, words in said:
        by_text.setdefault(words, []).append(run)
    if len(by_text) < 2:
        return []
    return [f'{what} ' + ', but '.join(f"'{words}' in {first_few(runs)}" for words, runs in by_text.items()) + '.']


def _find(results: Results, name: str) -> TaskResult | None:
    return next((task for task in results.tasks if task.task == name), None)


def _entry(results: Results, tasks: Sequence[str], metrics: Sequence[str]) -> Entry:
    found = {name: task for name in tasks if (task := _find(results, name))}
    values = {
        (name, metric): task.values[metric]
        for name, task in found.items()
        for metric in metrics
        if metric in task.values
    }
    return _averaged(Entry(results.name, results.facts, values), tasks, metrics)


def _averaged(entry: Entry, tasks: Sequence[str], metrics: Sequence[str]) -> Entry:
    """Add the mean over tasks, with equal weights, for each metric that all tasks have."""
    values = {key: value for key, value in entry.values.items() if key[0] in tasks}
    for metric in metrics:
        found = [values[name, metric] for name in tasks if (name, metric) in values]
        if len(found) == len(tasks):
            values[AVERAGE, metric] = math.fsum(found) / len(found)
    return Entry(entry.name, entry.facts, values, entry.spread, entry.runs)


def _over_seeds(entries: Sequence[Entry]) -> tuple[list[Entry], dict[str, str]]:
    """Return merged entries, and the name of each entry's row."""
    rows_of = {}
    groups: dict[Any, list[Entry]] = {}
    for number, entry in enumerate(entries):
        groups.setdefault(entry.facts.get('recipe') or number, []).append(entry)
    merged = []
    for group in groups.values():
        names: dict[Any, str] = {}
        for each in group:
            seed = each.facts.get('seed')
            if seed in names:
                raise OptionError(
                    f"--seeds: '{names[seed]}' and '{each.name}' have the same options and the same seed, {seed}. "
                    'Omit one of them.'
                )
            names[seed], rows_of[each.name] = each.name, group[0].name
        keys = [key for key in group[0].values if all(key in each.values for each in group)]
        values = {key: statistics.fmean(each.values[key] for each in group) for key in keys}
        spread = {key: statistics.stdev(each.values[key] for each in group) for key in keys} if len(group) > 1 else {}
        merged.append(Entry(group[0].name, group[0].facts, values, spread, len(group)))
    return merged, rows_of


def _published(protocol: str) -> list[Entry]:
    content = load_yaml(str(PUBLISHED))
    if protocol not in content:
        raise OptionError(f'--published: {unknown_name("protocol with published numbers", protocol, content)}')
    rows = []
    for row in content[protocol]['rows']:
        values = {
            (task, metric): value
            for metric in ('psnr', 'ssim')
            for task, value in zip(content[protocol]['tasks'], row[metric], strict=True)
        }
        rows.append(Entry(row['name'], {'source': row['source']}, values, runs=0))
    return rows


def cell(comparison: Comparison, entry: Entry, task: str, marked: Callable[[str, int], str]) -> str:
    """A cell such as `31.31 / 0.8880`; `marked` formats each number by its rank."""
    parts = []
    for metric in comparison.metrics:
        value = entry.values.get((task, metric))
        shown = '-' if value is None else in_digits(value)
        if (task, metric) in entry.spread:
            shown += f' ± {in_digits(entry.spread[task, metric], value)}'
        parts.append(marked(shown, comparison.rank(entry, task, metric)))
    return ' / '.join(parts)


def label(entry: Entry) -> str:
    """The name of a row, with the number of seeds if there are several."""
    return f'{entry.name} ({entry.runs} seeds)' if entry.runs > 1 else entry.name


def as_markdown(comparison: Comparison) -> str:
    """Markdown table; the best number of a column is bold, the second best is underlined."""
    marks = ('**{}**', '<u>{}</u>', '{}')
    head = f'| {" / ".join(comparison.metrics)} | {" | ".join(comparison.heads)} |'
    lines = [head, f'|:--|{"--:|" * len(comparison.heads)}']
    for entry in comparison.entries:
        cells = [cell(comparison, entry, name, lambda s, rank: marks[rank].format(s)) for name in comparison.columns]
        cells = [*comparison.sizes(entry), *cells]
        lines.append(f'| {_escaped(label(entry), _MARKDOWN)} | {" | ".join(cells)} |')
    return '\n'.join([*lines, *(['', *(f'- {note}' for note in comparison.notes)] if comparison.notes else [])]) + '\n'


def as_latex(comparison: Comparison) -> str:
    """LaTeX table for `\\usepackage{booktabs}`; the best number of a column is bold, the second best underlined."""
    marks = (r'\textbf{{{}}}', r'\underline{{{}}}', '{}')
    columns = [_escaped(name, _LATEX) for name in comparison.heads]
    lines = [f'% {note}' for note in comparison.notes]
    lines += [rf'\begin{{tabular}}{{l{"c" * len(columns)}}}', r'\toprule']
    lines += [f'Method & {" & ".join(columns)} \\\\', r'\midrule']
    for entry in comparison.entries:
        cells = [
            cell(comparison, entry, name, lambda s, rank: marks[rank].format(s.replace('±', r'$\pm$')))
            for name in comparison.columns
        ]
        cells = [*comparison.sizes(entry), *cells]
        lines.append(f'{_escaped(label(entry), _LATEX)} & {" & ".join(cells)} \\\\')
    return '\n'.join([*lines, r'\bottomrule', r'\end{tabular}']) + '\n'


def as_csv(comparison: Comparison) -> str:
    """CSV with one line per row, task and metric, with all digits and the facts of the row."""
    facts = list(dict.fromkeys(key for entry in comparison.entries for key in entry.facts))
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(['row', 'runs', 'task', 'metric', 'value', 'deviation', *facts])
    for entry in comparison.entries:
        for (task, metric), value in entry.values.items():
            known = [entry.facts.get(key, '') for key in facts]
            writer.writerow(
                [entry.name, entry.runs, task, metric, repr(value), entry.spread.get((task, metric), ''), *known]
            )
    return out.getvalue()


def as_html(comparison: Comparison) -> str:
    """HTML page without scripts, with the facts of each row below its name."""
    marks = ('<b>{}</b>', '<u>{}</u>', '{}')
    head = ''.join(f'<th scope="col">{html.escape(name)}</th>' for name in ['', *comparison.columns])
    rows = []
    for entry in comparison.entries:
        known = ', '.join(
            f'{key} {value}' for key, value in entry.facts.items() if value not in (None, '') and key != 'recipe'
        )
        cells = ''.join(
            f'<td>{cell(comparison, entry, name, lambda s, rank: marks[rank].format(html.escape(s)))}</td>'
            for name in comparison.columns
        )
        rows.append(
            f'<tr><th scope="row">{html.escape(label(entry))}<small>{html.escape(known)}</small></th>{cells}</tr>'
        )
    notes = ''.join(f'<li>{html.escape(note)}</li>' for note in comparison.notes)
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Comparison</title><style>'
        'body{font:16px/1.5 system-ui,sans-serif;margin:2rem}table{border-collapse:collapse}'
        'th,td{padding:.3rem .8rem;border-bottom:1px solid #ccc;text-align:right}th[scope=row]{text-align:left}'
        'small{display:block;font-weight:normal;color:#555}</style>'
        f'<h1>{html.escape(" / ".join(comparison.metrics))}</h1><table><thead><tr>{head}</tr></thead>'
        f'<tbody>{"".join(rows)}</tbody></table><ul>{notes}</ul></html>\n'
    )


_MARKDOWN = {character: f'\\{character}' for character in '\\`*_|<'}
_LATEX = {character: f'\\{character}' for character in '&%$#_{}'} | {
    '\\': r'\textbackslash{}',
    '~': r'\textasciitilde{}',
    '^': r'\textasciicircum{}',
}


def _escaped(words: str, special: Mapping[str, str]) -> str:
    return ''.join(special.get(character, character) for character in words)
