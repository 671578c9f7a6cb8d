"""Rehearse a run: pass one sample of every task through datasets, network, losses and metrics before it starts.

Valid options may still not fit each other, the images, or third-party code. What fails here would have ended the run
in its first iteration or its first validation.
"""

import logging
import math
import os
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import partial
from operator import getitem
from typing import Any

import numpy as np
import torch
from basicsr.utils.logger import initialized_logger
from basicsr.utils.registry import DATASET_REGISTRY, MODEL_REGISTRY
from torch.utils.data import default_collate

from promptir_basicsr.archs.traits import traits_of
from promptir_basicsr.checks.images import image_size
from promptir_basicsr.core.errors import ImageError, OptionError
from promptir_basicsr.core.messages import printable
from promptir_basicsr.core.problems import Item, Keys, Kind, Problem
from promptir_basicsr.core.registry import find_registered
from promptir_basicsr.data.allinone_dataset import AllInOneDataset, keep_tasks
from promptir_basicsr.data.images import centre_area
from promptir_basicsr.data.tasks import Task
from promptir_basicsr.evaluation.labels import LabelSource
from promptir_basicsr.models.batch import image_of, run_network
from promptir_basicsr.models.contrastive_model import ContrastiveModel
from promptir_basicsr.models.prompt_model import PromptModel
from promptir_basicsr.models.sensor_model import SensorModel
from promptir_basicsr.options.run import OwnRun, run_schema
from promptir_basicsr.runtime.memory import is_out_of_memory
from promptir_basicsr.runtime.random_state import kept_random_state

_PATCH, _MEASURED = 32, 256  # pixels; only a corner of larger images is used, to save time

Sample = Mapping[str, Any]


def rehearse(options: Mapping[str, Any], is_train: bool, keep: bool = True) -> list[Problem]:
    """Problems with one sample of every task. Writes nothing, and leaves the random state unchanged.

    All datasets are tried; networks, losses and metrics only with the models of this package. Weights are not loaded,
    nor is a perceptual loss, whose network may have to be downloaded.

    Args:
        options: of a file without other problems.
        is_train: for `basicsr train`; otherwise for `basicsr test`.
        keep: the run follows, and its datasets reuse the lists of images.

    Raises:
        ImageError: an image cannot be read.
    """
    with kept_random_state(), _silence():
        problems = _Rehearsal(options, is_train, keep).run()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # for other processes on the GPU
    return problems


