"""The Restormer blocks of PromptIR and PIP.

This is the plain formulation; the fast one of whole blocks is in `blocks`.

Source: Zamir et al., "Restormer: Efficient Transformer for High-Resolution Image Restoration", CVPR 2022
(arXiv 2111.09881), section 3, as used by PromptIR (arXiv 2306.13090). Parameter names are those of released weights.

Shapes: B batch, C channels, H W height and width, h heads, c = C / h channels per head, P = H W pixels.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from promptir_basicsr.archs.fast import blocks
from promptir_basicsr.archs.layers.formulation import Formulated
from promptir_basicsr.archs.layers.global_statistics import Quantity, SeesWhole
from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.core.messages import unknown


class TransformerBlock(Formulated, nn.Module):
    """x + MDTA(LN x), then x + GDFN(LN x) (Restormer, figure 2).

    Args:
        dim: C, divisible by num_heads.
        num_heads: h of the attention.
        ffn_expansion_factor: ratio of the hidden width of the feed-forward network to C.
        bias: whether its convolutions have biases.
        layer_norm_type: 'WithBias' or 'BiasFree'.

    Examples:
        >>> from promptir_basicsr.archs import TransformerBlock
        >>> block = TransformerBlock(dim=8, num_heads=2, ffn_expansion_factor=2, bias=False, layer_norm_type='WithBias')
        >>> block(torch.rand(1, 8, 6, 6)).shape
        torch.Size([1, 8, 6, 6])
    """

    def __init__(self, dim: int, num_heads: int, ffn_expansion_factor: float, bias: bool, layer_norm_type: str) -> None:
        super().__init__()
        self.norm1 = LayerNorm2d(dim, layer_norm_type)
        self.attn = MDTA(dim, num_heads, bias)
        self.norm2 = LayerNorm2d(dim, layer_norm_type)
        self.ffn = GDFN(dim, ffn_expansion_factor, bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W). Returns (B, C, H, W)."""
        if self.fast:
            return blocks.transformer_block(self, x)
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class TransposedAttention(SeesWhole, nn.Module):
    """Base class of attentions over channels; subclasses compute queries, keys and values."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        assert dim % num_heads == 0, f'{num_heads} heads do not divide {dim} channels'
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Mix the channels of v by the similarity of those of q and k; all (B, C, H, W)."""
        attention = self.attention(channel_similarity(q, k, self.temperature, self.whole))
        return mix_channels(attention, v)

    def attention(self, similarity: Tensor) -> Tensor:
        """Return the attention weights of the channels for similarity: (B, h, c, c), in the same shape."""
        return similarity.softmax(dim=-1)


class MDTA(TransposedAttention):
    """Multi-Dconv head transposed attention (Restormer, section 3.1, equation 1).

    Channels attend to channels, so the cost grows linearly with the number of pixels.

    Examples:
        >>> from promptir_basicsr.archs import MDTA
        >>> MDTA(dim=8, num_heads=2, bias=False)(torch.rand(1, 8, 6, 6)).shape
        torch.Size([1, 8, 6, 6])
    """

    def __init__(self, dim: int, num_heads: int, bias: bool) -> None:
        super().__init__(dim, num_heads)
        self.qkv = nn.Conv2d(dim, 3 * dim, 1, bias=bias)
        self.qkv_dwconv = nn.Conv2d(3 * dim, 3 * dim, 3, padding=1, groups=3 * dim, bias=bias)
        self.project_out = nn.Conv2d(dim, dim, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W). Returns (B, C, H, W)."""
        q, k, v = self.qkv_dwconv(self.qkv(x)).chunk(3, dim=1)
        return self.project_out(self.mixed(q, k, v))


def channel_similarity(q: Tensor, k: Tensor, temperature: Tensor, whole: Quantity | None = None) -> Tensor:
    """Return cosines of channels of q and k over the pixels, times temperature: (B, h, c, c), before softmax.

    Args:
        q, k: (B, C, H, W).
        temperature: (h, 1, 1).
        whole: statistics of the whole image if q and k are those of a tile.
    """
    if whole is not None:
        return whole.similarity(q, k, temperature)
    heads = len(temperature)
    q = F.normalize(split_heads(q, heads), dim=-1, eps=1e-12)
    k = F.normalize(split_heads(k, heads), dim=-1, eps=1e-12)
    return q @ k.transpose(-2, -1) * temperature


def mix_channels(attention: Tensor, v: Tensor) -> Tensor:
    """Mix the channels of v: (B, C, H, W) by attention: (B, h, c, c), head by head. Returns (B, C, H, W)."""
    out = attention.to(v.dtype) @ split_heads(v, attention.shape[1])
    return rearrange(out, 'b head c (h w) -> b (head c) h w', h=v.shape[-2])


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Reshape (B, C, H, W) to (B, h, c, P)."""
    return rearrange(x, 'b (head c) h w -> b head c (h w)', head=heads)


