"""PromptIR: one blind network for several degradations, conditioned by learned prompts.

Source: Potlapalli, Zamir, Khan, Khan, "PromptIR: Prompting for All-in-One Blind Image Restoration", NeurIPS 2023
(arXiv 2306.13090), figure 2. An independent implementation; weights released by the authors load into it.

Shapes: B batch, H W height and width. `dim` features at full size; a level has half the size of the one above it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from promptir_basicsr.archs.layers.arguments import (
    check_backbone,
    check_ends,
    check_image,
    check_whole,
    check_whole_numbers,
)
from promptir_basicsr.archs.layers.prompts import PromptGenBlock
from promptir_basicsr.archs.layers.restormer import Backbone, TransformerBlock
from promptir_basicsr.core.registry import register

INTERACTION_HEADS = 4  # of the block that mixes features and prompt, at every level


@register(ARCH_REGISTRY)
class PromptIR(Backbone):
    """The network of the paper, section 3; the defaults are the paper's.

    All widths derive from `dim`. Lists and tuples are both accepted.

    Args:
        inp_channels: channels of the degraded image.
        out_channels: channels of the restored image; must equal inp_channels, because the input is added to the output.
        dim: feature channels at full size, a multiple of 8.
        num_blocks: Transformer blocks at levels 1 to 4, in the encoder; the decoder repeats levels 3 to 1.
        num_refinement_blocks: blocks after the decoder, at full size.
        heads: attention heads at levels 1 to 4.
        ffn_expansion_factor: ratio of hidden to input width of the feed-forward networks.
        bias: whether the convolutions of the Transformer blocks, the 1x1 convolutions between stages and the output
            convolution have biases.
        layer_norm_type: 'WithBias' or 'BiasFree'.
        num_prompts: prompts in the bank of a level.
        prompt_sizes: height and width of the prompts of levels 1 to 3.
        prompts: False builds the backbone without prompts, for ablations.

    Raises:
        OptionError: an argument is not allowed; the message names it and says what is.

    Examples:
        >>> from promptir_basicsr.archs import PromptIR
        >>> net = PromptIR(dim=8, num_blocks=[1, 1, 1, 1], heads=[1, 1, 1, 1], prompt_sizes=[4, 4, 4])
        >>> net(torch.rand(1, 3, 32, 48)).shape
        torch.Size([1, 3, 32, 48])
    """

    takes_degradation = False

    def __init__(
        self,
        inp_channels: int = 3,
        out_channels: int = 3,
        dim: int = 48,
        num_blocks: Sequence[int] = (4, 6, 6, 8),
        num_refinement_blocks: int = 4,
        heads: Sequence[int] = (1, 2, 4, 8),
        ffn_expansion_factor: float = 2.66,
        bias: bool = False,
        layer_norm_type: str = 'WithBias',
        num_prompts: int = 5,
        prompt_sizes: Sequence[int] = (64, 32, 16),
        prompts: bool = True,
    ) -> None:
        super().__init__()
        check_backbone('PromptIR', dim, num_blocks, heads, ffn_expansion_factor)
        check_ends('PromptIR', inp_channels, out_channels, num_refinement_blocks)
        hint = '. The paper uses 5; for a network without prompts set prompts to False.'
        check_whole('PromptIR', 'num_prompts', num_prompts, 1, hint)
        check_whole_numbers('PromptIR', 'prompt_sizes', prompt_sizes, length=3)
        self.prompts = prompts
        settings = (ffn_expansion_factor, bias, layer_norm_type)

        self.add_encoder(inp_channels, dim, num_blocks, heads, *settings)
        if prompts:
            for level, width, reduced in ((3, 8 * dim, 4 * dim), (2, 4 * dim, 4 * dim), (1, 2 * dim, 2 * dim)):
                prompt, size = prompt_widths(dim)[level - 1], prompt_sizes[level - 1]
                setattr(self, f'prompt{level}', PromptGenBlock(prompt, num_prompts, size, feature_dim=width))
                setattr(self, f'noise_level{level}', TransformerBlock(width + prompt, INTERACTION_HEADS, *settings))
                setattr(self, f'reduce_noise_level{level}', nn.Conv2d(width + prompt, reduced, 1, bias=bias))
        else:
            self.reduce_noise_level3 = nn.Conv2d(8 * dim, 4 * dim, 1, bias=bias)
        self.add_decoder(out_channels, num_blocks, num_refinement_blocks, heads, *settings)

    def forward(self, x: Tensor, degradation: Any = None) -> Tensor:
        """Restore x.

        Args:
            x: (B, 3, H, W), RGB, [0, 1]; H and W divisible by size_multiple.
            degradation: ignored, because PromptIR is blind; part of the common signature of prompted networks.

        Returns:
            (B, 3, H, W), RGB, not clamped.

        Raises:
            ValueError: the shape of x is wrong; the message states the size to pad it to.
        """
        features = self.decoder_level1(self._features(x))
        return self.output(self.refinement(features)) + x

    def prompt_weights(self, x: Tensor, degradation: Any = None) -> dict[str, Tensor]:
        """Return the prompt weights of x by level (the softmax in equation 2 of the paper).

        Args:
            x: (B, 3, H, W) as for `forward`.
            degradation: ignored, as in `forward`.

        Returns:
            (B, num_prompts) for 'level3', 'level2' and 'level1', in the order of the forward pass; rows are >= 0 and
            sum to 1.

        Raises:
            ValueError: the network has no prompts, or `forward` does not support the shape of x.
        """
        if not self.prompts:
            raise ValueError(
                'PromptIR: built with prompts=False, so it has no prompt weights. Build it with prompts=True.'
            )
        weights: dict[str, Tensor] = {}
        self._features(x, weights)
        return weights

    def prompt_vectors(self) -> dict[str, Tensor]:
        """Return the prompts of each level as vectors, the input of a loss of prompts.

        Returns:
            (num_prompts, prompt channels * prompt size^2) for 'level3', 'level2' and 'level1'.

        Raises:
            ValueError: the network has no prompts.
        """
        if not self.prompts:
            raise ValueError('PromptIR: built with prompts=False, so it has no prompts. Build it with prompts=True.')
        return {f'level{level}': getattr(self, f'prompt{level}').prompt_param[0].flatten(1) for level in (3, 2, 1)}

    def _features(self, x: Tensor, weights: dict[str, Tensor] | None = None) -> Tensor:
        """Compute the last decoder stage's input, (B, 2 dim, H, W), from x: (B, 3, H, W); fills in `weights`."""
        check_image('PromptIR', x, self.inp_channels, self.size_multiple)
        y, skip1, skip2, skip3 = self.encode(x)
        y = self._interact(3, y, weights)  # (B, 4 dim, H/8, W/8)
        y = torch.cat([self.up4_3(y), skip3], dim=1)  # (B, 6 dim, H/4, W/4)
        y = self.decoder_level3(self.reduce_chan_level3(y))  # (B, 4 dim, H/4, W/4)

        y = self._interact(2, y, weights)
        y = torch.cat([self.up3_2(y), skip2], dim=1)  # (B, 4 dim, H/2, W/2)
        y = self.decoder_level2(self.reduce_chan_level2(y))  # (B, 2 dim, H/2, W/2)

        y = self._interact(1, y, weights)
        return torch.cat([self.up2_1(y), skip1], dim=1)  # (B, 2 dim, H, W)

    def _interact(self, level: int, features: Tensor, weights: dict[str, Tensor] | None) -> Tensor:
        """Apply the prompt block of a level (section 3.1): generate a prompt from the features and mix the two."""
        if not self.prompts:
            return self.reduce_noise_level3(features) if level == 3 else features
        generate = getattr(self, f'prompt{level}')
        interact = getattr(self, f'noise_level{level}')
        reduce = getattr(self, f'reduce_noise_level{level}')
        if weights is not None:
            weights[f'level{level}'] = generate.weights(features)
        return reduce(interact(torch.cat([features, generate(features)], dim=1)))

    def released_state_dict(self) -> dict[str, Tensor]:
        """Return the weights with the names and shapes of the authors' checkpoints.

        The checkpoints contain six unused tensors, which are zeros here.

        Raises:
            ValueError: the network has no prompts, which the authors' layout cannot represent.
        """
        if not self.prompts:
            raise ValueError('PromptIR: built with prompts=False; the released layout requires prompts=True.')
        return self.with_unused(self.state_dict())

    def unused_shapes(self) -> dict[str, tuple[int, int, int, int]]:
        """Return names and shapes of the six unused tensors: 215,296 numbers at dim 48."""
        prompt1, prompt2, prompt3 = prompt_widths(self.dim)
        shapes = {}
        for level, (prompt, reduced) in enumerate(
            [(prompt1, prompt1), (prompt2, prompt2), (prompt3, 2 * prompt2)], start=1
        ):
            width = self.dim * 2 ** (level - 1)
            shapes[f'chnl_reduce{level}.weight'] = (reduced, prompt, 1, 1)
            shapes[f'reduce_noise_channel_{level}.weight'] = (width, width + reduced, 1, 1)
        return shapes


def prompt_widths(dim: int) -> tuple[int, int, int]:
    """Return prompt channels at levels 1 to 3: 64, 128, 320 for the paper's dim 48, always divisible into heads."""
    level1, level2, level3 = (4 * round(dim * ratio / 4) for ratio in (4 / 3, 8 / 3, 20 / 3))
    return level1, level2, level3
