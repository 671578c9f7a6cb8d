"""Check an option file before anything is created.

Options of third-party networks, datasets, losses and models are checked against their constructors' signatures only.
"""

import importlib.util
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from basicsr.models.sr_model import SRModel
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY
from torch.nn.modules.module import register_module_module_registration_hook

from promptir_basicsr.archs.layers.conditioning import check_names, weights_of
from promptir_basicsr.archs.traits import channel_options, names_of, traits_of
from promptir_basicsr.checkpoints.pretrained import sensor_problems, start_problems
from promptir_basicsr.checks.contrast import check_contrast
from promptir_basicsr.checks.speed import check_speed
from promptir_basicsr.checks.train import check_train
from promptir_basicsr.core.errors import OptionError, problems_of
from promptir_basicsr.core.messages import check_count, first_few, missing, unknown
from promptir_basicsr.core.problems import Keys, Kind, Problem, place, problem
from promptir_basicsr.core.registry import (
    arguments_of,
    build,
    check_arguments,
    check_call,
    check_registered,
    find_registered,
)
from promptir_basicsr.data.allinone_dataset import check_dataset
from promptir_basicsr.data.protocol import expand_protocol
from promptir_basicsr.data.sampler import plan_epochs
from promptir_basicsr.data.sampling import epoch_shares
from promptir_basicsr.data.stages import by_stage
from promptir_basicsr.data.tasks import Task, TaskSurvey
from promptir_basicsr.inference.restoring import Settings
from promptir_basicsr.metrics.pyiqa_metric import know_metric
from promptir_basicsr.options.registered import type_problems
from promptir_basicsr.options.run import OwnRun, run_schema

_MOST_MODULES = 20_000  # PromptIR has 660
_IMPOSSIBLE = ('negative dimension', 'overflow')  # words of torch's messages about tensors of such sizes


def check_options(
    options: Mapping[str, Any],
    is_train: bool,
    processes: int = 1,
    surveys: 'dict[Keys, list[TaskSurvey]] | None' = None,
) -> list[Problem]:
    """All problems of an option file.

    Args:
        options: the file's content as read.
        is_train: for `basicsr train`; otherwise for `basicsr test`.
        processes: number of processes that share an iteration.
        surveys: filled with the surveys of the tasks of each AllInOneDataset, by its place.
    """
    given, model = options, options.get('model_type')
    schema = run_schema(model, is_train)
    ours, sensor = issubclass(schema, OwnRun), model == 'SensorModel'
    options, problems = schema.sound(options)
    told = {(each.place, each.path) for each in problems}
    # The checks below combine several options. Invalid single options are removed already.
    network = options.get('network_g')
    found: list[Problem] = []
    if 'model_type' in options:
        found += check_registered('model_type', 'model', model, MODEL_REGISTRY)
    found += _check_gpus(options.get('num_gpu')) + _check_wandb(options.get('logger'))
    if network is not None:
        wrong = check_network(network) or (_check_kind(network, sensor) if ours else [])
        # A missing file still counts as set.
        complete = {**options, 'name': given.get('name'), 'path': given['path'] if 'path' in options else {}}
        found += wrong or (_check_start(complete, is_train) if ours else [])
        network = None if wrong else network
    if 'datasets' in options:
        found += _check_datasets({'train': {}, **options}, processes, surveys, network)
    if is_train and 'train' in options:
        found += check_train(options['train'], ours, network, sensor)
    if 'val' in options and not sensor:
        names = given['val'].get('metrics')
        found += _check_val(options['val'], names if isinstance(names, Mapping) else {})
    if model == 'ContrastiveModel' and is_train:
        found += check_contrast(options, processes, network)
    if ours:
        found += check_speed(options, is_train, processes, network)
    return problems + [each for each in found if (each.place, each.path) not in told]


