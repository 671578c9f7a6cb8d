"""AirNet: a restorer guided by a degradation map, from an encoder trained by contrastive learning without labels.

Source: Li, Liu, Hu, Wu, Lv, Peng, "All-In-One Image Restoration for Unknown Corruption", CVPR 2022. An independent
implementation; weights released by the authors load into it.

Shapes: B batch, C features, H W height and width, K keys in the queue.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import deform_conv2d

from promptir_basicsr.archs.layers.arguments import check_image, check_whole, must_be
from promptir_basicsr.archs.layers.contrast import SLOPE, ContrastiveEncoder
from promptir_basicsr.archs.layers.formulation import Formulated
from promptir_basicsr.core.registry import register

TAPS = 9  # of a 3x3 kernel
STRIP = 1 << 13  # pixels whose samples are in memory at a time

Deform = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Computes a deformable convolution of x (B, C, H, W) by offset, mask and weight, see `deformed`."""

ENCODER = 'E.E.'
"""Prefix of the names of the encoder's weights; the released names double the letter."""


class Contrasted(NamedTuple):
    """Result of a forward pass with keys in training.

    Attributes:
        restored: (B, 3, H, W), RGB, not clamped; None if only the encoder was run.
        logits: (B, 1 + K), see `Contrast`.
        labels: (B,) int64.
    """

    restored: Tensor | None
    logits: Tensor
    labels: Tensor


