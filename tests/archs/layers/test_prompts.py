"""The prompt modules of PIP against plain formulas of their own, in float64."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptir_basicsr.archs.layers.prompts import (
    INTERACTIONS,
    CrossAttention,
    PromptInPrompt,
    PromptToFeature,
    PromptToPrompt,
    TopMCrossAttention,
    fit_channels,
    top_counts,
    top_m_attention,
)
from promptir_basicsr.archs.layers.restormer import GDFN
from promptir_basicsr.archs.traits import growable_axes
from tests.golden.seeded import seeded_fill

WIDTHS = [(8, 12), (12, 12), (20, 12)]  # of features below, equal to and above those of the prompt
PIXELS = 5, 4


def filled(module: nn.Module) -> Any:
    return seeded_fill(module.double())


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair(feature_dim: int, prompt_dim: int, batch: int = 2) -> tuple[Tensor, Tensor]:
    return random(batch, feature_dim, *PIXELS), random(batch, prompt_dim, *PIXELS, seed=1)


def mixed(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A 1x1 convolution as a matrix."""
    return torch.einsum('oi,bihw->bohw', conv.weight[:, :, 0, 0], x)


def normed(norm: nn.Module, x: Tensor) -> Tensor:
    body: Any = norm.body
    out = F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], body.weight, body.bias, eps=1e-5)
    return out.permute(0, 3, 1, 2)


