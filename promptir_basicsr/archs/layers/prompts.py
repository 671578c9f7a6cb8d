"""Prompt modules of PromptIR and PIP, for any backbone.

Sources: of `PromptGenBlock` PromptIR (arXiv 2306.13090, section 3.1, figure 2); of everything else Li, Lei, Ma, Zhang,
Shan, "Prompt-In-Prompt Learning for Universal Image Restoration" (arXiv 2312.05038), as in the released program. An
independent implementation; parameter names are the released ones. This is the plain formulation; the fast one of whole
blocks is in `blocks`.

With PIP a level of a network is modulated in two steps, `prompt = PromptInPrompt(...)(x, weights)` and
`x = PromptToFeature(...)(x, prompt)`. The weights are the shares of the degradations of an image; they are the same for
all levels and computed once (see `conditioning`).

Shapes: B batch, C feature channels, H W feature size, N prompts in the bank, T degradations, D prompt channels,
S prompt size, h heads, c = D / h channels per head.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptir_basicsr.archs.fast import blocks
from promptir_basicsr.archs.layers.formulation import Formulated
from promptir_basicsr.archs.layers.global_statistics import SeesWhole
from promptir_basicsr.archs.layers.restormer import GDFN, LayerNorm2d, TransformerBlock, TransposedAttention
from promptir_basicsr.core.errors import argument_error
from promptir_basicsr.core.messages import unknown_name

INTERACTIONS = ('topm', 'cross', 'gate', 'promptir_gate')
"""Interactions; released names: pip_cross_topm, pip_cross, convgate and promptir_gate."""

TOP_RATIOS = ((1, 2), (2, 3), (3, 4), (4, 5))
"""Fractions of a row of the attention that the selective interaction keeps."""


class PromptBankModule(nn.Module):
    """A module with a 5-D bank (1, N, D, S, S) that supports `Module.to` with a memory format.

    `Module.to(memory_format=torch.channels_last)` rejects tensors with five dimensions. Here it receives the bank
    without the leading 1, and the bank stays contiguous: it is not an image, so another layout has no benefit.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        def apply(tensor: Tensor) -> Tensor:
            return fn(tensor[0]).contiguous()[None] if tensor.ndim == 5 else fn(tensor)

        return super()._apply(apply, recurse)


