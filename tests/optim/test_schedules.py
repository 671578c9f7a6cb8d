"""The learning rate of every iteration, by independent formulas and through BasicSR's own stepping."""

import copy
import itertools
import math
import re

import numpy as np
import pytest
import torch

from promptir_basicsr.optim.rates import describe
from promptir_basicsr.optim.schedules import (
    SCHEDULERS,
    FixedLR,
    LinearWarmupCosineLR,
    ReleasedPromptIRLR,
    WarmupStableDecayLR,
)

# isort: split
# BasicSR can be imported once the package has prepared it
from basicsr.models.base_model import BaseModel

LR = 2e-4
CASES = {
    'FixedLR': {},
    'LinearWarmupCosineLR': {'total_iter': 60, 'warmup_iter': 12, 'eta_min': 1e-6},
    'WarmupStableDecayLR': {'total_iter': 60, 'warmup_iter': 12, 'decay_iter': 20, 'eta_min': 1e-6},
    'ReleasedPromptIRLR': {'iters_per_epoch': 3, 'warmup_epochs': 4, 'max_epochs': 20, 'eta_min': 1e-6},
}


def optimizer(*rates: float) -> torch.optim.Optimizer:
    groups = [{'params': [torch.nn.Parameter(torch.zeros(1))], 'lr': rate} for rate in rates or (LR,)]
    return torch.optim.AdamW(groups, lr=LR)


class Run:
    """A training run whose rates BasicSR's BaseModel sets, as in its train loop."""

    def __init__(self, name: str, options: dict, *rates: float) -> None:
        self.model = BaseModel({'num_gpu': 0, 'is_train': True})
        self.optimizer = optimizer(*rates)
        self.scheduler = SCHEDULERS[name](self.optimizer, **options)
        self.model.optimizers.append(self.optimizer)
        self.model.schedulers.append(self.scheduler)

    def rates(self, first: int, last: int) -> list[list[float]]:
        seen = []
        for iteration in range(first, last + 1):
            self.model.update_learning_rate(iteration)
            self.optimizer.step()
            seen.append([group['lr'] for group in self.optimizer.param_groups])
        return seen


def test_every_scheduler_has_a_case() -> None:
    assert CASES.keys() == SCHEDULERS.keys()


@pytest.mark.parametrize('name', CASES)
def test_basicsr_loop_runs_at_lr_at(name: str) -> None:
    run = Run(name, CASES[name], LR, 1e-3)
    expected = [run.scheduler.lr_at(iteration) for iteration in range(1, 81)]
    assert run.rates(1, 80) == expected
    assert all(len(rates) == 2 for rates in expected)


@pytest.mark.parametrize('name', CASES)
@pytest.mark.parametrize('saved_at', [2, 7, 12, 35, 60, 70])
def test_resume_equals_uninterrupted(name: str, saved_at: int) -> None:
    whole = Run(name, CASES[name], LR, 1e-3).rates(1, 80)
    first = Run(name, CASES[name], LR, 1e-3)
    first.rates(1, saved_at)
    state = copy.deepcopy({'optimizers': [first.optimizer.state_dict()], 'schedulers': [first.scheduler.state_dict()]})

    second = Run(name, CASES[name], LR, 1e-3)
    second.model.resume_training(state)
    assert [group['lr'] for group in second.optimizer.param_groups] == whole[saved_at - 1]
    assert second.rates(saved_at + 1, 80) == whole[saved_at:]


def test_a_longer_run_in_the_options_counts_after_resume() -> None:
    first = Run('LinearWarmupCosineLR', {'total_iter': 20})
    first.rates(1, 20)
    second = Run('LinearWarmupCosineLR', {'total_iter': 40})
    second.model.resume_training(
        {'optimizers': [first.optimizer.state_dict()], 'schedulers': [first.scheduler.state_dict()]}
    )
    assert second.rates(21, 40) == Run('LinearWarmupCosineLR', {'total_iter': 40}).rates(1, 40)[20:]


def test_state_holds_plain_values_only(tmp_path) -> None:
    for name, options in CASES.items():
        path = tmp_path / f'{name}.state'
        torch.save(SCHEDULERS[name](optimizer(), **options).state_dict(), path)
        assert torch.load(path, weights_only=True)['last_epoch'] == 0


def test_fixed() -> None:
    assert FixedLR(optimizer(LR, 1e-3)).lr_at(10**7) == [LR, 1e-3]


