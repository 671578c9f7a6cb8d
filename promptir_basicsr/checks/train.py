"""Check the section `train` of an option file: optimizer, schedule, losses."""

import inspect
import io
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY
from torch import nn

from promptir_basicsr.archs.traits import no_prompts, prompts_of, traits_of
from promptir_basicsr.core.errors import OptionError, problems_of
from promptir_basicsr.core.messages import first_few, first_line, is_number, missing, quotes_hint, shown, unknown
from promptir_basicsr.core.problems import Keys, Problem, problem
from promptir_basicsr.core.registry import arguments_of, build, check_arguments, check_registered, find_registered
from promptir_basicsr.losses.loss_scaler import LossScaler
from promptir_basicsr.optim.optimizers import PREFIX, build_optimizer, find_optimizer
from promptir_basicsr.optim.schedules import HOST_SCHEDULERS, SCHEDULERS, scheduler_arguments
from promptir_basicsr.options.registered import type_problems
from promptir_basicsr.runtime.random_state import kept_random_state, random_state, set_random_state

PROMPT_LOSS: Keys = ('train', 'prompt_opt')
IMAGE_LOSSES = ('pixel_opt', 'frequency_opt', 'perceptual_opt')


def check_train(
    options: Mapping[str, Any], ours: bool, network: Mapping[str, Any] | None, sensor: bool
) -> list[Problem]:
    """Problems of the section `train` beyond the types of its options.

    Args:
        options: the section, without invalid options.
        ours: for models of this package; for others only the options that BasicSR reads are checked.
        network: `network_g`, if it is valid.
        sensor: for SensorModel, whose loss is not an option.
    """
    given = {key: value for key, value in options.items() if value is not None}
    problems: list[Problem] = []
    if ours and not sensor and not given.keys() & set(IMAGE_LOSSES):
        problems += missing('train', given, ['pixel_opt'])
    if ours:
        problems += _check_total(given)
    if 'optim_g' in given:
        problems += _check_optimizer(given['optim_g'])
    if 'scheduler' in given:
        problems += _check_scheduler(given['scheduler'], given)
    for key in (*IMAGE_LOSSES, 'prompt_opt') if ours else ('pixel_opt', 'perceptual_opt'):
        if key in given and not sensor:
            problems += _check_loss(('train', key), given[key])
    if ours and 'prompt_opt' in given and network is not None:
        problems += _check_prompts(network)
    if ours and 'loss_scaler' in given:
        problems += _check_scaler(given['loss_scaler'])
    return problems


def _check_total(train: Mapping[str, Any]) -> list[Problem]:
    """Check for iterations after the end of the run, which would have no effect."""
    total, warmup, schedule = train.get('total_iter'), train.get('warmup_iter', -1), train.get('scheduler', {})
    if total is None:
        return []
    problems: list[Problem] = []
    if warmup >= total:
        message = f'{warmup:,} is not below total_iter {total:,}. Shorten the warmup.'
        problems.append(Problem(('train', 'warmup_iter'), message, 'short'))
    last = schedule.get('total_iter', total)
    for key, part in (('warmup_iter', 'warmup'), ('decay_iter', 'decay')):
        own, knows = schedule.get(key), schedule.get('type') in ('LinearWarmupCosineLR', 'WarmupStableDecayLR')
        if knows and is_number(own) and own >= last:
            message = f'{own:,} is not below total_iter {last:,}. Shorten the {part}.'
            problems.append(Problem(('train', 'scheduler', key), message, 'short'))
    for key in ('milestones', 'restarts'):
        values = schedule.get(key)
        late = [value for value in values if is_number(value) and value > total] if isinstance(values, list) else []
        if late:
            message = f'{first_few(f"{value:,}" for value in late)} exceed total_iter {total:,}.'
            message += ' Remove them, or train longer.'
            problems.append(Problem(('train', 'scheduler', key), message, 'short'))
    return problems