class PromptGenBlock(Formulated, SeesWhole, PromptBankModule):
    """A bank of N learned prompts, mixed with weights computed from the features (equation 2).

    With a single prompt the softmax is constant, and `linear_layer` has zero gradients.

    Args:
        prompt_dim: D.
        num_prompts: N.
        prompt_size: S, height and width of the stored prompts.
        feature_dim: C of the features that select among the prompts.

    Examples:
        >>> from promptir_basicsr.archs import PromptGenBlock
        >>> block = PromptGenBlock(prompt_dim=6, num_prompts=5, prompt_size=4, feature_dim=8)
        >>> block(torch.rand(2, 8, 10, 12)).shape
        torch.Size([2, 6, 10, 12])
    """

    # A network with more prompts can start from the weights of one with fewer.
    growable_axes = {'prompts': {'prompt_param': 1, 'linear_layer.weight': 0, 'linear_layer.bias': 0}}

    def __init__(self, prompt_dim: int, num_prompts: int, prompt_size: int, feature_dim: int) -> None:
        super().__init__()
        self.prompt_param = nn.Parameter(torch.rand(1, num_prompts, prompt_dim, prompt_size, prompt_size))
        self.linear_layer = nn.Linear(feature_dim, num_prompts)
        self.conv3x3 = nn.Conv2d(prompt_dim, prompt_dim, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the prompt for the features x: (B, C, H, W), as (B, D, H, W)."""
        weights, size = self.weights(x), x.shape[-2:]
        if self.whole is not None:
            prompt = torch.einsum('bn,ndhw->bdhw', weights, self.prompt_param[0])
            return self.whole.resized(prompt, size, self.conv3x3)
        if self.fast and len(x) > self.prompt_param.shape[1]:  # fewer prompts than images to resize and convolve
            bank = F.interpolate(self.prompt_param[0], size=size, mode='bilinear', align_corners=False)
            return torch.einsum('bn,ndhw->bdhw', weights, self.conv3x3(bank))
        prompt = torch.einsum('bn,ndhw->bdhw', weights, self.prompt_param[0])
        prompt = F.interpolate(prompt, size=size, mode='bilinear', align_corners=False)
        return self.conv3x3(prompt)

    def weights(self, x: Tensor) -> Tensor:
        """Return the weights of the prompts for x: (B, C, H, W), as (B, N), >= 0, with rows that sum to 1."""
        mean = x.mean(dim=(-2, -1)) if self.whole is None else self.whole.mean(x)
        return self.linear_layer(mean).softmax(dim=-1)


class PromptInPrompt(SeesWhole, PromptBankModule):
    """The universal prompt of a level: a degradation-aware prompt put into a basic restoration prompt.

    Two prompts are learned: the degradation-aware prompt `detask_prompt_param`, a vector per degradation, and the basic
    restoration prompt `low_prompt_param`, one for all images. The first is weighted, multiplied by the features so
    that it depends on the image, and put into the second by an attention (`LGM`, the prompt-to-prompt interaction).

    With fewer feature channels than prompt channels the product has zeros after the features' channels, and the
    degradation-aware prompt gets no gradient there. In the released configuration that is a quarter of it.

    Args:
        prompt_dim: D, a multiple of num_heads and at least twice as large.
        num_degradations: T.
        prompt_size: S, at least 2: height and width of the stored prompts.
        num_heads: h of the attention between the prompts.
        ffn_expansion_factor, bias, layer_norm_type: of that attention's block, see `PromptToPrompt`.

    Examples:
        >>> from promptir_basicsr.archs import PromptInPrompt
        >>> block = PromptInPrompt(prompt_dim=8, num_degradations=3, prompt_size=4)
        >>> block(torch.rand(2, 8, 10, 12), torch.eye(3)[:2]).shape  # features, weights of the degradations
        torch.Size([2, 8, 10, 12])
    """

    # A network for more degradations can start from the weights of one for fewer.
    growable_axes = {'degradations': {'detask_prompt_param': 1}}

    def __init__(
        self,
        prompt_dim: int,
        num_degradations: int,
        prompt_size: int,
        num_heads: int = 2,
        ffn_expansion_factor: float = 2.66,
        bias: bool = False,
        layer_norm_type: str = 'WithBias',
    ) -> None:
        super().__init__()
        self.detask_prompt_param = nn.Parameter(torch.randn(1, num_degradations, prompt_dim, 1, 1))
        self.low_prompt_param = nn.Parameter(torch.randn(1, prompt_dim, prompt_size, prompt_size))
        self.LGM = PromptToPrompt(prompt_dim, num_heads, ffn_expansion_factor, bias, layer_norm_type)
        self.outconv = nn.Conv2d(prompt_dim, prompt_dim, 3, padding=1, bias=False)

    def forward(self, x: Tensor, weights: Tensor, strength: float | Tensor = 1.0) -> Tensor:
        """Return the universal prompt for the features x.

        Args:
            x: (B, C, H, W).
            weights: (B, T), with rows that sum to 1.
            strength: strength of the degradation-aware prompt in the basic one, as for `PromptToPrompt`.

        Returns:
            (B, D, H, W).
        """
        prompt = self.LGM(self.low_prompt_param, self.degradation_prompt(x, weights), strength)
        if self.whole is not None:
            return self.whole.resized(prompt, x.shape[-2:], self.outconv)
        return self.outconv(F.interpolate(prompt, size=x.shape[-2:], mode='bilinear', align_corners=False))

    def degradation_prompt(self, x: Tensor, weights: Tensor) -> Tensor:
        """Return the degradation-aware prompt, multiplied by the features x: (B, C, H, W); weights: (B, T).

        Returns (B, D, S, S).
        """
        size = self.low_prompt_param.shape[-2:]
        if self.whole is None:
            features = F.interpolate(x, size=size, mode='bilinear', align_corners=False)
        else:
            features = self.whole.sample(x, size)
        features = fit_channels(features, self.low_prompt_param.shape[1])
        # A mean over all degradations, not a sum: one of five degradations results in a fifth of its vector.
        vector = (weights[:, :, None, None, None] * self.detask_prompt_param).mean(dim=1)
        return vector * features


class PromptToPrompt(Formulated, nn.Module):
    """Put one prompt into another: z = b + CA(LN b, LN d), then z + GDFN(LN z).

    Args:
        dim: D, a multiple of num_heads and at least twice as large.
        num_heads: h.
        ffn_expansion_factor: ratio of the hidden width of the feed-forward network to D.
        bias: whether the convolutions have biases.
        layer_norm_type: 'WithBias' or 'BiasFree'.

    Examples:
        >>> from promptir_basicsr.archs import PromptToPrompt
        >>> block = PromptToPrompt(dim=8, num_heads=2, ffn_expansion_factor=2, bias=False, layer_norm_type='WithBias')
        >>> block(torch.rand(1, 8, 6, 6), torch.rand(1, 8, 6, 6)).shape
        torch.Size([1, 8, 6, 6])
    """

    sees_prompts_alone = True  # the attention is not over the pixels of an image

    def __init__(self, dim: int, num_heads: int, ffn_expansion_factor: float, bias: bool, layer_norm_type: str) -> None:
        super().__init__()
        self.norm11 = LayerNorm2d(dim, layer_norm_type)
        self.norm12 = LayerNorm2d(dim, layer_norm_type)
        self.attn = CrossAttention(dim, num_heads, bias)
        self.norm2 = LayerNorm2d(dim, layer_norm_type)
        self.ffn = GDFN(dim, ffn_expansion_factor, bias)

    def forward(self, basic: Tensor, degradation: Tensor, strength: float | Tensor = 1.0) -> Tensor:
        """Put a degradation-aware prompt into the basic prompt.

        The strength multiplies the output of the attention. Multiplying the degradation-aware prompt itself would have
        almost no effect, because the normalisation removes its scale.

        Args:
            basic: (1, D, S, S) for all images, or (B, D, S, S).
            degradation: (B, D, S, S).
            strength: 1 as trained, 0 for only the basic prompt; a tensor has shape (B, 1, 1, 1).

        Returns:
            (B, D, S, S).
        """
        if self.fast:
            return blocks.prompt_to_prompt(self, basic, degradation, strength)
        z = basic + strength * self.attn(self.norm11(basic), self.norm12(degradation))
        return z + self.ffn(self.norm2(z))


class PromptToFeature(nn.Module):
    """Modulation of features by the prompt of their level.

    | interaction | effect |
    |:--|:--|
    | topm | the features attend to the prompt, each channel to its most similar ones: `PromptCrossBlock` |
    | cross | the same with an ordinary softmax |
    | gate | x * gate + shift, both convolutions of the prompt: `ConvGate` |
    | promptir_gate | the same, both from features and prompt mixed by a Transformer block: `TransformerGate` |

    The cross blocks output normalised features and are not initialised to the identity. To preserve the output of a
    pretrained backbone use `residual`: x + alpha P2F(x, prompt), where alpha is learned and initially 0.

    Args:
        feature_dim: C. The Transformer gate needs a multiple of num_heads.
        prompt_dim: D, any relation to C; a multiple of num_heads. A head needs at least two channels with an
            attention, at least three with 'topm'.
        interaction: one of the above.
        num_heads: h of the attention.
        ffn_expansion_factor: ratio of hidden to input width of the feed-forward network.
        bias: whether the convolutions have biases.
        layer_norm_type: 'WithBias' or 'BiasFree'.
        residual: whether the modulated features are added to the features.

    Raises:
        OptionError: the interaction is unknown.

    Examples:
        >>> from promptir_basicsr.archs import PromptToFeature
        >>> block = PromptToFeature(feature_dim=8, prompt_dim=12)
        >>> block(torch.rand(1, 8, 6, 6), torch.rand(1, 12, 6, 6)).shape
        torch.Size([1, 8, 6, 6])
    """

    def __init__(
        self,
        feature_dim: int,
        prompt_dim: int,
        interaction: str = 'topm',
        num_heads: int = 4,
        ffn_expansion_factor: float = 2.66,
        bias: bool = False,
        layer_norm_type: str = 'WithBias',
        residual: bool = False,
    ) -> None:
        super().__init__()
        check_interaction('PromptToFeature', interaction)
        self.interaction = interaction
        self.alpha = nn.Parameter(torch.zeros(1)) if residual else None
        if interaction == 'gate':
            self.gate: nn.Module = ConvGate(feature_dim, prompt_dim, bias)
        elif interaction == 'promptir_gate':
            self.gate = TransformerGate(feature_dim, prompt_dim, num_heads, ffn_expansion_factor, bias, layer_norm_type)
        else:
            attention = TopMCrossAttention if interaction == 'topm' else CrossAttention
            self.prompt_transformer_cross = PromptCrossBlock(
                feature_dim,
                prompt_dim,
                attention(prompt_dim, num_heads, bias),
                ffn_expansion_factor,
                bias,
                layer_norm_type,
            )

    def forward(self, x: Tensor, prompt: Tensor) -> Tensor:
        """Modulate x: (B, C, H, W) by prompt: (B, D, H, W). Returns (B, C, H, W)."""
        modulate = self.prompt_transformer_cross if self.interaction in ('topm', 'cross') else self.gate
        if self.alpha is None:
            return modulate(x, prompt)
        return x + self.alpha * modulate(x, prompt)


class PromptCrossBlock(Formulated, nn.Module):
    """Attention of features to a prompt: a = LN x + CA(LN x, LN prompt), then a + GDFN(LN a), whose halves gate each
    other.

    The attention has the width of the prompt. Narrower features are padded with zeros and reduced afterwards; the
    channels of wider features beyond the prompt's width bypass the attention.

    Only the normalised form of the features is passed on: x and 10 x have the same result.

    Args:
        attention: called with (B, D, H, W) features and prompt; returns the same shape.
        feature_dim, prompt_dim, ffn_expansion_factor, bias, layer_norm_type: as for `PromptToFeature`.
    """

    def __init__(
        self,
        feature_dim: int,
        prompt_dim: int,
        attention: nn.Module,
        ffn_expansion_factor: float,
        bias: bool,
        layer_norm_type: str,
    ) -> None:
        super().__init__()
        self.norm11 = LayerNorm2d(feature_dim, layer_norm_type)
        self.norm12 = LayerNorm2d(prompt_dim, layer_norm_type)
        self.attn = attention
        if feature_dim < prompt_dim:
            self.reduce_channel = nn.Conv2d(prompt_dim, feature_dim, 1, bias=bias)
        self.norm2 = LayerNorm2d(feature_dim, layer_norm_type)
        self.ffn = GDFN(feature_dim, ffn_expansion_factor, bias, dual=True)

    def forward(self, x: Tensor, prompt: Tensor) -> Tensor:
        """Modulate x: (B, C, H, W) by prompt: (B, D, H, W). Returns (B, C, H, W)."""
        if self.fast:
            return blocks.prompt_cross_block(self, x, prompt)
        x, prompt = self.norm11(x), self.norm12(prompt)
        width, prompt_width = x.shape[1], prompt.shape[1]
        y = fit_channels(x, prompt_width)
        y = y + self.attn(y, prompt)
        if width < prompt_width:
            y = self.reduce_channel(y)
        elif width > prompt_width:
            y = torch.cat([y, x[:, prompt_width:]], dim=1)
        return y + self.ffn(self.norm2(y))


class CrossAttention(TransposedAttention):
    """Transposed attention with queries from one input, keys and values from another: channels attend to channels.

    Args:
        dim: D, a multiple of num_heads and at least twice as large.
        num_heads: h.
        bias: whether the convolutions have biases.
    """

    def __init__(self, dim: int, num_heads: int, bias: bool) -> None:
        super().__init__(dim, num_heads)
        self.kv = nn.Conv2d(dim, 2 * dim, 1, bias=bias)
        self.kv_dwconv = nn.Conv2d(2 * dim, 2 * dim, 3, padding=1, groups=2 * dim, bias=bias)
        self.q = nn.Conv2d(dim, dim, 1, bias=bias)
        self.q_dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=bias)
        self.project_out = nn.Conv2d(dim, dim, 1, bias=bias)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        """Attend from x: (B, D, H, W) or (1, D, H, W) to other: (B, D, H, W). Returns (B, D, H, W)."""
        q = self.q_dwconv(self.q(x))
        k, v = self.kv_dwconv(self.kv(other)).chunk(2, dim=1)
        return self.project_out(self.mixed(q, k, v))


class TopMCrossAttention(CrossAttention):
    """Cross attention to only the most similar channels, in four selections of different sizes.

    Each row of the similarity is cut down to its m largest entries before the softmax, for m of 1/2, 2/3, 3/4 and 4/5
    of a head's channels (rounded down). The four are added with learned factors, `attn1` to `attn4`, initially 0.2.

    Args:
        dim: D, a multiple of num_heads and at least three times as large, so that a selection has a choice.
        num_heads, bias: as for `CrossAttention`.
    """

    def __init__(self, dim: int, num_heads: int, bias: bool) -> None:
        super().__init__(dim, num_heads, bias)
        assert dim // num_heads >= 3, f'{dim} channels in {num_heads} heads are too few for the top-m selection'
        self.attn1, self.attn2, self.attn3, self.attn4 = (nn.Parameter(torch.full((1,), 0.2)) for _ in TOP_RATIOS)

    def attention(self, similarity: Tensor) -> Tensor:
        """Return the attention (B, h, c, c) of similarity; rows sum to the sum of the four factors."""
        factors = (self.attn1, self.attn2, self.attn3, self.attn4)
        return top_m_attention(similarity, top_counts(similarity.shape[-1]), factors)


def top_m_attention(similarity: Tensor, counts: Sequence[int], factors: Sequence[Tensor]) -> Tensor:
    """Sum factor * softmax over the m largest entries of each row, for each m of `counts` and its factor.

    similarity: (..., c). Returns (..., c); 0 for entries that are never among the largest.
    """
    largest, places = similarity.topk(max(counts), dim=-1)
    chosen = [
        F.pad(factor * largest[..., :m].softmax(dim=-1), (0, largest.shape[-1] - m))
        for m, factor in zip(counts, factors, strict=True)
    ]
    total = torch.stack(chosen).sum(dim=0)
    return total.new_zeros(similarity.shape).scatter(-1, places, total)


def top_counts(channels: int) -> list[int]:
    """Return how many channels of a head each of the four selections keeps."""
    return [channels * part // whole for part, whole in TOP_RATIOS]


class ConvGate(nn.Module):
    """x * sigmoid(gate) + shift, where gate and shift are convolutions of the prompt."""

    def __init__(self, feature_dim: int, prompt_dim: int, bias: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(prompt_dim, prompt_dim, 3, padding=1, bias=bias)
        self.conv2 = nn.Conv2d(prompt_dim, feature_dim, 3, padding=1, bias=bias)
        self.conv3 = nn.Conv2d(prompt_dim, feature_dim, 3, padding=1, bias=bias)

    def forward(self, x: Tensor, prompt: Tensor) -> Tensor:
        """Modulate x: (B, C, H, W) by prompt: (B, D, H, W). Returns (B, C, H, W)."""
        prompt = self.conv1(prompt)
        return x * self.conv2(prompt).sigmoid() + self.conv3(prompt)


class TransformerGate(nn.Module):
    """x * sigmoid(gate) + shift, where gate and shift are convolutions of features and prompt mixed by a block."""

    def __init__(
        self,
        feature_dim: int,
        prompt_dim: int,
        num_heads: int,
        ffn_expansion_factor: float,
        bias: bool,
        layer_norm_type: str,
    ) -> None:
        super().__init__()
        width = feature_dim + prompt_dim
        self.block = TransformerBlock(width, num_heads, ffn_expansion_factor, bias, layer_norm_type)
        self.gate = nn.Conv2d(width, feature_dim, 3, padding=1, bias=bias)
        self.shift = nn.Conv2d(width, feature_dim, 1, bias=bias)

    def forward(self, x: Tensor, prompt: Tensor) -> Tensor:
        """Modulate x: (B, C, H, W) by prompt: (B, D, H, W). Returns (B, C, H, W)."""
        mixed = self.block(torch.cat([x, prompt], dim=1))
        return x * self.gate(mixed).sigmoid() + self.shift(mixed)


def fit_channels(x: Tensor, width: int) -> Tensor:
    """Crop or zero-pad the channels of x: (B, C, H, W) to `width`."""
    if x.shape[1] >= width:
        return x[:, :width]
    return F.pad(x, (0, 0, 0, 0, 0, width - x.shape[1]))


def check_interaction(network: str, interaction: str) -> None:
    """Raise OptionError unless `interaction` is one of INTERACTIONS."""
    if interaction not in INTERACTIONS:
        raise argument_error(network, 'interaction', unknown_name('interaction', interaction, INTERACTIONS))
