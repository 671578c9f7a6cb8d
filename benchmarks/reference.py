"""PromptIR and PIPRestormer as papers and released programs describe the computation: what speed is measured against.

A stand-in for the released programs, which cannot be shipped. It shares no computation with `promptir_basicsr.archs`,
so that it stays as it is when the networks there become faster. Every step is done where it stands in the papers:
features are rearranged for LayerNorm and back, queries and keys are normalised at full size, prompt banks are repeated
for each image, what is concatenated is concatenated. Configurations are those of the released programs: no biases,
LayerNorm with bias, PIP's top-m interaction; widths and depths can be chosen. Parameter names are the released ones, so
that `reference.load_state_dict(net.state_dict())` holds strictly.

Sources: arXiv 2111.09881 (blocks), 2306.13090 (PromptIR), 2312.05038 (PIP).

Shapes: B batch, C channels, H W height and width, h heads, D prompt channels, N prompts, T degradations.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from promptir_basicsr.archs import pip_arch, promptir_arch

INTERACTION_HEADS = 4
PROMPT_HEADS = 2


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + 1e-5) * weight + bias over the channels of (B, H W, C) tokens."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.body = nn.ParameterDict({'weight': torch.ones(dim), 'bias': torch.zeros(dim)})

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        tokens = rearrange(x, 'b c h w -> b (h w) c')
        mean = tokens.mean(dim=-1, keepdim=True)
        variance = tokens.var(dim=-1, keepdim=True, unbiased=False)
        tokens = (tokens - mean) / torch.sqrt(variance + 1e-5) * self.body['weight'] + self.body['bias']
        return rearrange(tokens, 'b (h w) c -> b c h w', h=height, w=width)


def conv1x1(width: int, out: int) -> nn.Conv2d:
    return nn.Conv2d(width, out, kernel_size=1, bias=False)


def conv3x3(width: int, out: int) -> nn.Conv2d:
    return nn.Conv2d(width, out, kernel_size=3, padding=1, bias=False)


def depthwise(width: int) -> nn.Conv2d:
    return nn.Conv2d(width, width, kernel_size=3, padding=1, groups=width, bias=False)


def similarity(q: Tensor, k: Tensor, temperature: Tensor) -> Tensor:
    """Cosines of channels times temperature: (B, C, H, W) twice -> (B, h, C/h, C/h)."""
    q = rearrange(q, 'b (head c) h w -> b head c (h w)', head=len(temperature))
    k = rearrange(k, 'b (head c) h w -> b head c (h w)', head=len(temperature))
    q = F.normalize(q, dim=-1)
    k = F.normalize(k, dim=-1)
    return (q @ k.transpose(-2, -1)) * temperature


class Attention(nn.Module):
    """Restormer's transposed attention."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = conv1x1(dim, 3 * dim)
        self.qkv_dwconv = depthwise(3 * dim)
        self.project_out = conv1x1(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv_dwconv(self.qkv(x)).chunk(3, dim=1)
        attention = similarity(q, k, self.temperature).softmax(dim=-1)
        out = attention @ rearrange(v, 'b (head c) h w -> b head c (h w)', head=attention.shape[1])
        out = rearrange(out, 'b head c (h w) -> b (head c) h w', h=x.shape[-2], w=x.shape[-1])
        return self.project_out(out)


class FeedForward(nn.Module):
    """Restormer's gated feed-forward network."""

    def __init__(self, dim: int, expansion: float) -> None:
        super().__init__()
        hidden = int(dim * expansion)
        self.project_in = conv1x1(dim, 2 * hidden)
        self.dwconv = depthwise(2 * hidden)
        self.project_out = conv1x1(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.dwconv(self.project_in(x)).chunk(2, dim=1)
        return self.project_out(F.gelu(a) * b)


class DualFeedForward(FeedForward):
    """The one of PIP's interaction: each half gates the other."""

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.dwconv(self.project_in(x)).chunk(2, dim=1)
        a, b = F.gelu(b) * a, F.gelu(a) * b
        return self.project_out(a + b)


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, expansion: float) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim)
        self.attn = Attention(dim, heads)
        self.norm2 = LayerNorm(dim)
        self.ffn = FeedForward(dim, expansion)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = conv3x3(3, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class Downsample(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv3x3(dim, dim // 2), nn.PixelUnshuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Upsample(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv3x3(dim, 2 * dim), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Backbone(nn.Module):
    """What both networks have: Restormer with a narrower way up from the lowest level."""

    def __init__(
        self,
        dim: int = 48,
        num_blocks: Sequence[int] = (4, 6, 6, 8),
        num_refinement_blocks: int = 4,
        heads: Sequence[int] = (1, 2, 4, 8),
        ffn_expansion_factor: float = 2.66,
    ) -> None:
        super().__init__()
        self.dim, self.expansion = dim, ffn_expansion_factor

        def stage(width: int, level: int, count: int) -> nn.Sequential:
            return nn.Sequential(*(Block(width, heads[level], ffn_expansion_factor) for _ in range(count)))

        self.patch_embed = PatchEmbed(dim)
        self.encoder_level1 = stage(dim, 0, num_blocks[0])
        self.down1_2 = Downsample(dim)
        self.encoder_level2 = stage(2 * dim, 1, num_blocks[1])
        self.down2_3 = Downsample(2 * dim)
        self.encoder_level3 = stage(4 * dim, 2, num_blocks[2])
        self.down3_4 = Downsample(4 * dim)
        self.latent = stage(8 * dim, 3, num_blocks[3])
        self.up4_3 = Upsample(4 * dim)
        self.reduce_chan_level3 = conv1x1(6 * dim, 4 * dim)
        self.decoder_level3 = stage(4 * dim, 2, num_blocks[2])
        self.up3_2 = Upsample(4 * dim)
        self.reduce_chan_level2 = conv1x1(4 * dim, 2 * dim)
        self.decoder_level2 = stage(2 * dim, 1, num_blocks[1])
        self.up2_1 = Upsample(2 * dim)
        self.decoder_level1 = stage(2 * dim, 0, num_blocks[0])
        self.refinement = stage(2 * dim, 0, num_refinement_blocks)
        self.output = conv3x3(2 * dim, 3)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The skips of levels 1 to 3, and the features of level 4."""
        skip1 = self.encoder_level1(self.patch_embed(x))
        skip2 = self.encoder_level2(self.down1_2(skip1))
        skip3 = self.encoder_level3(self.down2_3(skip2))
        return skip1, skip2, skip3, self.latent(self.down3_4(skip3))


class PromptBlock(nn.Module):
    """PromptIR's prompt generation: a bank of prompts, weighted for each image."""

    def __init__(self, prompt_dim: int, num_prompts: int, size: int, feature_dim: int) -> None:
        super().__init__()
        self.prompt_param = nn.Parameter(torch.rand(1, num_prompts, prompt_dim, size, size))
        self.linear_layer = nn.Linear(feature_dim, num_prompts)
        self.conv3x3 = conv3x3(prompt_dim, prompt_dim)

    def forward(self, x: Tensor) -> Tensor:
        weights = F.softmax(self.linear_layer(x.mean(dim=(-2, -1))), dim=1)
        bank = self.prompt_param.unsqueeze(0).repeat(len(x), 1, 1, 1, 1, 1).squeeze(1)
        prompt = (weights[:, :, None, None, None] * bank).sum(dim=1)
        return self.conv3x3(F.interpolate(prompt, size=x.shape[-2:], mode='bilinear'))


class ReferencePromptIR(Backbone):
    """PromptIR; arguments as for `promptir_basicsr.archs.PromptIR`."""

    def __init__(self, num_prompts: int = 5, prompt_sizes: Sequence[int] = (64, 32, 16), **backbone: object) -> None:
        super().__init__(**backbone)  # type: ignore[arg-type]
        dim = self.dim
        features = {1: 2 * dim, 2: 4 * dim, 3: 8 * dim}
        reduced = {1: 2 * dim, 2: 4 * dim, 3: 4 * dim}
        for level, prompt_dim in enumerate(promptir_arch.prompt_widths(dim), start=1):
            width = features[level] + prompt_dim
            prompt = PromptBlock(prompt_dim, num_prompts, prompt_sizes[level - 1], features[level])
            setattr(self, f'prompt{level}', prompt)
            setattr(self, f'noise_level{level}', Block(width, INTERACTION_HEADS, self.expansion))
            setattr(self, f'reduce_noise_level{level}', conv1x1(width, reduced[level]))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, 3, H, W), H and W divisible by 8. Returns the same shape."""
        skip1, skip2, skip3, y = self.encode(x)
        y = torch.cat([y, self.prompt3(y)], dim=1)
        y = self.up4_3(self.reduce_noise_level3(self.noise_level3(y)))
        y = self.decoder_level3(self.reduce_chan_level3(torch.cat([y, skip3], dim=1)))
        y = torch.cat([y, self.prompt2(y)], dim=1)
        y = self.up3_2(self.reduce_noise_level2(self.noise_level2(y)))
        y = self.decoder_level2(self.reduce_chan_level2(torch.cat([y, skip2], dim=1)))
        y = torch.cat([y, self.prompt1(y)], dim=1)
        y = self.up2_1(self.reduce_noise_level1(self.noise_level1(y)))
        y = self.decoder_level1(torch.cat([y, skip1], dim=1))
        return self.output(self.refinement(y)) + x


class CrossAttention(nn.Module):
    """Queries from one input, keys and values from another."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.q = conv1x1(dim, dim)
        self.q_dwconv = depthwise(dim)
        self.kv = conv1x1(dim, 2 * dim)
        self.kv_dwconv = depthwise(2 * dim)
        self.project_out = conv1x1(dim, dim)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        q = self.q_dwconv(self.q(x))
        k, v = self.kv_dwconv(self.kv(other)).chunk(2, dim=1)
        scores = similarity(q, k, self.temperature)
        out = self.attend(scores, rearrange(v, 'b (head c) h w -> b head c (h w)', head=scores.shape[1]))
        return self.project_out(rearrange(out, 'b head c (h w) -> b (head c) h w', h=x.shape[-2], w=x.shape[-1]))

    def attend(self, scores: Tensor, v: Tensor) -> Tensor:
        return scores.softmax(dim=-1) @ v


class TopMAttention(CrossAttention):
    """Four attentions, each to the m most similar channels: all others are masked out before the softmax."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        for number in (1, 2, 3, 4):
            setattr(self, f'attn{number}', nn.Parameter(torch.tensor([0.2])))

    def attend(self, scores: Tensor, v: Tensor) -> Tensor:
        channels = scores.shape[-1]
        outs = []
        for m in (channels // 2, channels * 2 // 3, channels * 3 // 4, channels * 4 // 5):
            places = torch.topk(scores, k=m, dim=-1).indices
            mask = torch.zeros_like(scores).scatter_(-1, places, 1.0)
            kept = torch.where(mask > 0, scores, torch.full_like(scores, float('-inf')))
            outs.append(kept.softmax(dim=-1) @ v)
        return outs[0] * self.attn1 + outs[1] * self.attn2 + outs[2] * self.attn3 + outs[3] * self.attn4


class PromptToPrompt(nn.Module):
    def __init__(self, dim: int, expansion: float) -> None:
        super().__init__()
        self.norm11 = LayerNorm(dim)
        self.norm12 = LayerNorm(dim)
        self.attn = CrossAttention(dim, PROMPT_HEADS)
        self.norm2 = LayerNorm(dim)
        self.ffn = FeedForward(dim, expansion)

    def forward(self, basic: Tensor, degradation: Tensor) -> Tensor:
        y = basic + self.attn(self.norm11(basic), self.norm12(degradation))
        return y + self.ffn(self.norm2(y))


class PromptInPrompt(nn.Module):
    """PIP's universal prompt: that of the degradation, put into the basic one."""

    def __init__(self, prompt_dim: int, num_degradations: int, size: int, expansion: float) -> None:
        super().__init__()
        self.detask_prompt_param = nn.Parameter(torch.randn(1, num_degradations, prompt_dim, 1, 1))
        self.low_prompt_param = nn.Parameter(torch.randn(1, prompt_dim, size, size))
        self.LGM = PromptToPrompt(prompt_dim, expansion)
        self.outconv = conv3x3(prompt_dim, prompt_dim)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """x: (B, C, H, W), weights: (B, T). Returns (B, D, H, W)."""
        bank = self.detask_prompt_param.repeat(len(x), 1, 1, 1, 1)
        vector = (weights[:, :, None, None, None] * bank).mean(dim=1)
        basic = self.low_prompt_param.repeat(len(x), 1, 1, 1)
        features = F.interpolate(x, size=basic.shape[-2:], mode='bilinear')
        prompt = self.LGM(basic, vector * resized(features, basic.shape[1]))
        return self.outconv(F.interpolate(prompt, size=x.shape[-2:], mode='bilinear'))


class CrossBlock(nn.Module):
    def __init__(self, dim: int, prompt_dim: int, expansion: float) -> None:
        super().__init__()
        self.norm11 = LayerNorm(dim)
        self.norm12 = LayerNorm(prompt_dim)
        self.attn = TopMAttention(prompt_dim, INTERACTION_HEADS)
        if dim < prompt_dim:
            self.reduce_channel = conv1x1(prompt_dim, dim)
        self.norm2 = LayerNorm(dim)
        self.ffn = DualFeedForward(dim, expansion)

    def forward(self, x: Tensor, prompt: Tensor) -> Tensor:
        x, prompt = self.norm11(x), self.norm12(prompt)
        width, prompt_width = x.shape[1], prompt.shape[1]
        y = resized(x, prompt_width)
        y = y + self.attn(y, prompt)
        if width < prompt_width:
            y = self.reduce_channel(y)
        elif width > prompt_width:
            y = torch.cat([y, x[:, prompt_width:]], dim=1)
        return y + self.ffn(self.norm2(y))


class PromptToFeature(nn.Module):
    def __init__(self, dim: int, prompt_dim: int, expansion: float) -> None:
        super().__init__()
        self.prompt_transformer_cross = CrossBlock(dim, prompt_dim, expansion)

    def forward(self, x: Tensor, prompt: Tensor) -> Tensor:
        return self.prompt_transformer_cross(x, prompt)


def resized(x: Tensor, width: int) -> Tensor:
    """x: (B, C, H, W) with `width` channels: the first of its own, then zeros."""
    missing = width - x.shape[1]
    if missing <= 0:
        return x[:, :width]
    return torch.cat([x, x.new_zeros(len(x), missing, *x.shape[-2:])], dim=1)


class ReferencePIP(Backbone):
    """PIPRestormer with the top-m interaction; arguments as for `promptir_basicsr.archs.PIPRestormer`."""

    def __init__(
        self,
        num_degradations: int = 5,
        prompt_dims: Sequence[int] | None = None,
        prompt_sizes: Sequence[int] = (64, 32, 16),
        **backbone: object,
    ) -> None:
        super().__init__(**backbone)  # type: ignore[arg-type]
        self.num_degradations = num_degradations
        for level, prompt_dim in enumerate(prompt_dims or pip_arch.prompt_widths(self.dim), start=1):
            width = self.dim * 2 ** (level - 1)
            prompt = PromptInPrompt(prompt_dim, num_degradations, prompt_sizes[level - 1], self.expansion)
            setattr(self, f'prompt{level}', prompt)
            interaction = PromptToFeature(width, prompt_dim, self.expansion)
            setattr(self, f'low_prompt_interaction_level{level}', interaction)
        self.chnl_reduce3 = conv1x1(8 * self.dim, 4 * self.dim)

    def forward(self, x: Tensor, degradation: Tensor) -> Tensor:
        """x: (B, 3, H, W), H and W divisible by 8; degradation: (B,) ids. Returns the shape of x."""
        weights = F.one_hot(degradation, self.num_degradations).to(x.dtype)
        skip1, skip2, skip3, y = self.encode(x)
        skip3 = self.low_prompt_interaction_level3(skip3, self.prompt3(skip3, weights))
        y = torch.cat([self.up4_3(self.chnl_reduce3(y)), skip3], dim=1)
        y = self.decoder_level3(self.reduce_chan_level3(y))
        skip2 = self.low_prompt_interaction_level2(skip2, self.prompt2(skip2, weights))
        y = torch.cat([self.up3_2(y), skip2], dim=1)
        y = self.decoder_level2(self.reduce_chan_level2(y))
        skip1 = self.low_prompt_interaction_level1(skip1, self.prompt1(skip1, weights))
        y = torch.cat([self.up2_1(y), skip1], dim=1)
        return self.output(self.refinement(self.decoder_level1(y))) + x
