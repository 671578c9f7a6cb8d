"""Evaluation of a sensor: accuracy, confidence, calibration and confusion matrix of every task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from promptir_basicsr.evaluation.results import Row, aligned, average
from promptir_basicsr.evaluation.validation import Measurement, Report

_BINS = 15

# `basicsr compare` compares these texts, so results of earlier versions stay comparable only if they do not change.
MEANINGS = {
    'accuracy': 'share of the images whose likeliest degradation is the true one',
    'confidence': 'mean probability of the likeliest degradation',
    'cross_entropy': 'mean of -log of the probability of the true degradation',
    'calibration_error': f'expected calibration error: |accuracy - confidence| in {_BINS} equal steps of confidence, '
    'weighted by their images. A few images show little more than how sure the sensor is of them',
}


@dataclass(frozen=True)
class Prediction:
    """A sensor's prediction for one image.

    Attributes:
        task: of the image.
        label: the true label.
        found: the most likely label.
        confidence: its probability.
        cross_entropy: -log of the probability of the true label.
    """

    task: str
    label: int
    found: int
    confidence: float
    cross_entropy: float

    @classmethod
    def of(cls, task: str, label: int, logits: torch.Tensor) -> 'Prediction':
        """Create a prediction from logits: (T,)."""
        logs = logits.double().log_softmax(dim=0)
        found = int(logs.argmax())
        return cls(task, label, found, float(logs[found].exp()), float(F.nll_loss(logs, torch.tensor(label))))


def measures(predictions: Sequence[Prediction]) -> dict[str, float]:
    """The metrics of `MEANINGS` over images with equal weights."""
    number = len(predictions)
    return {
        'accuracy': sum(each.found == each.label for each in predictions) / number,
        'confidence': sum(each.confidence for each in predictions) / number,
        'cross_entropy': sum(each.cross_entropy for each in predictions) / number,
        'calibration_error': calibration_error(predictions),
    }


def calibration_error(predictions: Sequence[Prediction], bins: int = _BINS) -> float:
    """Expected calibration error (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3)."""
    gaps: dict[int, float] = {}
    for each in predictions:
        step = min(int(each.confidence * bins), bins - 1)
        gaps[step] = gaps.get(step, 0.0) + (each.found == each.label) - each.confidence
    return sum(map(abs, gaps.values())) / len(predictions)


class SensorReport(Report):
    """Report of the validations of a sensor, and its files.

    The best weights have the highest accuracy, averaged over the tasks, and among equal ones the lowest cross entropy.

    Attributes:
        names: of the degradations, by label.
        predictions: of the last validation, by dataset.
    """

    heading = 'the sensor'
    measures_inputs = False

    def __init__(self, opt: Mapping[str, Any]) -> None:
        super().__init__(opt)
        self.metrics: dict[str, dict[str, Any]] = {name: {} for name in MEANINGS}
        self.names: Sequence[str] = ()
        self.predictions: dict[str, list[Prediction]] = {}

    def better_than_best(self, iteration: int | str) -> dict[str, Any] | None:
        """The new best average, if the last validation is one."""
        values = average(self.rows).values
        found = {'metric': 'accuracy', 'value': values['accuracy'], 'cross_entropy': values['cross_entropy']}
        if self.best and _rank(found) <= _rank(self.best):
            return None
        return {**found, 'iter': iteration}

    def totals(self) -> list[Row]:
        """The average over tasks, and the average over all images."""
        return [*super().totals(), Row('', 'all images', len(self._all()), measures(self._all()))]

    def legend(self) -> list[str]:
        """The confusion matrix, and a summary."""
        return [*self._confusion(), '', *self._words()]

    def notes(self) -> list[str]:
        """The legend for the log."""
        return [*aligned(self._confusion()), *self._words()]

    def define(self, name: str) -> str:
        return MEANINGS[name]

    def _all(self) -> list[Prediction]:
        return [each for predictions in self.predictions.values() for each in predictions]

    def _words(self) -> list[str]:
        images = self._all()
        values, right = measures(images), sum(each.found == each.label for each in images)
        return [
            f'{right:,} of {len(images):,} images are classified correctly ({values["accuracy"]:.2%}), with a mean '
            f'confidence of {values["confidence"]:.2%}; calibration error {values["calibration_error"]:.4f}. '
            'The average weights every task equally.'
        ]

    def _confusion(self) -> list[str]:
        """Table of tasks and predicted degradations; the true degradation is in brackets."""
        lines = [f'| task | {" | ".join(self.names)} |', f'|:--|{"--:|" * len(self.names)}']
        several = len(self.predictions) > 1
        for dataset, predictions in self.predictions.items():
            tasks: dict[str, list[Prediction]] = {}
            for each in predictions:
                tasks.setdefault(each.task, []).append(each)
            for task, members in tasks.items():
                counts = [sum(each.found == number for each in members) for number in range(len(self.names))]
                true = {each.label for each in members}
                cells = [f'({count})' if number in true else str(count) for number, count in enumerate(counts)]
                lines.append(f'| {f"{dataset}: " if several else ""}{task} | {" | ".join(cells)} |')
        return lines


class SensorMeasurement(Measurement):
    """One dataset in one validation of a sensor."""

    report: SensorReport

    def __init__(self, report: SensorReport, dataset: str, iteration: int | str, save_img: bool) -> None:
        super().__init__(report, dataset, iteration, save_img)
        self.images: list[Prediction] = []

    def add(self, visuals: Mapping[str, torch.Tensor], data: Mapping[str, Any]) -> None:
        """Add one image: `logits` (1, T); `data` is its sample."""
        task = data['task'][0] if 'task' in data else self.dataset
        self.images.append(Prediction.of(task, int(data['degradation'][0]), visuals['logits'][0]))

    def rows(self) -> list[Row]:
        """One row per task, in the order of the dataset."""
        self.report.predictions[self.dataset] = self.images
        tasks: dict[str, list[Prediction]] = {}
        for each in self.images:
            tasks.setdefault(each.task, []).append(each)
        return [Row(self.dataset, task, len(members), measures(members)) for task, members in tasks.items()]


def _rank(values: Mapping[str, Any]) -> tuple[float, float]:
    return values['value'], -values['cross_entropy']
