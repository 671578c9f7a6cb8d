"""Find the mistakes in an option file before anything is created.

Options of networks, datasets, losses and models that are not ours are held only to their constructors' signatures.
"""

import inspect
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY

from promptir_basicsr.epoch_util import plan_epochs
from promptir_basicsr.option_train_check import check_train
from promptir_basicsr.option_util import (
    MachineProblem,
    OptionError,
    check_arguments,
    check_count,
    check_registered,
    error_lines,
    find_registered,
    first_few,
    is_number,
    missing,
    unknown,
    unknown_keys,
)

if TYPE_CHECKING:
    from promptir_basicsr.data.task_util import Task, TaskSurvey

TOP_KEYS = (
    'name model_type scale num_gpu manual_seed find_unused_parameters datasets network_g path train val logger '
    'dist_params'
).split()
PATH_KEYS = (
    'pretrain_network_g param_key_g strict_load_g grow_g pretrain_network_sensor resume_state '
    'ignore_resume_networks experiments_root results_root'
).split()
VAL_KEYS = (
    'val_freq save_img suffix pbar metrics best_metric size_multiple comparisons contact_sheet use_ema labels'
).split()
SENSOR_VAL_KEYS = 'val_freq save_img pbar use_ema'.split()
LOGGER_KEYS = ('print_freq', 'save_checkpoint_freq', 'use_tb_logger', 'wandb')
SECTIONS = ('datasets', 'network_g', 'path', 'train', 'val', 'logger')


def check_options(
    options: Mapping[str, Any],
    is_train: bool,
    processes: int = 1,
    surveys: 'dict[str, list[TaskSurvey]] | None' = None,
) -> list[str]:
    """All problems of an option file, a line each; each begins with the place of the option.

    Args:
        options: the file's content as read.
        is_train: for `basicsr train`; otherwise for `basicsr test`.
        processes: how many processes share an iteration.
        surveys: filled with what the tasks of each of our data sets came to, by the place of the data set.
    """
    model = options.get('model_type')
    ours = model in ('PromptModel', 'SensorModel')
    problems = missing('', options, _needed(is_train, ours))
    if ours:
        problems += unknown_keys('options', options, TOP_KEYS)
        problems += _check_flags('', options, ('find_unused_parameters',))
        if options.get('scale', 1) != 1:
            does = 'restores at the same size' if model == 'PromptModel' else 'has no use for it'
            problems.append(f'scale: {options["scale"]!r}; {model} {does}, scale: 1.')
    if 'name' in options:
        problems += _check_name('name', options['name'])
    if 'model_type' in options:
        problems += check_registered('model_type', 'model', options['model_type'], MODEL_REGISTRY)
    if 'num_gpu' in options:
        problems += _check_gpus(options['num_gpu'])
    if options.get('manual_seed') is not None:
        problems += check_count('manual_seed', options['manual_seed'], least=0)

    for key in SECTIONS:
        if key in options and not isinstance(options[key], Mapping):
            problems.append(f'{key}: give options `key: value`, not {options[key]!r}.')
    sections = {key: options[key] for key in SECTIONS if isinstance(options.get(key), Mapping)}
    if 'path' in sections:
        problems += _check_path(sections['path'], ours)
    network = sections.get('network_g')
    if network is not None:
        wrong = check_network(network) or (_check_kind(network, str(model)) if ours else [])
        problems += wrong or (_check_start(options, sections, is_train) if ours else [])
        network = None if wrong else network
    if 'datasets' in sections:
        problems += _check_datasets({**options, 'train': sections.get('train', {})}, is_train, processes, surveys)
    if is_train and 'logger' in sections:
        problems += _check_logger(sections['logger'])
    if is_train and 'train' in sections:
        problems += check_train(sections['train'], ours, network, sensor=model == 'SensorModel')
    if 'val' in sections:
        keys = SENSOR_VAL_KEYS if model == 'SensorModel' else VAL_KEYS
        problems += _check_val(sections['val'], is_train, keys if ours else None)
    return problems


def _needed(is_train: bool, ours: bool) -> tuple[str, ...]:
    common = ('name', 'model_type', 'num_gpu', 'datasets', 'path', *(('network_g',) if ours else ()))
    return (*common, 'train', 'logger') if is_train else (*common, 'val')


def _check_name(where: str, name: object) -> list[str]:
    """A name that folders and files can carry."""
    if not isinstance(name, str):
        return [f'{where}: {name!r} is not text. Put a name made of digits in quotes.']
    if not name.strip() or set(name) & set('/\\\0'):
        return [f'{where}: {name!r} is not a name without slashes.']
    return []