def _check_wandb(logger: object) -> list[Problem]:
    """Check what BasicSR needs for wandb; otherwise it ends with a traceback."""
    wandb = logger.get('wandb') if isinstance(logger, Mapping) else None
    if not isinstance(logger, Mapping) or not isinstance(wandb, Mapping) or not wandb.get('project'):
        return []
    where, problems = ('logger', 'wandb'), []
    if importlib.util.find_spec('wandb') is None:
        message = 'wandb is not installed. Run `pip install wandb`, or remove the key.'
        problems.append(Problem(where, message, 'machine'))
    if logger.get('use_tb_logger') is False:
        message = 'wandb mirrors the TensorBoard log. Set `use_tb_logger: true`.'
        problems.append(problem(where, message, ('logger', 'use_tb_logger')))
    return problems


def _check_gpus(number: object) -> list[Problem]:
    there = torch.cuda.device_count()
    if not isinstance(number, int) or number <= there:
        return []
    advice = 'Set `num_gpu: auto` (all GPUs) or `num_gpu: 0` (CPU).'
    return [Problem(('num_gpu',), f'{number} requested, but this machine has {there}. {advice}', 'machine')]


def check_network(options: Mapping[str, Any], where: str | Keys = 'network_g') -> list[Problem]:
    """Check a network's type and option names. Networks of this package are also built, on the meta device."""
    if 'type' not in options:
        known = ', '.join(sorted(ARCH_REGISTRY.keys()))
        return [replace(each, message=f'{each.message} One of: {known}.') for each in missing(where, options, ['type'])]
    problems = check_call(where, 'network', options, ARCH_REGISTRY)
    if problems:
        return problems
    network = find_registered(ARCH_REGISTRY, options['type'])
    if traits_of(network).declared:
        problems, meant = _build(where, options)
        if not meant:  # the signature gives clearer messages than a constructor without checks of its own
            problems = type_problems(where, network, arguments_of(options)) or problems
    return problems


def _build(where: str | Keys, options: Mapping[str, Any]) -> tuple[list[Problem], bool]:
    """Errors of a network's constructor on the meta device; and whether they are meant for users."""
    try:
        with _limited_modules():
            build(ARCH_REGISTRY, options, 'meta')
    except ValueError as error:
        return problems_of(where, error), True
    except RuntimeError as error:
        # Other errors are from constructors that do not support the meta device.
        return problems_of(where, error) if any(sign in str(error) for sign in _IMPOSSIBLE) else [], False
    except Exception as error:  # it would end the training as well
        return problems_of(where, error), False
    return [], False


@contextmanager
def _limited_modules() -> Iterator[None]:
    """Stop a constructor that would build for hours because a number of blocks is far too large.

    Raises:
        OptionError: in the constructor.
    """
    count = 0

    def add(*_: object) -> None:
        nonlocal count
        count += 1
        if count > _MOST_MODULES:
            raise OptionError(f'more than {_MOST_MODULES:,} layers. Lower the numbers of blocks.')

    handle = register_module_module_registration_hook(add)
    try:
        yield
    finally:
        handle.remove()


def _check_kind(network: Mapping[str, Any], sensor: bool) -> list[Problem]:
    """Check that a sensor is trained by SensorModel, and other networks by other models."""
    is_sensor = traits_of(find_registered(ARCH_REGISTRY, network['type'])).is_sensor
    if is_sensor == sensor:
        return []
    told = 'classifies degradations and does not restore images. Train it by `model_type: SensorModel`.'
    if not is_sensor:
        sensors = ', '.join(names_of(lambda traits: traits.is_sensor))
        told = f'is not a sensor, but `model_type: SensorModel` trains sensors. Allowed: {sensors}.'
    return [problem(('network_g', 'type'), f"'{network['type']}' {told}")]


def _check_start(options: Mapping[str, Any], is_train: bool) -> list[Problem]:
    return label_problems(options) + (start_problems(options, is_train) or sensor_problems(options))