def _check_optimizer(options: Mapping[str, Any]) -> list[Problem]:
    where = ('train', 'optim_g')
    problems = missing(where, options, ('type', 'lr'))
    if 'type' not in options:
        return problems
    try:
        kind = find_optimizer(options['type'])
    except OptionError as error:
        return [*problems, *problems_of(where, error)]
    arguments = arguments_of(options)
    known = inspect.signature(kind).parameters
    problems += check_arguments(where, kind, arguments, given=('self', 'params'))
    for key, value in arguments.items():
        numbers = value if isinstance(value, list) else [value]
        words = key in known and isinstance(known[key].default, str)
        if not words and not all(each is None or isinstance(each, bool) or is_number(each) for each in numbers):
            message = f'{shown(value)} is not a number or a list of numbers.{quotes_hint(value)}'
            problems.append(problem((*where, key), message))
        elif key == 'lr' and not (is_number(value) and value > 0):
            problems.append(problem((*where, 'lr'), f'{value!r} is not a number above 0.'))
    if problems:
        return problems
    build = partial(build_optimizer, options['type'])
    together = _build(where, build, [torch.zeros(1, 1)], **arguments)
    if not together:
        return _check_steps(options['type'], arguments)
    # torch does not always name the option that it refuses.
    for key, value in arguments.items():
        problems += _build((*where, key), build, [torch.zeros(1, 1)], **{key: value})
    return problems or together


