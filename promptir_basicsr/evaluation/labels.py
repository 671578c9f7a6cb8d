"""The sensor inside a network: where its weights come from, and what it says in a validation."""

import inspect
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from promptir_basicsr.archs.condition_util import SENSOR_PREFIX, check_names, weights_of
from promptir_basicsr.models.checkpoint_util import read_weights
from promptir_basicsr.models.share_util import Share
from promptir_basicsr.option_util import OptionError, first_few

logger = logging.getLogger('basicsr')

SENSOR_PATH = 'path.pretrain_network_sensor'
NO_SENSOR = 'network_g has no sensor. Give it one, `sensor: {type: DegradationSensor, ...}`'


def load_sensor(nets: Sequence[nn.Module], paths: Mapping[str, Any]) -> None:
    """Read the weights of the sensors inside networks, where they have not come with those of the networks.

    Args:
        nets: the network and its averaged copy; each gets the same weights.
        paths: the `path` options. Of a run that is continued, the sensor is the one that its checkpoint holds.

    Raises:
        OptionError: the weights are nowhere, or do not fit.
    """
    found = [getattr(net, 'sensor', None) for net in nets]
    sensors = [sensor for sensor in found if isinstance(sensor, nn.Module)]
    if not sensors:
        return
    path, came_along = _source(paths)
    if not path:
        raise OptionError([_nowhere(paths)])
    logger.info(f'Sensor: {type(sensors[0]).__name__}, weights of {path}; they are not trained here.')
    if came_along:
        return
    weights = _read(path, 'cpu')
    for sensor in sensors:
        problems = _misfits(weights, sensor, path)
        if problems:
            raise OptionError(problems)
        sensor.load_state_dict(weights)


def sensor_problems(options: Mapping[str, Any]) -> list[str]:
    """Why the sensor of `network_g` cannot work, found before anything is created.

    Args:
        options: the options of a run; `network_g` was found to be right. Files that are not there are told elsewhere.
    """
    network, paths, val = options['network_g'], options['path'], options.get('val') or {}
    if not network.get('sensor'):
        problems = [f'{SENSOR_PATH}: {NO_SENSOR}.'] if paths.get('pretrain_network_sensor') else []
        return problems + ([f'val.labels: {NO_SENSOR}, or take true ones.'] if val.get('labels') == 'sensor' else [])
    files = [paths.get(key) for key in ('pretrain_network_sensor', 'pretrain_network_g', 'resume_state')]
    if not all(isinstance(file, str) and os.path.isfile(os.path.expanduser(file)) for file in files if file):
        return []
    if paths.get('resume_state'):
        return []
    try:
        path, came_along = _source(paths)
        if not path:
            return [_nowhere(paths)]
        if came_along:
            return []
        with torch.device('meta'):
            net = ARCH_REGISTRY.get(network['type'])(
                **{name: value for name, value in network.items() if name != 'type'}
            )
        return _misfits(_read(path, 'meta'), net.sensor, path)
    except OptionError as error:
        return error.problems
    except RuntimeError:  # not every constructor can do without memory
        return []


def _source(paths: Mapping[str, Any]) -> tuple[str, bool]:
    """The file of the sensor's weights, '' for none; and whether it is that of the whole network."""
    own, whole = paths.get('pretrain_network_sensor'), paths.get('pretrain_network_g')
    if whole and (paths.get('resume_state') or not own):
        keys = (paths.get('param_key_g', 'params'),)
        weights, _ = read_weights(os.path.expanduser(whole), keys, 'meta')
        if any(name.startswith(SENSOR_PREFIX) for name in weights):
            return whole, True
    return (os.path.expanduser(own), False) if own else ('', False)


def _read(path: str, device: str) -> dict[str, Tensor]:
    """The weights of a sensor from a checkpoint of SensorModel, averaged ones first, or of a network that has one."""
    weights, _ = read_weights(path, ('params_ema', 'params'), device, SENSOR_PATH)
    inside = {
        name.removeprefix(SENSOR_PREFIX): part for name, part in weights.items() if name.startswith(SENSOR_PREFIX)
    }
    return inside or weights


