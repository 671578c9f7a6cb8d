"""DegradationSensor: what kind of degradation an image has, told from its pixels.

PIP (arXiv 2312.05038) hands its restorer over to "degradation-aware models" where no person says what is wrong with an
image; the released program trains a ResNet-34 of Fourier units for it (20 M parameters, sides of multiples of 32 only).
This is a network of our own: degradations show in the finest pixels and in the statistics of the whole image rather
than in what the image depicts, so it looks there.

Shapes: B batch, C channels, H W height and width, T degradations, D `dim`.
"""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from promptir_basicsr.archs.layers.arguments import check_image, check_whole
from promptir_basicsr.archs.layers.conditioning import check_names
from promptir_basicsr.archs.layers.restormer import LayerNorm2d
from promptir_basicsr.core.registry import register

_LEAST_SIDE = 16  # smaller images are continued by their border up to it
_FINE_SCALES = 3
_EPS = 1e-4  # a fortieth of a grey level of 255: below what an image of 8 bits can show


@register(ARCH_REGISTRY)
class DegradationSensor(nn.Module):
    """Classify the degradation of images of any size.

    A stem at full size sees the image and what a 3x3 mean leaves of it; strided stages follow. Of the features of each,
    mean and deviation over all pixels are kept, so that fine texture reaches the classifier without being averaged away
    by later stages. Beside them stand statistics of the image itself: `image_statistics`. There is no batch
    normalisation, and an image gets the same answer in any batch.

    The image is first rounded to 8 bits, as files hold it. Some synthetic degradations leave finer values than others,
    and the sensor would learn that instead of the degradation.

    Args:
        num_degradations: T, how many it tells apart; labels go from 0 to T - 1.
        dim: D, features at full size; 2 D, 4 D and 4 D in the stages.
        num_blocks: residual blocks in each of the three stages.
        inp_channels: colours of the image.
        degradations: T names, by id. Default: for five denoise, derain, dehaze, deblur, lowlight.

    Raises:
        OptionError: an argument is not allowed; the message names it and says what is.
    """

    scale = 1
    size_multiple = 1
    takes_degradation = False
    # A sensor of more degradations can start from the weights of one of fewer.
    growable_axes = {'degradations': {'classifier.weight': 0, 'classifier.bias': 0}}

    def __init__(
        self,
        num_degradations: int = 5,
        dim: int = 32,
        num_blocks: int = 1,
        inp_channels: int = 3,
        degradations: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.degradations = check_names('DegradationSensor', num_degradations, degradations)
        for name, value, least in (('dim', dim, 4), ('num_blocks', num_blocks, 0), ('inp_channels', inp_channels, 1)):
            check_whole('DegradationSensor', name, value, least)
        self.num_degradations = num_degradations
        self.inp_channels = inp_channels
        widths = (dim, 2 * dim, 4 * dim, 4 * dim)
        self.stem = nn.Sequential(nn.Conv2d(2 * inp_channels, dim, 3, padding=1), nn.GELU())
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, width, 3, stride=2, padding=1),
                LayerNorm2d(width),
                nn.GELU(),
                *(SensorBlock(width) for _ in range(num_blocks)),
            )
            for before, width in itertools.pairwise(widths)
        )
        described = 2 * sum(widths) + statistics_count(inp_channels)
        self.describe = nn.Sequential(nn.LayerNorm(described), nn.Linear(described, widths[-1]), nn.GELU())
        self.classifier = nn.Linear(widths[-1], num_degradations)

    def forward(self, x: Tensor) -> Tensor:
        """Classify x.

        Args:
            x: (B, 3, H, W), RGB, [0, 1], of any size.

        Returns:
            (B, T) logits.

        Raises:
            ValueError: x has another shape.
        """
        check_image('DegradationSensor', x, self.inp_channels, self.size_multiple)
        x = enlarge(to_levels(x))
        parts = [image_statistics(x)]
        features = self.stem(torch.cat([2 * x - 1, 8 * high_pass(x)], dim=1))
        parts.append(mean_and_deviation(features))
        for stage in self.stages:
            features = stage(features)
            parts.append(mean_and_deviation(features))
        return self.classifier(self.describe(torch.cat(parts, dim=1)))

    def probabilities(self, x: Tensor) -> Tensor:
        """How likely each degradation is: (B, T), each row of sum 1, for x: (B, 3, H, W)."""
        return self(x).softmax(dim=1)


class SensorBlock(nn.Module):
    """x + a small network of each pixel and its neighbours: depthwise 3x3, normalisation, twice the width, back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, groups=width),
            LayerNorm2d(width),
            nn.Conv2d(width, 2 * width, 1),
            nn.GELU(),
            nn.Conv2d(2 * width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W). Returns (B, C, H, W)."""
        return x + self.body(x)


def to_levels(x: Tensor) -> Tensor:
    """x clamped to [0, 1] and rounded to 256 levels; its gradient is that of x."""
    levels = (x.detach().clamp(0, 1) * 255).round() / 255
    return x + (levels - x.detach()) if x.requires_grad else levels


def enlarge(x: Tensor) -> Tensor:
    """x: (B, C, H, W), continued by its border up to sides of 16."""
    bottom, right = (max(_LEAST_SIDE - side, 0) for side in x.shape[-2:])
    small = torch.compiler.is_compiling() or bottom or right  # a graph for all sizes cannot ask
    return F.pad(x, (0, right, 0, bottom), mode='replicate') if small else x


def high_pass(x: Tensor) -> Tensor:
    """x less the mean of 3x3 pixels around each; (B, C, H, W)."""
    return x - F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode='replicate'), 3, stride=1)


def mean_and_deviation(x: Tensor) -> Tensor:
    """Over the pixels of each channel, the deviation as a logarithm: (B, C, H, W) -> (B, 2 C)."""
    variance, mean = torch.var_mean(x, dim=(-2, -1), correction=0)
    return torch.cat([mean, 0.5 * torch.log(variance + _EPS**2)], dim=1)


def image_statistics(x: Tensor) -> Tensor:
    """Statistics of whole images in which degradations differ.

    Of each colour mean and deviation (darkness, contrast); the same of the dark channel, the smallest colour of 7x7
    pixels, which haze lifts; and at three scales the logarithms of the mean size of what a 3x3 mean leaves and of its
    root mean square, which tell noise, sharp images and blurred ones apart, and streaks by the two's difference.

    Args:
        x: (B, C, H, W), [0, 1].

    Returns:
        (B, `statistics_count(C)`).
    """
    dark = -F.max_pool2d(-x.amin(dim=1, keepdim=True), 7, stride=2, padding=3)
    parts = [mean_and_deviation(x), mean_and_deviation(dark)]
    for scale in range(_FINE_SCALES):
        fine = high_pass(x if scale == 0 else F.avg_pool2d(x, 2**scale))
        size, power = fine.abs().mean(dim=(-2, -1)), fine.square().mean(dim=(-2, -1))
        parts += [torch.log(size + _EPS), 0.5 * torch.log(power + _EPS**2)]
    return torch.cat(parts, dim=1)


def statistics_count(channels: int) -> int:
    """How many numbers `image_statistics` gives for an image of that many colours."""
    return 2 * channels + 2 + 2 * channels * _FINE_SCALES