class GDFN(nn.Module):
    """Gated-Dconv feed-forward network (Restormer, section 3.2, equation 2); the gate is the exact (erf) GELU.

    With `dual` the halves a and b gate each other, as in PIP: gelu(a) b + gelu(b) a.

    Examples:
        >>> from promptir_basicsr.archs import GDFN
        >>> GDFN(dim=8, ffn_expansion_factor=2, bias=False)(torch.rand(1, 8, 6, 6)).shape
        torch.Size([1, 8, 6, 6])
    """

    def __init__(self, dim: int, ffn_expansion_factor: float, bias: bool, dual: bool = False) -> None:
        super().__init__()
        self.dual = dual
        hidden = int(ffn_expansion_factor * dim)
        self.project_in = nn.Conv2d(dim, 2 * hidden, 1, bias=bias)
        self.dwconv = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, bias=bias)
        self.project_out = nn.Conv2d(hidden, dim, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W). Returns (B, C, H, W)."""
        a, b = self.dwconv(self.project_in(x)).chunk(2, dim=1)
        gated = F.gelu(a) * b
        return self.project_out(gated + F.gelu(b) * a if self.dual else gated)


class LayerNorm2d(nn.Module):
    """Layer normalisation over the channels of each pixel.

    Args:
        dim: C.
        layer_norm_type: 'WithBias' (the usual one) or 'BiasFree' (the mean is not subtracted, no bias).

    Raises:
        OptionError: layer_norm_type is neither.
    """

    def __init__(self, dim: int, layer_norm_type: str = 'WithBias') -> None:
        super().__init__()
        norms: dict[str, type[nn.Module]] = {'WithBias': WithBiasNorm, 'BiasFree': BiasFreeNorm}
        if layer_norm_type not in norms:
            raise OptionError(unknown('', 'layer_norm_type', layer_norm_type, norms, ('layer_norm_type',)))
        self.body = norms[layer_norm_type](dim)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W). Returns (B, C, H, W) of the same dtype."""
        return self.body(x)


class WithBiasNorm(nn.Module):
    """(x - mean) / sqrt(var + eps) * weight + bias over dim 1, with the biased variance."""

    eps = 1e-5

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W). Returns (B, C, H, W) of the same dtype."""
        wide = _at_least_float32(x)
        variance, mean = torch.var_mean(wide, dim=1, correction=0, keepdim=True)
        normed = (wide - mean) * torch.rsqrt(variance + self.eps)
        return (normed * self.weight[:, None, None] + self.bias[:, None, None]).to(x.dtype)


class BiasFreeNorm(nn.Module):
    """x / sqrt(var + eps) * weight over dim 1. The variance is about the mean, but x is not centred."""

    eps = 1e-5

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W). Returns (B, C, H, W) of the same dtype."""
        wide = _at_least_float32(x)
        variance = torch.var(wide, dim=1, correction=0, keepdim=True)
        return (wide * torch.rsqrt(variance + self.eps) * self.weight[:, None, None]).to(x.dtype)


def _at_least_float32(x: Tensor) -> Tensor:
    """Convert to at least float32: half precision loses too many digits of the statistics."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class OverlapPatchEmbed(nn.Module):
    """Convert the image to features by one 3x3 convolution at full size."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, in_channels, H, W). Returns (B, C, H, W)."""
        return self.proj(x)


