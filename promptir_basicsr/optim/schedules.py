"""Learning rate schedules by iteration, in closed form.

BasicSR steps a scheduler once per iteration, from the second iteration on: iteration i, counted from 1, runs with
`last_epoch = i - 1`. Each class here computes the rate from i alone, so a resumed run continues exactly like an
uninterrupted one.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from basicsr.models import lr_scheduler as host_schedulers
from torch.optim.lr_scheduler import LRScheduler

from promptir_basicsr.core.errors import argument_error

HOST_SCHEDULERS = {
    'MultiStepLR': host_schedulers.MultiStepRestartLR,
    'MultiStepRestartLR': host_schedulers.MultiStepRestartLR,
    'CosineAnnealingRestartLR': host_schedulers.CosineAnnealingRestartLR,
}


class IterationLR(LRScheduler, ABC):
    """Base class of schedules whose rate is a function of the group's own rate and the iteration.

    Its `state_dict` can be loaded into a scheduler with other settings. Only the position is loaded; the settings
    stay those of the constructor, so a longer `total_iter` in the options of a resumed run applies.
    """

    settings: tuple[str, ...] = ()

    @abstractmethod
    def value(self, base_lr: float, iteration: int) -> float:
        """Return the rate at `iteration` (1 is the first) of a parameter group whose own rate is `base_lr`."""

    def lr_at(self, iteration: int) -> list[float]:
        """Return the rates of all parameter groups at `iteration`, counted from 1.

        Raises:
            ValueError: the iteration is below 1.
        """
        if iteration < 1:
            raise ValueError(f'{type(self).__name__}: iterations are counted from 1, found {iteration}')
        return [self.value(float(base_lr), iteration) for base_lr in self.base_lrs]

    def get_lr(self) -> list[Any]:
        return self.lr_at(self.last_epoch + 1)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({key: value for key, value in state_dict.items() if key not in self.settings})

    @abstractmethod
    def summary(self) -> str:
        """Describe the schedule in words."""

    def landmarks(self) -> dict[int, str]:
        """Return the iterations of the schedule's events, and their names."""
        return {}


class FixedLR(IterationLR):
    """Constant rate of every group, as in the text of the paper (PromptIR section 4: a fixed 2e-4).

    Examples:
        >>> from promptir_basicsr.optim import FixedLR
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-4)
        >>> FixedLR(optimizer).get_last_lr()
        [0.0002]
    """

    def value(self, base_lr: float, iteration: int) -> float:
        return base_lr

    def summary(self) -> str:
        return 'fixed rate'


class LinearWarmupCosineLR(IterationLR):
    """Linear warm-up from lr / warmup_iter at iteration 1 to lr at warmup_iter, then half a cosine down to eta_min.

    eta_min is reached exactly at total_iter and stays there. Without warm-up, iteration 1 runs at lr.

    Args:
        optimizer: the rates of its groups are the peak rates.
        total_iter: last iteration of the run.
        warmup_iter: iterations of the warm-up; 0 for none. A run that ends earlier consists of warm-up only.
        eta_min: final rate, at most the smallest rate of the groups.
        last_epoch: -1 for a new run (see torch).

    Raises:
        ValueError: a setting is out of range or not a number.

    Examples:
        >>> from promptir_basicsr.optim import LinearWarmupCosineLR
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        >>> LinearWarmupCosineLR(optimizer, total_iter=100, warmup_iter=4).get_last_lr()  # of iteration 1
        [0.25]
    """

    settings: tuple[str, ...] = ('total_iter', 'warmup_iter', 'eta_min')

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        total_iter: int,
        warmup_iter: int = 0,
        eta_min: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        name = type(self).__name__
        _check_count(name, 'total_iter', total_iter, 1)
        _check_count(name, 'warmup_iter', warmup_iter, 0)
        _check_rate(name, 'eta_min', eta_min, optimizer)
        self.total_iter = total_iter
        self.warmup_iter = warmup_iter
        self.eta_min = eta_min
        super().__init__(optimizer, last_epoch)

    def value(self, base_lr: float, iteration: int) -> float:
        peak = max(self.warmup_iter, 1)
        if iteration <= peak:
            return base_lr * iteration / peak
        return _half_cosine(base_lr, self.eta_min, iteration - peak, self.total_iter - peak)

    def summary(self) -> str:
        cosine = f'half a cosine to {self.eta_min:.3g} at iteration {self.total_iter:,}'
        return f'linear warm-up over {self.warmup_iter:,} iterations, then {cosine}' if self.warmup_iter else cosine

    def landmarks(self) -> dict[int, str]:
        return {self.warmup_iter: 'end of warm-up'} if self.warmup_iter else {}


