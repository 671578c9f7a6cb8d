"""The Restormer blocks against plain formulas of their own, in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptir_basicsr.archs.layers.arguments import check_backbone, check_image
from promptir_basicsr.archs.layers.formulation import set_formulation
from promptir_basicsr.archs.layers.restormer import (
    GDFN,
    MDTA,
    Downsample,
    LayerNorm2d,
    OverlapPatchEmbed,
    TransformerBlock,
    Upsample,
    channel_similarity,
    mix_channels,
)
from tests.golden.seeded import seeded_fill


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_layer_norm_is_that_of_torch_over_channels() -> None:
    norm = seeded_fill(LayerNorm2d(12).double())
    x = random(2, 12, 5, 7) * 3 + 2
    expected = F.layer_norm(x.permute(0, 2, 3, 1), (12,), norm.body.weight, norm.body.bias, eps=1e-5)
    torch.testing.assert_close(norm(x), expected.permute(0, 3, 1, 2), rtol=0, atol=1e-12)


def test_bias_free_norm_keeps_the_mean() -> None:
    norm = seeded_fill(LayerNorm2d(12, 'BiasFree').double())
    x = random(2, 12, 5, 7) + 4
    mean = x.sum(1, keepdim=True) / 12
    variance = ((x - mean) ** 2).sum(1, keepdim=True) / 12
    expected = x / (variance + 1e-5).sqrt() * norm.body.weight.reshape(1, 12, 1, 1)
    torch.testing.assert_close(norm(x), expected, rtol=0, atol=1e-12)
    assert norm(x).mean() > 2
    assert [name for name, _ in norm.named_parameters()] == ['body.weight']


@pytest.mark.parametrize('kind', ['WithBias', 'BiasFree'])
def test_norm_of_a_constant_pixel_is_finite(kind: str) -> None:
    assert LayerNorm2d(4, kind)(torch.full((1, 4, 2, 2), 7.0)).isfinite().all()


@pytest.mark.parametrize('kind', ['WithBias', 'BiasFree'])
def test_norm_of_half_precision_takes_statistics_in_float32(kind: str) -> None:
    """Large mean, small spread: bfloat16 statistics would be useless here."""
    norm = LayerNorm2d(64, kind)
    x = (100 + random(1, 64, 4, 4)).to(torch.bfloat16)
    out = norm(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), norm(x.float()), rtol=2**-8, atol=0)


@pytest.mark.parametrize(('given', 'hint'), [('withbias', "Did you mean 'WithBias'?"), ('bias_free', "'BiasFree'?")])
def test_unknown_norm_has_a_hint(given: str, hint: str) -> None:
    with pytest.raises(ValueError, match='unknown layer_norm_type') as error:
        LayerNorm2d(8, given)
    assert hint in str(error.value)
    assert 'Allowed: BiasFree, WithBias.' in str(error.value)


def test_unknown_norm_without_a_near_name_has_no_hint() -> None:
    with pytest.raises(ValueError, match=r"unknown layer_norm_type 'zzz'\. Allowed: "):
        LayerNorm2d(8, 'zzz')


@pytest.mark.parametrize('heads', [1, 2, 4])
@pytest.mark.parametrize('bias', [False, True])
def test_attention_head_by_head(heads: int, bias: bool) -> None:
    attn = seeded_fill(MDTA(8, heads, bias).double())
    x = random(2, 8, 4, 6)
    mixed = F.conv2d(
        F.conv2d(x, attn.qkv.weight, attn.qkv.bias), attn.qkv_dwconv.weight, attn.qkv_dwconv.bias, 1, 1, 1, 24
    )
    c = 8 // heads
    expected = torch.empty_like(x)
    for b in range(2):
        for head in range(heads):
            mine = range(head * c, head * c + c)
            for i in mine:
                q = mixed[b, i]
                scores = []
                for j in mine:
                    k = mixed[b, 8 + j]
                    cosine = (q * k).sum() / ((q * q).sum() * (k * k).sum()).sqrt()
                    scores.append((cosine * attn.temperature[head, 0, 0]).exp())
                expected[b, i] = sum(s * mixed[b, 16 + j] for s, j in zip(scores, mine, strict=True)) / sum(scores)
    expected = F.conv2d(expected, attn.project_out.weight, attn.project_out.bias)
    torch.testing.assert_close(attn(x), expected, rtol=0, atol=1e-12)


def test_attention_ignores_the_scale_of_queries_and_keys_and_is_finite_for_zeros() -> None:
    q, k, v = (random(1, 8, 3, 5, seed=i) for i in range(3))
    temperature = torch.tensor([0.7, 1.9], dtype=torch.float64).reshape(2, 1, 1)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return mix_channels(channel_similarity(q, k, temperature).softmax(dim=-1), v)

    out = attend(q, k, v)
    torch.testing.assert_close(attend(100 * q, 0.01 * k, v), out, rtol=0, atol=1e-12)
    blind = attend(q, torch.zeros_like(k), v)
    group_means = v.reshape(1, 2, 4, 3, 5).mean(2, keepdim=True).expand(1, 2, 4, 3, 5).reshape(v.shape)
    torch.testing.assert_close(blind, group_means, rtol=0, atol=1e-12)


@pytest.mark.parametrize('bias', [False, True])
def test_feed_forward(bias: bool) -> None:
    ffn = seeded_fill(GDFN(8, 2.66, bias).double())
    x = random(2, 8, 4, 6)
    assert ffn.project_out.weight.shape == (8, 21, 1, 1)  # int(2.66 * 8)
    h = F.conv2d(
        F.conv2d(x, ffn.project_in.weight, ffn.project_in.bias), ffn.dwconv.weight, ffn.dwconv.bias, 1, 1, 1, 42
    )
    gated = 0.5 * h[:, :21] * (1 + torch.erf(h[:, :21] / math.sqrt(2))) * h[:, 21:]
    torch.testing.assert_close(
        ffn(x), F.conv2d(gated, ffn.project_out.weight, ffn.project_out.bias), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize('kind', ['WithBias', 'BiasFree'])
def test_block_is_two_residual_steps(kind: str) -> None:
    block = seeded_fill(TransformerBlock(8, 2, 2.0, False, kind).double())
    set_formulation(block, 'plain')
    x = random(1, 8, 4, 4)
    middle = x + block.attn(block.norm1(x))
    torch.testing.assert_close(block(x), middle + block.ffn(block.norm2(middle)), rtol=0, atol=0)


def test_block_gradient_is_the_numerical_one() -> None:
    block = seeded_fill(TransformerBlock(4, 2, 1.5, True, 'WithBias').double())
    assert torch.autograd.gradcheck(block, (random(1, 4, 3, 2).requires_grad_(),))


def test_block_in_channels_last_gives_the_same_numbers() -> None:
    block = seeded_fill(TransformerBlock(8, 2, 2.66, False, 'WithBias').double())
    x = random(2, 8, 6, 4)
    expected = block(x)
    out = block.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


def test_downsample_gathers_each_2x2_square_into_channels() -> None:
    down = seeded_fill(Downsample(4).double())
    x = random(1, 4, 4, 6)
    inner, out = F.conv2d(x, down.body[0].weight, padding=1), down(x)
    assert out.shape == (1, 8, 2, 3)
    for channel in range(8):
        square = inner[:, channel // 4, channel % 4 // 2 :: 2, channel % 2 :: 2]
        torch.testing.assert_close(out[:, channel], square, rtol=0, atol=0)


def test_upsample_spreads_four_channels_over_each_2x2_square() -> None:
    up = seeded_fill(Upsample(4).double())
    x = random(1, 4, 2, 3)
    inner, out = F.conv2d(x, up.body[0].weight, padding=1), up(x)
    assert out.shape == (1, 2, 4, 6)
    for channel in range(8):
        square = out[:, channel // 4, channel % 4 // 2 :: 2, channel % 2 :: 2]
        torch.testing.assert_close(square, inner[:, channel], rtol=0, atol=0)


@pytest.mark.parametrize(
    ('module', 'names'),
    [
        (OverlapPatchEmbed(3, 8), ['proj.weight']),
        (Downsample(8), ['body.0.weight']),
        (Upsample(8), ['body.0.weight']),
    ],
)
def test_plain_convolutions_have_no_bias(module: nn.Module, names: list[str]) -> None:
    assert [name for name, _ in module.named_parameters()] == names


def test_check_backbone_names_the_network() -> None:
    check_backbone('AnyNet', 48, [4, 6, 6, 8], [1, 2, 4, 8], 2.66)
    with pytest.raises(ValueError, match=r'^AnyNet: dim is 20; it must be a positive multiple of 8, such as 16\.$'):
        check_backbone('AnyNet', 20, [4, 6, 6, 8], [1, 2, 4, 8], 2.66)


def test_check_image_reports_the_size_to_pad_to() -> None:
    check_image('AnyNet', torch.zeros(1, 3, 16, 24), channels=3, size_multiple=8)
    with pytest.raises(ValueError, match=r'AnyNet: the input is 17x24 .* divisible by 8\. Pad it to 24x24'):
        check_image('AnyNet', torch.zeros(1, 3, 17, 24), channels=3, size_multiple=8)
    with pytest.raises(ValueError, match=r'the input is \(3, 16, 16\); it must be \(B, 3, H, W\)'):
        check_image('AnyNet', torch.zeros(3, 16, 16), channels=3, size_multiple=8)
