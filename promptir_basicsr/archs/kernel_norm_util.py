# Triton gives annotations of a kernel's arguments a meaning of its own.
# mypy: disable-error-code="no-untyped-def"
"""Triton kernels: normalisation over the channels of each pixel, forward and backward.

Importing this needs Triton; kernel_util.py is the way in. Shapes: P = B H W pixels, C channels, packed as (P, C).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from promptir_basicsr.archs.kernel_conv_util import launch, wide_type

ELEMENTS = 2048
"""Pixels times channels that one program holds in registers."""


@triton.jit
def _centre(x, within, channels, EPS: tl.constexpr):
    """x: (PIXELS, CHANNELS), zero outside `within`. Returns x - mean over the channels, and 1 / sqrt(var + EPS)."""
    mean = tl.sum(x, axis=1) / channels
    centred = tl.where(within, x - mean[:, None], 0)
    return centred, tl.rsqrt(tl.sum(centred * centred, axis=1) / channels + EPS)


@triton.jit
def _rows(pixels, channels, PIXELS: tl.constexpr, CHANNELS: tl.constexpr):
    """Where the pixels of this program lie, and which of their places are within the image."""
    pixel = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.arange(0, CHANNELS)
    within = (pixel < pixels)[:, None] & (channel < channels)[None, :]
    return pixel[:, None] * channels + channel[None, :], within


@triton.jit(do_not_specialize=['pixels'])
def normalize_kernel(
    x,
    y,
    pixels,
    channels,
    SUBTRACT_MEAN: tl.constexpr,
    EPS: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """y = (x - mean or x) / sqrt(var + EPS)."""
    place, within = _rows(pixels, channels, PIXELS, CHANNELS)
    values = tl.load(x + place, mask=within, other=0).to(WIDE)
    centred, scale = _centre(values, within, channels, EPS)
    normed = (centred if SUBTRACT_MEAN else values) * scale[:, None]
    tl.store(y + place, normed.to(y.dtype.element_ty), mask=within)


@triton.jit(do_not_specialize=['pixels'])
def normalize_backward_kernel(
    grad,
    x,
    grad_x,
    pixels,
    channels,
    SUBTRACT_MEAN: tl.constexpr,
    EPS: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """The gradient of x. Mean and variance are taken again: x is read anyway, so this costs no memory traffic."""
    place, within = _rows(pixels, channels, PIXELS, CHANNELS)
    values = tl.load(x + place, mask=within, other=0).to(WIDE)
    upstream = tl.load(grad + place, mask=within, other=0).to(WIDE)
    centred, scale = _centre(values, within, channels, EPS)
    along = tl.sum(upstream * (centred if SUBTRACT_MEAN else values), axis=1) / channels
    found = upstream - centred * (scale * scale * along)[:, None]
    if SUBTRACT_MEAN:
        found -= (tl.sum(upstream, axis=1) / channels)[:, None]
    tl.store(grad_x + place, (found * scale[:, None]).to(grad_x.dtype.element_ty), mask=within)


def normalize(x: Tensor, subtract_mean: bool, eps: float) -> Tensor:
    """x: (B, C, H, W), packed in channels_last. Returns the like."""
    y = torch.empty_like(x, memory_format=torch.channels_last)
    run(normalize_kernel, x, y, subtract_mean=subtract_mean, eps=eps)
    return y


def normalize_backward(grad: Tensor, x: Tensor, subtract_mean: bool, eps: float) -> Tensor:
    """grad and x: (B, C, H, W), packed in channels_last. Returns the gradient of x, the like."""
    grad_x = torch.empty_like(x, memory_format=torch.channels_last)
    run(normalize_backward_kernel, grad, x, grad_x, subtract_mean=subtract_mean, eps=eps)
    return grad_x


def run(kernel: triton.JITFunction, *tensors: Tensor, subtract_mean: bool, eps: float) -> None:
    first = tensors[0]
    channels = first.shape[1]
    pixels = first.numel() // max(channels, 1)
    wide = triton.next_power_of_2(channels)
    tile = max(ELEMENTS // wide, 1)
    launch(
        kernel,
        triton.cdiv(pixels, tile),
        *tensors,
        pixels,
        channels,
        SUBTRACT_MEAN=subtract_mean,
        EPS=eps,
        PIXELS=tile,
        CHANNELS=wide,
        WIDE=wide_type(first),
    )