class WarmupStableDecayLR(LinearWarmupCosineLR):
    """Linear warm-up, constant lr, then linear decay to eta_min over the last iterations of the run.

    To extend a training, resume from a state before the decay: only the decay depends on total_iter.

    Args:
        optimizer: the rates of its groups are the peak rates.
        total_iter: last iteration of the run.
        decay_iter: iterations of the decay; a shorter run contains only its end.
        warmup_iter: iterations of the warm-up; 0 for none.
        eta_min: final rate, at most the smallest rate of the groups.
        last_epoch: -1 for a new run (see torch).

    Raises:
        ValueError: a setting is out of range or not a number.

    Examples:
        >>> from promptir_basicsr.optim import WarmupStableDecayLR
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        >>> WarmupStableDecayLR(optimizer, total_iter=100, decay_iter=20, warmup_iter=4).get_last_lr()
        [0.25]
    """

    settings = ('total_iter', 'decay_iter', 'warmup_iter', 'eta_min')

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        total_iter: int,
        decay_iter: int,
        warmup_iter: int = 0,
        eta_min: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        _check_count(type(self).__name__, 'decay_iter', decay_iter, 1)
        self.decay_iter = decay_iter
        super().__init__(optimizer, total_iter, warmup_iter, eta_min, last_epoch)

    def value(self, base_lr: float, iteration: int) -> float:
        done = min(max(iteration - (self.total_iter - self.decay_iter), 0) / self.decay_iter, 1)
        warmed = min(iteration / max(self.warmup_iter, 1), 1)
        return min(base_lr * warmed, base_lr * (1 - done) + self.eta_min * done)

    def summary(self) -> str:
        warmup = f'linear warm-up over {self.warmup_iter:,} iterations, ' if self.warmup_iter else ''
        return f'{warmup}the same rate, then a line to {self.eta_min:.3g} over the last {self.decay_iter:,} iterations'

    def landmarks(self) -> dict[int, str]:
        begin = self.total_iter - self.decay_iter
        return {**super().landmarks(), **({begin: 'begin of the decay'} if begin > 0 else {})}


