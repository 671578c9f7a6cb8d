"""PromptDecorrelationLoss against formulas written out, the released program's numbers, and its promises."""

import math
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import promptir_basicsr  # noqa: F401  (registers)

# isort: split
from basicsr.losses import build_loss
from basicsr.utils.registry import ARCH_REGISTRY

from promptir_basicsr.archs import PIPRestormer, PromptIR
from promptir_basicsr.archs.traits import prompts_of
from promptir_basicsr.losses import PromptDecorrelationLoss, decorrelation
from promptir_basicsr.losses.prompt_loss import KINDS

SMALL: dict[str, Any] = {'dim': 8, 'num_blocks': (1, 1, 1, 1), 'num_refinement_blocks': 1, 'heads': (1, 1, 1, 1)}
SMALL['prompt_sizes'] = (6, 5, 3)
RELEASED = {
    'angle': {'level1': 0.0030789497, 'level2': 0.0016797549, 'level3': 0.0024787193},
    'cosine': {'level1': 0.0129401488, 'level2': 0.0102345781, 'level3': 0.0113410414},
}


def vectors(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def formula(prompts: np.ndarray, kind: str) -> float:
    """The sums of the table in the docstring, term by term."""
    count, total = len(prompts), 0.0
    for i in range(count):
        for j in range(count):
            product = sum(a * b for a, b in zip(prompts[i], prompts[j], strict=True))
            lengths = math.sqrt(sum(a * a for a in prompts[i])) * math.sqrt(sum(b * b for b in prompts[j]))
            if kind == 'angle' and i < j:
                total += max(0.0, product / lengths)
            elif kind == 'cosine' and i != j:
                total += abs(product / lengths)
            elif kind == 'gram':
                total += (product - (i == j)) ** 2 / count**2
    return 0.01 * total


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('shape', [(2, 1), (2, 3), (5, 8), (7, 64)])
def test_the_formula(kind: str, shape: tuple[int, int]) -> None:
    prompts = vectors(*shape)
    assert decorrelation(prompts, kind).item() == pytest.approx(formula(prompts.numpy(), kind), rel=1e-12)


@pytest.mark.parametrize('kind', KINDS)
def test_levels_of_different_sizes_are_added_and_weighted(kind: str) -> None:
    levels = [vectors(5, 8), vectors(3, 20, seed=1), vectors(2, 4, seed=2)]
    total = sum(formula(level.numpy(), kind) for level in levels)
    assert PromptDecorrelationLoss(kind, 0.5)(levels).item() == pytest.approx(0.5 * total, rel=1e-12)
    assert PromptDecorrelationLoss(kind)(iter(levels)).item() == pytest.approx(0.002 * total, rel=1e-12)


def test_the_default_is_what_was_released() -> None:
    assert build_loss({'type': 'PromptDecorrelationLoss'}).kind == 'angle'


@pytest.mark.parametrize('kind', RELEASED)
def test_the_released_programs_values(kind: str) -> None:
    """Prompts filled from their names; the numbers were read off the released program in float64."""
    net = PIPRestormer(num_blocks=(1, 1, 1, 1), num_refinement_blocks=1).double()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith('detask_prompt_param'):
                draw = torch.Generator().manual_seed(zlib.crc32(name.encode()))
                parameter.copy_(torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
    found = {level: decorrelation(prompts, kind).item() for level, prompts in net.prompt_vectors().items()}
    assert found == pytest.approx(RELEASED[kind], abs=5.1e-11)
    loss = PromptDecorrelationLoss(kind)(prompts_of(net))
    assert loss.item() == pytest.approx(0.002 * sum(RELEASED[kind].values()), abs=1e-12)


@pytest.mark.parametrize('kind', KINDS)
def test_gradients(kind: str) -> None:
    prompts = vectors(4, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: decorrelation(p, kind), prompts)


# what the kinds mean


@pytest.mark.parametrize('kind', KINDS)
def test_nothing_is_paid_for_prompts_at_right_angles_of_length_1(kind: str) -> None:
    turned, _ = torch.linalg.qr(vectors(8, 8))
    assert decorrelation(turned[:5], kind).item() == pytest.approx(0, abs=1e-15)


def test_lengths_count_for_gram_alone() -> None:
    prompts, turned = vectors(5, 8), torch.linalg.qr(vectors(8, 8)).Q[:5]
    lengths = torch.tensor([0.1, 1, 2, 30, 400], dtype=torch.float64)[:, None]
    for kind in ('angle', 'cosine'):
        assert decorrelation(lengths * prompts, kind).item() == pytest.approx(decorrelation(prompts, kind).item())
    longer = decorrelation(2 * turned, 'gram').item()
    assert longer == pytest.approx(0.01 * (4 - 1) ** 2 / 5)  # 5 of 25 entries are 4 instead of 1


def test_opposite_prompts_are_free_for_angle_alone() -> None:
    prompts = torch.tensor([[1.0, 2.0], [-1.0, -2.0]])
    assert decorrelation(prompts, 'angle').item() == 0
    assert decorrelation(prompts, 'cosine').item() == pytest.approx(0.02)


def test_equal_prompts_cost_most() -> None:
    prompts = vectors(1, 8).repeat(5, 1)
    assert decorrelation(prompts, 'angle').item() == pytest.approx(0.01 * 10)
    assert decorrelation(prompts, 'cosine').item() == pytest.approx(0.01 * 20)


@pytest.mark.parametrize('kind', KINDS)
def test_the_order_of_the_prompts_does_not_count(kind: str) -> None:
    prompts = vectors(5, 8)
    assert decorrelation(prompts[[3, 1, 4, 0, 2]], kind).item() == pytest.approx(decorrelation(prompts, kind).item())


@pytest.mark.parametrize('kind', KINDS)
def test_descending_it_spreads_the_prompts(kind: str) -> None:
    prompts = (1 + 0.1 * vectors(5, 8)).requires_grad_()
    loss = PromptDecorrelationLoss(kind, 1.0)
    before = loss([prompts]).item()
    optimizer = torch.optim.Adam([prompts], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        loss([prompts]).backward()
        optimizer.step()
    assert loss([prompts]).item() < before / 20


@pytest.mark.parametrize('kind', KINDS)
def test_a_prompt_of_zeros_gives_finite_gradients(kind: str) -> None:
    prompts = torch.cat([torch.zeros(1, 6), vectors(3, 6).float()]).requires_grad_()
    loss = decorrelation(prompts, kind)
    loss.backward()
    assert torch.isfinite(loss)
    assert prompts.grad is not None
    assert torch.isfinite(prompts.grad).all()
    if kind != 'gram':
        assert loss.item() == pytest.approx(decorrelation(prompts[1:], kind).item())


@pytest.mark.parametrize('kind', KINDS)
def test_half_precision_does_not_reach_it(kind: str) -> None:
    prompts = vectors(5, 64).float()
    plain = decorrelation(prompts, kind)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(decorrelation(prompts, kind), plain)
    rounded = prompts.bfloat16()
    assert torch.equal(decorrelation(rounded, kind), decorrelation(rounded.float(), kind))


# the networks


@pytest.mark.parametrize('network', [PromptIR, PIPRestormer])
def test_the_prompts_of_a_network_are_its_parameters(network: Any) -> None:
    net = network(**SMALL)
    prompts = net.prompt_vectors()
    x = torch.rand(1, 3, 16, 16)
    assert list(prompts) == list(net.prompt_weights(x, 0))
    for level, weights in net.prompt_weights(x, 0).items():
        assert prompts[level].shape[0] == weights.shape[1]
        assert prompts[level].ndim == 2
    PromptDecorrelationLoss('cosine')(prompts_of(net)).backward()
    kind = 'prompt_param' if network is PromptIR else 'detask_prompt_param'
    moved = {name for name, parameter in net.named_parameters() if parameter.grad is not None}
    assert moved == {f'prompt{level}.{kind}' for level in (1, 2, 3)}
    assert sum(level.numel() for level in prompts.values()) == sum(
        parameter.numel() for name, parameter in net.named_parameters() if name in moved
    )


def test_a_row_is_one_prompt() -> None:
    net = PromptIR(**SMALL)
    bank = net.prompt2.prompt_param
    for number, row in enumerate(net.prompt_vectors()['level2']):
        assert torch.equal(row.reshape(bank.shape[2:]), bank[0, number])
    vector = PIPRestormer(**SMALL).prompt2.detask_prompt_param
    assert vector.shape[3:] == (1, 1)


def test_networks_that_show_prompts_are_named() -> None:
    edsr = ARCH_REGISTRY.get('EDSR')(3, 3, num_feat=4, num_block=1, upscale=1)
    with pytest.raises(
        ValueError, match=r'^EDSR: has no prompts\. Use a network with prompts \(PIPNAFNet, PIPRestormer, PromptIR'
    ):
        prompts_of(edsr)


def test_missing_and_single_prompts() -> None:
    with pytest.raises(ValueError, match='built with prompts=False, so it has no prompts'):
        prompts_of(PromptIR(**SMALL, prompts=False))
    with pytest.raises(ValueError, match=r'PromptIR: a single prompt at level3, level2, level1\. The loss compares'):
        prompts_of(PromptIR(**SMALL, num_prompts=1))


def test_an_unknown_kind() -> None:
    with pytest.raises(ValueError, match=r"unknown kind 'angel'\. Did you mean 'angle'\? Allowed: angle, cosine, gram"):
        PromptDecorrelationLoss('angel')
