"""Find the mistakes in an option file before anything is created.

Options of networks, datasets, losses and models that are not ours are held only to their constructors' signatures.
"""

import inspect
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from basicsr.models import lr_scheduler as host_schedulers
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
SECTIONS = ('datasets', 'network_g', 'path', 'train', 'val', 'logger')
HOST_SCHEDULERS = {
    'MultiStepLR': host_schedulers.MultiStepRestartLR,
    'MultiStepRestartLR': host_schedulers.MultiStepRestartLR,
    'CosineAnnealingRestartLR': host_schedulers.CosineAnnealingRestartLR,
}


def check_options(options: Mapping[str, Any], is_train: bool, processes: int = 1) -> list[str]:
    """All problems of an option file, a line each; each begins with the place of the option.

    Args:
        options: the file's content as read.
        is_train: for `basicsr train`; otherwise for `basicsr test`.
        processes: how many processes share an iteration.
    """
    ours = options.get('model_type') == 'PromptModel'
    problems = _missing('', options, _needed(is_train, ours))
    if ours:
        problems += unknown_keys('options', options, TOP_KEYS)
        problems += _check_flags('', options, ('find_unused_parameters',))
        if options.get('scale', 1) != 1:
            problems.append(f'scale: {options["scale"]!r}; PromptModel restores at the same size, scale: 1.')
    if 'name' in options:
        problems += _check_name('name', options['name'])
    if 'model_type' in options:
        problems += _registered('model_type', 'model', options['model_type'], MODEL_REGISTRY)
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
    if 'network_g' in sections:
        problems += check_network(sections['network_g'])
    if 'datasets' in sections:
        problems += _check_datasets({**options, 'train': sections.get('train', {})}, is_train, processes)
    if is_train and 'logger' in sections:
        problems += _check_logger(sections['logger'])
    if is_train and 'train' in sections:
        problems += _check_train(sections['train'], ours)
    if 'val' in sections:
        problems += _check_val(sections['val'], is_train, ours)
    return problems


def _needed(is_train: bool, ours: bool) -> tuple[str, ...]:
    common = ('name', 'model_type', 'num_gpu', 'datasets', 'path', *(('network_g',) if ours else ()))
    return (*common, 'train', 'logger') if is_train else (*common, 'val')


