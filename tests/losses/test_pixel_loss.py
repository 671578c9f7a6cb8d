"""SmoothL1Loss against its definition."""

import numpy as np
import pytest
import torch
from torch import Tensor

import promptir_basicsr  # noqa: F401  (registers)

# isort: split
from basicsr.losses import build_loss

from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.losses import SmoothL1Loss


def images(spread: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(2, 3, 5, 7, generator=generator, dtype=torch.float64)
    return target + spread * torch.randn(target.shape, generator=generator, dtype=torch.float64), target


def formula(pred: Tensor, target: Tensor, beta: float) -> np.ndarray:
    error = np.abs(pred.numpy() - target.numpy())
    return np.array([e * e / (2 * beta) if e < beta else e - beta / 2 for e in error.ravel()])


@pytest.mark.parametrize('beta', [0.01, 0.5, 1.0, 3.0])
@pytest.mark.parametrize('reduction', ['mean', 'sum'])
def test_the_formula(beta: float, reduction: str) -> None:
    pred, target = images(1.0)
    expected = getattr(formula(pred, target, beta), reduction)()
    loss = SmoothL1Loss(loss_weight=3.0, reduction=reduction, beta=beta)
    assert loss(pred, target).item() == pytest.approx(3 * expected, rel=1e-12)


def test_by_default_it_is_half_the_squared_error_of_images() -> None:
    pred, target = images(0.1)
    loss = build_loss({'type': 'SmoothL1Loss'})
    assert (pred - target).abs().max() < 1
    assert loss(pred, target).item() == pytest.approx(0.5 * ((pred - target) ** 2).mean().item(), rel=1e-12)


def test_beta_0_is_l1() -> None:
    pred, target = images(0.1)
    plain = build_loss({'type': 'L1Loss'})(pred, target)
    assert SmoothL1Loss(beta=0)(pred, target).item() == pytest.approx(plain.item(), rel=1e-12)


def test_gradients() -> None:
    pred, target = images(1.0)
    assert torch.autograd.gradcheck(SmoothL1Loss(beta=0.7), (pred.requires_grad_(), target))


def test_half_precision_does_not_reach_it() -> None:
    pred, target = (x.bfloat16() for x in images(0.1))
    loss = SmoothL1Loss()(pred, target)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, SmoothL1Loss()(pred.float(), target.float()))


def test_mistakes_are_reported_together() -> None:
    with pytest.raises(OptionError) as told:
        SmoothL1Loss(reduction='maen', beta=-1)
    assert told.value.lines == [
        "SmoothL1Loss: unknown reduction 'maen'. Did you mean 'mean'? Allowed: mean, sum.",
        'SmoothL1Loss: beta is -1; it must be a number of at least 0.',
    ]
    for beta in (True, float('nan'), '1', None):
        with pytest.raises(OptionError, match='beta'):
            SmoothL1Loss(beta=beta)  # type: ignore[arg-type]