def _check_datasets(
    options: Mapping[str, Any],
    processes: int,
    surveys: 'dict[Keys, list[TaskSurvey]] | None',
    right: Mapping[str, Any] | None,
) -> list[Problem]:
    """Problems of all datasets. `right` is `network_g`, if it is valid."""
    problems: list[Problem] = []
    channels: dict[Keys, int] = {}
    network = options.get('network_g', {})
    known = not check_registered('', '', network.get('type'), ARCH_REGISTRY)
    for key, dataset in options['datasets'].items():
        where, phase = ('datasets', str(key)), str(key).split('_')[0]
        if 'type' in dataset:
            problems += check_registered((*where, 'type'), 'dataset', dataset['type'], DATASET_REGISTRY)
        problems += _check_loading(where, dataset, phase)
        if dataset.get('type') == 'AllInOneDataset':
            try:
                dataset = expand_protocol({**dataset, 'phase': phase}, where)
                tasks = check_dataset(dataset, where, True, surveys)
            except OptionError as error:
                problems += error.problems
                continue
            channels[*where, 'tasks'] = tasks[0].channels
            problems += _check_labels(where, tasks, network) if known else []
            if phase == 'train':
                problems += _check_stages((*where, 'stages'), dataset.get('stages'), options['train'].get('total_iter'))
                for path, size in by_stage(dataset, 'gt_size').items() if known else ():
                    problems += _check_patch((*where, *path), size, network)
                samples = sum(share.samples for share in epoch_shares(tasks, dataset))
                for path, batch in by_stage(dataset, 'batch_size_per_gpu').items():
                    changed = {'train': {**dataset, 'batch_size_per_gpu': batch}}
                    problems += _check_epochs({**options, 'datasets': changed}, samples, processes, path)
        elif phase == 'train' and dataset.get('stages'):
            message = f'only for AllInOneDataset, not for {dataset.get("type")}. Remove the key.'
            problems.append(problem((*where, 'stages'), message))
    problems += _check_channels(channels, right) if right is not None and known else []
    return problems + _same_names(options['datasets'])


def _same_names(datasets: Mapping[str, Any]) -> list[Problem]:
    """Check that names are unique: results and images of a dataset are saved under its name."""
    names: dict[str, list[Keys]] = {}
    for key, dataset in datasets.items():
        if key != 'train' and 'name' in dataset:
            names.setdefault(dataset['name'], []).append(('datasets', str(key)))
    return [
        Problem(
            places[0],
            f"{' and '.join(map(place, places))}: have the same name '{name}'. Set a unique `name` for each.",
            shown=(),
        )
        for name, places in names.items()
        if len(places) > 1
    ]


def _check_loading(where: Keys, dataset: Mapping[str, Any], phase: str) -> list[Problem]:
    """Check the options of BasicSR's loader, which uses workers only for the training set."""
    problems: list[Problem] = []
    if dataset.get('prefetch_mode') == 'cuda' and not (dataset.get('pin_memory') and torch.cuda.is_available()):
        message = "'cuda' needs a GPU and `pin_memory: true`."
        kind: Kind = 'machine' if dataset.get('pin_memory') else 'options'
        problems.append(Problem((*where, 'prefetch_mode'), message, kind))
    if phase != 'train' and dataset.get('persistent_workers'):
        problems.append(problem((*where, 'persistent_workers'), 'only for the training set. Remove the key.'))
    return problems


def _check_stages(where: Keys, stages: Sequence[Mapping[str, Any]] | None, total: int | None) -> list[Problem]:
    """Check that stages start before the end of the training, and that the last one lasts until then."""
    if not stages or total is None:
        return []
    last = stages[-1].get('until')
    if late := [(n, stage['until']) for n, stage in enumerate(stages[:-1], 1) if stage['until'] >= total]:
        message = (
            f'would start after iteration {late[0][1]:,}, but total_iter is {total:,}. Remove it, or train longer.'
        )
        return [Problem((*where, late[0][0]), message, 'short')]
    if last is not None and last < total:
        message = f'{last:,} is less than total_iter {total:,}. Remove `until` of the last stage.'
        return [problem((*where, len(stages) - 1, 'until'), message)]
    return []


