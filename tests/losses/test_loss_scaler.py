"""LossScaler against a list and an if."""

import math
import random

import pytest
import torch

import promptir_basicsr  # noqa: F401  (prepares BasicSR)
from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.losses import LossScaler


def sequence(count: int = 400) -> list[float]:
    """Losses that fall, with spikes of all sizes and a second training stage that starts high."""
    draw = random.Random(0)
    losses = [0.2 * math.exp(-i / 80) * draw.uniform(0.7, 1.5) for i in range(count)]
    for i in range(5, count, 13):
        losses[i] *= draw.choice([3, 4.9, 5.1, 20, 1000])
    return losses[: count // 2] + [50 * loss for loss in losses[: count // 2]]


def oracle(losses: list[float], history: int, limit: float, factor: float) -> list[float]:
    """What each loss counts."""
    counted = []
    for i, loss in enumerate(losses):
        smallest = min(losses[max(0, i - history + 1) : i + 1])
        counted.append(factor * smallest if loss > limit * smallest else loss)
    return counted


@pytest.mark.parametrize(('history', 'limit', 'factor'), [(100, 5, 2.5), (1, 5, 2.5), (3, 1.5, 1.0), (10, 4, 4)])
def test_a_made_up_training(history: int, limit: float, factor: float) -> None:
    losses = sequence()
    scaler = LossScaler(history, limit, factor)
    found = [loss * scaler(torch.tensor(loss)).item() for loss in losses]
    expected = oracle(losses, history, limit, factor)
    assert found == pytest.approx(expected, rel=1e-5)
    scaled = sum(loss != counts for loss, counts in zip(losses, expected, strict=True))
    assert (scaled == 0) == (history == 1)  # a loss alone is the smallest itself


def test_the_defaults_are_the_released_ones() -> None:
    scaler = LossScaler()
    first = [scaler(torch.tensor(loss)).item() for loss in (0.02, 0.09, 0.11, 0.5)]
    assert first == pytest.approx([1, 1, 2.5 * 0.02 / 0.11, 2.5 * 0.02 / 0.5])
    for _ in range(96):
        scaler(torch.tensor(0.4))
    assert scaler(torch.tensor(0.44)).item() == 1  # 0.02 is forgotten, the smallest of the last 100 is 0.09
    assert scaler(torch.tensor(0.54)).item() == 1  # and now it is 0.11


def test_it_is_a_constant_so_that_the_gradient_shrinks_and_nothing_else() -> None:
    scaler = LossScaler()
    scaler(torch.tensor(0.1))
    x = torch.tensor([2.0, 3.0], requires_grad=True)
    loss = (x**2).sum()
    scale = scaler(loss)
    assert not scale.requires_grad
    (scale * loss).backward()
    assert x.grad is not None
    assert x.grad.tolist() == pytest.approx([2.5 * 0.1 / 13 * 4, 2.5 * 0.1 / 13 * 6])


def test_it_resumes_from_its_state() -> None:
    losses = sequence()
    whole, before, after = LossScaler(), LossScaler(), LossScaler()
    for loss in losses[:210]:
        whole(torch.tensor(loss))
        before(torch.tensor(loss))
    after.load_state_dict(before.state_dict())
    rest = [(whole(torch.tensor(loss)).item(), after(torch.tensor(loss)).item()) for loss in losses[210:]]
    assert all(one == two for one, two in rest)
    fresh = LossScaler()
    assert any(fresh(torch.tensor(loss)).item() != one for loss, (one, _) in zip(losses[210:], rest, strict=True))


def test_a_shorter_history_keeps_the_newest() -> None:
    long, short = LossScaler(), LossScaler(history=2)
    for loss in (0.001, 1.0, 2.0):
        long(torch.tensor(loss))
    short.load_state_dict(long.state_dict())
    assert short.state_dict() == {'losses': [1.0, 2.0]}


def test_a_loss_that_is_nan_does_not_stop_it() -> None:
    scaler = LossScaler(history=2)
    assert [scaler(torch.tensor(loss)).item() for loss in (1.0, math.nan, 1.0)] == [1, 1, 1]
    assert scaler(torch.tensor(10.0)).item() == 0.25


def test_mistakes_are_reported_together() -> None:
    with pytest.raises(OptionError) as told:
        LossScaler(history=0, limit=0.5)
    assert told.value.lines == [
        'history: 0 is not a whole number of at least 1.',
        'limit: 0.5 is not a number of at least 1.',
    ]
    for factor in (0, 6, '2', None):
        with pytest.raises(OptionError, match=r'factor: .* is not a number above 0 and at most limit, 5'):
            LossScaler(factor=factor)  # type: ignore[arg-type]
