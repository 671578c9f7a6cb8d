"""FrequencyLoss against numpy's transform, and closed forms."""

import numpy as np
import pytest
import torch
from torch import Tensor

import promptir_basicsr  # noqa: F401  (registers)

# isort: split
from basicsr.losses import build_loss

from promptir_basicsr.losses import FrequencyLoss


def images(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))  # type: ignore[return-value]


def formula(pred: Tensor, target: Tensor) -> float:
    """Transform both, stack real and imaginary parts, average the distances."""
    parts = [np.fft.fft2(x.double().numpy(), axes=(-2, -1)) for x in (pred, target)]
    stacked = [np.stack([part.real, part.imag]) for part in parts]
    return float(np.abs(stacked[0] - stacked[1]).mean())


@pytest.mark.parametrize('size', [(1, 1), (1, 7), (8, 8), (13, 17), (16, 30), (31, 2)])
def test_the_formula_at_any_size(size: tuple[int, int]) -> None:
    pred, target = images(2, 3, *size)
    assert FrequencyLoss()(pred, target).item() == pytest.approx(0.1 * formula(pred, target), rel=1e-12)
    assert FrequencyLoss(2.0)(pred, target).item() == pytest.approx(2 * formula(pred, target), rel=1e-12)


def test_a_difference_in_brightness_is_one_frequency() -> None:
    """c more in each pixel is c H W more at frequency 0, one of the 2 H W numbers of a channel."""
    target = images(2, 3, 12, 20)[0]
    assert build_loss({'type': 'FrequencyLoss'})(target + 0.4, target).item() == pytest.approx(0.1 * 0.4 / 2)


def test_a_wave_is_two_frequencies() -> None:
    columns = torch.arange(16, dtype=torch.float64)
    wave = (0.3 * torch.cos(2 * torch.pi * 3 * columns / 16)).expand(1, 1, 8, 16)
    size = 8 * 16  # two peaks of 0.3 / 2 times the size, among twice as many numbers
    assert FrequencyLoss(1.0)(wave, torch.zeros_like(wave)).item() == pytest.approx(2 * 0.15 * size / (2 * size))


def test_equal_images_cost_nothing() -> None:
    pred, _ = images(1, 3, 9, 9)
    assert FrequencyLoss()(pred, pred.clone()).item() == 0


@pytest.mark.parametrize('size', [(4, 4), (3, 5)])
def test_gradients(size: tuple[int, int]) -> None:
    pred, target = images(1, 2, *size)
    assert torch.autograd.gradcheck(FrequencyLoss(1.0), (pred.requires_grad_(), target))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_does_not_reach_it(dtype: torch.dtype) -> None:
    pred, target = images(1, 3, 16, 16, dtype=dtype)
    loss = FrequencyLoss()(pred, target)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, FrequencyLoss()(pred.float(), target.float()))
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(FrequencyLoss()(pred, target), loss)
    bright = torch.ones(1, 1, 512, 512, dtype=dtype)  # frequency 0 is 262,144, more than float16 can hold
    assert FrequencyLoss()(bright, torch.zeros_like(bright)).item() == pytest.approx(0.05)
