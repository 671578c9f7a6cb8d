"""Find the mistakes in an option file before anything is created.

Options of networks, datasets, losses and models that are not ours are held only to their constructors' signatures.
"""

import inspect
import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY

from promptir_basicsr.option_util import OptionError, check_count, is_number, unknown, unknown_keys

TOP_KEYS = (
    'name model_type scale num_gpu manual_seed find_unused_parameters datasets network_g path train val logger '
    'dist_params'
).split()
PATH_KEYS = (
    'pretrain_network_g param_key_g strict_load_g resume_state ignore_resume_networks experiments_root results_root'
).split()
TRAIN_KEYS = ('total_iter warmup_iter optim_g scheduler ema_decay grad_clip_norm pixel_opt perceptual_opt').split()
VAL_KEYS = ('val_freq save_img suffix pbar metrics best_metric size_multiple comparisons contact_sheet use_ema').split()
LOGGER_KEYS = ('print_freq', 'save_checkpoint_freq', 'use_tb_logger', 'wandb')
HOST_SCHEDULERS = ('MultiStepLR', 'MultiStepRestartLR', 'CosineAnnealingRestartLR')


def check_options(options: Mapping[str, Any], is_train: bool, processes: int = 1) -> list[str]:
    """All problems of an option file, a line each; each begins with the place of the option.

    Args:
        options: the file's content as read.
        is_train: for `basicsr train`; otherwise for `basicsr test`.
        processes: how many processes share an iteration.
    """
    problems = _missing('', options, _needed(is_train))
    ours = options.get('model_type') == 'PromptModel'
    if ours:
        problems += unknown_keys('options', options, TOP_KEYS)
    for section in ('datasets', 'path', 'train', 'val', 'logger', 'network_g'):
        if section in options and not isinstance(options[section], Mapping):
            problems.append(f'{section}: give options `key: value`, not {options[section]!r}.')
    if problems:
        return problems
    problems += _registered('model_type', 'model', options['model_type'], MODEL_REGISTRY)
    problems += _check_gpus(options['num_gpu'])
    problems += _check_path(options['path'], ours)
    if 'network_g' in options:
        problems += check_network(options['network_g'])
    problems += _check_datasets(options, is_train, processes)
    if is_train:
        problems += _check_logger(options['logger'])
        problems += _check_train(options['train'], ours)
    if options.get('val') is not None:
        problems += _check_val(options['val'], is_train, ours)
    if ours and options.get('scale', 1) != 1:
        problems.append(f'scale: {options["scale"]!r}; PromptModel restores at the same size, scale: 1.')
    return problems


def _needed(is_train: bool) -> tuple[str, ...]:
    common = ('name', 'model_type', 'num_gpu', 'datasets', 'path')
    return (*common, 'train', 'logger') if is_train else (*common, 'val')