def _check_flags(where: str, options: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    """Options that are true or false, where they are given."""
    return [
        f'{where + "." if where else ""}{key}: {options[key]!r} is neither true nor false.'
        for key in keys
        if key in options and not isinstance(options[key], bool)
    ]


def _check_gpus(number: object) -> list[str]:
    if number == 'auto':
        return []
    problems = check_count('num_gpu', number, least=0)
    if not problems and isinstance(number, int) and number > torch.cuda.device_count():
        shown = f'num_gpu: {number} asked for, this machine shows {torch.cuda.device_count()}. '
        problems.append(MachineProblem(f'{shown}Write `num_gpu: auto` (all there are) or `num_gpu: 0` (CPU).'))
    return problems


def _check_path(paths: Mapping[str, Any], ours: bool) -> list[str]:
    # BasicSR makes a folder of every key that it does not know.
    problems = unknown_keys('path', paths, PATH_KEYS) if ours else []
    problems += _check_flags('path', paths, ('strict_load_g', 'grow_g'))
    for key, value in paths.items():
        if value is None or key in ('strict_load_g', 'grow_g', 'ignore_resume_networks'):
            continue
        if not isinstance(value, str):
            problems.append(f'path.{key}: {value!r} is not text.')
        elif str(key).startswith(('pretrain_network', 'resume_state')):
            path = os.path.expanduser(value)
            if not os.path.isfile(path):
                problems.append(f"path.{key}: the file '{path}' does not exist.")
    ignored = paths.get('ignore_resume_networks')
    if ignored is not None and not isinstance(ignored, list):
        problems.append(f'path.ignore_resume_networks: give a list such as [network_g], not {ignored!r}.')
    return problems


def check_network(options: Mapping[str, Any], where: str = 'network_g') -> list[str]:
    """A network's type and the names of its options; ours are also built, without memory, to check the values."""
    if 'type' not in options:
        return [f'{where}.type: is missing. One of: {", ".join(sorted(ARCH_REGISTRY.keys()))}.']
    problems = check_registered(f'{where}.type', 'network', options['type'], ARCH_REGISTRY)
    if problems:
        return problems
    network = find_registered(ARCH_REGISTRY, options['type'])
    arguments = {key: value for key, value in options.items() if key != 'type'}
    problems = check_arguments(where, network, arguments)
    if not problems and hasattr(network, 'takes_degradation'):
        try:
            with torch.device('meta'):
                network(**arguments)
        except (ValueError, TypeError, AssertionError) as error:
            problems += error_lines(where, error)
        except RuntimeError:  # not every constructor can do without memory
            pass
    return problems


def _check_kind(network: Mapping[str, Any], model: str) -> list[str]:
    """A sensor goes with SensorModel, everything else with PromptModel."""
    is_sensor = hasattr(find_registered(ARCH_REGISTRY, network['type']), 'probabilities')
    if is_sensor == (model == 'SensorModel'):
        return []
    where = f"network_g.type: '{network['type']}'"
    if is_sensor:
        return [f'{where} tells degradations apart and restores nothing. Train it by `model_type: SensorModel`.']
    sensors = sorted(name for name, kind in ARCH_REGISTRY if hasattr(kind, 'probabilities'))
    return [f'{where} is no sensor, which `model_type: SensorModel` trains. Allowed: {", ".join(sensors)}.']


def _check_start(options: Mapping[str, Any], sections: Mapping[str, Any], is_train: bool) -> list[str]:
    from promptir_basicsr.models.grow_util import start_problems
    from promptir_basicsr.models.sensor_util import label_problems, sensor_problems

    complete = {'name': options.get('name'), 'path': {}, **sections}
    return label_problems(complete) + (start_problems(complete, is_train) or sensor_problems(complete))


def _check_datasets(
    options: Mapping[str, Any], is_train: bool, processes: int, surveys: 'dict[str, list[TaskSurvey]] | None'
) -> list[str]:
    from promptir_basicsr.data.allinone_dataset import check_dataset
    from promptir_basicsr.data.protocol_util import expand_protocol
    from promptir_basicsr.data.sampling_util import epoch_shares

    problems: list[str] = []
    datasets = options['datasets']
    allowed = ('train', 'val') if is_train else ('test', 'val')
    if is_train and 'train' not in datasets:
        problems.append('datasets.train: is missing.')
    for key, dataset in datasets.items():
        where, phase = f'datasets.{key}', str(key).split('_')[0]
        # BasicSR takes only the exact word for the training set.
        if phase not in allowed or (phase == 'train' and key != 'train'):
            found = key if phase == 'train' else phase
            problems.append(unknown(where, 'phase', found, allowed) + ' Several sets: val_1, val_2.')
            continue
        if not isinstance(dataset, Mapping):
            problems.append(f'{where}: give options `key: value`, not {dataset!r}.')
            continue
        problems += missing(where, dataset, ('name', 'type'))
        if 'name' in dataset:
            problems += _check_name(f'{where}.name', dataset['name'])
        if 'type' in dataset:
            problems += check_registered(f'{where}.type', 'dataset', dataset['type'], DATASET_REGISTRY)
        loading = _check_loading(where, dataset, phase)
        problems += loading
        if dataset.get('type') == 'AllInOneDataset':
            try:
                dataset = expand_protocol({**dataset, 'phase': phase}, where)
                tasks = check_dataset(dataset, where, surveys is None, surveys)
            except OptionError as error:
                problems += error.problems
                continue
            problems += _check_labels(where, tasks, options.get('network_g'))
            if phase == 'train':
                problems += _check_patch(where, dataset['gt_size'], options.get('network_g'))
                if not loading:
                    samples = sum(share.samples for share in epoch_shares(tasks, dataset))
                    problems += _check_epochs(options, samples, processes)
    return problems + _same_names(datasets)


def _same_names(datasets: Mapping[str, Any]) -> list[str]:
    """Results and pictures of a data set are kept under its name."""
    names: dict[str, list[str]] = {}
    for key, dataset in datasets.items():
        if key != 'train' and isinstance(dataset, Mapping) and isinstance(dataset.get('name'), str):
            names.setdefault(dataset['name'], []).append(f'datasets.{key}')
    return [
        f"{' and '.join(places)}: have the same name '{name}'. Give each a `name` of its own."
        for name, places in names.items()
        if len(places) > 1
    ]


def _check_loading(where: str, dataset: Mapping[str, Any], phase: str) -> list[str]:
    """What BasicSR's loader reads. It gives workers to the training set only."""
    problems = _check_flags(where, dataset, ('pin_memory', 'persistent_workers'))
    mode = dataset.get('prefetch_mode')
    if mode not in (None, 'cpu', 'cuda'):
        problems.append(unknown(f'{where}.prefetch_mode', 'mode', mode, ('cpu', 'cuda')))
    if mode == 'cuda' and (dataset.get('pin_memory') is not True or not torch.cuda.is_available()):
        problem = f"{where}.prefetch_mode: 'cuda' goes with a GPU and `pin_memory: true`."
        problems.append(MachineProblem(problem) if dataset.get('pin_memory') is True else problem)
    if 'num_prefetch_queue' in dataset:
        problems += check_count(f'{where}.num_prefetch_queue', dataset['num_prefetch_queue'])
    if phase == 'train':
        problems += missing(where, dataset, ('batch_size_per_gpu', 'num_worker_per_gpu'))
        problems += check_count(f'{where}.num_worker_per_gpu', dataset.get('num_worker_per_gpu', 1), least=0)
        problems += check_count(f'{where}.batch_size_per_gpu', dataset.get('batch_size_per_gpu', 1))
        ratio = dataset.get('dataset_enlarge_ratio', 1)
        if not is_number(ratio) or ratio <= 0:
            problems.append(f'{where}.dataset_enlarge_ratio: {ratio!r} is not a number above 0.')
    elif dataset.get('persistent_workers') is True:
        problems.append(f'{where}.persistent_workers: there are no workers to keep. Leave the key out.')
    return problems


def _check_patch(where: str, size: int, network: object) -> list[str]:
    """Training patches go into the network as they are; images of a validation are padded."""
    if not isinstance(network, Mapping):
        return []
    kind = network.get('type')
    if not isinstance(kind, str) or check_registered('', '', kind, ARCH_REGISTRY):
        return []
    multiple = _size_multiple(kind, network)
    if size % multiple == 0:
        return []
    nearest = max(1, round(size / multiple)) * multiple
    return [f'{where}.gt_size: {size} is not a multiple of {multiple}, which {kind} needs. Take {nearest}.']


def _size_multiple(kind: str, options: Mapping[str, Any]) -> int:
    """Of a class or, where that depends on its options, of a network of ours; 1 for those that cannot be built."""
    network = find_registered(ARCH_REGISTRY, kind)
    multiple = getattr(network, 'size_multiple', None)
    if multiple is None and hasattr(network, 'takes_degradation') and not check_network(options):
        with torch.device('meta'):
            multiple = network(**{key: value for key, value in options.items() if key != 'type'}).size_multiple
    return multiple if isinstance(multiple, int) else 1


def _check_labels(where: str, tasks: 'Sequence[Task]', network: object) -> list[str]:
    """A network that is told degradations, or tells them, knows as many as its `num_degradations`."""
    kind = network.get('type') if isinstance(network, Mapping) else None
    if not isinstance(network, Mapping) or check_registered('', '', kind, ARCH_REGISTRY):
        return []
    built = find_registered(ARCH_REGISTRY, str(kind))
    known = inspect.signature(built).parameters.get('num_degradations')
    if known is None or not (getattr(built, 'takes_degradation', False) or hasattr(built, 'probabilities')):
        return []
    number = network.get('num_degradations', known.default)
    above = [f'{task.name} {task.label}' for task in tasks if isinstance(number, int) and task.label >= number]
    if not above:
        return []
    return [
        f'{where}.tasks: labels of {first_few(above)}; the network knows those from 0 to {number - 1}. '
        f'Raise network_g.num_degradations, or give the tasks such labels.'
    ]


def _check_epochs(options: Mapping[str, Any], samples: int, processes: int) -> list[str]:
    """Training has to reach total_iter, see `plan_epochs`."""
    plan = plan_epochs(options, samples, processes)
    if plan is None:  # told elsewhere
        return []
    total = options['train']['total_iter']
    if plan.epochs * plan.iterations >= total:
        return []
    sampling = options['datasets']['train'].get('sampling') or {}
    longer = '`sampling.epoch_size`' if sampling.get('epoch_size') else 'the `copies` of the tasks'
    mend = f'Raise {longer} or `dataset_enlarge_ratio`, or lower `batch_size_per_gpu`.'
    if plan.in_process > 1:
        mend = 'Start one process a GPU (torchrun ... --launcher pytorch), or take `num_gpu: 1`.'
    return [
        f'datasets.train: an epoch has {plan.samples:,} samples, {plan.iterations:,} whole batches of {plan.batch:,}; '
        f'training would end after {plan.epochs * plan.iterations:,} of {total:,} iterations. ' + mend
    ]


def _check_logger(options: Mapping[str, Any]) -> list[str]:
    problems = unknown_keys('logger', options, LOGGER_KEYS)
    problems += missing('logger', options, LOGGER_KEYS[:3])
    for key in LOGGER_KEYS[:2]:
        if key in options:
            problems += check_count(f'logger.{key}', options[key])
    problems += _check_flags('logger', options, ('use_tb_logger',))
    if not isinstance(options.get('wandb') or {}, Mapping):
        problems.append(f'logger.wandb: give options such as {{project: ...}}, not {options["wandb"]!r}.')
    return problems


def _check_val(options: Mapping[str, Any], is_train: bool, known: Sequence[str] | None) -> list[str]:
    """`known` are the keys of our own models."""
    problems = unknown_keys('val', options, known) if known else []
    problems += missing('val', options, ('val_freq', 'save_img') if is_train else ('save_img',))
    if is_train and 'val_freq' in options:
        problems += check_count('val.val_freq', options['val_freq'])
    metrics = options.get('metrics') or {}
    if not isinstance(metrics, Mapping):
        return [*problems, f'val.metrics: give `name: {{type: ...}}`, not {metrics!r}.']
    for name, metric in metrics.items():
        problems += check_metric(f'val.metrics.{name}', metric)
    best = options.get('best_metric')
    if best is not None and best not in list(metrics):
        problems.append(unknown('val.best_metric', 'metric', best, metrics))
    problems += _check_flags('val', options, ('save_img', 'pbar', 'contact_sheet', 'use_ema'))
    if not isinstance(options.get('suffix') or '', str):
        problems.append(f'val.suffix: {options["suffix"]!r} is not text.')
    labels = options.get('labels', True)
    if labels is not True and labels != 'sensor' and not isinstance(labels, Mapping):
        problems.append(
            f'val.labels: {labels!r}; allowed: true (those of the data), sensor, or a mixture {{name: weight}}.'
        )
    if known:
        for key in ('size_multiple', 'comparisons'):
            if options.get(key) is not None:
                problems += check_count(f'val.{key}', options[key], least=0 if key == 'comparisons' else 1)
    return problems


def check_metric(where: str, options: object) -> list[str]:
    """A metric's type and the names of its options."""
    if not isinstance(options, Mapping) or 'type' not in options:
        return [f'{where}: give options with a type, e.g. {{type: calculate_paper_psnr}}, not {options!r}.']
    problems = check_registered(f'{where}.type', 'metric', options['type'], METRIC_REGISTRY)
    if problems:
        return problems
    # `better` is read by the model, BasicSR's metrics let it vanish in their **kwargs.
    arguments = {key: value for key, value in options.items() if key not in ('type', 'better')}
    if options.get('better', 'higher') not in ('higher', 'lower'):
        problems.append(f"{where}.better: {options['better']!r} is neither 'higher' nor 'lower'.")
    if 'crop_border' in options:
        problems += check_count(f'{where}.crop_border', options['crop_border'], least=0)
    metric = find_registered(METRIC_REGISTRY, options['type'])
    return problems + check_arguments(where, metric, arguments, given=('img', 'img2'))