class Downsample(nn.Module):
    """Halve the size and double the channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(dim, dim // 2, 3, padding=1, bias=False), nn.PixelUnshuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W), H and W even. Returns (B, 2C, H/2, W/2)."""
        return self.body(x)


class Upsample(nn.Module):
    """Double the size and halve the channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(dim, dim * 2, 3, padding=1, bias=False), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W). Returns (B, C/2, 2H, 2W)."""
        return self.body(x)


class Backbone(nn.Module):
    """The encoder and decoder that PromptIR and PIP share; subclasses add the parts between them.

    Layers are added in the order of the released programs, which determines random initialisation and weights.
    """

    scale = 1
    size_multiple = 8
    levels: tuple[str, ...] = ('level3', 'level2', 'level1')

    def add_encoder(
        self, inp_channels: int, dim: int, num_blocks: Sequence[int], heads: Sequence[int], *settings: Any
    ) -> None:
        """Add the layers before the prompts; `settings` are the last three of `TransformerBlock`."""
        self.dim, self.inp_channels = dim, inp_channels
        self.patch_embed = OverlapPatchEmbed(inp_channels, dim)
        self.encoder_level1 = _stage(dim, heads[0], num_blocks[0], settings)
        self.down1_2 = Downsample(dim)
        self.encoder_level2 = _stage(2 * dim, heads[1], num_blocks[1], settings)
        self.down2_3 = Downsample(2 * dim)
        self.encoder_level3 = _stage(4 * dim, heads[2], num_blocks[2], settings)
        self.down3_4 = Downsample(4 * dim)
        self.latent = _stage(8 * dim, heads[3], num_blocks[3], settings)

    def add_decoder(
        self,
        out_channels: int,
        num_blocks: Sequence[int],
        num_refinement_blocks: int,
        heads: Sequence[int],
        *settings: Any,
    ) -> None:
        """Add the layers after the prompts; `settings` are the last three of `TransformerBlock`."""
        self.out_channels, dim, (_, bias, _) = out_channels, self.dim, settings
        # Upsampling halves the channels, and the skip connection adds its own.
        self.up4_3 = Upsample(4 * dim)
        self.reduce_chan_level3 = nn.Conv2d(6 * dim, 4 * dim, 1, bias=bias)
        self.decoder_level3 = _stage(4 * dim, heads[2], num_blocks[2], settings)
        self.up3_2 = Upsample(4 * dim)
        self.reduce_chan_level2 = nn.Conv2d(4 * dim, 2 * dim, 1, bias=bias)
        self.decoder_level2 = _stage(2 * dim, heads[1], num_blocks[1], settings)
        self.up2_1 = Upsample(2 * dim)
        self.decoder_level1 = _stage(2 * dim, heads[0], num_blocks[0], settings)
        self.refinement = _stage(2 * dim, heads[0], num_refinement_blocks, settings)
        self.output = nn.Conv2d(2 * dim, out_channels, 3, padding=1, bias=bias)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the latent features of x: (B, C, H, W), and the skip connections of levels 1 to 3."""
        skip1 = self.encoder_level1(self.patch_embed(x))  # (B, dim, H, W)
        skip2 = self.encoder_level2(self.down1_2(skip1))  # (B, 2 dim, H/2, W/2)
        skip3 = self.encoder_level3(self.down2_3(skip2))  # (B, 4 dim, H/4, W/4)
        return self.latent(self.down3_4(skip3)), skip1, skip2, skip3  # (B, 8 dim, H/8, W/8)

    @abstractmethod
    def unused_shapes(self) -> dict[str, tuple[int, int, int, int]]:
        """Return names and shapes of the unused tensors of a released checkpoint."""

    def with_unused(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return weights with the unused tensors as zeros."""
        zeros = self.output.weight.new_zeros
        return {**weights, **{name: zeros(shape) for name, shape in self.unused_shapes().items()}}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Load weights, also of released checkpoints, whose unused tensors (only these) are skipped."""
        for name in self.unused_shapes():
            state_dict.pop(prefix + name, None)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _stage(dim: int, num_heads: int, count: int, settings: tuple[Any, ...]) -> nn.Sequential:
    return nn.Sequential(*(TransformerBlock(dim, num_heads, *settings) for _ in range(count)))