class _Rehearsal:
    def __init__(self, options: Mapping[str, Any], is_train: bool, keep: bool) -> None:
        self.opt, self.is_train, self.keep = _shortened(options, is_train), is_train, keep
        self.problems: list[Problem] = []
        wanted, there = options.get('num_gpu', 0), self.opt['num_gpu']
        self.elsewhere = bool(wanted) and not there  # on a machine with a GPU it may work

    def run(self) -> list[Problem]:
        sets = {key: found for key, opt in self.opt['datasets'].items() if (found := self._dataset(key, opt))}
        model = None
        if issubclass(run_schema(self.opt['model_type'], self.is_train), OwnRun):
            model = self._tried(('network_g',), 'cannot be built', self._model)
        for key, dataset in sets.items():
            path = ('datasets', key)
            for samples in self._samples(path, dataset):
                if model is None:
                    continue
                needed = ['lq', 'gt'] if key == 'train' and not isinstance(model, SensorModel) else ['lq']
                needed += ['lq_key'] if key == 'train' and isinstance(model, ContrastiveModel) else []
                lacking = [f'`{name}`' for name in needed if name not in samples[0][1]]
                if lacking:
                    message = f'its samples have no {" and ".join(lacking)}, which {self.opt["model_type"]} needs.'
                    self.problems.append(Problem(path, message))
                if lacking or not (self._train if key == 'train' else self._measure)(model, path, samples):
                    break  # the other tasks would fail in the same way
        return self.problems

    def _tried(self, path: Keys, what: str, run: Callable[[], Any], kind: Kind = 'options') -> Any:
        """The result of a step of the rehearsal; if it fails, adds a problem and returns None."""
        try:
            return run()
        except ImageError:
            raise
        except OptionError as error:
            self.problems += [each for each in error.problems if each not in self.problems]
        except Exception as error:
            if not is_out_of_memory(error):  # depends on the machine and on sizes, not on the options
                self.problems.append(Problem(path, f'{what}: {_in_words(error)}', kind))
        return None

    def _dataset(self, key: str, opt: Mapping[str, Any]) -> Any:
        path = ('datasets', key)
        dataset = self._tried(path, 'cannot be built', lambda: find_registered(DATASET_REGISTRY, opt['type'])(opt))
        if isinstance(dataset, AllInOneDataset) and self.keep:
            keep_tasks(dataset)
        if dataset is not None and not len(dataset):
            self.problems.append(Problem(path, 'has no images. Correct its paths.'))
            return None
        return dataset

    def _model(self) -> PromptModel:
        kind: Any = find_registered(MODEL_REGISTRY, self.opt['model_type'])
        untrained: type[PromptModel] = type(kind.__name__, (kind,), {'load_sensor': lambda _: None})
        return untrained(self.opt)

    def _samples(self, path: Keys, dataset: Any) -> Iterator[list[tuple[Keys, Sample]]]:
        """Batches of samples with the places of their tasks: one batch of all tasks, or one per task."""
        picked: list[tuple[Keys, Any]] = [(path, 0)]
        if isinstance(dataset, AllInOneDataset):
            picked, start = [], 0
            for number, (task, share) in enumerate(zip(dataset.tasks, dataset.shares, strict=True)):
                place = 0 if dataset.training else _smallest(task, dataset.crop_multiple)
                key = (0, start) if dataset.training else start + place  # as the samplers index
                picked.append(((*path, 'tasks', Item(number, task.name)), key))
                start += share.samples
        tried = [(place, self._tried(place, 'returns no sample', partial(getitem, dataset, n))) for place, n in picked]
        found = [(place, sample) for place, sample in tried if sample is not None]
        if path[-1] != 'train' or self.opt['datasets']['train']['batch_size_per_gpu'] == 1:
            yield from ([each] for each in found)
        elif found:
            yield found if len(found) > 1 else found * 2

    def _train(self, model: PromptModel, path: Keys, samples: Sequence[tuple[Keys, Sample]]) -> bool:
        def step(period: int | None) -> None:
            model.feed_data(default_collate([_cut(sample, period) for _, sample in samples]))
            try:
                output, _ = model.step.compute_gradients(model.batch)
            except RuntimeError:  # the message of a loss is less clear about shapes that differ
                self._check_shape(model, run_network(model.net_g, model.batch))
                raise
            list(model.step.objective.of_tasks(output, model.batch))
            self._check_shape(model, image_of(output))

        return self._small_then_whole(model, f'fails on {_names(samples)}', step)

    def _measure(self, model: PromptModel, path: Keys, samples: Sequence[tuple[Keys, Sample]]) -> bool:
        if self.is_train and not self.opt['val']:
            return True
        place, sample = samples[0]
        name = self.opt['datasets'][path[-1]]['name']
        labels = LabelSource(model.net_g, self.opt['val'].get('labels', True), name)

        def restore(period: int | None) -> None:
            data = default_collate([_cut(sample, period)])
            model.feed_data(data)
            label = labels.give(model.batch.lq, data, model.batch.degradation)
            model.batch = replace(model.batch, degradation=label)
            model.test()
            self._check_shape(model, model.output)

        def measure() -> None:
            data = default_collate([sample])
            visuals = {key: data[key][..., :_MEASURED, :_MEASURED] for key in ('lq', 'gt') if key in data}
            visuals['result'] = visuals['lq']
            if isinstance(model, SensorModel):
                visuals = dict(model.get_current_visuals())
            model.measurement_class(model.report, name, 0, False).add(visuals, data)

        passed = self._small_then_whole(model, f'fails on {_names(samples)}', restore)
        if passed:
            before = len(self.problems)
            self._tried(place, 'cannot be measured', measure)
            self.problems[before:] = [_of_image(each, sample) for each in self.problems[before:]]
        return passed

    def _small_then_whole(self, model: PromptModel, what: str, run: Callable[[int | None], None]) -> bool:
        """Whether a crop passes the network, or else the whole sample: some networks need a certain size."""
        try:
            run(math.lcm(_PATCH, model.size_multiple))
            return True
        except Exception:  # the crop may be the cause; failures with the whole sample are reported
            before = len(self.problems)
        kind: Kind = 'machine' if self.elsewhere and not traits_of(model.net_g).declared else 'options'
        self._tried(('network_g',), what, lambda: run(None), kind)
        return len(self.problems) == before

    @staticmethod
    def _check_shape(model: PromptModel, output: torch.Tensor | None) -> None:
        gt = model.batch.gt
        if gt is not None and output is not None and not isinstance(model, SensorModel) and output.shape != gt.shape:
            made, target = (f'{c} channels of {w}x{h}' for _, c, h, w in (output.shape, gt.shape))
            raise ValueError(f'the network returns {made}, the clear images have {target}.')