def _check_patch(where: Keys, size: int, network: Mapping[str, Any]) -> list[Problem]:
    """Check the size of training patches, which are not padded, unlike validation images."""
    kind = network['type']
    multiple = _size_multiple(kind, network)
    if size % multiple == 0:
        return []
    nearest = max(1, round(size / multiple)) * multiple
    message = f'{size} is not a multiple of {multiple}, which {kind} needs. Set {nearest}.'
    return [problem(where, message)]


def _size_multiple(kind: str, options: Mapping[str, Any]) -> int:
    """The multiple of a network class, or of the built network if it depends on options; 1 if it is unknown."""
    network = find_registered(ARCH_REGISTRY, kind)
    traits = traits_of(network)
    if traits.declared and traits.declared_multiple is None and not check_network(options):
        traits = traits_of(build(ARCH_REGISTRY, options, 'meta'))
    return traits.declared_multiple or 1


def _check_labels(where: Keys, tasks: Sequence[Task], network: Mapping[str, Any]) -> list[Problem]:
    """Check that the labels of tasks are below the network's `num_degradations`."""
    traits = traits_of(find_registered(ARCH_REGISTRY, network['type']), network)
    number = traits.num_degradations
    above = [f'{task.name} {task.label}' for task in tasks if task.label >= number]
    if not (above and number and (traits.takes_degradation or traits.is_sensor)):
        return []
    message = f'labels of {first_few(above)}; the network has labels 0 to {number - 1}. '
    message += 'Raise network_g.num_degradations, or set other labels.'
    return [problem((*where, 'tasks'), message)]


def _check_channels(tasks: Mapping[Keys, int], network: Mapping[str, Any]) -> list[Problem]:
    """Check that a network's input and output channels match those of the tasks, by place.

    Unknown properties of a network are not checked.
    """
    kind = find_registered(ARCH_REGISTRY, network['type'])
    traits, names = traits_of(kind, network), channel_options(kind)
    takes, makes = traits.channels_in, traits.channels_out

    def setting(channels: int) -> str:
        return ' and '.join(f'`{name}: {channels}`' for name in names) + ' in network_g'

    if not tasks or (takes is None and makes is None):
        return []
    if takes not in (1, 3, None):
        advice = f' Set {setting(3)}.' if names else ''
        message = f'{network["type"]} has {takes} input channels; tasks have 3 (RGB) or 1 (grey).{advice}'
        return [problem('network_g', message, *((name,) for name in names))]
    for channels in sorted(set(tasks.values())):
        wrong = [where for where in tasks if tasks[where] == channels]
        if takes not in (channels, None):
            message = f'images with {channels} channel{"s" * (channels > 1)}; {network["type"]} expects {takes}. '
            message += f'Set `channels: {takes}` in all tasks' + (f', or set {setting(channels)}.' if names else '.')
        elif makes not in (channels, None):
            message = f'images with {channels} channel{"s" * (channels > 1)}; {network["type"]} returns {makes}. '
            message += f'Set {setting(channels)}.' if names else 'Use another network.'
        else:
            continue
        return [Problem(wrong[0], f'{" and ".join(map(place, wrong))}: {message}', shown=(), others=tuple(wrong[1:]))]
    return []


def _check_epochs(options: Mapping[str, Any], samples: int, processes: int, batch: Keys) -> list[Problem]:
    """Check that training reaches total_iter, see `plan_epochs`; each stage needs at least one batch per epoch.

    Args:
        batch: place of the batch size in the dataset.
    """
    plan = plan_epochs(options, samples, processes)
    if plan is None:  # reported elsewhere
        return []
    total = options['train']['total_iter']
    dataset = options['datasets']['train']
    if plan.epochs * plan.iterations >= total or (dataset.get('stages') and plan.iterations):
        return []
    sampling = dataset.get('sampling') or {}
    longer, key = '`sampling.epoch_size`', 'sampling'
    if not sampling.get('epoch_size'):
        longer, key = 'the `copies` of the tasks', 'tasks'
    named: list[Keys] = [(key,), ('dataset_enlarge_ratio',), batch]
    mend = f'Raise {longer} or `dataset_enlarge_ratio`, or lower `batch_size_per_gpu`.'
    if plan.in_process > 1:
        mend, named = 'Start one process per GPU (torchrun ... --launcher pytorch), or set `num_gpu: 1`.', []
    ending = f'would end after {plan.epochs * plan.iterations:,} of {total:,} iterations'
    message = (
        f'an epoch has {plan.samples:,} samples, {plan.iterations:,} full batches of {plan.batch:,}; training '
        f'{"could not continue in this stage" if dataset.get("stages") else ending}. {mend}'
    )
    return [problem(('datasets', 'train'), message, *named)]


