"""Validation: measure restored images, and report to log, TensorBoard, `metrics.csv`, `results.md` and images."""

import logging
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from promptir_basicsr.core.arrays import save_picture, to_bytes
from promptir_basicsr.core.files import atomic_write, fitting_name
from promptir_basicsr.evaluation.measuring import measure_image
from promptir_basicsr.evaluation.record import NAME, Results, circumstances, tasks_of
from promptir_basicsr.evaluation.results import Mean, Row, aligned, append_csv, average, markdown_table, read_table
from promptir_basicsr.evaluation.sheets import ContactRow, contact_sheet, side_by_side, thumbnail
from promptir_basicsr.metrics.paper_metric import definition
from promptir_basicsr.metrics.pyiqa_metric import lower_is_better
from promptir_basicsr.runtime.processes import Share

logger = logging.getLogger('basicsr')

_SHEET_SIDE = 256
_UNSHOWN = (
    'network_g',
    'iteration',
    'total_iter',
    'weights',
    'date',
)  # not in the table of a run: too long, or in its first line


class Report:
    """Report of the validations of a run, and its files.

    Args:
        opt: the options of the run.

    Attributes:
        metrics: name -> options of each metric.
        datasets: names of the datasets of a validation.
        validated: the iteration of the last complete validation.
        best: metric, value and iter of the best average so far.
        heading: heading of the table in the log.
        measures_inputs: whether the degraded images are measured as well.
        remarks: lines about each dataset of a validation, for log and table.
        facts: origin of the results, as in `record.Results`.
        made_by: (dataset, task) -> how its images were made.
    """

    heading = 'restored (input)'
    measures_inputs = True

    def __init__(self, opt: Mapping[str, Any]) -> None:
        self.opt = opt
        self.val: Mapping[str, Any] = opt.get('val') or {}
        self.metrics: dict[str, dict[str, Any]] = dict(self.val.get('metrics') or {})
        sets = opt.get('datasets') or {}
        self.datasets = [options['name'] for key, options in sets.items() if not key.startswith('train')]
        self.root = opt['path'].get('experiments_root' if opt['is_train'] else 'results_root') or '.'
        self.validated: int | str | None = None
        self.best: dict[str, Any] | None = None
        self.inputs: dict[tuple[str, str], dict[str, float]] = {}
        self.sheet: dict[tuple[str, str], ContactRow] = {}
        self.remarks: dict[str, list[str]] = {}
        self.facts: dict[str, Any] = {}
        self.made_by: dict[tuple[str, str], str] = {}
        self._picture_failed = self._grey = False
        self.known = ''  # text of the table, in case another program changes it
        self._rows: dict[str, list[Row]] = {}

    @property
    def rows(self) -> list[Row]:
        return [row for rows in self._rows.values() for row in rows]

    def add(self, dataset: str, rows: list[Row]) -> bool:
        """Add the rows of one dataset; return True once all datasets of the validation are complete."""
        if len(self._rows) == len(self.datasets):
            self._rows = {}
        self._rows[dataset] = rows
        return len(self._rows) == len(self.datasets)

    def measure(self, image: np.ndarray, target: np.ndarray | None) -> dict[str, float]:
        """Compute every metric of an (H, W, 3) RGB or (H, W, 1) grey float image in [0, 1]; none without a target."""
        if target is None:
            return {}
        self._grey = image.shape[2] == 1
        return measure_image(self.metrics, image, target)

    def better_than_best(self, iteration: int | str) -> dict[str, Any] | None:
        """The new best average, if the last validation is one."""
        if not self.metrics:
            return None
        metric = self.val.get('best_metric') or next(iter(self.metrics))
        value = average(self.rows).values.get(metric)
        if value is None:
            return None
        sign = -1 if lower_is_better(self.metrics[metric]) else 1
        if self.best and self.best['metric'] == metric and sign * value <= sign * self.best['value']:
            return None
        return {'metric': metric, 'value': value, 'iter': iteration}

    def write(self, iteration: int | str, tb_logger: Any, best: Mapping[str, Any] | None) -> None:
        """Report the rows of a complete validation; only rank 0 does."""
        self.validated = iteration
        if self.opt.get('rank'):
            return
        names, rows = list(self.metrics), self.rows
        if names:
            table = aligned(markdown_table(rows, names))
            for line in (f'Validation, iteration {iteration}, {self.heading}:', *table, *self.notes()):
                logger.info(line)
            if best:
                logger.info(f'Best average {best["metric"]}: {best["value"]:.4f} at iteration {best["iter"]}')
            if tb_logger:
                for row in [*rows, *self.totals()]:
                    place = '/'.join(part for part in ('metrics', row.dataset, row.task) if part)
                    for metric, value in row.values.items():
                        tb_logger.add_scalar(f'{place}/{metric}', value, iteration)
                    for metric, value in row.inputs.items():
                        tb_logger.add_scalar(f'{place}/input_{metric}', value, iteration)
            rows = [*rows, *self.totals()]
            results = self.results(iteration)
            atomic_write(self._text(results, iteration, names, best), self._path('results.md'))
            results.write(self._path(NAME))
        if self.sheet:
            sheet = contact_sheet(list(self.sheet.values()), _SHEET_SIDE)
            self.save_picture(sheet, self._path('contact_sheet.png'))
            if tb_logger:
                tb_logger.add_image('contact_sheet', sheet, iteration, dataformats='HWC')
        if names:  # last, because a resumed training does not repeat a validation that has rows
            self.known = append_csv(self.table_path, iteration, rows, names, self.measures_inputs, self.known)

    def results(self, iteration: int | str) -> Results:
        """The last complete validation as `Results`."""
        facts = {**self.facts, **({'iteration': iteration} if self.opt['is_train'] else {}), **circumstances()}
        lower = [name for name, options in self.metrics.items() if lower_is_better(options)]
        metrics = {name: self.define(name) for name in self.metrics}
        return Results(self.opt['name'], facts, metrics, lower, tasks_of(self.rows, self.made_by), self.notes())

    @property
    def table_path(self) -> str:
        return self._path('metrics.csv')

    def table(self) -> str:
        """The rows of all validations so far, as CSV."""
        text = read_table(self.table_path)
        return self.known if text is None else text

    def save_picture(self, image: np.ndarray, path: str) -> None:
        """Write an (H, W, 3) RGB or (H, W, 1) grey image. A failure ends a test, but not a training.

        Raises:
            SaveError: in a test.
        """
        if not (self.opt['is_train'] and self._picture_failed):
            try:
                save_picture(image, path)
            except OSError as error:
                if not self.opt['is_train']:
                    raise
                logger.warning(f'Writing images of validations stopped: {error}')
                self._picture_failed = True

    def totals(self) -> list[Row]:
        """Rows below those of the tasks."""
        return [average(self.rows)]

    def legend(self) -> list[str]:
        """Lines below the table in `results.md`."""
        lines = ['Restored, and in brackets the degraded input. The average weights every task equally.']
        notes = self.notes()
        return [*lines, '', *(f'- {note}' for note in notes)] if notes else lines

    def notes(self) -> list[str]:
        """Remarks on the datasets of a validation."""
        several = len(self._rows) > 1
        return [f'{name}: {line}' if several else line for name in self._rows for line in self.remarks.get(name, ())]

    def define(self, name: str) -> str:
        """The definition of a metric."""
        return definition(self.metrics[name], self._grey)

    def tell_files(self) -> None:
        """Log the paths of the results."""
        for about, name in (('Table', 'results.md'), ('Metrics', 'metrics.csv'), ('Images', 'contact_sheet.png')):
            if os.path.exists(self._path(name)):
                logger.info(f'{about}: {self._path(name)}')

    def _path(self, name: str) -> str:
        return os.path.join(self.root, name)

    def _text(
        self, results: Results, iteration: int | str, names: Sequence[str], best: Mapping[str, Any] | None
    ) -> str:
        lines = [f'# {self.opt["name"]}', '']
        if self.opt['is_train']:
            lines.append(f'Validation at iteration {iteration} of {self.opt["train"]["total_iter"]}.')
        else:
            weights = self.opt['path'].get('pretrain_network_g')
            lines.append(f'Weights: `{weights}`.' if weights else 'Weights: none; the network is untrained.')
        lines += ['', *markdown_table(self.rows, names), '', *self.legend()]
        if best:
            lines.append(
                f'Best average {best["metric"]}: {best["value"]:.4f} at iteration {best["iter"]}, '
                'saved as `models/net_g_best.pth`.'
            )
        lines += ['', 'Metrics:', '']
        lines += [f'- {name}: {self.define(name)}' for name in self.metrics]
        shown = {key: value for key, value in results.facts.items() if key not in _UNSHOWN}
        lines += ['', 'Run:', '']
        lines += [
            f'- {key}: {value:,}' if isinstance(value, int) else f'- {key}: {value}' for key, value in shown.items()
        ]
        return '\n'.join(lines) + '\n'


