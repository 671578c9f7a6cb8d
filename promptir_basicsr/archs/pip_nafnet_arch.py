"""PIPNAFNet: PIP's prompts in NAFNet, a convolutional network without attention over pixels.

Sources: Chen, Chu, Zhang, Sun, "Simple Baselines for Image Restoration", ECCV 2022 (arXiv 2204.04676), section 3 and
figure 3, for the backbone; Li et al., "Prompt-In-Prompt Learning for Universal Image Restoration" (arXiv 2312.05038)
for the prompts; their place in this network is this package's design. An independent implementation; the backbone's
parameter names are those of released NAFNet weights.

Shapes: B batch, C channels, H W height and width, T degradations. `width` features at full size; a level has half the
size and twice the features of the one above it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from promptir_basicsr.archs.layers.arguments import check_whole, check_whole_numbers, is_whole, must_be
from promptir_basicsr.archs.layers.conditioning import ConditionedNetwork, PromptContext
from promptir_basicsr.archs.layers.prompts import PromptInPrompt, PromptToFeature, check_interaction
from promptir_basicsr.archs.layers.restormer import WithBiasNorm
from promptir_basicsr.archs.layers.taps import HEADS, check_prompts, default_width
from promptir_basicsr.core.errors import argument_error
from promptir_basicsr.core.registry import register

LEVELS = 4
PROMPT_NAMES = ('prompt', 'low_prompt_interaction_level')


@register(ARCH_REGISTRY)
class PIPNAFNet(ConditionedNetwork):
    """PIP on the four skip connections of NAFNet; the defaults are those of NAFNet with width 32 for GoPro.

    The decoder adds modulated skips; the encoder uses unmodulated features. Lists and tuples are both accepted.

    Args:
        img_channel: channels of the degraded and the restored image.
        width: feature channels at full size, even.
        middle_blk_num: blocks at the lowest level.
        enc_blk_nums: blocks at levels 1 to 4 of the encoder.
        dec_blk_nums: blocks at levels 4 to 1 of the decoder, in the order of the forward pass, as in NAFNet.
        num_degradations: T, number of degradations; labels are 0 to T - 1.
        degradations: names by label. Default for T = 5: denoise, derain, dehaze, deblur, lowlight.
        prompt_dims: prompt channels at levels 1 to 4. Default: those of the skips, (32, 64, 128, 256) for width 32.
        prompt_sizes: height and width of the prompts of levels 1 to 4.
        interaction: how a prompt modulates features: 'topm', 'cross', 'gate' or 'promptir_gate'; see
            `PromptToFeature`.
        residual: add the modulated skips to the skips with a learned factor that is initially 0, so that the output
            is initially that of NAFNet; for pretrained weights.
        prompts: False builds NAFNet, for ablations.
        sensor: `type` and arguments of a network that predicts the degradation if no label is passed, such as
            DegradationSensor. It becomes part of this network but is not trained with it; see `attach_sensor`.
        hard_sensor: use only the sensor's most likely degradation instead of its probabilities.

    Raises:
        OptionError: an argument is not allowed; the message names it and says what is.

    Examples:
        >>> from promptir_basicsr.archs import PIPNAFNet
        >>> net = PIPNAFNet(width=8, enc_blk_nums=[1, 1, 1, 1], prompt_sizes=[4, 4, 4, 4])
        >>> net(torch.rand(1, 3, 16, 16), {'denoise': 0.5, 'lowlight': 0.5}).shape
        torch.Size([1, 3, 16, 16])
    """

    scale = 1
    size_multiple = 2**LEVELS
    levels = ('level4', 'level3', 'level2', 'level1')

    def __init__(
        self,
        img_channel: int = 3,
        width: int = 32,
        middle_blk_num: int = 1,
        enc_blk_nums: Sequence[int] = (1, 1, 1, 28),
        dec_blk_nums: Sequence[int] = (1, 1, 1, 1),
        num_degradations: int = 5,
        degradations: Sequence[str] | None = None,
        prompt_dims: Sequence[int] | None = None,
        prompt_sizes: Sequence[int] = (64, 32, 16, 8),
        interaction: str = 'topm',
        residual: bool = False,
        prompts: bool = True,
        sensor: Mapping[str, Any] | None = None,
        hard_sensor: bool = False,
    ) -> None:
        super().__init__(num_degradations, degradations)
        check_whole('PIPNAFNet', 'img_channel', img_channel, 1)
        check_whole('PIPNAFNet', 'middle_blk_num', middle_blk_num, 1)
        if not is_whole(width, least=2) or width % 2:
            raise must_be('PIPNAFNet', 'width', width, 'a positive even number, such as 32.')
        check_whole_numbers('PIPNAFNet', 'enc_blk_nums', enc_blk_nums, LEVELS)
        check_whole_numbers('PIPNAFNet', 'dec_blk_nums', dec_blk_nums, LEVELS)
        widths = [width * 2**level for level in range(LEVELS + 1)]
        check_interaction('PIPNAFNet', interaction)
        prompt_dims = [default_width(each, interaction) for each in widths[:-1]] if prompt_dims is None else prompt_dims
        check_prompts('PIPNAFNet', widths[:-1], prompt_dims, prompt_sizes, interaction)
        if sensor is not None and not prompts:
            message = 'a network without prompts does not use a sensor. Omit sensor.'
            raise argument_error('PIPNAFNet', 'prompts', message, 'sensor')
        self.img_channel = self.inp_channels = img_channel
        self.takes_degradation = prompts
        self.prompts = prompts

        self.intro = nn.Conv2d(img_channel, width, 3, padding=1)
        self.ending = nn.Conv2d(width, img_channel, 3, padding=1)
        self.encoders = nn.ModuleList(
            _stage(each, count) for each, count in zip(widths[:-1], enc_blk_nums, strict=True)
        )
        self.downs = nn.ModuleList(nn.Conv2d(each, 2 * each, 2, stride=2) for each in widths[:-1])
        self.middle_blks = _stage(widths[-1], middle_blk_num)
        upwards = widths[::-1]
        self.ups = nn.ModuleList(
            nn.Sequential(nn.Conv2d(each, 2 * each, 1, bias=False), nn.PixelShuffle(2)) for each in upwards[:-1]
        )
        self.decoders = nn.ModuleList(
            _stage(each, count) for each, count in zip(upwards[1:], dec_blk_nums, strict=True)
        )
        for level in range(LEVELS, 0, -1) if prompts else ():
            dim, size = prompt_dims[level - 1], prompt_sizes[level - 1]
            setattr(self, f'prompt{level}', PromptInPrompt(dim, num_degradations, size))
            interact = PromptToFeature(widths[level - 1], dim, interaction, HEADS, residual=residual)
            setattr(self, f'low_prompt_interaction_level{level}', interact)
        self.attach_sensor(sensor, hard_sensor)

    def _restore(self, x: Tensor, context: PromptContext | None) -> Tensor:
        y, skips = self.intro(x), []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            y = encoder(y)
            skips.append(y)  # (B, width, H, W), (B, 2 width, H/2, W/2), ...
            y = down(y)
        y = self.middle_blks(y)  # (B, 16 width, H/16, W/16)
        for level, decoder, up in zip(range(LEVELS, 0, -1), self.decoders, self.ups, strict=True):
            y = decoder(up(y) + self._modulate(level, skips.pop(), context))
        return self.ending(y) + x

    def with_prompts(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Complete weights of NAFNet by this network's prompts; return other weights unchanged."""
        if any(name.startswith(PROMPT_NAMES) for name in weights):
            return dict(weights)
        own = {name: value for name, value in self.state_dict().items() if name.startswith(PROMPT_NAMES)}
        return {**weights, **own}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Load weights of this network, or of NAFNet without changing the prompts."""
        mine = {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}
        state_dict.update({prefix + name: value for name, value in self.with_prompts(mine).items()})
        super()._load_from_state_dict(state_dict, prefix, *args)


class NAFBlock(nn.Module):
    """x + beta f(LN x), then x + gamma g(LN x): convolutions and products, no activation function (figure 3d).

    beta and gamma are vectors over the channels, initially 0.

    Args:
        dim: C.
        expansion: ratio of the channels inside f and g to C, before a gate halves them.

    Examples:
        >>> from promptir_basicsr.archs import NAFBlock
        >>> features = torch.rand(1, 8, 6, 6)
        >>> torch.equal(NAFBlock(8)(features), features)  # until it is trained
        True
    """

    def __init__(self, dim: int, expansion: int = 2) -> None:
        super().__init__()
        wide, half = expansion * dim, expansion * dim // 2
        self.norm1 = ChannelNorm(dim)
        self.conv1 = nn.Conv2d(dim, wide, 1)
        self.conv2 = nn.Conv2d(wide, wide, 3, padding=1, groups=wide)
        self.sg = SimpleGate()
        self.sca = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(half, half, 1))
        self.conv3 = nn.Conv2d(half, dim, 1)
        self.norm2 = ChannelNorm(dim)
        self.conv4 = nn.Conv2d(dim, wide, 1)
        self.conv5 = nn.Conv2d(half, dim, 1)
        self.beta = nn.Parameter(torch.zeros(1, dim, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1, dim, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W). Returns (B, C, H, W)."""
        y = self.sg(self.conv2(self.conv1(self.norm1(x))))
        x = x + self.conv3(y * self.sca(y)) * self.beta  # the simplified channel attention is one factor per channel
        return x + self.conv5(self.sg(self.conv4(self.norm2(x)))) * self.gamma


class SimpleGate(nn.Module):
    """Multiply one half of the channels by the other."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, 2C, H, W). Returns (B, C, H, W)."""
        a, b = x.chunk(2, dim=1)
        return a * b


class ChannelNorm(WithBiasNorm):
    """Layer normalisation over the channels of each pixel, with NAFNet's smaller eps."""

    eps = 1e-6


def _stage(width: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(NAFBlock(width) for _ in range(count)))
