"""The verb `basicsr compare`."""

import argparse
import csv
import io
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from promptir_basicsr.core.errors import OptionError, need_extra, raise_problems
from promptir_basicsr.core.files import atomic_write, target_problems
from promptir_basicsr.core.messages import printable
from promptir_basicsr.evaluation.comparison import Comparison, as_csv, as_html, as_latex, as_markdown, compare
from promptir_basicsr.evaluation.record import Results, read_results
from promptir_basicsr.evaluation.results import read_table

_FORMATS: dict[str, Callable[[Comparison], str]] = {
    'markdown': as_markdown,
    'latex': as_latex,
    'csv': as_csv,
    'html': as_html,
}


def main(args: argparse.Namespace) -> int:
    """The verb `basicsr compare`.

    Raises:
        OptionError: wrong arguments, or numbers that are not comparable.
        SaveError: a file could not be written.
    """
    curves = [f'{args.curves}.{kind}' for kind in ('png', 'svg')] if args.curves else []
    targets = [*([args.out] if args.out else []), *curves]
    raise_problems([each for path in targets for each in target_problems(path, args.overwrite)])
    if args.curves:
        need_extra('--curves', ['matplotlib'], 'explain')
    results = _named(args.runs)
    comparison = compare(results, args.metric, args.published, args.seeds, args.anyway)
    text = _FORMATS[args.format](comparison)
    if args.out:
        atomic_write(text, args.out)
    else:
        sys.stdout.write('\n'.join(printable(line, keep='\t') for line in text.split('\n')))
    if args.curves:
        _draw(args.runs, results, comparison.metrics[0], args.curves)
    return 0


def _named(runs: list[str]) -> list[Results]:
    """The results of all runs, under unique names: NAME=RUN sets a name."""
    found: list[Results] = []
    for text in runs:
        name, _, path = text.rpartition('=')
        result = read_results(path if name and not os.path.exists(text) else text)
        if name and not os.path.exists(text):
            result = replace(result, name=name)
        if result.name in {each.name for each in found}:
            result = replace(result, name=f'{result.name} ({len(found) + 1})')
        found.append(result)
    return found


def _draw(runs: list[str], results: list[Results], metric: str, path: str) -> None:
    """Plot a metric's average over the iterations of each run to PATH.png and PATH.svg.

    Raises:
        OptionError: no run has a `metrics.csv` with this metric.
    """
    from promptir_basicsr.explain.figures import curves_figure, save_both, style

    curves: dict[str, list[tuple[float, float]]] = {}
    for run, result in zip(runs, results, strict=True):
        folder = run if os.path.isdir(run) else os.path.dirname(run)
        table = read_table(os.path.join(folder.rpartition('=')[2], 'metrics.csv'))
        rows = csv.DictReader(io.StringIO(table or '', newline=''))
        points = [
            (float(row['iter']), float(row[metric]))
            for row in rows
            if row['task'] == 'average' and row['iter'].isdecimal() and row.get(metric)
        ]
        if points:
            curves[result.name] = points
    if not curves:
        raise OptionError(f"--curves: no run has a metrics.csv with the average of '{metric}'.")
    with style():
        save_both(curves_figure(curves, metric), Path(path).parent, Path(path).name)