class TestLinearWarmupCosine:
    def test_warm_up_is_linear_from_the_first_iteration(self) -> None:
        scheduler = LinearWarmupCosineLR(optimizer(), total_iter=1000, warmup_iter=50)
        for iteration in range(1, 51):
            assert scheduler.lr_at(iteration)[0] == pytest.approx(LR / 50 * iteration, rel=1e-12)
        assert scheduler.lr_at(50) == [LR]

    def test_cosine(self) -> None:
        scheduler = LinearWarmupCosineLR(optimizer(), total_iter=1050, warmup_iter=50, eta_min=1e-5)
        # a half cosine is the sine squared of the remaining quarter turn
        for iteration in range(50, 1051, 25):
            left = (1050 - iteration) / 1000
            expected = 1e-5 + (LR - 1e-5) * math.sin(math.pi / 2 * left) ** 2
            assert scheduler.lr_at(iteration)[0] == pytest.approx(expected, rel=1e-12)
        assert scheduler.lr_at(550)[0] == pytest.approx((LR + 1e-5) / 2, rel=1e-12)

    @pytest.mark.parametrize('warmup_iter', [0, 1, 30, 99])
    def test_ends_at_eta_min_and_stays(self, warmup_iter: int) -> None:
        scheduler = LinearWarmupCosineLR(optimizer(), total_iter=100, warmup_iter=warmup_iter, eta_min=1e-6)
        rates = [scheduler.lr_at(iteration)[0] for iteration in range(1, 400)]
        assert rates[98] > 1e-6
        assert set(rates[99:]) == {1e-6}
        assert min(rates) > 0
        falling = rates[max(warmup_iter, 1) - 1 : 100]
        assert falling[0] == LR
        assert all(a > b for a, b in itertools.pairwise(falling))

    def test_the_shortest_runs_train(self) -> None:
        assert LinearWarmupCosineLR(optimizer(), total_iter=1).lr_at(1) == [LR]
        assert LinearWarmupCosineLR(optimizer(), total_iter=2).lr_at(1) == [LR]

    def test_groups_keep_their_own_rates(self) -> None:
        rates = LinearWarmupCosineLR(optimizer(1e-3, 1e-5), total_iter=100, warmup_iter=10).lr_at(40)
        assert rates[0] / rates[1] == pytest.approx(100, rel=1e-12)


class TestWarmupStableDecay:
    def test_three_straight_lines(self) -> None:
        scheduler = WarmupStableDecayLR(optimizer(), total_iter=100, decay_iter=20, warmup_iter=10, eta_min=1e-6)
        corners = {0: 0.0, 10: LR, 80: LR, 100: 1e-6, 300: 1e-6}
        for iteration in range(1, 300):
            expected = np.interp(iteration, list(corners), list(corners.values()))
            assert scheduler.lr_at(iteration)[0] == pytest.approx(expected, rel=1e-9)
        assert scheduler.landmarks() == {10: 'end of warm-up', 80: 'begin of the decay'}

    def test_before_the_decay_a_longer_run_has_the_same_rates(self) -> None:
        short, long = (WarmupStableDecayLR(optimizer(), total, 20, warmup_iter=10) for total in (100, 1000))
        assert [short.lr_at(i) for i in range(1, 81)] == [long.lr_at(i) for i in range(1, 81)]

    def test_a_shorter_run_has_no_jump(self) -> None:
        rates = [WarmupStableDecayLR(optimizer(), 12, 20, warmup_iter=10).lr_at(i)[0] for i in range(1, 13)]
        assert max(map(abs, np.diff(rates))) < LR / 9
        assert rates[-1] == 0


class TestReleased:
    def scheduler(self, iters_per_epoch: int = 4451) -> ReleasedPromptIRLR:
        return ReleasedPromptIRLR(optimizer(), iters_per_epoch=iters_per_epoch)

    @pytest.mark.parametrize(
        ('epoch', 'lr'),
        [(0, 0), (1, 0), (2, 1.43e-5), (15, 2e-4), (16, 2e-4), (60, 1.52e-4), (119, 2.65e-5)],
    )
    def test_known_rates_of_the_released_program(self, epoch: int, lr: float) -> None:
        scheduler = self.scheduler()
        for iteration in (epoch * 4451 + 1, epoch * 4451 + 2000, (epoch + 1) * 4451):
            assert float(f'{scheduler.lr_at(iteration)[0]:.3g}') == lr

    def test_whole_curve(self) -> None:
        """Epoch by epoch against the recursion: equal steps up, then the cosine of the elapsed share."""
        scheduler = self.scheduler(iters_per_epoch=1)
        expected = [0.0] + [LR * step / 14 for step in range(15)]
        expected += [LR * math.cos(math.pi / 2 * step / 135) ** 2 for step in range(135)]
        actual = [scheduler.lr_at(epoch + 1)[0] for epoch in range(len(expected))]
        assert actual == pytest.approx(expected, rel=1e-12, abs=0)

    def test_stays_at_the_end(self) -> None:
        scheduler = self.scheduler(iters_per_epoch=2)
        assert scheduler.lr_at(2 * 150)[0] > 0
        assert {scheduler.lr_at(iteration)[0] for iteration in range(2 * 151 + 1, 1000)} == {0.0}

    def test_start_and_end_rates(self) -> None:
        scheduler = ReleasedPromptIRLR(
            optimizer(), 1, warmup_epochs=3, max_epochs=9, eta_min=2e-6, warmup_start_lr=1e-5
        )
        rates = [scheduler.lr_at(epoch + 1)[0] for epoch in range(11)]
        assert rates[:5] == pytest.approx([1e-5, 1e-5, (1e-5 + LR) / 2, LR, LR], rel=1e-12)
        assert rates[10] == 2e-6

    @pytest.mark.parametrize(('warmup_epochs', 'first'), [(0, LR), (1, 0.0)])
    def test_hardly_any_warm_up(self, warmup_epochs: int, first: float) -> None:
        scheduler = ReleasedPromptIRLR(optimizer(), 1, warmup_epochs=warmup_epochs, max_epochs=10)
        assert scheduler.lr_at(1) == [first]
        assert scheduler.lr_at(2 + warmup_epochs) == [LR]