def _missing(where: str, options: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    return [f'{where + "." if where else ""}{key}: is missing.' for key in keys if key not in options]


def _registered(where: str, kind: str, name: object, registry: Any) -> list[str]:
    # BasicSR's registry also tries the name with its own suffix.
    if not isinstance(name, str):
        return [f'{where}: {name!r} is not the name of a {kind}.']
    if name in registry or f'{name}_basicsr' in registry:
        return []
    return [unknown(where, kind, name, registry.keys())]


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
        problems.append(
            f'num_gpu: {number} asked for, this machine shows {torch.cuda.device_count()}. '
            'Write `num_gpu: auto` (all there are) or `num_gpu: 0` (CPU).'
        )
    return problems


def _check_path(paths: Mapping[str, Any], ours: bool) -> list[str]:
    # BasicSR makes a folder of every key that it does not know.
    problems = unknown_keys('path', paths, PATH_KEYS) if ours else []
    problems += _check_flags('path', paths, ('strict_load_g',))
    for key, value in paths.items():
        if value is None or key in ('strict_load_g', 'ignore_resume_networks'):
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
        except (ValueError, TypeError, AssertionError) as error:
            problems += _lines(where, error)
        except RuntimeError:  # not every constructor can do without memory
            pass
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
        problems += _missing(where, dataset, ('name', 'type'))
        if 'name' in dataset:
            problems += _check_name(f'{where}.name', dataset['name'])
        if 'type' in dataset:
            problems += _registered(f'{where}.type', 'dataset', dataset['type'], DATASET_REGISTRY)
        loading = _check_loading(where, dataset, phase)
        problems += loading
        if dataset.get('type') == 'AllInOneDataset':
            try:
                tasks = check_dataset({**dataset, 'phase': phase}, where, keep=True)
            except OptionError as error:
                problems += error.problems
                continue
            if phase == 'train':
                problems += _check_patch(where, dataset['gt_size'], options.get('network_g'))
                if not loading:
                    samples = sum(len(task) * task.copies for task in tasks)
                    problems += _check_epochs(options, dataset, samples, processes)
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
        problems.append(f"{where}.prefetch_mode: 'cuda' goes with a GPU and `pin_memory: true`.")
    if 'num_prefetch_queue' in dataset:
        problems += check_count(f'{where}.num_prefetch_queue', dataset['num_prefetch_queue'])
    if phase == 'train':
        problems += _missing(where, dataset, ('batch_size_per_gpu', 'num_worker_per_gpu'))
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
    kind = network.get('type') if isinstance(network, Mapping) else None
    if not isinstance(kind, str) or _registered('', '', kind, ARCH_REGISTRY):
        return []
    multiple = getattr(_registry_get(ARCH_REGISTRY, kind), 'size_multiple', 1)
    if not isinstance(multiple, int) or size % multiple == 0:
        return []
    nearest = max(1, round(size / multiple)) * multiple
    return [f'{where}.gt_size: {size} is not a multiple of {multiple}, which {kind} needs. Take {nearest}.']


def _check_epochs(options: Mapping[str, Any], dataset: Mapping[str, Any], samples: int, processes: int) -> list[str]:
    """BasicSR runs ceil(total_iter / ceil(samples / batch)) + 1 epochs and drops the last, smaller batch of each.

    With several GPUs in one process it counts the epochs as if there were one.
    """
    total: Any = options['train'].get('total_iter')
    gpus: Any = torch.cuda.device_count() if options.get('num_gpu') == 'auto' else options.get('num_gpu')
    if check_count('', gpus, least=0) or check_count('', total):
        return []  # told elsewhere
    samples = math.ceil(samples * dataset.get('dataset_enlarge_ratio', 1) / processes)
    in_process = 1 if processes > 1 else max(1, gpus)
    batch = dataset['batch_size_per_gpu'] * in_process
    epochs = math.ceil(total / math.ceil(samples / dataset['batch_size_per_gpu'])) + 1
    if epochs * (samples // batch) >= total:
        return []
    mend = 'Raise the `copies` of the tasks or `dataset_enlarge_ratio`, or lower `batch_size_per_gpu`.'
    if in_process > 1:
        mend = 'Start one process a GPU (torchrun ... --launcher pytorch), or take `num_gpu: 1`.'
    return [
        f'datasets.train: an epoch has {samples * processes:,} samples, {samples // batch:,} whole batches of '
        f'{batch * processes:,}; training would end after {epochs * (samples // batch):,} of {total:,} iterations. '
        + mend
    ]


def _check_logger(options: Mapping[str, Any]) -> list[str]:
    problems = unknown_keys('logger', options, LOGGER_KEYS)
    problems += _missing('logger', options, LOGGER_KEYS[:3])
    for key in LOGGER_KEYS[:2]:
        if key in options:
            problems += check_count(f'logger.{key}', options[key])
    problems += _check_flags('logger', options, ('use_tb_logger',))
    if not isinstance(options.get('wandb') or {}, Mapping):
        problems.append(f'logger.wandb: give options such as {{project: ...}}, not {options["wandb"]!r}.')
    return problems


def _check_train(options: Mapping[str, Any], ours: bool) -> list[str]:
    problems = unknown_keys('train', options, TRAIN_KEYS) if ours else []
    given = {key: value for key, value in options.items() if value is not None}
    needed = ['total_iter']
    if ours:
        needed += ['optim_g', 'scheduler', *(['pixel_opt'] if 'perceptual_opt' not in given else [])]
    problems += _missing('train', given, needed)
    if 'total_iter' in given:
        problems += check_count('train.total_iter', given['total_iter'])
    if 'warmup_iter' in options:
        problems += check_count('train.warmup_iter', options['warmup_iter'], least=-1)
    for key in ('optim_g', 'scheduler', 'pixel_opt', 'perceptual_opt'):
        if isinstance(given.get(key, {}), Mapping):
            continue
        problems.append(f'train.{key}: give options with a type, e.g. {{type: ...}}, not {given.pop(key)!r}.')
    if 'optim_g' in given:
        problems += _check_optimizer(given['optim_g'])
    if 'scheduler' in given:
        problems += _check_scheduler(given['scheduler'], given)
    for key in ('pixel_opt', 'perceptual_opt'):
        if key in given:
            problems += _check_loss(f'train.{key}', given[key])
    decay = options.get('ema_decay', 0)
    if ours and (not is_number(decay) or not 0 <= decay < 1):
        problems.append(f'train.ema_decay: {decay!r} is not a number from 0 (no EMA) to below 1.')
    clip = given.get('grad_clip_norm')
    if clip is not None and (not is_number(clip) or clip <= 0):
        problems.append(f'train.grad_clip_norm: {clip!r} is not a number above 0. Leave the key out for no clipping.')
    return problems


def _check_optimizer(options: Mapping[str, Any]) -> list[str]:
    where = 'train.optim_g'
    problems = _missing(where, options, ('type', 'lr'))
    known = [name for name in dir(torch.optim) if inspect.isclass(getattr(torch.optim, name)) and name != 'Optimizer']
    if 'type' not in options:
        return problems
    if options['type'] not in known:
        return [*problems, unknown(f'{where}.type', 'optimizer', options['type'], known)]
    arguments = {key: value for key, value in options.items() if key != 'type'}
    optimizer = getattr(torch.optim, options['type'])
    problems += check_arguments(where, optimizer, arguments, given=('self', 'params'))
    for key, value in arguments.items():
        numbers = value if isinstance(value, list) else [value]
        if not all(number is None or isinstance(number, bool) or is_number(number) for number in numbers):
            problems.append(f'{where}.{key}: {value!r} is neither a number nor a list of numbers.')
        elif key == 'lr' and not (is_number(value) and value > 0):
            problems.append(f'{where}.lr: {value!r} is not a number above 0.')
    if problems:
        return problems
    weights = [torch.zeros(1, 1)]
    together = _build(where, optimizer, weights, **arguments)
    if not together:
        return []
    # torch does not always say which of the options it refuses.
    for key, value in arguments.items():
        problems += _build(f'{where}.{key}', optimizer, weights, **{key: value})
    return problems or together


def _check_scheduler(options: Mapping[str, Any], train: Mapping[str, Any]) -> list[str]:
    from promptir_basicsr.models.lr_scheduler_util import SCHEDULERS, scheduler_arguments

    where, kind, total = 'train.scheduler', options.get('type'), train.get('total_iter', 0)
    known_total = not check_count('', total)
    if kind not in (*SCHEDULERS, *HOST_SCHEDULERS):
        return [unknown(f'{where}.type', 'schedule', kind, (*SCHEDULERS, *HOST_SCHEDULERS))]
    scheduler: Callable[..., Any]
    if kind in SCHEDULERS:
        scheduler, arguments = scheduler_arguments(options, total if known_total else sys.maxsize)
    else:
        scheduler, arguments = HOST_SCHEDULERS[kind], {key: value for key, value in options.items() if key != 'type'}
    problems = check_arguments(where, scheduler, arguments, given=('optimizer', 'last_epoch'))
    for key in ('milestones', 'periods', 'restarts', 'restart_weights'):
        value = arguments.get(key, [])
        if not isinstance(value, list) or not all(is_number(number) for number in value):
            problems.append(f'{where}.{key}: {value!r} is not a list of numbers.')
    if not problems:
        lr = (train.get('optim_g') or {}).get('lr')
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=lr if is_number(lr) and lr > 0 else 1.0)
        problems += _build(where, scheduler, optimizer, **arguments)
    if not problems and kind == 'CosineAnnealingRestartLR' and known_total:
        periods = arguments['periods']
        if sum(periods) < total:
            problems.append(
                f'{where}.periods: add up to {sum(periods):,}, less than total_iter {total:,}: BasicSR would stop with '
                'an error there. Make them add up to total_iter.'
            )
    return problems


def _check_loss(where: str, options: Mapping[str, Any]) -> list[str]:
    problems = _registered(f'{where}.type', 'loss', options.get('type'), LOSS_REGISTRY)
    if problems:
        return problems
    loss = _registry_get(LOSS_REGISTRY, options['type'])
    arguments = {key: value for key, value in options.items() if key != 'type'}
    problems = check_arguments(where, loss, arguments)
    if not is_number(options.get('loss_weight', 1)):
        problems.append(f'{where}.loss_weight: {options["loss_weight"]!r} is not a number.')
    # A perceptual loss is not built here: that reads, or downloads, a network.
    if not problems and where == 'train.pixel_opt':
        problems += _build(where, loss, **arguments)
    return problems


def _build(where: str, function: Callable[..., Any], *given: Any, **arguments: Any) -> list[str]:
    """What a constructor says to the values of its options."""
    try:
        function(*given, **arguments)
    except Exception as error:  # whatever it is, it would end the training as well
        return _lines(where, error)
    return []


def _lines(where: str, error: Exception) -> list[str]:
    return [f'{where}: {line}' for line in (str(error) or type(error).__name__).splitlines()]


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
    if best is not None and best not in list(metrics):
        problems.append(unknown('val.best_metric', 'metric', best, metrics))
    problems += _check_flags('val', options, ('save_img', 'pbar', 'contact_sheet', 'use_ema'))
    if not isinstance(options.get('suffix') or '', str):
        problems.append(f'val.suffix: {options["suffix"]!r} is not text.')
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
    if 'crop_border' in options:
        problems += check_count(f'{where}.crop_border', options['crop_border'], least=0)
    metric = _registry_get(METRIC_REGISTRY, options['type'])
    return problems + check_arguments(where, metric, arguments, given=('img', 'img2'))
