"""The curve of `basicsr check` is what BasicSR's own loop sets."""

from typing import Any

import pytest
import torch

import promptir_basicsr  # noqa: F401  (prepares BasicSR)
from promptir_basicsr.optim.rates import rate_curve
from promptir_basicsr.optim.schedules import HOST_SCHEDULERS, SCHEDULERS

# isort: split
from basicsr.models.base_model import BaseModel


def rates_of_a_run(train: dict[str, Any]) -> list[float]:
    """The rates that BasicSR's models set before each iteration."""
    model = BaseModel({'num_gpu': 0, 'is_train': True})
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=train['optim_g']['lr'])
    options = dict(train['scheduler'])
    kind = options.pop('type')
    if 'total_iter' in getattr(SCHEDULERS.get(kind), 'settings', ()):
        options.setdefault('total_iter', train['total_iter'])
    model.optimizers = [optimizer]
    model.schedulers = [{**HOST_SCHEDULERS, **SCHEDULERS}[kind](optimizer, **options)]
    rates = []
    for iteration in range(1, train['total_iter'] + 1):
        optimizer.step()
        model.update_learning_rate(iteration, warmup_iter=train.get('warmup_iter', -1))
        rates.append(optimizer.param_groups[0]['lr'])
    return rates


SCHEDULES = [
    {'type': 'FixedLR'},
    {'type': 'LinearWarmupCosineLR', 'warmup_iter': 12, 'eta_min': 1e-6},
    {'type': 'ReleasedPromptIRLR', 'iters_per_epoch': 4, 'warmup_epochs': 3, 'max_epochs': 20},
    {'type': 'MultiStepLR', 'milestones': [7, 30, 30, 61], 'gamma': 0.5},
    {'type': 'MultiStepRestartLR', 'milestones': [7, 30, 61], 'restarts': [0, 40], 'restart_weights': [1, 0.5]},
    {'type': 'MultiStepLR', 'milestones': [0, 79]},
    {'type': 'CosineAnnealingRestartLR', 'periods': [30, 50], 'restart_weights': [1, 0.5], 'eta_min': 1e-7},
    {'type': 'CosineAnnealingRestartLR', 'periods': [100]},
]


@pytest.mark.parametrize('warmup', [None, -1, 1, 2, 9, 31])
@pytest.mark.parametrize('schedule', SCHEDULES, ids=lambda schedule: '-'.join(map(str, schedule.values())))
def test_the_curve_is_that_of_a_run(schedule: dict[str, Any], warmup: int | None) -> None:
    train: dict[str, Any] = {'total_iter': 80, 'optim_g': {'lr': 2e-4}, 'scheduler': schedule}
    if warmup is not None:
        train['warmup_iter'] = warmup
    rates = rates_of_a_run(train)
    curve = rate_curve(train)
    assert [point.rate for point in curve] == pytest.approx([rates[point.iteration - 1] for point in curve], rel=1e-9)
    assert {1, 20, 40, 60, 80} <= {point.iteration for point in curve}
    assert curve == sorted(curve)


def test_the_curve_names_the_turns() -> None:
    train = {'total_iter': 80, 'optim_g': {'lr': 1.0}, 'scheduler': SCHEDULES[4], 'warmup_iter': 5}
    events = {point.iteration: point.event for point in rate_curve(train) if point.event}
    assert events == {
        5: 'end of warm-up', 8: 'milestone', 31: 'milestone', 41: 'restart', 62: 'milestone', 80: 'last'
    }  # fmt: skip
    cosine = {'total_iter': 80, 'optim_g': {'lr': 1.0}, 'scheduler': SCHEDULES[6]}
    assert {point.iteration: point.event for point in rate_curve(cosine) if point.event} == {
        31: 'end of a period', 32: 'restart', 80: 'last'
    }  # fmt: skip


def test_the_options_are_left_alone_and_long_runs_cost_nothing() -> None:
    train = {'total_iter': 10**12, 'optim_g': {'lr': 1.0}, 'scheduler': {'type': 'MultiStepLR', 'milestones': [10**11]}}
    assert [point.rate for point in rate_curve(train)] == pytest.approx([1, 0.1, 0.1, 0.1, 0.1, 0.1])
    assert train['scheduler'] == {'type': 'MultiStepLR', 'milestones': [10**11]}