def _check_steps(name: str, arguments: Mapping[str, Any]) -> list[Problem]:
    """Check that an optimizer trains convolutions, and resumes from a saved state bit by bit."""
    arguments = {key: value for key, value in arguments.items() if key not in _OF_DEVICES}

    def start() -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
        weights = [nn.Parameter(torch.linspace(-1, 1, math.prod(shape)).reshape(shape)) for shape in _SHAPES]
        return weights, build_optimizer(name, weights, **arguments)

    def step_twice(weights: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        for _ in range(2):
            for weight in weights:
                weight.grad = weight.detach().sin()
            optimizer.step()

    where = ('train', 'optim_g', 'type')
    with kept_random_state():
        try:
            weights, optimizer = start()
            step_twice(weights, optimizer)
            file = io.BytesIO()
            torch.save(optimizer.state_dict(), file)
            file.seek(0)
            resumed, other = start()
            other.load_state_dict(torch.load(file, weights_only=True))
            for weight, value in zip(resumed, weights, strict=True):
                weight.data.copy_(value)
            random = random_state()
            step_twice(weights, optimizer)
            set_random_state(random)
            step_twice(resumed, other)
        except Exception as error:  # optimizers may raise anything
            instead = f' Use {PREFIX}Muon.' if name == 'Muon' else ''
            message = f'{name} cannot train convolutions, or cannot be saved ({first_line(error)}).{instead}'
            return [problem(where, message)]
    if all(torch.equal(a.view(torch.int32), b.view(torch.int32)) for a, b in zip(weights, resumed, strict=True)):
        return []
    return [problem(where, f'{name} does not resume exactly from a saved state. Use another optimizer.')]


_SHAPES = ((16, 8, 3, 3), (16, 3, 3, 3), (16, 1, 3, 3), (8, 16, 1, 1), (1, 5, 4, 6, 6), (16,), ())
_OF_DEVICES = ('fused', 'foreach', 'capturable')
"""Arguments that only some devices support."""


def _check_scheduler(options: Mapping[str, Any], train: Mapping[str, Any]) -> list[Problem]:
    where, kind, total = ('train', 'scheduler'), options.get('type'), train.get('total_iter')
    if 'type' not in options:
        return missing(where, options, ['type'])
    if kind not in (*SCHEDULERS, *HOST_SCHEDULERS):
        return [unknown((*where, 'type'), 'schedule', kind, (*SCHEDULERS, *HOST_SCHEDULERS))]
    scheduler: Callable[..., Any]
    if kind in SCHEDULERS:
        scheduler, arguments = scheduler_arguments(options, total or sys.maxsize)
    else:
        scheduler, arguments = HOST_SCHEDULERS[kind], arguments_of(options)
    problems = check_arguments(where, scheduler, arguments, given=('optimizer', 'last_epoch'))
    for key in ('milestones', 'periods', 'restarts', 'restart_weights'):
        value = arguments.get(key, [])
        if not isinstance(value, list) or not all(is_number(number) for number in value):
            problems.append(problem((*where, key), f'{shown(value)} is not a list of numbers.'))
    for key in ('gamma', 'eta_min') if kind in HOST_SCHEDULERS else ():  # BasicSR reads these late in the run
        if key in arguments and not is_number(arguments[key]):
            message = f'{shown(arguments[key])} is not a number.{quotes_hint(arguments[key])}'
            problems.append(problem((*where, key), message))
    if not problems:
        rates = [train.get('optim_g', {}).get(key) for key in ('lr', 'adamw_lr')]
        rates = [rate for rate in rates if is_number(rate) and rate > 0] or [1.0]
        optimizer = torch.optim.SGD([{'params': [torch.zeros(1)], 'lr': rate} for rate in rates])
        problems += _build(where, scheduler, optimizer, **arguments)
    if not problems and kind == 'CosineAnnealingRestartLR' and total:
        periods = arguments['periods']
        if sum(periods) < total:
            message = (
                f'sum to {sum(periods):,}, less than total_iter {total:,}: BasicSR would stop there with an error. '
                'Set periods that sum to total_iter.'
            )
            problems.append(problem((*where, 'periods'), message))
    return problems


def _check_loss(where: Keys, options: Mapping[str, Any]) -> list[Problem]:
    problems = missing(where, options, ['type'])
    problems = problems or check_registered((*where, 'type'), 'loss', options['type'], LOSS_REGISTRY)
    if problems:
        return problems
    loss = find_registered(LOSS_REGISTRY, options['type'])
    if getattr(loss, 'takes_prompts', False) != (where == PROMPT_LOSS):
        return [_misplaced(where, options['type'])]
    arguments = arguments_of(options)
    problems = check_arguments(where, loss, arguments)
    if not is_number(options.get('loss_weight', 1)):
        weight = options['loss_weight']
        problems.append(problem((*where, 'loss_weight'), f'{shown(weight)} is not a number.{quotes_hint(weight)}'))
    problems += [] if problems else type_problems(where, loss, arguments)
    # A perceptual loss is not built here, because that reads or downloads a network.
    if not problems and where != ('train', 'perceptual_opt'):
        problems += _build(where, loss, **arguments)
    return problems


def _misplaced(where: Keys, kind: str) -> Problem:
    """Report an image loss in the place of a prompt loss, or vice versa."""
    message = f"'{kind}' is a loss of the network's prompts, not of images. Move it to prompt_opt."
    if where == PROMPT_LOSS:
        known = sorted(name for name, loss in LOSS_REGISTRY if getattr(loss, 'takes_prompts', False))
        message = f"'{kind}' is a loss of images, not of prompts. Allowed: {', '.join(known)}."
    return problem((*where, 'type'), message)


def _check_prompts(network: Mapping[str, Any]) -> list[Problem]:
    """Check that a network has prompts for a loss. It is built on the meta device."""
    if not traits_of(find_registered(ARCH_REGISTRY, network['type'])).has_prompt_vectors:
        return [problem(PROMPT_LOSS, no_prompts(network['type']))]
    try:
        prompts_of(build(ARCH_REGISTRY, network, 'meta'))
    except ValueError as error:
        return problems_of(PROMPT_LOSS, error)
    except RuntimeError:  # not every constructor supports the meta device
        pass
    return []


def _check_scaler(options: Mapping[str, Any]) -> list[Problem]:
    where = ('train', 'loss_scaler')
    problems = check_arguments(where, LossScaler, options)
    known = inspect.signature(LossScaler).parameters
    try:
        LossScaler(**{key: value for key, value in options.items() if key in known})
    except OptionError as error:
        problems += problems_of(where, error)
    return problems


def _build(where: Keys, function: Callable[..., Any], *given: Any, **arguments: Any) -> list[Problem]:
    """Errors of a constructor about the values of its options."""
    try:
        function(*given, **arguments)
    except Exception as error:  # it would end the training as well
        found = problems_of(where, error)
        if isinstance(error, OptionError):
            return found
        return [replace(each, path=(*where, *_cause(function, given, arguments)), shown=where) for each in found]
    return []


def _cause(function: Callable[..., Any], given: Sequence[Any], arguments: Mapping[str, Any]) -> Keys:
    """The argument without which a constructor does not fail; its message may not name the argument."""
    for key in arguments:
        try:
            function(*given, **{other: value for other, value in arguments.items() if other != key})
        except Exception:
            continue
        return (key,)
    return ()