def _check_val(options: Mapping[str, Any], names: Collection[str]) -> list[Problem]:
    """Check the metrics, the best metric and the tiles of the validation.

    Args:
        names: of all metrics, including invalid ones.
    """
    problems: list[Problem] = []
    for name, metric in (options.get('metrics') or {}).items():
        problems += check_metric(('val', 'metrics', str(name)), metric)
    best = options.get('best_metric')
    if best is not None and best not in names:
        problems.append(unknown(('val', 'best_metric'), 'metric', best, names))
    tile, overlap = options.get('tile'), options.get('tile_overlap')
    overlap = Settings.overlap if overlap is None else overlap
    if isinstance(tile, int) and tile <= overlap:
        message = f'{tile} pixels, but tile_overlap is {overlap}. Use larger tiles, or a smaller overlap.'
        problems.append(problem(('val', 'tile'), message))
    return problems


def check_metric(where: Keys, options: Mapping[str, Any]) -> list[Problem]:
    """Check a metric's type and its options."""
    try:
        know_metric(options['type'])
    except OptionError as error:
        return problems_of((*where, 'type'), error)
    problems = check_registered((*where, 'type'), 'metric', options['type'], METRIC_REGISTRY)
    if problems:
        return problems
    # `better` is read by the model; BasicSR's metrics ignore it in their **kwargs.
    arguments = {key: value for key, value in options.items() if key not in ('type', 'better')}
    if options.get('better', 'higher') not in ('higher', 'lower'):
        problems.append(problem((*where, 'better'), f"{options['better']!r} is not 'higher' or 'lower'."))
    if 'crop_border' in options:
        problems += check_count((*where, 'crop_border'), options['crop_border'], least=0)
    metric = find_registered(METRIC_REGISTRY, options['type'])
    problems += check_arguments(where, metric, arguments, given=('img', 'img2'))
    told = {each.path for each in problems}
    return problems + [each for each in type_problems(where, metric, arguments) if each.path not in told]


def averaged_tasks(model_type: Any, tasks: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Warnings about test sets for which a BasicSR model reports one average over all tasks, by place.

    Args:
        tasks: their names, by the place of each validation or test set.
    """
    if check_registered('', '', model_type, MODEL_REGISTRY):
        return {}
    kind: Any = find_registered(MODEL_REGISTRY, model_type)
    own = isinstance(kind, type) and issubclass(kind, SRModel)
    if not own or kind.nondist_validation is not SRModel.nondist_validation:
        return {}
    return {
        where: f'{model_type} reports one average over its {len(names)} tasks ({first_few(names)}) and saves images '
        'under their file names, so that tasks with the same clean images overwrite each other. '
        'Use `model_type: PromptModel` for results per task.'
        for where, names in tasks.items()
        if len(names) > 1
    }


def label_problems(options: Mapping[str, Any]) -> list[Problem]:
    """Problems of a mixture in `val.labels` with `network_g`, whose options are valid."""
    labels, network = (options.get('val') or {}).get('labels'), options['network_g']
    if not isinstance(labels, Mapping):
        return []
    where = ('val', 'labels')
    traits = traits_of(find_registered(ARCH_REGISTRY, network['type']), network)
    number = traits.num_degradations
    if not (traits.takes_degradation and number):
        return [problem(where, f'{network["type"]} does not use labels. Remove the key.')]
    names = check_names(network['type'], number, network.get('degradations'))
    try:
        weights_of(labels, torch.zeros(1), number, names, where)
    except OptionError as error:
        return error.problems
    return []
