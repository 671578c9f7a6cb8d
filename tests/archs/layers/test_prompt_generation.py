"""The prompt generation module against plain formulas of its own."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from promptir_basicsr.archs.layers.prompts import PromptGenBlock
from tests.golden.seeded import seeded_fill


def module(num_prompts: int = 3, prompt_size: int = 4) -> PromptGenBlock:
    return seeded_fill(PromptGenBlock(6, num_prompts, prompt_size, feature_dim=8).double())  # type: ignore[return-value]


def features(height: int = 6, width: int = 5, batch: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 8, height, width, generator=generator, dtype=torch.float64)


def resized(plane: Tensor, height: int, width: int) -> Tensor:
    """Bilinear, pixel centres at half-integers, edges repeated; one output pixel at a time. plane: (D, S, S)."""
    size = plane.shape[-1]
    out = plane.new_empty(len(plane), height, width)
    for row in range(height):
        for column in range(width):
            y = max((row + 0.5) * size / height - 0.5, 0.0)
            x = max((column + 0.5) * size / width - 0.5, 0.0)
            top, left = int(y), int(x)
            below, right = min(top + 1, size - 1), min(left + 1, size - 1)
            upper = (1 - (x - left)) * plane[:, top, left] + (x - left) * plane[:, top, right]
            lower = (1 - (x - left)) * plane[:, below, left] + (x - left) * plane[:, below, right]
            out[:, row, column] = (1 - (y - top)) * upper + (y - top) * lower
    return out


@pytest.mark.parametrize(('height', 'width'), [(4, 4), (9, 7), (2, 3)])
def test_prompt_is_the_weighted_bank_resized_and_convolved(height: int, width: int) -> None:
    pgm, x = module(), features(height, width)
    bank, out = pgm.prompt_param[0], pgm(x)
    assert out.shape == (2, 6, height, width)
    for b in range(2):
        logits = pgm.linear_layer.weight @ x[b].flatten(1).sum(1) / (height * width) + pgm.linear_layer.bias
        shares = logits.exp() / logits.exp().sum()
        torch.testing.assert_close(pgm.weights(x)[b], shares, rtol=0, atol=1e-12)
        mixed = shares[0] * bank[0] + shares[1] * bank[1] + shares[2] * bank[2]
        expected = F.conv2d(resized(mixed, height, width)[None], pgm.conv3x3.weight, padding=1)
        torch.testing.assert_close(out[b : b + 1], expected, rtol=0, atol=1e-12)


def test_weights_are_shares() -> None:
    weights = module(num_prompts=5).weights(features(batch=4))
    assert weights.shape == (4, 5)
    assert (weights > 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-12)


def test_weights_follow_the_mean_of_each_image_alone() -> None:
    pgm, x = module(), features()
    torch.testing.assert_close(pgm.weights(x.flip(-1)), pgm.weights(x), rtol=0, atol=1e-12)
    moved = pgm.weights(torch.cat([x[:1] + 1, x[1:]]))
    assert (moved[0] - pgm.weights(x)[0]).abs().max() > 1e-3
    torch.testing.assert_close(moved[1], pgm.weights(x)[1], rtol=0, atol=1e-12)


def test_new_bank_is_uniform_between_0_and_1() -> None:
    torch.manual_seed(0)
    bank = PromptGenBlock(16, 5, 16, feature_dim=8).prompt_param
    assert bank.shape == (1, 5, 16, 16, 16)
    assert bank.min() >= 0
    assert bank.max() < 1
    assert abs(bank.mean() - 0.5) < 0.01
    assert abs(bank.var() - 1 / 12) < 0.005


def test_parameters_have_the_released_names() -> None:
    names = [name for name, _ in module().named_parameters()]
    assert names == ['prompt_param', 'linear_layer.weight', 'linear_layer.bias', 'conv3x3.weight']


def test_gradient_is_the_numerical_one() -> None:
    pgm = module(num_prompts=2, prompt_size=2)
    assert torch.autograd.gradcheck(pgm, (features(3, 2, batch=1).requires_grad_(),))


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_moving_a_module_keeps_bank_and_gradient_in_shape(dtype: torch.dtype) -> None:
    pgm = PromptGenBlock(6, 3, 4, feature_dim=8)
    before = pgm.prompt_param.detach().clone()
    pgm(features().float()).sum().backward()
    grad = pgm.prompt_param.grad.clone()
    pgm.to(dtype=dtype, memory_format=torch.channels_last)
    assert torch.equal(pgm.prompt_param, before.to(dtype))
    assert torch.equal(pgm.prompt_param.grad, grad.to(dtype))
    assert pgm.conv3x3.weight.dtype == dtype
    assert pgm.to_empty(device='meta').prompt_param.shape == (1, 3, 6, 4, 4)
