"""Optimizers and schedules that BasicSR does not know, through BasicSR's own model."""

import copy
import logging
import math
from typing import Any

import pytest
import torch

import promptir_basicsr.host.optim
from promptir_basicsr.optim.schedules import SCHEDULERS, FixedLR, LinearWarmupCosineLR, ReleasedPromptIRLR

# isort: split
from basicsr.models.base_model import BaseModel
from basicsr.models.lr_scheduler import CosineAnnealingRestartLR, MultiStepRestartLR

LR = 1e-3


def model(scheduler: dict[str, Any], total_iter: int = 10, optimizers: int = 1) -> BaseModel:
    """BasicSR's model with its optimizers and schedules, made as SRModel makes them."""
    opt = {'num_gpu': 0, 'is_train': True, 'train': {'total_iter': total_iter, 'scheduler': scheduler}}
    model = BaseModel(opt)
    model.optimizers = [model.get_optimizer('AdamW', [torch.zeros(2)], LR) for _ in range(optimizers)]
    model.setup_schedulers()
    return model


def rates(model: BaseModel, total_iter: int) -> list[float]:
    """The rate of each iteration in BasicSR's training loop."""
    seen = []
    for iteration in range(1, total_iter + 1):
        model.update_learning_rate(iteration, warmup_iter=-1)
        model.optimizers[0].step()
        seen.append(model.get_current_learning_rate()[0])
    return seen


@pytest.mark.parametrize(
    ('name', 'options'),
    [
        ('Adam', {'betas': [0.5, 0.9]}),
        ('AdamW', {'weight_decay': 0.05, 'betas': [0.9, 0.95]}),
        ('SGD', {'momentum': 0.9, 'nesterov': True}),
        ('RMSprop', {'alpha': 0.9}),
        ('NAdam', {}),
    ],
)
def test_optimizers(name: str, options: dict[str, Any]) -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    given = copy.deepcopy(options)
    optimizer = BaseModel({'num_gpu': 0, 'is_train': True}).get_optimizer(name, [weight], lr=2e-4, **given)
    assert type(optimizer) is getattr(torch.optim, name)
    (group,) = optimizer.param_groups
    assert group['params'] == [weight]
    assert group['lr'] == 2e-4
    expected = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    assert {key: group[key] for key in options} == expected
    assert given == options


@pytest.mark.parametrize('name', ['AdmaW', 'lr_scheduler', '__doc__', ''])
def test_what_torch_has_not_is_refused_as_basicsr_refuses_it(name: str) -> None:
    with pytest.raises(NotImplementedError, match=f'optimizer {name} is not'):
        BaseModel({'num_gpu': 0, 'is_train': True}).get_optimizer(name, [torch.zeros(1)], lr=1.0)


@pytest.mark.parametrize(
    ('scheduler', 'kind'),
    [
        ({'type': 'FixedLR'}, FixedLR),
        ({'type': 'LinearWarmupCosineLR', 'warmup_iter': 2, 'eta_min': 1e-5}, LinearWarmupCosineLR),
        ({'type': 'ReleasedPromptIRLR', 'iters_per_epoch': 2, 'warmup_epochs': 2, 'max_epochs': 5}, ReleasedPromptIRLR),
        ({'type': 'MultiStepLR', 'milestones': [3], 'gamma': 0.5}, MultiStepRestartLR),
        ({'type': 'CosineAnnealingRestartLR', 'periods': [10], 'eta_min': 1e-5}, CosineAnnealingRestartLR),
    ],
)
def test_every_optimizer_gets_the_schedule(scheduler: dict[str, Any], kind: type) -> None:
    made = model(scheduler, optimizers=2)
    assert [type(schedule) for schedule in made.schedulers] == [kind, kind]
    assert [schedule.optimizer for schedule in made.schedulers] == made.optimizers


def test_all_built_in_schedules_are_registered() -> None:
    assert set(SCHEDULERS) == {'FixedLR', 'LinearWarmupCosineLR', 'ReleasedPromptIRLR', 'WarmupStableDecayLR'}


@pytest.mark.parametrize('name', ['FixedLR', 'LinearWarmupCosineLR'])
def test_the_options_stay_as_they_are(name: str) -> None:
    """So a second model can be built from them; BasicSR takes the type out."""
    options = {'type': name}
    model(options)
    assert options == {'type': name}
    assert type(model(options).schedulers[0]) is SCHEDULERS[name]


def test_total_iter_is_the_runs_unless_given() -> None:
    assert model({'type': 'LinearWarmupCosineLR'}, total_iter=7).schedulers[0].total_iter == 7
    assert model({'type': 'LinearWarmupCosineLR', 'total_iter': 5}, total_iter=7).schedulers[0].total_iter == 5


def test_rates_of_warmup_and_cosine() -> None:
    seen = rates(model({'type': 'LinearWarmupCosineLR', 'warmup_iter': 2, 'eta_min': 1e-5}, total_iter=6), 6)
    half_cosine = [1e-5 + (LR - 1e-5) * (1 + math.cos(math.pi * step / 4)) / 2 for step in (1, 2, 3, 4)]
    assert seen == pytest.approx([LR / 2, LR, *half_cosine], rel=1e-12)


def test_fixed_rates() -> None:
    assert rates(model({'type': 'FixedLR'}), 10) == [LR] * 10


def test_basicsrs_own_schedule_still_steps() -> None:
    seen = rates(model({'type': 'MultiStepLR', 'milestones': [3], 'gamma': 0.5}), 5)
    assert seen == [LR, LR, LR, LR / 2, LR / 2]


def test_an_unknown_schedule_is_refused_as_basicsr_refuses_it() -> None:
    with pytest.raises(NotImplementedError, match='Scheduler CosineLR is not implemented'):
        model({'type': 'CosineLR'})


def test_the_log_reports_the_learning_rates(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger='basicsr'):
        logging.getLogger('basicsr').addHandler(caplog.handler)  # BasicSR's logger does not propagate
        try:
            model({'type': 'LinearWarmupCosineLR', 'warmup_iter': 2}, total_iter=100)
        finally:
            logging.getLogger('basicsr').removeHandler(caplog.handler)
    assert caplog.messages[0].startswith('LinearWarmupCosineLR: linear warm-up over 2 iterations')
    assert '0.001 at 2 (end of warm-up)' in caplog.messages[0]


def test_adapting_again_changes_nothing() -> None:
    before = (BaseModel.get_optimizer, BaseModel.setup_schedulers)
    promptir_basicsr.host.optim.adapt()
    promptir_basicsr.host.adapt()
    assert (BaseModel.get_optimizer, BaseModel.setup_schedulers) == before
