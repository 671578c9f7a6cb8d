"""What a network is told of the images of a validation, and who says it."""

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
    """What a sensor said of an image of a task: its confidence, and whether that was right, where that is known."""

    task: str
    confidence: float
    right: bool | None


class LabelSource:
    """Where the labels of a network come from in a validation of one data set; what its sensor says, task by task.

    Args:
        net: the network.
        wanted: `val.labels`: True for those of the data, 'sensor' for the sensor's, {name or id: weight} for the same
            mixture of all images. Images without a label are left to the sensor, if there is any.
        dataset: name of the data set.
    """

    def __init__(self, net: nn.Module, wanted: bool | str | Mapping[Any, float], dataset: str) -> None:
        self.net: Conditioned = unwrapped(net)
        self.wanted, self.dataset, self.traits = wanted, dataset, traits_of(net)
        self._told = False
        self._sensed: list[Sensed | None] = []  # an entry an image

    def give(self, lq: Tensor, data: Mapping[str, Any], label: Tensor | None) -> Tensor | None:
        """The label or the weights for one image lq: (1, 3, H, W), before any padding; `label` is the true one."""
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
        """Bring in what other processes heard, each of its share of the images."""
        self._sensed = share.in_order(self._sensed)

    def lines(self) -> list[str]:
        """For people: whose labels the network was given, and of the sensor's the confidence in each task."""
        takes = self.traits.takes_degradation
        if takes and isinstance(self.wanted, Mapping):
            return [f'Labels: {dict(self.wanted)} for every image.']
        confidence = self.confidence()
        if not takes or not confidence:
            return ['Labels: true ones.'] if takes and self._told else []
        kind = 'the likeliest of each image' if self.traits.hard_sensor else 'probabilities'
        lines = [f"Labels: the sensor's, {kind}."]
        for task, value in confidence.items():
            right = [each.right for each in self._sensed if each and each.task == task and each.right is not None]
            known = f'{sum(right):,} of {len(right):,} recognised, ' if right else ''
            lines.append(f'{task}: {known}mean confidence {value:.4f}')
        return lines

    def confidence(self) -> dict[str, float]:
        """Mean probability of the likeliest degradation, task by task."""
        values: dict[str, list[float]] = {}
        for each in self._sensed:
            if each:
                values.setdefault(each.task, []).append(each.confidence)
        return {task: math.fsum(found) / len(found) for task, found in values.items()}

    def write(self, iteration: int | str, tb_logger: Any) -> None:
        """The confidences for TensorBoard."""
        for task, value in self.confidence().items() if tb_logger else ():
            tb_logger.add_scalar(f'metrics/{self.dataset}/{task}/sensor_confidence', value, iteration)