def depthwise(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return F.conv2d(x, conv.weight, padding=1, groups=x.shape[1])


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def masked_softmax(row: Tensor, count: int) -> Tensor:
    """Softmax of one row over its `count` largest entries, all else at minus infinity."""
    kept = set(sorted(range(len(row)), key=lambda i: -row[i])[:count])
    return torch.stack([x if i in kept else x.new_tensor(-math.inf) for i, x in enumerate(row)]).softmax(0)


def attended(attn: CrossAttention, x: Tensor, other: Tensor) -> Tensor:
    """Head by head and channel by channel; each selection is multiplied with the values on its own."""
    dim, heads = x.shape[1], len(attn.temperature)
    q = depthwise(attn.q_dwconv, mixed(attn.q, x)).expand(len(other), -1, -1, -1)
    kv = depthwise(attn.kv_dwconv, mixed(attn.kv, other))
    c, out = dim // heads, torch.empty_like(other)
    for b in range(len(other)):
        for head in range(heads):
            mine = range(head * c, head * c + c)
            v = torch.stack([kv[b, dim + j] for j in mine])
            for i in mine:
                cosines = [(q[b, i] * kv[b, j]).sum() / (q[b, i].norm() * kv[b, j].norm()) for j in mine]
                row = torch.stack(cosines) * attn.temperature[head, 0, 0]
                if not isinstance(attn, TopMCrossAttention):
                    out[b, i] = torch.einsum('j,jhw->hw', row.exp() / row.exp().sum(), v)
                    continue
                counts = (int(c / 2), int(c * 2 / 3), int(c * 3 / 4), int(c * 4 / 5))
                factors = (attn.attn1, attn.attn2, attn.attn3, attn.attn4)
                out[b, i] = sum(
                    factor * torch.einsum('j,jhw->hw', masked_softmax(row, count), v)
                    for count, factor in zip(counts, factors, strict=True)
                )
    return mixed(attn.project_out, out)


def dual_gated(ffn: GDFN, x: Tensor) -> Tensor:
    h = depthwise(ffn.dwconv, mixed(ffn.project_in, x))
    a, b = h[:, : h.shape[1] // 2], h[:, h.shape[1] // 2 :]
    return mixed(ffn.project_out, gelu(a) * b + gelu(b) * a)


@pytest.mark.parametrize('kind', [CrossAttention, TopMCrossAttention])
@pytest.mark.parametrize(('dim', 'heads'), [(12, 1), (12, 2), (12, 4)])
def test_attention_head_by_head(kind: type[CrossAttention], dim: int, heads: int) -> None:
    attn = filled(kind(dim, heads, False))
    x, other = pair(dim, dim)
    torch.testing.assert_close(attn(x, other), attended(attn, x, other), rtol=0, atol=1e-12)
    torch.testing.assert_close(attn(x[:1], other), attended(attn, x[:1], other), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ('channels', 'counts'), [(16, [8, 10, 12, 12]), (32, [16, 21, 24, 25]), (64, [32, 42, 48, 51]), (3, [1, 2, 2, 2])]
)
def test_selections_are_those_of_the_released_program(channels: int, counts: list[int]) -> None:
    assert top_counts(channels) == counts


def test_selection_leaves_the_least_similar_out() -> None:
    similarity, factors = random(2, 3, 10, 10), [torch.tensor([f], dtype=torch.float64) for f in (0.1, 0.4, 0.7)]
    attention = top_m_attention(similarity, (2, 4, 3), factors)
    torch.testing.assert_close(attention.sum(-1), torch.full((2, 3, 10), 1.2, dtype=torch.float64), rtol=0, atol=1e-12)
    assert ((attention > 0).sum(-1) == 4).all()
    kept = similarity.masked_fill(attention == 0, math.inf).amin(-1)
    assert (similarity.masked_fill(attention > 0, -math.inf).amax(-1) < kept).all()
    everything = top_m_attention(similarity, [10], [torch.ones(1, dtype=torch.float64)])
    torch.testing.assert_close(everything, similarity.softmax(-1), rtol=0, atol=1e-12)


def test_new_selections_share_alike() -> None:
    attn = TopMCrossAttention(24, 4, False)
    assert [getattr(attn, f'attn{i}').item() for i in (1, 2, 3, 4)] == pytest.approx([0.2] * 4)
    assert torch.equal(attn.temperature, torch.ones(4, 1, 1))


def test_dual_gate() -> None:
    ffn = filled(GDFN(8, 2.66, False, dual=True))
    x = random(2, 8, *PIXELS)
    assert ffn.project_out.weight.shape == (8, 21, 1, 1)  # int(2.66 * 8)
    torch.testing.assert_close(ffn(x), dual_gated(ffn, x), rtol=0, atol=1e-12)


def test_channels_are_cut_or_filled_up() -> None:
    x = random(1, 4, 2, 2)
    assert torch.equal(fit_channels(x, 2), x[:, :2])
    assert torch.equal(fit_channels(x, 4), x)
    assert torch.equal(fit_channels(x, 7), torch.cat([x, torch.zeros(1, 3, 2, 2, dtype=torch.float64)], 1))


def test_prompt_to_prompt_is_two_residual_steps() -> None:
    block = filled(PromptToPrompt(12, 2, 2.66, False, 'WithBias'))
    basic, degradation = random(1, 12, 6, 6), random(3, 12, 6, 6, seed=1)
    z = basic + attended(block.attn, normed(block.norm11, basic), normed(block.norm12, degradation))
    torch.testing.assert_close(block(basic, degradation), z + block.ffn(normed(block.norm2, z)), rtol=0, atol=1e-12)
    repeated = block(basic.expand(3, -1, -1, -1), degradation)
    torch.testing.assert_close(block(basic, degradation), repeated, rtol=0, atol=1e-12)


@pytest.mark.parametrize('feature_dim', [5, 8, 11])
def test_degradation_prompt_is_the_mean_vector_times_the_features(feature_dim: int) -> None:
    prompt = filled(PromptInPrompt(8, 3, 4))
    x, weights = random(2, feature_dim, 8, 8), random(2, 3).softmax(1)
    halved = x.reshape(2, feature_dim, 4, 2, 4, 2).mean((3, 5))  # bilinear to half the size, pixel centres at 1/2
    found = prompt.degradation_prompt(x, weights)
    for b in range(2):
        vector = sum(weights[b, t] * prompt.detask_prompt_param[0, t, :, 0, 0] for t in range(3)) / 3
        for channel in range(8):
            plane = halved[b, channel] if channel < feature_dim else torch.zeros(4, 4, dtype=torch.float64)
            torch.testing.assert_close(found[b, channel], vector[channel] * plane, rtol=0, atol=1e-12)


def test_universal_prompt_at_the_size_it_is_kept() -> None:
    prompt = filled(PromptInPrompt(8, 3, 4))
    x, weights = random(2, 8, 4, 4), random(2, 3).softmax(1)
    inner = prompt.LGM(prompt.low_prompt_param, prompt.degradation_prompt(x, weights))
    expected = F.conv2d(inner, prompt.outconv.weight, padding=1)
    torch.testing.assert_close(prompt(x, weights), expected, rtol=0, atol=1e-12)
    assert prompt(random(2, 8, 6, 9), weights).shape == (2, 8, 6, 9)


def test_new_prompts_are_normal() -> None:
    torch.manual_seed(0)
    prompt = PromptInPrompt(64, 40, 16)
    for parameter, shape in (
        (prompt.detask_prompt_param, (1, 40, 64, 1, 1)),
        (prompt.low_prompt_param, (1, 64, 16, 16)),
    ):
        assert parameter.shape == shape
        assert abs(parameter.mean()) < 0.08
        assert abs(parameter.std() - 1) < 0.05


@pytest.mark.parametrize('feature_dim', [5, 8, 11])
def test_prompt_channels_beyond_the_features_are_dead(feature_dim: int) -> None:
    prompt = filled(PromptInPrompt(8, 3, 4))
    prompt(random(1, feature_dim, 8, 8), torch.full((1, 3), 1 / 3, dtype=torch.float64)).square().mean().backward()
    reached = prompt.detask_prompt_param.grad[0, :, :, 0, 0].abs() > 0
    assert reached[:, :feature_dim].all()
    assert not reached[:, feature_dim:].any()
    assert all(parameter.grad.norm() > 0 for parameter in prompt.parameters())


def test_strength_goes_from_the_basic_prompt_to_the_trained_one_and_on() -> None:
    prompt, x, other = filled(PromptInPrompt(8, 3, 4)), random(2, 8, 4, 4), random(2, 8, 4, 4, seed=1)
    rain, haze = torch.eye(3, dtype=torch.float64)[[1, 1]], torch.eye(3, dtype=torch.float64)[[2, 2]]
    assert torch.equal(prompt(x, rain, 1.0), prompt(x, rain))
    torch.testing.assert_close(prompt(x, rain, 0.0), prompt(other, haze, 0.0), rtol=0, atol=1e-12)
    basic = prompt.low_prompt_param + prompt.LGM.ffn(prompt.LGM.norm2(prompt.low_prompt_param))
    torch.testing.assert_close(prompt(x, rain, 0.0)[:1], prompt.outconv(basic), rtol=0, atol=1e-12)
    difference = [(prompt(x, rain, s) - prompt(x, haze, s)).norm() for s in (0.0, 0.5, 1.0, 2.0)]
    assert difference == sorted(difference)
    assert difference[1] > 0.05 * difference[2] > 0
    each = prompt(x, rain, torch.tensor([0.5, 2.0], dtype=torch.float64).reshape(2, 1, 1, 1))
    torch.testing.assert_close(each[:1], prompt(x[:1], rain[:1], 0.5), rtol=0, atol=1e-12)
    torch.testing.assert_close(each[1:], prompt(x[1:], rain[1:], 2.0), rtol=0, atol=1e-12)


@pytest.mark.parametrize(('feature_dim', 'prompt_dim'), WIDTHS)
@pytest.mark.parametrize('interaction', ['topm', 'cross'])
def test_cross_interaction(interaction: str, feature_dim: int, prompt_dim: int) -> None:
    module = filled(PromptToFeature(feature_dim, prompt_dim, interaction, num_heads=2))
    block, (x, prompt) = module.prompt_transformer_cross, pair(feature_dim, prompt_dim)
    inner, u = normed(block.norm11, x), normed(block.norm12, prompt)
    behind = max(prompt_dim - feature_dim, 0)
    y = torch.cat([inner[:, :prompt_dim], torch.zeros(2, behind, *PIXELS, dtype=torch.float64)], 1)
    y = y + attended(block.attn, y, u)
    y = mixed(block.reduce_channel, y) if behind else torch.cat([y, inner[:, prompt_dim:]], 1)
    y = y + dual_gated(block.ffn, normed(block.norm2, y))
    torch.testing.assert_close(module(x, prompt), y, rtol=0, atol=1e-12)
    assert hasattr(block, 'reduce_channel') == bool(behind)


def test_cross_interaction_forgets_the_scale_of_the_features() -> None:
    module, (x, prompt) = filled(PromptToFeature(8, 12)), pair(8, 12)
    torch.testing.assert_close(module(100 * x, prompt), module(1000 * x, prompt), rtol=0, atol=1e-6)
    assert (module(x, prompt) - module(x, -prompt)).abs().max() > 0.01


@pytest.mark.parametrize(('feature_dim', 'prompt_dim'), WIDTHS)
def test_gate_interaction(feature_dim: int, prompt_dim: int) -> None:
    module, (x, prompt) = filled(PromptToFeature(feature_dim, prompt_dim, 'gate')), pair(feature_dim, prompt_dim)
    inner = F.conv2d(prompt, module.gate.conv1.weight, padding=1)
    gate, shift = (F.conv2d(inner, conv.weight, padding=1) for conv in (module.gate.conv2, module.gate.conv3))
    torch.testing.assert_close(module(x, prompt), x / (1 + (-gate).exp()) + shift, rtol=0, atol=1e-12)


@pytest.mark.parametrize(('feature_dim', 'prompt_dim'), WIDTHS)
def test_promptir_gate_interaction(feature_dim: int, prompt_dim: int) -> None:
    module = filled(PromptToFeature(feature_dim, prompt_dim, 'promptir_gate'))
    x, prompt = pair(feature_dim, prompt_dim)
    inner = module.gate.block(torch.cat([x, prompt], 1))
    gate, shift = F.conv2d(inner, module.gate.gate.weight, padding=1), mixed(module.gate.shift, inner)
    torch.testing.assert_close(module(x, prompt), x / (1 + (-gate).exp()) + shift, rtol=0, atol=1e-12)


@pytest.mark.parametrize(('feature_dim', 'prompt_dim'), WIDTHS)
@pytest.mark.parametrize('interaction', INTERACTIONS)
@pytest.mark.parametrize('bias', [False, True])
def test_each_parameter_gets_a_gradient(interaction: str, feature_dim: int, prompt_dim: int, bias: bool) -> None:
    torch.manual_seed(0)
    module = PromptToFeature(feature_dim, prompt_dim, interaction, num_heads=4, bias=bias).double()
    x, prompt = (tensor.requires_grad_() for tensor in pair(feature_dim, prompt_dim))
    out = module(x, prompt)
    assert out.shape == x.shape
    (out * random(*out.shape, seed=2)).sum().backward()
    for name, parameter in [('x', x), ('prompt', prompt), *module.named_parameters()]:
        assert parameter.grad.norm() > 0, name


@pytest.mark.parametrize('interaction', INTERACTIONS)
def test_gradient_is_the_numerical_one(interaction: str) -> None:
    module = filled(PromptToFeature(4, 6, interaction, num_heads=2))
    x, prompt = random(1, 4, 2, 3).requires_grad_(), random(1, 6, 2, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(module, (x, prompt))


@pytest.mark.parametrize('interaction', INTERACTIONS)
def test_residual_is_the_identity_at_first_and_learns(interaction: str) -> None:
    module = PromptToFeature(8, 12, interaction, residual=True).double()
    x, prompt = pair(8, 12)
    assert torch.equal(module(x, prompt), x)
    module(x, prompt).square().mean().backward()
    assert module.alpha.grad.abs() > 0
    with torch.no_grad():
        module.alpha.fill_(0.5)
    plain = PromptToFeature(8, 12, interaction).double()
    plain.load_state_dict({name: value for name, value in module.state_dict().items() if name != 'alpha'}, strict=True)
    torch.testing.assert_close(module(x, prompt), x + 0.5 * plain(x, prompt), rtol=0, atol=1e-12)


def test_unknown_interaction_has_a_hint() -> None:
    with pytest.raises(ValueError, match=r"PromptToFeature: unknown interaction 'top_m'\. Did you mean 'topm'\?"):
        PromptToFeature(8, 12, 'top_m')


@pytest.mark.parametrize(('d', 's', 'count'), [(64, 64, 5), (256, 16, 5), (24, 8, 7)])
def test_number_of_parameters_of_the_prompts(d: int, s: int, count: int) -> None:
    h = int(2.66 * d)
    expected = count * d + d * s * s + 6 * d + (4 * d * d + 27 * d + 2) + (3 * h * d + 18 * h) + 9 * d * d
    with torch.device('meta'):
        assert sum(p.numel() for p in PromptInPrompt(d, count, s).parameters()) == expected


@pytest.mark.parametrize(('c', 'p', 'expected'), [(48, 64, 42_086), (96, 128, 159_958), (192, 256, 622_436)])
def test_number_of_parameters_of_the_released_interactions(c: int, p: int, expected: int) -> None:
    with torch.device('meta'):
        assert sum(parameter.numel() for parameter in PromptToFeature(c, p).parameters()) == expected


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_moving_a_module_keeps_the_prompts_in_shape(dtype: torch.dtype) -> None:
    prompt = PromptInPrompt(8, 3, 4)
    before = prompt.detask_prompt_param.detach().clone()
    prompt.to(dtype=dtype, memory_format=torch.channels_last)
    assert torch.equal(prompt.detask_prompt_param, before.to(dtype))
    assert prompt(random(2, 8, 6, 6).to(dtype), torch.full((2, 3), 1 / 3, dtype=dtype)).dtype == dtype


def test_a_row_for_each_degradation_may_grow() -> None:
    assert growable_axes(PromptInPrompt(8, 3, 4)) == {'detask_prompt_param': ('degradations', 1)}
