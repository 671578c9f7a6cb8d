"""PromptIR: one network for several degradations, told apart by prompts that it learns.

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

    All widths follow from `dim`. Lists are as good as tuples.

    Args:
        inp_channels: channels of the degraded image.
        out_channels: channels of the restored image; the same number, because the network adds its output to its input.
        dim: feature channels at full size, a multiple of 8.
        num_blocks: Transformer blocks at levels 1 to 4, in the encoder; the decoder repeats levels 3 to 1.
        num_refinement_blocks: blocks after the decoder, at full size.
        heads: attention heads at levels 1 to 4.
        ffn_expansion_factor: hidden width of the feed-forward networks over their input width.
        bias: whether the convolutions of the Transformer blocks, the 1x1 convolutions between stages and the output
            convolution have biases.
        layer_norm_type: 'WithBias' or 'BiasFree'.
        num_prompts: prompts in the bank of a level.
        prompt_sizes: height and width of the prompts of levels 1 to 3.
        prompts: False gives the backbone without any prompt, for ablations.

    Raises:
        OptionError: an argument is not allowed; the message names it and says what is.
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
        hint = '. The paper has 5; for a network without prompts set prompts to False.'
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
            degradation: ignored. PromptIR is blind; the argument is there because prompted networks share this call.

        Returns:
            (B, 3, H, W), RGB, not clamped.

        Raises:
            ValueError: x has another shape; the message says to what size to pad it.
        """
        features = self.decoder_level1(self._features(x))
        return self.output(self.refinement(features)) + x

    def prompt_weights(self, x: Tensor, degradation: Any = None) -> dict[str, Tensor]:
        """How much of each prompt x is given, level by level (the softmax in equation 2 of the paper).

        Args:
            x: (B, 3, H, W) as for `forward`.
            degradation: ignored, as in `forward`.

        Returns:
            (B, num_prompts) for 'level3', 'level2' and 'level1', in the order in which features meet the prompts;
            each row is >= 0 and of sum 1.

        Raises:
            ValueError: the network has no prompts, or x has a shape that `forward` refuses.
        """
        if not self.prompts:
            raise ValueError(
                'PromptIR: built with prompts=False, so it has no prompt weights. Build it with prompts=True.'
            )
        weights: dict[str, Tensor] = {}
        self._features(x, weights)
        return weights

    def prompt_vectors(self) -> dict[str, Tensor]:
        """The prompts themselves, level by level, each as one vector: what a loss of prompts acts on.

        Returns:
            (num_prompts, prompt channels * prompt size^2) for 'level3', 'level2' and 'level1'.

        Raises:
            ValueError: the network has no prompts.
        """
        if not self.prompts:
            raise ValueError('PromptIR: built with prompts=False, so it has no prompts. Build it with prompts=True.')
        return {f'level{level}': getattr(self, f'prompt{level}').prompt_param[0].flatten(1) for level in (3, 2, 1)}

    def _features(self, x: Tensor, weights: dict[str, Tensor] | None = None) -> Tensor:
        """The image x: (B, 3, H, W) as (B, 2 dim, H, W), what the last decoder stage gets; fills in `weights`."""
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
        """The prompt block of a level (section 3.1): generate a prompt from the features, then mix the two."""
        if not self.prompts:
            return self.reduce_noise_level3(features) if level == 3 else features
        generate = getattr(self, f'prompt{level}')
        interact = getattr(self, f'noise_level{level}')
        reduce = getattr(self, f'reduce_noise_level{level}')
        if weights is not None:
            weights[f'level{level}'] = generate.weights(features)
        return reduce(interact(torch.cat([features, generate(features)], dim=1)))

    def released_state_dict(self) -> dict[str, Tensor]:
        """The weights with the names and shapes of the authors' checkpoints.

        These hold six tensors that never take part in the computation; here they are zeros.

        Raises:
            ValueError: the network has no prompts; the authors' layout has no room for that.
        """
        if not self.prompts:
            raise ValueError('PromptIR: built with prompts=False; the released layout is only for prompts=True.')
        return self.with_unused(self.state_dict())

    def unused_shapes(self) -> dict[str, tuple[int, int, int, int]]:
        """Names and shapes of six tensors: 215,296 numbers at dim 48."""
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
    """Prompt channels at levels 1 to 3: 64, 128 and 320 for the paper's dim of 48, always divisible into heads."""
    level1, level2, level3 = (4 * round(dim * ratio / 4) for ratio in (4 / 3, 8 / 3, 20 / 3))
    return level1, level2, level3