def _misfits(weights: Mapping[str, Tensor], sensor: nn.Module, path: str) -> list[str]:
    state = sensor.state_dict()
    shapes = {
        name: [tuple(part[name].shape) if name in part else 'none' for part in (weights, state)]
        for name in {**state, **weights}
    }
    differ = [f'{name} {found} -> {wanted}' for name, (found, wanted) in shapes.items() if found != wanted]
    if not differ:
        return []
    return [
        f"{SENSOR_PATH}: the weights in '{path}' are those of another {type(sensor).__name__}; they differ in "
        f'{first_few(differ)}. Give network_g.sensor the options that the file was trained with, or take another file.'
    ]


def _nowhere(paths: Mapping[str, Any]) -> str:
    whole = paths.get('pretrain_network_g')
    found = f" '{whole}' holds none." if whole else ''
    return (
        f'{SENSOR_PATH}: is missing, and network_g has a sensor that needs weights.{found} Name a checkpoint that '
        'SensorModel has written (options/sensor.yml trains one), or leave `sensor` out of network_g.'
    )


@contextmanager
def frozen_in_silence() -> Iterator[None]:
    """BasicSR warns of each parameter that is not optimized; a sensor has dozens."""

    def other(record: logging.LogRecord) -> bool:
        return not (record.levelno == logging.WARNING and 'will not be optimized' in record.getMessage())

    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)


def mixture(labels: Mapping[Any, float], net: nn.Module, lq: Tensor) -> Tensor:
    """{name or id: weight} as (B, T) weights for a network that takes labels.

    Raises:
        ValueError: it is not understood.
    """
    return weights_of(labels, lq, net.num_degradations, net.degradations, 'val.labels')  # type: ignore[arg-type]


def label_problems(options: Mapping[str, Any]) -> list[str]:
    """Why a mixture in `val.labels` cannot be given to `network_g`, whose options were found to be right."""
    labels, network = (options.get('val') or {}).get('labels'), options['network_g']
    if not isinstance(labels, Mapping):
        return []
    kind = ARCH_REGISTRY.get(network['type'])
    if not getattr(kind, 'takes_degradation', False) or 'num_degradations' not in inspect.signature(kind).parameters:
        return [f'val.labels: {network["type"]} takes no labels. Leave the key out.']
    number = network.get('num_degradations', inspect.signature(kind).parameters['num_degradations'].default)
    names = check_names(network['type'], number, network.get('degradations'))
    try:
        weights_of(labels, torch.zeros(1), number, names, 'val.labels')
    except ValueError as error:
        return str(error).splitlines()
    return []


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
        self.net, self.wanted, self.dataset = net, wanted, dataset
        self.takes = bool(getattr(net, 'takes_degradation', False))
        self.sensing = getattr(net, 'sensor', None) is not None
        self._told = False
        self._sensed: list[Sensed | None] = []  # an entry an image

    def give(self, lq: Tensor, data: Mapping[str, Any], label: Tensor | None) -> Tensor | None:
        """The label or the weights for one image lq: (1, 3, H, W), before any padding; `label` is the true one."""
        if self.takes and isinstance(self.wanted, Mapping):
            return mixture(self.wanted, self.net, lq)
        if not self.takes or not self.sensing or (label is not None and self.wanted != 'sensor'):
            self._told = label is not None
            self._sensed.append(None)
            return label
        with torch.no_grad():
            probabilities = self.net.sense(lq)  # type: ignore[operator]
        task = data['task'][0] if 'task' in data else self.dataset
        confidence, found = probabilities.max(dim=1)
        right = None if label is None else found.item() == label.item()
        self._sensed.append(Sensed(task, confidence.item(), right))
        return found if self.net.hard_sensor else probabilities

    def complete(self, share: Share) -> None:
        """Bring in what other processes heard, each of its share of the images."""
        self._sensed = share.in_order(self._sensed)

    def lines(self) -> list[str]:
        """For people: whose labels the network was given, and of the sensor's the confidence in each task."""
        if self.takes and isinstance(self.wanted, Mapping):
            return [f'Labels: {dict(self.wanted)} for every image.']
        confidence = self.confidence()
        if not self.takes or not confidence:
            return ['Labels: true ones.'] if self.takes and self._told else []
        kind = 'the likeliest of each image' if self.net.hard_sensor else 'probabilities'
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
