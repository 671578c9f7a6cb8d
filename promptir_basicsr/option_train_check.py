"""Find the mistakes in the section `train` of an option file: optimizer, schedule, losses."""

import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from basicsr.models import lr_scheduler as host_schedulers
from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY

from promptir_basicsr.option_util import (
    OptionError,
    check_arguments,
    check_count,
    check_registered,
    error_lines,
    find_registered,
    is_number,
    missing,
    unknown,
    unknown_keys,
)

TRAIN_KEYS = (
    'total_iter warmup_iter optim_g scheduler ema_decay grad_clip_norm pixel_opt frequency_opt perceptual_opt '
    'prompt_opt loss_scaler'
).split()
SENSOR_TRAIN_KEYS = 'total_iter warmup_iter optim_g scheduler ema_decay grad_clip_norm label_smoothing'.split()
IMAGE_LOSSES = ('pixel_opt', 'frequency_opt', 'perceptual_opt')
HOST_SCHEDULERS = {
    'MultiStepLR': host_schedulers.MultiStepRestartLR,
    'MultiStepRestartLR': host_schedulers.MultiStepRestartLR,
    'CosineAnnealingRestartLR': host_schedulers.CosineAnnealingRestartLR,
}


def check_train(
    options: Mapping[str, Any], ours: bool, network: Mapping[str, Any] | None = None, sensor: bool = False
) -> list[str]:
    """The problems of the section `train`, a line each.

    Args:
        options: the section.
        ours: for our own model, whose options are all known; of others those that BasicSR reads are checked.
        network: `network_g`, where it was found to be right.
        sensor: for SensorModel, whose loss is not an option.
    """
    problems = unknown_keys('train', options, SENSOR_TRAIN_KEYS if sensor else TRAIN_KEYS) if ours else []
    given = {key: value for key, value in options.items() if value is not None}
    needed = ['total_iter']
    if ours:
        needed += ['optim_g', 'scheduler']
        needed += ['pixel_opt'] if not sensor and not given.keys() & set(IMAGE_LOSSES) else []
    problems += missing('train', given, needed)
    if 'total_iter' in given:
        problems += check_count('train.total_iter', given['total_iter'])
    if 'warmup_iter' in options:
        problems += check_count('train.warmup_iter', options['warmup_iter'], least=-1)
    losses = (*IMAGE_LOSSES, 'prompt_opt') if ours else ('pixel_opt', 'perceptual_opt')
    for key in ('optim_g', 'scheduler', *losses):
        if isinstance(given.get(key, {}), Mapping):
            continue
        problems.append(f'train.{key}: give options with a type, e.g. {{type: ...}}, not {given.pop(key)!r}.')
    if 'optim_g' in given:
        problems += _check_optimizer(given['optim_g'])
    if 'scheduler' in given:
        problems += _check_scheduler(given['scheduler'], given)
    for key in losses:
        if key in given:
            problems += _check_loss(f'train.{key}', given[key])
    if ours and 'prompt_opt' in given and network is not None:
        problems += _check_prompts(network)
    if ours and 'loss_scaler' in given:
        problems += _check_scaler(given['loss_scaler'])
    decay = options.get('ema_decay', 0)
    if ours and (not is_number(decay) or not 0 <= decay < 1):
        problems.append(f'train.ema_decay: {decay!r} is not a number from 0 (no EMA) to below 1.')
    smoothing = given.get('label_smoothing', 0)
    if sensor and (not is_number(smoothing) or not 0 <= smoothing < 1):
        problems.append(f'train.label_smoothing: {smoothing!r} is not a number from 0 to below 1.')
    clip = given.get('grad_clip_norm')
    if clip is not None and (not is_number(clip) or clip <= 0):
        problems.append(f'train.grad_clip_norm: {clip!r} is not a number above 0. Leave the key out for no clipping.')
    return problems


def _check_optimizer(options: Mapping[str, Any]) -> list[str]:
    where = 'train.optim_g'
    problems = missing(where, options, ('type', 'lr'))
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
    problems = check_registered(f'{where}.type', 'loss', options.get('type'), LOSS_REGISTRY)
    if problems:
        return problems
    loss = find_registered(LOSS_REGISTRY, options['type'])
    if getattr(loss, 'takes_prompts', False) != (where == 'train.prompt_opt'):
        return [_misplaced(where, options['type'])]
    arguments = {key: value for key, value in options.items() if key != 'type'}
    problems = check_arguments(where, loss, arguments)
    if not is_number(options.get('loss_weight', 1)):
        problems.append(f'{where}.loss_weight: {options["loss_weight"]!r} is not a number.')
    # A perceptual loss is not built here: that reads, or downloads, a network.
    if not problems and where != 'train.perceptual_opt':
        problems += _build(where, loss, **arguments)
    return problems


def _misplaced(where: str, kind: str) -> str:
    """The sentence for a loss of images in the place of a loss of prompts, or the other way round."""
    if where != 'train.prompt_opt':
        return f"{where}.type: '{kind}' is a loss of the network's prompts, not of images. Its place is prompt_opt."
    known = sorted(name for name, loss in LOSS_REGISTRY if getattr(loss, 'takes_prompts', False))
    return f"{where}.type: '{kind}' is a loss of images, not of prompts. Allowed: {', '.join(known)}."


def _check_prompts(network: Mapping[str, Any]) -> list[str]:
    """Whether a network has prompts that a loss can act on. It is built without memory."""
    from promptir_basicsr.losses.prompt_loss import no_prompts, prompts_of

    where, kind = 'train.prompt_opt', find_registered(ARCH_REGISTRY, network['type'])
    if not hasattr(kind, 'prompt_vectors'):
        return [f'{where}: {no_prompts(network["type"])}']
    try:
        with torch.device('meta'):
            prompts_of(kind(**{key: value for key, value in network.items() if key != 'type'}))
    except ValueError as error:
        return error_lines(where, error)
    except RuntimeError:  # not every constructor can do without memory
        pass
    return []


def _check_scaler(options: object) -> list[str]:
    from promptir_basicsr.losses.scaler_util import LossScaler

    where = 'train.loss_scaler'
    if not isinstance(options, Mapping):
        return [f'{where}: give options such as {{history: 100, limit: 5, factor: 2.5}}, not {options!r}.']
    problems = check_arguments(where, LossScaler, options)
    known = inspect.signature(LossScaler).parameters
    try:
        LossScaler(**{key: value for key, value in options.items() if key in known})
    except OptionError as error:
        problems += [f'{where}.{problem}' for problem in error.problems]
    return problems


def _build(where: str, function: Callable[..., Any], *given: Any, **arguments: Any) -> list[str]:
    """What a constructor says to the values of its options."""
    try:
        function(*given, **arguments)
    except Exception as error:  # whatever it is, it would end the training as well
        return error_lines(where, error)
    return []