def test_a_run_that_ends_in_the_warm_up_has_the_rates_of_a_longer_one() -> None:
    short, long = (LinearWarmupCosineLR(optimizer(), total, warmup_iter=100) for total in (4, 1000))
    assert [short.lr_at(i) for i in range(1, 5)] == [long.lr_at(i) for i in range(1, 5)]


@pytest.mark.parametrize(
    ('name', 'options', 'message'),
    [
        ('LinearWarmupCosineLR', {'total_iter': 0}, r'total_iter is 0, must be at least 1'),
        ('LinearWarmupCosineLR', {'total_iter': 100, 'warmup_iter': -1}, r'warmup_iter is -1, must be at least 0'),
        ('LinearWarmupCosineLR', {'total_iter': '1e5'}, r"total_iter is '1e5', must be a whole number in digits"),
        ('LinearWarmupCosineLR', {'total_iter': 1e5}, r'total_iter is 100000.0, must be a whole number'),
        ('LinearWarmupCosineLR', {'total_iter': True}, r'total_iter is True, must be a whole number'),
        ('LinearWarmupCosineLR', {'total_iter': 100, 'eta_min': '1e-7'}, r"eta_min is '1e-7'.*decimal point"),
        ('LinearWarmupCosineLR', {'total_iter': 100, 'eta_min': -1e-7}, r'eta_min is -1e-07, must be at least 0'),
        ('LinearWarmupCosineLR', {'total_iter': 100, 'eta_min': math.nan}, r'eta_min is nan'),
        ('LinearWarmupCosineLR', {'total_iter': 100, 'eta_min': 1e-3}, r'above the lr 0.0002 of parameter group 0'),
        ('ReleasedPromptIRLR', {'iters_per_epoch': 0}, r'iters_per_epoch is 0, must be at least 1'),
        ('ReleasedPromptIRLR', {'iters_per_epoch': '4451'}, r"iters_per_epoch is '4451', must be a whole number"),
        ('ReleasedPromptIRLR', {'iters_per_epoch': 4, 'warmup_epochs': -1}, r'warmup_epochs is -1'),
        (
            'ReleasedPromptIRLR',
            {'iters_per_epoch': 4, 'max_epochs': 15},
            r'warmup_epochs 15 must be below max_epochs 15',
        ),
        ('ReleasedPromptIRLR', {'iters_per_epoch': 4, 'eta_min': 1.0}, r'eta_min 1.0 is above the lr'),
        ('ReleasedPromptIRLR', {'iters_per_epoch': 4, 'warmup_start_lr': 1.0}, r'warmup_start_lr 1.0 is above the lr'),
    ],
)
def test_refused_settings(name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        SCHEDULERS[name](optimizer(), **options)
    assert str(caught.value).startswith(f'{name}: ')


def test_eta_min_is_held_against_every_group() -> None:
    with pytest.raises(ValueError, match='above the lr 1e-06 of parameter group 1'):
        LinearWarmupCosineLR(optimizer(LR, 1e-6), total_iter=100, eta_min=1e-5)


def test_iterations_count_from_one() -> None:
    with pytest.raises(ValueError, match='counted from 1, found 0'):
        FixedLR(optimizer()).lr_at(0)


def named_rates(line: str) -> dict[int, float]:
    rates = re.findall(r'([\d.e+-]+) at ([\d,]*\d)', line.split('lr by iteration:')[1])
    return {int(iteration.replace(',', '')): float(lr) for lr, iteration in rates}


class TestDescribe:
    def test_rates_named_are_the_rates_run(self) -> None:
        scheduler = LinearWarmupCosineLR(optimizer(), total_iter=900_000, warmup_iter=15_000, eta_min=1e-6)
        line = describe(scheduler, 900_000)
        rates = named_rates(line)
        assert list(rates) == [1, 15_000, 225_000, 450_000, 675_000, 900_000]
        for iteration, lr in rates.items():
            assert lr == pytest.approx(scheduler.lr_at(iteration)[0], rel=5e-3)
        assert 'linear warm-up over 15,000 iterations' in line
        assert '\n' not in line

    def test_released_schedule_reports_its_idle_epochs(self) -> None:
        line = describe(ReleasedPromptIRLR(optimizer(), iters_per_epoch=4451), 534_120)
        assert 'the first two epochs run at 0' in line
        assert named_rates(line)[1] == 0
        assert named_rates(line)[15 * 4451 + 1] == LR
        assert named_rates(line)[534_120] == 2.65e-5

    def test_a_schedule_that_outlasts_the_run(self) -> None:
        line = describe(ReleasedPromptIRLR(optimizer(), iters_per_epoch=4451), 2)
        assert named_rates(line) == {1: 0, 2: 0}