def _shortened(options: Mapping[str, Any], is_train: bool) -> dict[str, Any]:
    """The options as BasicSR would complete them, without slow steps and without writing files."""
    opt: dict[str, Any] = deepcopy(dict(options))
    left_out = ('precision', 'compile', 'kernels')
    opt = {key: value for key, value in opt.items() if key not in left_out}
    gpus = bool(options.get('num_gpu')) and torch.cuda.is_available()
    opt |= {'is_train': is_train, 'dist': False, 'rank': 0, 'world_size': 1, 'num_gpu': int(gpus), 'path': {}}
    for key, dataset in opt['datasets'].items():
        dataset['phase'] = key.split('_')[0]
        if 'scale' in opt:
            dataset['scale'] = opt['scale']
        for root in ('dataroot_gt', 'dataroot_lq'):
            if dataset.get(root) is not None:
                dataset[root] = os.path.expanduser(dataset[root])
    opt['val'] = {key: value for key, value in (opt.get('val') or {}).items() if key not in ('precision', 'compile')}
    if is_train:
        train = opt['train']
        train.pop('ema_decay', None)
        if train.pop('perceptual_opt', None) and not (train.get('pixel_opt') or train.get('frequency_opt')):
            train['pixel_opt'] = {'type': 'L1Loss'}
    return opt


def _smallest(task: Task, multiple: int) -> int:
    """Position of the image with the shortest side."""
    sides = [min(centre_area(image_size(task.lq, name), multiple)[2:]) for name, _ in task.names]
    return int(np.argmin(sides))


def _cut(sample: Sample, period: int | None) -> Sample:
    """A sample with a corner of its images, if all have the same size. Removing multiples of the period keeps the
    sides valid, or invalid, for the network."""
    images = ('lq', 'gt', 'lq_key')
    shapes = {sample[key].shape for key in images if key in sample}
    if period is None or len(shapes) != 1:
        return sample
    height, width = (min(side, _PATCH + (side - _PATCH) % period) for side in shapes.pop()[-2:])
    return {key: value[..., :height, :width] if key in images else value for key, value in sample.items()}


def _names(samples: Sequence[tuple[Keys, Sample]]) -> str:
    """Names of the tasks of samples, or of their datasets."""
    names = dict.fromkeys(str(sample.get('task') or place[1]) for place, sample in samples)
    return f'images of {", ".join(names)}'


def _of_image(problem: Problem, sample: Sample) -> Problem:
    path = sample.get('lq_path')
    return replace(problem, message=f'{problem.message} ({printable(path)})') if path else problem


def _in_words(error: Exception) -> str:
    """The first line of an error, and where in the code it was raised, unless it is a message of this package."""
    line = printable(str(error).strip().partition('\n')[0])
    frame = traceback.extract_tb(error.__traceback__)[-1]
    if type(error) is ValueError and f'{os.sep}promptir_basicsr{os.sep}' in frame.filename:
        return line
    where = f'{os.path.basename(frame.filename)}, line {frame.lineno}'
    return f'{type(error).__name__}: {line} ({where})' if line else f'{type(error).__name__} ({where})'


@contextmanager
def _silence() -> Iterator[None]:
    """Disable logging and warnings, and keep BasicSR from setting up its log."""
    logger, known = logging.getLogger('basicsr'), 'basicsr' in initialized_logger
    disabled, logger.disabled = logger.disabled, True
    initialized_logger['basicsr'] = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logger.disabled = disabled
        if not known:
            del initialized_logger['basicsr']
