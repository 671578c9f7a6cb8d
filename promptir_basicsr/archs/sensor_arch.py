"""DegradationSensor: a classifier of the degradation of an image.

PIP (arXiv 2312.05038) uses "degradation-aware models" where no user provides the degradation; the released program
trains a ResNet-34 of Fourier units (20 M parameters, sides must be multiples of 32). This package has a new design:
degradations show in the finest detail and in the statistics of the whole image rather than in its content, so the
network uses those.

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

_LEAST_SIDE = 16  # smaller images are padded to it by repeating their border
_FINE_SCALES = 3
_EPS = 1e-4  # a fortieth of a grey level of 255: below the resolution of 8-bit images


@register(ARCH_REGISTRY)
class DegradationSensor(nn.Module):
    """Classify the degradation of images of any size.

    A stem at full size processes the image and its high-pass (the image minus a 3x3 mean); strided stages follow. The
    classifier uses mean and deviation over all pixels of the features of each stage, so later stages do not average
    fine texture away, and statistics of the image itself: `image_statistics`. Without batch normalisation, the result
    of an image does not depend on the batch.

    The image is first rounded to 8 bits, as in files. Some synthetic degradations produce finer values than others,
    and the sensor would learn that instead of the degradation.

    Args:
        num_degradations: T, number of degradations; labels are 0 to T - 1.
        dim: D, features at full size; 2 D, 4 D and 4 D in the stages.
        num_blocks: residual blocks in each of the three stages.
        inp_channels: channels of the image.
        degradations: names by label. Default for T = 5: denoise, derain, dehaze, deblur, lowlight.

    Raises:
        OptionError: an argument is not allowed; the message names it and says what is.

    Examples:
        >>> from promptir_basicsr.archs import DegradationSensor
        >>> sensor = DegradationSensor(num_degradations=3, dim=8)
        >>> sensor.probabilities(torch.rand(2, 3, 16, 16)).shape
        torch.Size([2, 3])
    """

    scale = 1
    size_multiple = 1
    takes_degradation = False
    # A sensor for more degradations can start from the weights of one for fewer.
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
            ValueError: the shape of x is wrong.
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
        """Return the probabilities of the degradations, (B, T) with rows that sum to 1, for x: (B, 3, H, W)."""
        return self(x).softmax(dim=1)


class SensorBlock(nn.Module):
    """Residual block: depthwise 3x3 convolution, normalisation, expansion to twice the width and back."""

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
    """Clamp x to [0, 1] and round to 256 levels, with the gradient of the identity."""
    levels = (x.detach().clamp(0, 1) * 255).round() / 255
    return x + (levels - x.detach()) if x.requires_grad else levels


def enlarge(x: Tensor) -> Tensor:
    """Pad x: (B, C, H, W) to sides of at least 16 by repeating its border."""
    bottom, right = (max(_LEAST_SIDE - side, 0) for side in x.shape[-2:])
    small = torch.compiler.is_compiling() or bottom or right  # a graph for all sizes cannot check the size
    return F.pad(x, (0, right, 0, bottom), mode='replicate') if small else x


def high_pass(x: Tensor) -> Tensor:
    """Subtract the mean of the surrounding 3x3 pixels from x: (B, C, H, W)."""
    return x - F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode='replicate'), 3, stride=1)


def mean_and_deviation(x: Tensor) -> Tensor:
    """Return mean and log deviation over the pixels of each channel: (B, C, H, W) -> (B, 2 C)."""
    variance, mean = torch.var_mean(x, dim=(-2, -1), correction=0)
    return torch.cat([mean, 0.5 * torch.log(variance + _EPS**2)], dim=1)


def image_statistics(x: Tensor) -> Tensor:
    """Return statistics of whole images that distinguish degradations.

    Mean and deviation of each channel (darkness, contrast) and of the dark channel, the smallest value of 7x7 pixels,
    which haze raises; and at three scales the logarithms of mean absolute value and root mean square of `high_pass`,
    which separate noise, sharp and blurred images, and whose difference detects streaks.

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
    """Return how many numbers `image_statistics` returns for an image of that many channels."""
    return 2 * channels + 2 + 2 * channels * _FINE_SCALES