class ReleasedPromptIRLR(IterationLR):
    """Schedule of the released PromptIR program, which is stepped once per epoch and one epoch late.

    Epoch e, counted from 0, runs at position p = max(e - 1, 0) of: linear from warmup_start_lr at p = 0 to lr at
    p = warmup_epochs - 1; then half a cosine from lr at p = warmup_epochs to eta_min at p = max_epochs. With the
    defaults, epochs 0 and 1 therefore run at rate 0, and the program's 120 epochs end at 13 % of lr. After
    max_epochs, which the program never reaches, the rate stays at eta_min.

    Args:
        optimizer: the rates of its groups are the peak rates.
        iters_per_epoch: iterations of one epoch; 4,451 for the 142,431 samples of three degradations at batch 32.
        warmup_epochs: length of the warm-up, below max_epochs; 0 for none.
        max_epochs: end of the cosine.
        eta_min: final rate, at most the smallest rate of the groups.
        warmup_start_lr: first rate, at most the smallest rate of the groups.
        last_epoch: -1 for a new run (see torch); counts iterations, despite its name.

    Raises:
        ValueError: a setting is out of range or not a number.

    Examples:
        >>> from promptir_basicsr.optim import ReleasedPromptIRLR
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-4)
        >>> ReleasedPromptIRLR(optimizer, iters_per_epoch=4451).get_last_lr()
        [0.0]
    """

    settings = ('iters_per_epoch', 'warmup_epochs', 'max_epochs', 'eta_min', 'warmup_start_lr')

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        iters_per_epoch: int,
        warmup_epochs: int = 15,
        max_epochs: int = 150,
        eta_min: float = 0.0,
        warmup_start_lr: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        name = type(self).__name__
        _check_count(name, 'iters_per_epoch', iters_per_epoch, 1)
        _check_count(name, 'warmup_epochs', warmup_epochs, 0)
        _check_count(name, 'max_epochs', max_epochs, 1)
        if warmup_epochs >= max_epochs:
            message = f'warmup_epochs {warmup_epochs} must be below max_epochs {max_epochs}; shorten the warm-up'
            raise argument_error(name, 'warmup_epochs', message, 'max_epochs')
        _check_rate(name, 'eta_min', eta_min, optimizer)
        _check_rate(name, 'warmup_start_lr', warmup_start_lr, optimizer)
        self.iters_per_epoch = iters_per_epoch
        self.warmup_epochs = warmup_epochs
        self.max_epochs = max_epochs
        self.eta_min = eta_min
        self.warmup_start_lr = warmup_start_lr
        super().__init__(optimizer, last_epoch)

    def value(self, base_lr: float, iteration: int) -> float:
        epoch = (iteration - 1) // self.iters_per_epoch
        position = max(epoch - 1, 0)
        if position < self.warmup_epochs:
            done = position / max(self.warmup_epochs - 1, 1)
            return self.warmup_start_lr * (1 - done) + base_lr * done
        return _half_cosine(base_lr, self.eta_min, position - self.warmup_epochs, self.max_epochs - self.warmup_epochs)

    def summary(self) -> str:
        return (
            f'as released: linear warm-up over {self.warmup_epochs} epochs, then half a cosine to {self.eta_min:.3g} '
            f'at epoch {self.max_epochs}, stepped once per epoch of {self.iters_per_epoch:,} iterations and one late'
            + (', so the first two epochs run at 0' if self.warmup_epochs and self.warmup_start_lr == 0 else '')
        )

    def landmarks(self) -> dict[int, str]:
        return {self.warmup_epochs * self.iters_per_epoch + 1: 'end of warm-up'} if self.warmup_epochs else {}


SCHEDULERS: dict[str, type[IterationLR]] = {
    scheduler.__name__: scheduler
    for scheduler in (FixedLR, LinearWarmupCosineLR, WarmupStableDecayLR, ReleasedPromptIRLR)
}


def scheduler_arguments(opt: Mapping[str, Any], total_iter: int) -> tuple[type[IterationLR], dict[str, Any]]:
    """Return class and arguments for the options `train: scheduler:`; total_iter defaults to the run's.

    Args:
        opt: `{type: ..., ...}` with a type of SCHEDULERS; not changed.
        total_iter: last iteration of the run.
    """
    arguments = dict(opt)
    scheduler = SCHEDULERS[arguments.pop('type')]
    if 'total_iter' in scheduler.settings:
        arguments.setdefault('total_iter', total_iter)
    return scheduler, arguments


def _half_cosine(start: float, end: float, done: int, length: int) -> float:
    """Interpolate from `start` at done = 0 to exactly `end` at done >= length."""
    if done >= length:
        return end
    return end + (start - end) * (1 + math.cos(math.pi * done / length)) / 2


def _check_count(owner: str, name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        message = f'{name} is {value!r}, must be a whole number in digits, such as 100000 (YAML reads 1e5 as text)'
        raise argument_error(owner, name, message)
    if value < least:
        raise argument_error(owner, name, f'{name} is {value}, must be at least {least}')


def _check_rate(owner: str, name: str, value: Any, optimizer: torch.optim.Optimizer) -> None:
    """Check that `value` is a number from 0 to the rate of every parameter group."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        message = (
            f'{name} is {value!r}, must be a number with a decimal point, such as 1.0e-7 (YAML reads 1e-7 as text)'
        )
        raise argument_error(owner, name, message)
    if not value >= 0:  # rejects nan as well
        raise argument_error(owner, name, f'{name} is {value}, must be at least 0')
    for index, group in enumerate(optimizer.param_groups):
        lr = float(group.get('initial_lr', group['lr']))
        if value > lr:
            raise argument_error(owner, name, f'{name} {value} is above the lr {lr} of parameter group {index}')