@dataclass(frozen=True)
class Measured:
    """Measured metrics of one image.

    Attributes:
        task: of the image.
        values: metric name -> value, of restored image and target.
        inputs: the same for the degraded image, if it was measured.
    """

    task: str
    values: Mapping[str, float]
    inputs: Mapping[str, float] | None


class Measurement:
    """One dataset in one validation.

    Args:
        report: of the run.
        dataset: name of the dataset.
        iteration: of the training, or the name of the test.
        save_img: write the restored images.

    Attributes:
        images: metrics of each image.
    """

    def __init__(self, report: Report, dataset: str, iteration: int | str, save_img: bool) -> None:
        self.report, self.dataset, self.iteration, self.save_img = report, dataset, iteration, save_img
        self.images: list[Any] = []
        self._counts: Counter[str] = Counter()
        self._sheet: dict[str, ContactRow] = {}
        self._comparisons: dict[int, str] = {}

    def begins(self, data: Mapping[str, Any]) -> bool:
        """Whether a sample is the first of its task."""
        return not self._counts[data['task'][0] if 'task' in data else self.dataset]

    def add(self, visuals: Mapping[str, torch.Tensor], data: Mapping[str, Any]) -> None:
        """Add one image: `lq`, `result` and optionally `gt`, (1, C, H, W); `data` is its sample."""
        task = data['task'][0] if 'task' in data else self.dataset
        images = {key: np.ascontiguousarray(x[0].permute(1, 2, 0).numpy()) for key, x in visuals.items()}
        values = self.report.measure(images['result'], images.get('gt'))
        self._counts[task] += 1
        show = self._counts[task] == 1 and self.report.val.get('contact_sheet', False)
        inputs = None
        # The inputs never change, so only the first validation measures them.
        if (self.dataset, task) not in self.report.inputs or show:
            inputs = self.report.measure(images['lq'], images.get('gt'))
            if show:
                self._sheet[task] = contact_row(task, images, inputs, values)
        if self.save_img:
            self._save_pictures(images, data, task)
        self.images.append(Measured(task, values, inputs))

    def complete(self, share: Share) -> None:
        """Collect the metrics of all processes, each for its share of the images."""
        self.images = share.in_order(self.images)
        sheets = share.gather(self._sheet)
        counts: Counter[str] = Counter()
        for number, image in enumerate(self.images):
            counts[image.task] += 1
            rank, place = number % share.processes, number // share.processes
            if counts[image.task] == 1 and image.task in sheets[rank]:
                self.report.sheet[self.dataset, image.task] = sheets[rank][image.task]
            # A process counts only its own images, so it may have written too many comparisons.
            if rank == share.rank and place in self._comparisons and counts[image.task] > self._most():
                Path(self._comparisons[place]).unlink(missing_ok=True)

    def rows(self) -> list[Row]:
        """One row per task, in the order of the dataset."""
        values: dict[str, Mean] = {}
        inputs: dict[str, Mean] = {}
        for image in self.images:
            values.setdefault(image.task, Mean()).add(image.values)
            if image.inputs is not None:
                inputs.setdefault(image.task, Mean()).add(image.inputs)
        for task, mean in inputs.items():
            self.report.inputs.setdefault((self.dataset, task), mean.result())
        counts = Counter(image.task for image in self.images)
        return [
            Row(self.dataset, task, counts[task], mean.result(), self.report.inputs[self.dataset, task])
            for task, mean in values.items()
        ]

    def _most(self) -> float:
        """Largest number of comparisons per task."""
        most = self.report.val.get('comparisons')
        return math.inf if most is None else most

    def _save_pictures(self, images: Mapping[str, np.ndarray], data: Mapping[str, Any], task: str) -> None:
        """Save a comparison; in a test also the restored image, with the bit depth of its input."""
        val, opt = self.report.val, self.report.opt
        folder = os.path.join(opt['path']['visualization'], self.dataset, task)
        name = data['name'][0] if 'name' in data else os.path.splitext(os.path.basename(data['lq_path'][0]))[0]
        ending = self.iteration if opt['is_train'] else val.get('suffix') or 'restored'
        file = fitting_name(name, f'_{ending}.png')
        if not opt['is_train']:
            bits = int(data['bits'][0]) if 'bits' in data else 8
            self.report.save_picture(to_bytes(images['result'], bits), os.path.join(folder, file))
            folder = os.path.join(folder, 'comparison')
        if self._counts[task] <= self._most():
            shown = [images[key] for key in ('lq', 'result', 'gt') if key in images]
            path = self._comparisons[len(self.images)] = os.path.join(folder, file)
            self.report.save_picture(side_by_side(shown), path)


def contact_row(
    task: str, images: Mapping[str, np.ndarray], inputs: Mapping[str, float], values: Mapping[str, float]
) -> ContactRow:
    """A task's row of the contact sheet, with the first metric below the images."""
    titles = {'lq': ('input', inputs), 'result': ('restored', values), 'gt': ('target', {})}
    shown = [key for key in titles if key in images]
    captions = []
    for key in shown:
        title, numbers = titles[key]
        captions.append(title + ''.join(f'  {metric} {value:.2f}' for metric, value in list(numbers.items())[:1]))
    return ContactRow(task, [thumbnail(images[key], _SHEET_SIDE) for key in shown], captions)