def _missing(where: str, options: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    return [f'{where + "." if where else ""}{key}: is missing.' for key in keys if key not in options]


def _registered(where: str, kind: str, name: object, registry: Any) -> list[str]:
    # BasicSR's registry also tries the name with its own suffix.
    if name in registry or f'{name}_basicsr' in registry:
        return []
    return [unknown(where, kind, name, registry.keys())]


def _check_gpus(number: object) -> list[str]:
    if number == 'auto':
        return []
    problems = check_count('num_gpu', number, least=0)
    if not problems and isinstance(number, int) and number > torch.cuda.device_count():
        problems.append(
            f'num_gpu: {number} asked for, this machine shows {torch.cuda.device_count()}. '
            'Write `num_gpu: auto` (all there are) or `num_gpu: 0` (CPU).'
        )
    return problems


def _check_path(paths: Mapping[str, Any], ours: bool) -> list[str]:
    # BasicSR makes a folder of every key that it does not know.
    problems = unknown_keys('path', paths, PATH_KEYS) if ours else []
    for key, value in paths.items():
        if key.startswith(('pretrain_network', 'resume_state')) and value is not None:
            path = os.path.expanduser(str(value))
            if not os.path.isfile(path):
                problems.append(f"path.{key}: the file '{path}' does not exist.")
    return problems


def check_network(options: Mapping[str, Any], where: str = 'network_g') -> list[str]:
    """A network's type and the names of its options; ours are also built, without memory, to check the values."""
    if 'type' not in options:
        return [f'{where}.type: is missing. One of: {", ".join(sorted(ARCH_REGISTRY.keys()))}.']
    problems = _registered(f'{where}.type', 'network', options['type'], ARCH_REGISTRY)
    if problems:
        return problems
    network = _registry_get(ARCH_REGISTRY, options['type'])
    arguments = {key: value for key, value in options.items() if key != 'type'}
    problems = check_arguments(where, network, arguments)
    if not problems and hasattr(network, 'takes_degradation'):
        try:
            with torch.device('meta'):
                network(**arguments)
        except (ValueError, TypeError) as error:
            problems += [f'{where}: {line}' for line in str(error).splitlines()]
    return problems


def _registry_get(registry: Any, name: str) -> Callable[..., Any]:
    return registry.get(name if name in registry else f'{name}_basicsr')


def check_arguments(
    where: str, function: Callable[..., Any], arguments: Mapping[str, Any], given: Iterable[str] = ()
) -> list[str]:
    """Arguments a function does not know, or misses.

    Args:
        given: names that the caller supplies besides `arguments`.
    """
    parameters = inspect.signature(function).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    allowed = [p.name for p in named if p.name not in given]
    problems = unknown_keys(where, arguments, allowed) if not _open_ended(function) else []
    needed = [p.name for p in named if p.default is p.empty and p.name not in arguments and p.name not in given]
    return problems + _missing(where, {}, needed)


def _open_ended(function: Callable[..., Any]) -> bool:
    """Takes **kwargs and means it. BasicSR's losses and metrics have them only to swallow what they do not know."""
    swallows = getattr(function, '__module__', '').startswith(('basicsr.metrics', 'basicsr.losses'))
    parameters = inspect.signature(function).parameters.values()
    return any(p.kind is p.VAR_KEYWORD for p in parameters) and not swallows


def _check_datasets(options: Mapping[str, Any], is_train: bool, processes: int) -> list[str]:
    from promptir_basicsr.data.allinone_dataset import check_dataset

    problems: list[str] = []
    datasets = options['datasets']
    phases = [str(key).split('_')[0] for key in datasets]
    allowed = ('train', 'val') if is_train else ('test', 'val')
    if is_train and 'train' not in datasets:
        problems.append('datasets.train: is missing.')
    for key, phase in zip(datasets, phases, strict=True):
        where = f'datasets.{key}'
        dataset = datasets[key]
        if phase not in allowed:
            problems.append(unknown(where, 'phase', phase, allowed) + ' Several sets: val_1, val_2.')
            continue
        if not isinstance(dataset, Mapping):
            problems.append(f'{where}: give options `key: value`, not {dataset!r}.')
            continue
        problems += _missing(where, dataset, ('name', 'type'))
        if 'type' not in dataset:
            continue
        problems += _registered(f'{where}.type', 'dataset', dataset['type'], DATASET_REGISTRY)
        if phase == 'train':
            problems += _missing(where, dataset, ('batch_size_per_gpu', 'num_worker_per_gpu'))
        if dataset['type'] == 'AllInOneDataset':
            try:
                tasks = check_dataset({**dataset, 'phase': phase}, where)
            except OptionError as error:
                problems += error.problems
            else:
                if phase == 'train' and not problems:
                    samples = sum(len(task) * task.copies for task in tasks)
                    problems += _check_epochs(options, dataset, samples, processes)
    return problems


def _check_epochs(options: Mapping[str, Any], dataset: Mapping[str, Any], samples: int, processes: int) -> list[str]:
    """BasicSR runs ceil(total_iter / ceil(samples / batch)) + 1 epochs and drops the last, smaller batch of each."""
    where = 'datasets.train'
    problems = check_count(f'{where}.batch_size_per_gpu', dataset['batch_size_per_gpu'])
    problems += check_count(f'{where}.num_worker_per_gpu', dataset['num_worker_per_gpu'], least=0)
    problems += check_count('train.total_iter', options['train'].get('total_iter'))
    ratio = dataset.get('dataset_enlarge_ratio', 1)
    if not is_number(ratio) or ratio <= 0:
        problems.append(f'{where}.dataset_enlarge_ratio: {ratio!r} is not a number above 0.')
    if problems:
        return problems
    gpus = torch.cuda.device_count() if options['num_gpu'] == 'auto' else options['num_gpu']
    batch = dataset['batch_size_per_gpu'] * (processes if processes > 1 else max(1, gpus))
    total = options['train']['total_iter']
    whole = math.ceil(samples * ratio / processes) // (batch // processes)
    epochs = math.ceil(total / math.ceil(samples * ratio / batch)) + 1
    if epochs * whole < total:
        return [
            f'{where}: an epoch has {samples * ratio:,.0f} samples, {whole} whole batches of {batch}; training would '
            f'end after {epochs * whole:,} of {total:,} iterations. Raise the `copies` of the tasks or '
            '`dataset_enlarge_ratio`, or lower `batch_size_per_gpu`.'
        ]
    return []


def _check_logger(options: Mapping[str, Any]) -> list[str]:
    problems = unknown_keys('logger', options, LOGGER_KEYS)
    problems += _missing('logger', options, LOGGER_KEYS[:3])
    for key in LOGGER_KEYS[:2]:
        if key in options:
            problems += check_count(f'logger.{key}', options[key])
    return problems


def _check_train(options: Mapping[str, Any], ours: bool) -> list[str]:
    problems = unknown_keys('train', options, TRAIN_KEYS) if ours else []
    problems += _missing('train', options, ('total_iter',))
    if ours:
        problems += _missing('train', options, ('optim_g', 'scheduler', 'pixel_opt'))
    if isinstance(options.get('optim_g'), Mapping):
        problems += _check_optimizer(options['optim_g'])
    if isinstance(options.get('scheduler'), Mapping):
        problems += _check_scheduler(options['scheduler'], options)
    for key in ('pixel_opt', 'perceptual_opt'):
        if isinstance(options.get(key), Mapping):
            problems += _check_loss(f'train.{key}', options[key])
    decay = options.get('ema_decay', 0)
    if ours and (not is_number(decay) or not 0 <= decay < 1):
        problems.append(f'train.ema_decay: {decay!r} is not a number from 0 (no EMA) to below 1.')
    clip = options.get('grad_clip_norm')
    if clip is not None and (not is_number(clip) or clip <= 0):
        problems.append(f'train.grad_clip_norm: {clip!r} is not a number above 0. Leave the key out for no clipping.')
    return problems


def _check_optimizer(options: Mapping[str, Any]) -> list[str]:
    where = 'train.optim_g'
    problems = _missing(where, options, ('type', 'lr'))
    known = [name for name in dir(torch.optim) if inspect.isclass(getattr(torch.optim, name)) and name != 'Optimizer']
    if 'type' in options and options['type'] not in known:
        problems.append(unknown(where, 'optimizer', options['type'], known))
    elif 'type' in options:
        arguments = {key: value for key, value in options.items() if key != 'type'}
        optimizer = getattr(torch.optim, options['type'])
        problems += check_arguments(where, optimizer, arguments, given=('self', 'params'))
        for key, value in arguments.items():
            numbers = value if isinstance(value, list) else [value]
            problems += [f'{where}.{key}: {value!r} is text.' for number in numbers if isinstance(number, str)]
    return problems


def _check_scheduler(options: Mapping[str, Any], train: Mapping[str, Any]) -> list[str]:
    from promptir_basicsr.models.lr_scheduler_util import SCHEDULERS, scheduler_arguments

    where, kind, total = 'train.scheduler', options.get('type'), train.get('total_iter')
    if kind in SCHEDULERS:
        _, arguments = scheduler_arguments(options, total if isinstance(total, int) else 1)
        problems = check_arguments(where, SCHEDULERS[kind], arguments, given=('optimizer', 'last_epoch'))
        if not problems:
            lr = (train.get('optim_g') or {}).get('lr')
            optimizer = torch.optim.SGD([torch.zeros(1)], lr=float(lr) if lr and is_number(lr) else 1.0)
            try:
                SCHEDULERS[kind](optimizer, **arguments)
            except (ValueError, TypeError) as error:
                problems.append(f'{where}: {error}')
        return problems
    if kind not in HOST_SCHEDULERS:
        return [unknown(f'{where}.type', 'schedule', kind, (*SCHEDULERS, *HOST_SCHEDULERS))]
    if kind == 'CosineAnnealingRestartLR' and isinstance(total, int):
        periods = options.get('periods') or []
        if sum(periods) < total:
            return [
                f'{where}.periods: add up to {sum(periods):,}, less than total_iter {total:,}: BasicSR would stop with '
                'an error there. Make them add up to total_iter.'
            ]
    return []


def _check_loss(where: str, options: Mapping[str, Any]) -> list[str]:
    problems = _registered(f'{where}.type', 'loss', options.get('type'), LOSS_REGISTRY)
    if problems:
        return problems
    arguments = {key: value for key, value in options.items() if key != 'type'}
    return check_arguments(where, _registry_get(LOSS_REGISTRY, options['type']), arguments)


def _check_val(options: Mapping[str, Any], is_train: bool, ours: bool) -> list[str]:
    problems = unknown_keys('val', options, VAL_KEYS) if ours else []
    problems += _missing('val', options, ('val_freq', 'save_img') if is_train else ('save_img',))
    if is_train and 'val_freq' in options:
        problems += check_count('val.val_freq', options['val_freq'])
    metrics = options.get('metrics') or {}
    if not isinstance(metrics, Mapping):
        return [*problems, f'val.metrics: give `name: {{type: ...}}`, not {metrics!r}.']
    for name, metric in metrics.items():
        problems += check_metric(f'val.metrics.{name}', metric)
    best = options.get('best_metric')
    if best is not None and best not in metrics:
        problems.append(unknown('val.best_metric', 'metric', best, metrics))
    if ours:
        for key in ('size_multiple', 'comparisons'):
            if options.get(key) is not None:
                problems += check_count(f'val.{key}', options[key], least=0 if key == 'comparisons' else 1)
    return problems


def check_metric(where: str, options: object) -> list[str]:
    """A metric's type and the names of its options."""
    if not isinstance(options, Mapping) or 'type' not in options:
        return [f'{where}: give options with a type, e.g. {{type: calculate_paper_psnr}}, not {options!r}.']
    problems = _registered(f'{where}.type', 'metric', options['type'], METRIC_REGISTRY)
    if problems:
        return problems
    # `better` is read by the model, BasicSR's metrics let it vanish in their **kwargs.
    arguments = {key: value for key, value in options.items() if key not in ('type', 'better')}
    if options.get('better', 'higher') not in ('higher', 'lower'):
        problems.append(f"{where}.better: {options['better']!r} is neither 'higher' nor 'lower'.")
    metric = _registry_get(METRIC_REGISTRY, options['type'])
    return problems + check_arguments(where, metric, arguments, given=('img', 'img2'))
