"""PromptIR: one network for several degradations, told apart by prompts that it learns.

Source: Potlapalli, Zamir, Khan, Khan, "PromptIR: Prompting for All-in-One Blind Image Restoration", NeurIPS 2023
(arXiv 2306.13090), figure 2. An independent implementation; weights released by the authors load into it.

Shapes: B batch, H W height and width. `dim` features at full size; a level has half the size of the one above it.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from promptir_basicsr.archs.layers.arguments import (
    check_backbone,
    check_ends,
    check_image,
    check_whole_numbers,
    is_whole,
)
from promptir_basicsr.archs.layers.prompts import PromptGenBlock
from promptir_basicsr.archs.layers.restormer import Downsample, OverlapPatchEmbed, TransformerBlock, Upsample
from promptir_basicsr.core.errors import argument_error
from promptir_basicsr.core.registry import register

INTERACTION_HEADS = 4  # of the block that mixes features and prompt, at every level


@register(ARCH_REGISTRY)
class PromptIR(nn.Module):
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

    scale = 1
    size_multiple = 8
    takes_degradation = False
    levels = ('level3', 'level2', 'level1')

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
        _check_prompts(num_prompts, prompt_sizes)
        self.dim = dim
        self.inp_channels = inp_channels
        self.out_channels = out_channels
        self.prompts = prompts

        width1, width2, width3, width4 = (dim * 2**level for level in range(4))
        block = partial(
            TransformerBlock, ffn_expansion_factor=ffn_expansion_factor, bias=bias, layer_norm_type=layer_norm_type
        )
        conv1x1 = partial(nn.Conv2d, kernel_size=1, bias=bias)

        def stage(width: int, num_heads: int, count: int) -> nn.Sequential:
            return nn.Sequential(*(block(width, num_heads) for _ in range(count)))

        self.patch_embed = OverlapPatchEmbed(inp_channels, width1)
        self.encoder_level1 = stage(width1, heads[0], num_blocks[0])
        self.down1_2 = Downsample(width1)
        self.encoder_level2 = stage(width2, heads[1], num_blocks[1])
        self.down2_3 = Downsample(width2)
        self.encoder_level3 = stage(width3, heads[2], num_blocks[2])
        self.down3_4 = Downsample(width3)
        self.latent = stage(width4, heads[3], num_blocks[3])

        if prompts:
            prompt1, prompt2, prompt3 = prompt_widths(dim)
            self.prompt3 = PromptGenBlock(prompt3, num_prompts, prompt_sizes[2], feature_dim=width4)
            self.noise_level3 = block(width4 + prompt3, INTERACTION_HEADS)
            self.reduce_noise_level3 = conv1x1(width4 + prompt3, width3)
            self.prompt2 = PromptGenBlock(prompt2, num_prompts, prompt_sizes[1], feature_dim=width3)
            self.noise_level2 = block(width3 + prompt2, INTERACTION_HEADS)
            self.reduce_noise_level2 = conv1x1(width3 + prompt2, width3)
            self.prompt1 = PromptGenBlock(prompt1, num_prompts, prompt_sizes[0], feature_dim=width2)
            self.noise_level1 = block(width2 + prompt1, INTERACTION_HEADS)
            self.reduce_noise_level1 = conv1x1(width2 + prompt1, width2)
        else:
            self.reduce_noise_level3 = conv1x1(width4, width3)

        # An upsampling leaves half the channels of what it is given, and the skip connection adds its own.
        self.up4_3 = Upsample(width3)
        self.reduce_chan_level3 = conv1x1(width3 // 2 + width3, width3)
        self.decoder_level3 = stage(width3, heads[2], num_blocks[2])
        self.up3_2 = Upsample(width3)
        self.reduce_chan_level2 = conv1x1(width3 // 2 + width2, width2)
        self.decoder_level2 = stage(width2, heads[1], num_blocks[1])
        self.up2_1 = Upsample(width2)
        self.decoder_level1 = stage(width2, heads[0], num_blocks[0])
        self.refinement = stage(width2, heads[0], num_refinement_blocks)
        self.output = nn.Conv2d(width2, out_channels, 3, padding=1, bias=bias)

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
        features = self._features(x)
        features = self.refinement(self.decoder_level1(features))
        return self.output(features) + x

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
        skip1 = self.encoder_level1(self.patch_embed(x))  # (B, dim, H, W)
        skip2 = self.encoder_level2(self.down1_2(skip1))  # (B, 2 dim, H/2, W/2)
        skip3 = self.encoder_level3(self.down2_3(skip2))  # (B, 4 dim, H/4, W/4)
        y = self.latent(self.down3_4(skip3))  # (B, 8 dim, H/8, W/8)

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
        zeros = self.output.weight.new_zeros
        return {**self.state_dict(), **{name: zeros(shape) for name, shape in unused_shapes(self.dim).items()}}

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        """Load released checkpoints, too: leave out the six tensors that they hold and nothing uses, and no other."""
        unused = {prefix + name for name in unused_shapes(self.dim)}
        used = {name: value for name, value in state_dict.items() if name not in unused}
        super()._load_from_state_dict(used, prefix, *args)


def prompt_widths(dim: int) -> tuple[int, int, int]:
    """Prompt channels at levels 1 to 3: 64, 128 and 320 for the paper's dim of 48, always divisible into heads."""
    level1, level2, level3 = (4 * round(dim * ratio / 4) for ratio in (4 / 3, 8 / 3, 20 / 3))
    return level1, level2, level3


def unused_shapes(dim: int) -> dict[str, tuple[int, int, int, int]]:
    """Names and shapes of the six tensors of a released checkpoint that nothing uses: 215,296 numbers at dim 48."""
    prompt1, prompt2, prompt3 = prompt_widths(dim)
    shapes = {}
    for level, (prompt, reduced) in enumerate(
        [(prompt1, prompt1), (prompt2, prompt2), (prompt3, 2 * prompt2)], start=1
    ):
        width = dim * 2 ** (level - 1)
        shapes[f'chnl_reduce{level}.weight'] = (reduced, prompt, 1, 1)
        shapes[f'reduce_noise_channel_{level}.weight'] = (width, width + reduced, 1, 1)
    return shapes


def _check_prompts(num_prompts: int, prompt_sizes: Sequence[int]) -> None:
    if not is_whole(num_prompts, least=1):
        raise argument_error(
            'PromptIR',
            'num_prompts',
            f'num_prompts is {num_prompts!r}; it must be an integer of at least 1. '
            'The paper has 5; for a network without prompts set prompts to False.',
        )
    check_whole_numbers('PromptIR', 'prompt_sizes', prompt_sizes, length=3)
