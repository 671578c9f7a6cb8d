"""Labels of a network in a validation: from the data, a sensor or a fixed mixture."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from promptir_basicsr.archs.layers.conditioning import weights_of
from promptir_basicsr.archs.traits import Conditioned, traits_of, unwrapped
from promptir_basicsr.runtime.processes import Share


@dataclass(frozen=True)
class Sensed:
    """A sensor's prediction for an image of a task: its confidence, and whether it is right, if that is known."""

    task: str
    confidence: float
    right: bool | None


class LabelSource:
    """Source of a network's labels in the validation of a dataset; collects the sensor's predictions by task.

    Args:
        net: the network.
        wanted: `val.labels`: True for the data's labels, 'sensor' for the sensor's, {name or id: weight} for the same
            mixture for all images. Images without a label use the sensor, if there is one.
        dataset: name of the dataset.
    """

    def __init__(self, net: nn.Module, wanted: bool | str | Mapping[Any, float], dataset: str) -> None:
        self.net: Conditioned = unwrapped(net)
        self.wanted, self.dataset, self.traits = wanted, dataset, traits_of(net)
        self._told = False
        self._sensed: list[Sensed | None] = []  # one entry per image

    def give(self, lq: Tensor, data: Mapping[str, Any], label: Tensor | None) -> Tensor | None:
        """The label or the weights for one image lq: (1, 3, H, W), before padding; `label` is the true one."""
        traits = self.traits
        if traits.takes_degradation and isinstance(self.wanted, Mapping):
            return weights_of(self.wanted, lq, traits.num_degradations, traits.degradations, 'val.labels')
        if not traits.takes_degradation or traits.needs_degradation or (label is not None and self.wanted != 'sensor'):
            self._told = label is not None
            self._sensed.append(None)
            return label
        with torch.no_grad():
            probabilities = self.net.sense(lq)
        task = data['task'][0] if 'task' in data else self.dataset
        confidence, found = probabilities.max(dim=1)
        right = None if label is None else found.item() == label.item()
        self._sensed.append(Sensed(task, confidence.item(), right))
        return found if self.traits.hard_sensor else probabilities

    def complete(self, share: Share) -> None:
        """Collect the predictions of all processes, each for its share of the images."""
        self._sensed = share.in_order(self._sensed)

    def lines(self) -> list[str]:
        """Lines for the log: source of the labels, and the sensor's confidence in each task."""
        takes = self.traits.takes_degradation
        if takes and isinstance(self.wanted, Mapping):
            return [f'Labels: {dict(self.wanted)} for every image.']
        confidence = self.confidence()
        if not takes or not confidence:
            return ['Labels: true labels of the data.'] if takes and self._told else []
        kind = 'the most likely one of each image' if self.traits.hard_sensor else 'probabilities'
        lines = [f'Labels: predicted by the sensor, {kind}.']
        for task, value in confidence.items():
            right = [each.right for each in self._sensed if each and each.task == task and each.right is not None]
            known = f'{sum(right):,} of {len(right):,} recognised, ' if right else ''
            lines.append(f'{task}: {known}mean confidence {value:.4f}')
        return lines

    def confidence(self) -> dict[str, float]:
        """Mean probability of the most likely degradation, by task."""
        values: dict[str, list[float]] = {}
        for each in self._sensed:
            if each:
                values.setdefault(each.task, []).append(each.confidence)
        return {task: math.fsum(found) / len(found) for task, found in values.items()}

    def write(self, iteration: int | str, tb_logger: Any) -> None:
        """Write the confidences to TensorBoard."""
        for task, value in self.confidence().items() if tb_logger else ():
            tb_logger.add_scalar(f'metrics/{self.dataset}/{task}/sensor_confidence', value, iteration)