@register(ARCH_REGISTRY)
class AirNet(nn.Module):
    """The network of the paper; the defaults are those of the released program.

    It is blind, and accepts images of any size. ContrastiveModel trains it with two crops of every image. Inference
    uses the restorer and the first block of the encoder, 6,329,609 of the 8,930,313 parameters.

    Args:
        img_channel: channels of the degraded and the restored image.
        dim: C, feature channels, at full size throughout.
        num_groups: groups of blocks in the restorer.
        num_blocks: blocks in a group; each has two modules that the degradation map guides.
        queue_length: K, keys of earlier images to contrast with; a multiple of the keys of a training step.
            Released: 256 times the batch size.
        momentum: momentum of the encoder's slowly updated copy.
        temperature: divisor of cosines in the contrastive loss.

    Raises:
        OptionError: an argument is invalid; the message names it and the allowed values.

    Examples:
        >>> from promptir_basicsr.archs import AirNet
        >>> net = AirNet(dim=8, num_groups=1, num_blocks=1, queue_length=16).eval()
        >>> net(torch.rand(1, 3, 15, 21)).shape
        torch.Size([1, 3, 15, 21])
    """

    scale = 1
    size_multiple = 1
    takes_degradation = False

    def __init__(
        self,
        img_channel: int = 3,
        dim: int = 64,
        num_groups: int = 5,
        num_blocks: int = 5,
        queue_length: int = 1280,
        momentum: float = 0.999,
        temperature: float = 0.07,
    ) -> None:
        super().__init__()
        counts = {'img_channel': img_channel, 'dim': dim, 'num_groups': num_groups, 'num_blocks': num_blocks}
        for name, value in {**counts, 'queue_length': queue_length}.items():
            check_whole('AirNet', name, value, 1)
        if isinstance(momentum, bool) or not isinstance(momentum, int | float) or not 0 <= momentum <= 1:
            raise must_be('AirNet', 'momentum', momentum, 'a number from 0 to 1. The paper has 0.999.')
        if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not temperature > 0:
            raise must_be('AirNet', 'temperature', temperature, 'a number above 0. The paper has 0.07.')
        self.img_channel = img_channel
        self.queue_length = queue_length
        self.R = GuidedRestorer(img_channel, dim, num_groups, num_blocks)
        self.E = nn.ModuleDict({'E': ContrastiveEncoder(img_channel, dim, queue_length, momentum, temperature)})

    def forward(
        self, x: Tensor, degradation: Any = None, key: Tensor | None = None, restore: bool = True
    ) -> Tensor | Contrasted:
        """Restore x; in training with keys, also compute the contrastive logits.

        Args:
            x: (B, 3, H, W), RGB, [0, 1], of any size.
            degradation: ignored, because AirNet is blind; part of the common signature of prompted networks.
            key: another crop of each image with the same degradation, like x. Ignored in evaluation.
            restore: False runs only the encoder, for the first stage of training; requires keys.

        Returns:
            (B, 3, H, W), RGB, not clamped; in training with keys, `Contrasted`.

        Raises:
            ValueError: the shape of x is wrong, or there are more keys than the queue can hold.
        """
        check_image('AirNet', x, self.img_channel, self.size_multiple)
        if key is None or not self.training:
            return self.R(x, self.encoder.encoder_q.E_pre(x))
        check_image('AirNet', key, self.img_channel, self.size_multiple)
        found = self.encoder(x, key)
        return Contrasted(self.R(x, found.map) if restore else None, found.logits, found.labels)

    def encodings(self, x: Tensor) -> dict[str, Tensor]:
        """Return the degradation representation of x: (B, 3, H, W), as (B, 4 C), and the map that guides the restorer.

        Raises:
            ValueError: the shape of x is wrong.
        """
        check_image('AirNet', x, self.img_channel, self.size_multiple)
        found = self.encoder.encoder_q(x)
        return {'vector': found.feature, 'map': found.map}

    @property
    def encoder(self) -> ContrastiveEncoder:
        """The encoder whose degradation map guides the restorer."""
        return cast(ContrastiveEncoder, self.E['E'])

    def with_queue(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Adapt weights trained with any queue length to this network; see ContrastiveEncoder."""
        return self.encoder.with_queue(weights, ENCODER)

    def released_state_dict(self) -> dict[str, Tensor]:
        """Return the weights with the names and shapes of the authors' checkpoints, the same as this network's."""
        return dict(self.state_dict())


class GuidedRestorer(nn.Module):
    """The restorer: groups of guided blocks between two convolutions. Its output is the image, not a residual.

    Args:
        img_channel: channels of the images.
        dim: C.
        num_groups: groups.
        num_blocks: blocks in a group.
    """

    def __init__(self, img_channel: int, dim: int, num_groups: int, num_blocks: int) -> None:
        super().__init__()
        self.head = nn.Sequential(conv3x3(img_channel, dim))
        self.body = nn.ModuleList([*(GuidedGroup(dim, num_blocks) for _ in range(num_groups)), conv3x3(dim, dim)])
        self.tail = nn.Sequential(conv3x3(dim, img_channel))

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        """Restore x: (B, 3, H, W), with guide: (B, C, H, W), the degradation map. Returns (B, 3, H, W)."""
        first = y = self.head(x)
        *groups, last = self.body
        for group in groups:
            y = group(y, guide)
        return self.tail(first + last(y))


class GuidedGroup(nn.Module):
    """x + conv(blocks(x)); each block receives the guide."""

    def __init__(self, dim: int, num_blocks: int) -> None:
        super().__init__()
        self.body = nn.ModuleList([*(GuidedBlock(dim) for _ in range(num_blocks)), conv3x3(dim, dim)])

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        """x and guide: (B, C, H, W). Returns (B, C, H, W)."""
        y = x
        *blocks, last = self.body
        for block in blocks:
            y = block(y, guide)
        return x + last(y)


class GuidedBlock(Formulated, nn.Module):
    """x + two pairs of a guided module and a convolution, with activations between them.

    On CPUs the fast formulation computes the deformable convolutions by `sampled`, and 'gate' samples again in the
    backward pass. Elsewhere, and in graphs, both formulations use torchvision's operator.
    """

    has_kernels = False

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dgm1, self.dgm2 = GuidedModule(dim), GuidedModule(dim)
        self.conv1, self.conv2 = conv3x3(dim, dim), conv3x3(dim, dim)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        """x and guide: (B, C, H, W). Returns (B, C, H, W)."""
        by = deform_conv
        if x.device.type == 'cpu' and self.fast and not torch.compiler.is_compiling():
            by = sampled_again if self.checkpointing == 'gate' else sampled
        if self.checkpointing == 'block' and self.fast and torch.is_grad_enabled():
            return checkpoint(self._restore, x, guide, by, use_reentrant=False, preserve_rng_state=False)
        return self._restore(x, guide, by)

    def _restore(self, x: Tensor, guide: Tensor, by: Deform) -> Tensor:
        y = F.leaky_relu(self.dgm1(x, guide, by), SLOPE)
        y = F.leaky_relu(self.conv1(y), SLOPE)
        y = F.leaky_relu(self.dgm2(y, guide, by), SLOPE)
        return self.conv2(y) + x


class GuidedModule(nn.Module):
    """x + a deformable convolution of x + x scaled and shifted, both controlled by the guide."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dcn = GuidedConv(dim)
        self.sft = FeatureTransform(dim)

    def forward(self, x: Tensor, guide: Tensor, by: Deform | None = None) -> Tensor:
        """x and guide: (B, C, H, W). Returns (B, C, H, W)."""
        return x + self.dcn(x, guide, by) + self.sft(x, guide)


class GuidedConv(nn.Module):
    """A 3x3 convolution with taps shifted and weighted at each pixel (Deformable ConvNets v2, arXiv 1811.11168).

    It is initialised to the tap positions of a plain convolution, at half weight.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        bound = (dim * TAPS) ** -0.5
        self.weight = nn.Parameter(torch.empty(dim, dim, 3, 3).uniform_(-bound, bound))
        self.conv_offset_mask = nn.Conv2d(2 * dim, 3 * TAPS, 3, padding=1)
        nn.init.zeros_(self.conv_offset_mask.weight)
        nn.init.zeros_(self.conv_offset_mask.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, guide: Tensor, by: Deform | None = None) -> Tensor:
        """x and guide: (B, C, H, W). Returns (B, C, H, W)."""
        # (B, 18, H, W), dy and dx of each tap row by row, and (B, 9, H, W).
        offset, mask = self.conv_offset_mask(torch.cat([x, guide], dim=1)).split([2 * TAPS, TAPS], dim=1)
        return deformed(x, offset, mask.sigmoid(), self.weight, by or deform_conv)


class FeatureTransform(nn.Module):
    """x * gamma + beta, both (B, C, H, W), computed from the guide by two 1x1 convolutions each."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv_gamma = conv1x1_twice(dim)
        self.conv_beta = conv1x1_twice(dim)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        """x and guide: (B, C, H, W). Returns (B, C, H, W)."""
        return x * self.conv_gamma(guide) + self.conv_beta(guide)


def deformed(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, by: Deform) -> Tensor:
    """Compute the modulated deformable convolution in at least float32: CPUs do not support bfloat16 here.

    A NaN offset results in NaN; torchvision's operator would read outside the image's memory.

    Args:
        x: (B, C, H, W).
        offset: (B, 18, H, W) in pixels, dy and dx of each tap.
        mask: (B, 9, H, W), [0, 1].
        weight: (C, C, 3, 3).
        by: function that computes it.
    """
    lost = offset.isnan()
    offset = offset.masked_fill(lost, 0)
    mask = mask.masked_fill(lost[:, 0::2] | lost[:, 1::2], torch.nan)
    wide = torch.promote_types(x.dtype, torch.float32)
    return by(x.to(wide), offset.to(wide), mask.to(wide), weight.to(wide)).to(x.dtype)


def deform_conv(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    """Apply torchvision's operator; arguments as for `deformed`."""
    return deform_conv2d(x, offset, weight, padding=1, mask=mask)


def sampled(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    """Compute the same by bilinear sampling and a matrix product in strips: several times faster on CPUs."""
    height, width = x.shape[-2:]
    rows = max(1, STRIP // width)
    strips = [
        _strip(x, offset[:, :, top : top + rows], mask[:, :, top : top + rows], weight, top)
        for top in range(0, height, rows)
    ]
    return torch.cat(strips, dim=2) if len(strips) > 1 else strips[0]


def sampled_again(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    """Compute `sampled` without storing samples for the backward pass; torchvision's operator stores none either."""
    if not torch.is_grad_enabled():
        return sampled(x, offset, mask, weight)
    return checkpoint(sampled, x, offset, mask, weight, use_reentrant=False, preserve_rng_state=False)


def _strip(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, top: int) -> Tensor:
    """Compute rows of the convolution of x from `top` on; offset (B, 18, rows, W), mask (B, 9, rows, W)."""
    (batch, channels, height, width), rows = x.shape, offset.shape[2]
    moved = offset.unflatten(1, (TAPS, 2))
    taps = torch.arange(TAPS, device=x.device)[:, None, None]
    y = torch.arange(top, top + rows, device=x.device)[:, None] + (taps // 3 - 1) + moved[:, :, 0]
    z = torch.arange(width, device=x.device) + (taps % 3 - 1) + moved[:, :, 1]
    # From -1 to 1 between the outer edges of the outer pixels.
    grid = torch.stack([(2 * z + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1).flatten(1, 2)
    samples = F.grid_sample(x, grid, padding_mode='zeros', align_corners=False)  # (B, C, 9 rows, W)
    weighed = samples.view(batch, channels, TAPS, rows * width) * mask.flatten(2)[:, None]
    return (weight.flatten(1) @ weighed.flatten(1, 2)).unflatten(2, (rows, width))


def deformed_operations(x: Any, weight: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    """Count the operations of `deform_conv2d` from the shapes of its arguments: two per multiply-add of the conv."""
    batch, channels, height, width = out_shape
    return 2 * batch * channels * height * width * weight[1] * weight[2] * weight[3]


OPERATIONS = {torch.ops.torchvision.deform_conv2d: deformed_operations}
"""Count operations for torch's FlopCounterMode, which does not know torchvision's operators."""


def conv3x3(inp: int, out: int) -> nn.Conv2d:
    return nn.Conv2d(inp, out, 3, padding=1)


def conv1x1_twice(dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(dim, dim, 1, bias=False), nn.LeakyReLU(SLOPE), nn.Conv2d(dim, dim, 1, bias=False))
