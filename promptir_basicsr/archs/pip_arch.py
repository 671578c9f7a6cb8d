"""PIPRestormer: one network for several degradations; a label or a sensor selects which.

Source: Li, Lei, Ma, Zhang, Shan, "Prompt-In-Prompt Learning for Universal Image Restoration" (arXiv 2312.05038), on the
backbone of Restormer, as in the released program. An independent implementation with the released parameter names.

Shapes: B batch, H W height and width, T degradations. `dim` features at full size; a level has half the size of the one
above it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from promptir_basicsr.archs.layers.arguments import check_backbone, check_ends
from promptir_basicsr.archs.layers.conditioning import SENSOR_PREFIX, ConditionedNetwork, PromptContext
from promptir_basicsr.archs.layers.prompts import PromptInPrompt, PromptToFeature, check_interaction
from promptir_basicsr.archs.layers.restormer import Backbone
from promptir_basicsr.archs.layers.taps import check_prompts
from promptir_basicsr.core.registry import register

PROMPT_HEADS = 2  # of the attention between the two prompts, at every level
INTERACTION_HEADS = 4  # of the attention of features to their prompt, at every level


@register(ARCH_REGISTRY)
class PIPRestormer(Backbone, ConditionedNetwork):
    """PIP on the three skip connections of Restormer; the defaults are the released program's.

    Prompts modulate the skips to the decoder; the encoder uses unmodulated features. All widths derive from `dim`.
    Lists and tuples are both accepted.

    Args:
        inp_channels: channels of the degraded image.
        out_channels: channels of the restored image; must equal inp_channels, because the input is added to the output.
        dim: feature channels at full size, a multiple of 8.
        num_blocks: Transformer blocks at levels 1 to 4, in the encoder; the decoder repeats levels 3 to 1.
        num_refinement_blocks: blocks after the decoder, at full size.
        heads: attention heads at levels 1 to 4.
        ffn_expansion_factor: ratio of hidden to input width of the feed-forward networks.
        bias: whether the convolutions of the blocks, the 1x1 convolutions between stages and the output convolution
            have biases.
        layer_norm_type: 'WithBias' or 'BiasFree'.
        num_degradations: T, number of degradations; labels are 0 to T - 1.
        degradations: names by label. Default for T = 5: denoise, derain, dehaze, deblur, lowlight.
        prompt_dims: prompt channels at levels 1 to 3; for 'topm' multiples of 4 of at least 12. Default: about 4/3 of
            the skips' channels, (64, 128, 256) for the default dim. Above the skips' channels, part of the
            degradation-aware prompt is never used; equal to them, (48, 96, 192), all of it is used.
        prompt_sizes: height and width of the prompts of levels 1 to 3, at least 2.
        interaction: how a prompt modulates features: 'topm' (the paper's selective interaction), 'cross', 'gate' or
            'promptir_gate'; see `PromptToFeature`.
        sensor: `type` and arguments of a network that predicts the degradation if no label is passed, such as
            DegradationSensor. It becomes part of this network but is not trained with it; see `attach_sensor`.
        hard_sensor: use only the sensor's most likely degradation instead of its probabilities.

    Raises:
        OptionError: an argument is not allowed; the message names it and says what is.

    Examples:
        >>> from promptir_basicsr.archs import PIPRestormer
        >>> net = PIPRestormer(dim=8, num_blocks=[1, 1, 1, 1], heads=[1, 1, 1, 1], prompt_sizes=[4, 4, 4])
        >>> net(torch.rand(2, 3, 16, 16), ['derain', 'dehaze']).shape  # one name, or a name for each image
        torch.Size([2, 3, 16, 16])
    """

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
        num_degradations: int = 5,
        degradations: Sequence[str] | None = None,
        prompt_dims: Sequence[int] | None = None,
        prompt_sizes: Sequence[int] = (64, 32, 16),
        interaction: str = 'topm',
        sensor: Mapping[str, Any] | None = None,
        hard_sensor: bool = False,
    ) -> None:
        super().__init__(num_degradations, degradations)
        check_backbone('PIPRestormer', dim, num_blocks, heads, ffn_expansion_factor)
        check_ends('PIPRestormer', inp_channels, out_channels, num_refinement_blocks)
        check_interaction('PIPRestormer', interaction)
        prompt_dims = prompt_widths(dim) if prompt_dims is None else prompt_dims
        widths = [dim * 2**level for level in range(3)]
        check_prompts('PIPRestormer', widths, prompt_dims, prompt_sizes, interaction)
        self.interaction = interaction
        settings = (ffn_expansion_factor, bias, layer_norm_type)
        self.add_encoder(inp_channels, dim, num_blocks, heads, *settings)
        for level in (3, 2, 1):
            width, size = prompt_dims[level - 1], prompt_sizes[level - 1]
            setattr(self, f'prompt{level}', PromptInPrompt(width, num_degradations, size, PROMPT_HEADS, *settings))
            interact = PromptToFeature(widths[level - 1], width, interaction, INTERACTION_HEADS, *settings)
            setattr(self, f'low_prompt_interaction_level{level}', interact)
        self.chnl_reduce3 = nn.Conv2d(8 * dim, 4 * dim, 1, bias=bias)
        self.add_decoder(out_channels, num_blocks, num_refinement_blocks, heads, *settings)
        self.attach_sensor(sensor, hard_sensor)

    def _restore(self, x: Tensor, context: PromptContext | None) -> Tensor:
        y, skip1, skip2, skip3 = self.encode(x)
        y = self.up4_3(self.chnl_reduce3(y))  # (B, 2 dim, H/4, W/4)
        y = torch.cat([y, self._modulate(3, skip3, context)], dim=1)  # (B, 6 dim, H/4, W/4)
        y = self.decoder_level3(self.reduce_chan_level3(y))  # (B, 4 dim, H/4, W/4)

        y = torch.cat([self.up3_2(y), self._modulate(2, skip2, context)], dim=1)  # (B, 4 dim, H/2, W/2)
        y = self.decoder_level2(self.reduce_chan_level2(y))  # (B, 2 dim, H/2, W/2)

        y = torch.cat([self.up2_1(y), self._modulate(1, skip1, context)], dim=1)  # (B, 2 dim, H, W)
        return self.output(self.refinement(self.decoder_level1(y))) + x

    def released_state_dict(self) -> dict[str, Tensor]:
        """Return the weights with the names and shapes of the authors' checkpoints, without those of a sensor.

        The checkpoints contain three unused tensors, which are zeros here.

        Raises:
            ValueError: the interaction is a gate, which has no released layout.
        """
        if self.interaction not in ('topm', 'cross'):
            raise ValueError(
                f"PIPRestormer: built with interaction='{self.interaction}', which has no released layout. Only "
                "'topm' and 'cross' have one."
            )
        own = {name: value for name, value in self.state_dict().items() if not name.startswith(SENSOR_PREFIX)}
        return self.with_unused(own)

    def unused_shapes(self) -> dict[str, tuple[int, int, int, int]]:
        """Return names and shapes of the three unused tensors: 112,896 numbers at dim 48."""
        widths = [self.dim * 2**level for level in range(3)]
        return {
            f'reduce_noise_channel_{level}.weight': (width, width + prompt, 1, 1)
            for level, (width, prompt) in enumerate(zip(widths, prompt_widths(self.dim), strict=True), start=1)
        }


def prompt_widths(dim: int) -> tuple[int, int, int]:
    """Return prompt channels at levels 1 to 3: 64, 128, 256 for the released dim 48, always divisible into heads."""
    level1 = 4 * round(dim / 3)
    return level1, 2 * level1, 4 * level1
