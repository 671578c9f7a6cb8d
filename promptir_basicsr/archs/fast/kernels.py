"""Operators of the Transformer blocks as Triton kernels for GPUs, with as few passes over memory as possible.

On a GPU in half precision these operators are memory-bound. Each reads channels_last features once, computes in
float32, and writes its result once; the backward pass recomputes intermediate results instead of reading them.

Each is an operator of torch.library: torch.compile captures it without a graph break, autograd differentiates it
(once). They are off until `set_kernels('triton')` enables them for the whole process. Check `usable` before a call;
they raise ValueError for unsupported inputs. With TRITON_INTERPRET=1 in the environment, set before Python starts,
Triton runs them on the CPU, slowly, for tests.

Shapes: B batch, C channels, H W height and width, F hidden channels of the feed-forward network.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from promptir_basicsr.core.messages import unknown
from promptir_basicsr.core.problems import Keys, Problem, problem
from promptir_basicsr.core.vocabulary import KERNELS

MAX_CHANNELS = 8192
"""Maximum number of channels of the normalisation: one program holds all of them."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def has_triton() -> bool:
    """Return whether Triton 3.3 (torch 2.7) or newer is installed, which can sum tuples in a kernel."""
    try:
        import triton
    except ImportError:
        return False
    return tuple(int(part) for part in triton.__version__.split('.')[:2]) >= (3, 3)


enabled = False
"""Whether `usable` may return True; see `set_kernels`."""
available = has_triton()
interpreted = os.environ.get('TRITON_INTERPRET') == '1'


def set_kernels(kind: str | None) -> None:
    """Choose the kernels of all networks of this process.

    Args:
        kind: 'triton' for those of this module where `usable` returns True; None for torch's own operators.

    Raises:
        ValueError: the kind is neither.
    """
    global enabled
    if kind not in (None, *KERNELS):
        raise ValueError(unknown('kernels', 'choice', kind, KERNELS))
    enabled = kind == 'triton'


@contextmanager
def kernels_of(kind: str | None) -> Iterator[None]:
    """Context manager that sets kernels as `set_kernels` does; None changes nothing."""
    before = 'triton' if enabled else None
    set_kernels(kind or before)
    try:
        yield
    finally:
        set_kernels(before)


def kernel_problems(where: str | Keys, kind: str | None, device: torch.device) -> list[Problem]:
    """Return why a device cannot run the kernels of an option.

    Args:
        where: name of the option, for the message.
        kind: its value; None requires nothing.
    """
    found = _unfit(device) if kind else ''
    needs = 'the Triton kernels need Triton 3.3 (torch 2.7) and an NVIDIA GPU of compute capability 7 or newer'
    return [problem(where, f'{needs}, and {found}. Omit the key.')] if found else []


def _unfit(device: torch.device) -> str:
    """Return what the kernels lack on a device, in words."""
    if not available:
        return 'it is not installed'
    if interpreted:
        return '' if device.type == 'cpu' else "TRITON_INTERPRET=1 runs them on the CPU, which is not this run's device"
    if device.type != 'cuda':
        return 'this run is on the CPU'
    if torch.version.hip is not None or _capability(device) < 7:
        return f'this run is on {torch.cuda.get_device_name(device)}'
    return ''


def usable(x: Tensor) -> bool:
    """Return whether the kernels are enabled and support x and its device.

    They need Triton, an NVIDIA GPU of compute capability 7 (for bfloat16: 8) or above, and x: (B, C, H, W) contiguous
    in channels_last, with C up to MAX_CHANNELS, of one of DTYPES. In Triton's interpreter they need the CPU instead.
    """
    return enabled and _suits(x) and x.is_contiguous(memory_format=torch.channels_last)


def _suits(x: Tensor) -> bool:
    if not available or x.ndim != 4 or x.dtype not in DTYPES:
        return False
    _, channels, _, width = x.shape
    # The kernels index the elements of one row with 32 bits.
    if channels > MAX_CHANNELS or channels * width >= 2**31:
        return False
    if interpreted:
        return x.device.type == 'cpu'
    if x.device.type != 'cuda' or torch.version.hip is not None:
        return False
    return _capability(x.device) >= (8 if x.dtype == torch.bfloat16 else 7)


def prepare_to_compile() -> None:
    """Keep queries of the device out of the graph of torch.compile.

    Not a decorator, because it imports torch.compile, which is slower than importing the rest of this package.
    """
    torch.compiler.assume_constant_result(_capability)


def _capability(device: torch.device) -> int:
    return torch.cuda.get_device_capability(device)[0]


@torch.library.custom_op('promptir_basicsr::normalize_channels', mutates_args=())
def normalize_channels(x: Tensor, subtract_mean: bool, eps: float) -> Tensor:
    """Compute (x - mean) / sqrt(var + eps) over the channels of each pixel, with biased variance, in at least float32.

    Args:
        x: (B, C, H, W).
        subtract_mean: False does not subtract the mean from x, only in the variance ('BiasFree').
        eps: added to the variance.

    Returns:
        (B, C, H, W) in channels_last, of x's dtype. An affine part belongs to the following convolution.
    """
    _check('normalize_channels', x)
    return _triton().normalize(_packed(x), subtract_mean, eps)


@torch.library.custom_op('promptir_basicsr::normalize_channels_backward', mutates_args=())
def normalize_channels_backward(grad: Tensor, x: Tensor, subtract_mean: bool, eps: float) -> Tensor:
    """Return the gradient of x, given that of the output of normalize_channels: (B, C, H, W), in channels_last."""
    _check('normalize_channels_backward', x)
    return _triton().normalize_backward(_packed(grad), _packed(x), subtract_mean, eps)


@torch.library.custom_op(
    'promptir_basicsr::depthwise3x3', mutates_args=(), schema='(Tensor x, Tensor weight, Tensor? bias) -> Tensor'
)
def depthwise3x3(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply a depthwise 3x3 convolution of stride 1 with zero padding, summed in float32 or wider.

    Args:
        x: (B, C, H, W).
        weight: (C, 1, 3, 3), of x's dtype or a wider one.
        bias: (C,) or None.

    Returns:
        (B, C, H, W) in channels_last, of x's dtype.
    """
    _check('depthwise3x3', x, weight, bias)
    return _triton().convolve(_packed(x), _taps(x, weight), bias)


@torch.library.custom_op(
    'promptir_basicsr::depthwise3x3_gate',
    mutates_args=(),
    schema='(Tensor x, Tensor weight, Tensor? bias, bool dual) -> Tensor',
)
def depthwise3x3_gate(x: Tensor, weight: Tensor, bias: Tensor | None, dual: bool) -> Tensor:
    """Compute gelu(a) b of the halves a, b of depthwise3x3(x), with `dual` plus gelu(b) a; the GELU is exact (erf).

    The halves are never stored; the backward pass recomputes them from x.

    Args:
        x: (B, 2F, H, W).
        weight: (2F, 1, 3, 3), of x's dtype or a wider one.
        bias: (2F,) or None.
        dual: whether each half gates the other.

    Returns:
        (B, F, H, W) in channels_last, of x's dtype.
    """
    _check('depthwise3x3_gate', x, weight, bias, halves=True)
    return _triton().gate(_packed(x), _taps(x, weight), bias, dual)


@torch.library.custom_op(
    'promptir_basicsr::depthwise3x3_gate_backward',
    mutates_args=(),
    schema='(Tensor grad, Tensor x, Tensor weight, Tensor? bias, bool dual, bool again=True) '
    '-> (Tensor, Tensor, Tensor, Tensor)',
)
def depthwise3x3_gate_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, dual: bool, again: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Recompute the output of depthwise3x3_gate and return it with its gradients, for a surrounding autograd function.

    Args:
        grad: (B, F, H, W), of the output.
        x, weight, bias, dual: arguments of the forward call.
        again: whether to return the output.

    Returns:
        The output: (B, F, H, W), or empty, and the gradients of x, weight, and a bias (even if there is no bias).
    """
    _check('depthwise3x3_gate_backward', x, weight, bias, halves=True)
    x, taps = _packed(x), _taps(x, weight)
    grad_ab, gated = _triton().gate_backward(_packed(grad), x, taps, bias, dual, again)
    grad_x, sums = _triton().convolve_backward(grad_ab, x, taps)
    return gated, grad_x, *_parameter_gradients(sums, weight)


def _check(
    name: str, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, halves: bool = False
) -> None:
    if not _suits(x):
        raise ValueError(
            f'{name}: no Triton kernel supports x, which is {tuple(x.shape)} of {x.dtype} on {x.device}. Check '
            'usable(x) before the call, and use torch if it is False.'
        )
    channels = x.shape[1]
    if weight is not None and weight.shape != (channels, 1, 3, 3):
        raise ValueError(f'{name}: weight is {tuple(weight.shape)}; it must be {(channels, 1, 3, 3)}.')
    if bias is not None and bias.shape != (channels,):
        raise ValueError(f'{name}: bias is {tuple(bias.shape)}; it must be {(channels,)}.')
    if halves and channels % 2:
        raise ValueError(f'{name}: x has {channels} channels; it must have an even number, for two halves.')


def _triton() -> Any:
    """Return the module of the kernels, which imports Triton."""
    from promptir_basicsr.archs.fast import triton_kernels

    return triton_kernels


@torch.library.custom_op('promptir_basicsr::depthwise3x3_backward', mutates_args=())
def _depthwise_backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    grad_x, sums = _triton().convolve_backward(_packed(grad), _packed(x), _taps(x, weight))
    return grad_x, *_parameter_gradients(sums, weight)


def _packed(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _taps(x: Tensor, weight: Tensor) -> Tensor:
    """Convert (C, 1, 3, 3) to (9, C), in the dtype of sums over x."""
    return weight.reshape(len(weight), 9).t().to(torch.promote_types(x.dtype, torch.float32)).contiguous()


def _parameter_gradients(sums: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Split (10, C) into the gradients of weight: (C, 1, 3, 3) and bias: (C,), which own their memory."""
    of_weight = sums[:9].t().to(weight.dtype, memory_format=torch.contiguous_format, copy=True)
    return of_weight.reshape(weight.shape), sums[9].to(weight.dtype, copy=True)


@normalize_channels.register_fake
@normalize_channels_backward.register_fake
@depthwise3x3.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


@_depthwise_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _fake_gradients(x, weight)


@depthwise3x3_gate.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, dual: bool) -> Tensor:
    batch, channels, height, width = x.shape
    return x.new_empty(batch, channels // 2, height, width).contiguous(memory_format=torch.channels_last)


@depthwise3x3_gate_backward.register_fake
def _(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, dual: bool, again: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gated = torch.empty_like(grad, memory_format=torch.channels_last) if again else grad.new_empty(0)
    return gated, *_fake_gradients(x, weight)


def _fake_gradients(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    grad_x = torch.empty_like(x, memory_format=torch.channels_last)
    return grad_x, weight.new_empty(weight.shape), weight.new_empty(len(weight))


def _keep_normalize(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.subtract_mean, ctx.eps = inputs
    ctx.save_for_backward(x)


def _differentiate_normalize(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (x,) = ctx.saved_tensors
    return normalize_channels_backward(grad, x, ctx.subtract_mean, ctx.eps), None, None


def _keep_convolution(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, *ctx.dual = inputs
    ctx.save_for_backward(x, weight, bias)


def _differentiate_depthwise(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, weight, bias = ctx.saved_tensors
    grad_x, grad_weight, grad_bias = _depthwise_backward(grad, x, weight)
    return grad_x, grad_weight, grad_bias if bias is not None else None


def _differentiate_gate(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, weight, bias = ctx.saved_tensors
    _, grad_x, grad_weight, grad_bias = depthwise3x3_gate_backward(grad, x, weight, bias, *ctx.dual, again=False)
    return grad_x, grad_weight, grad_bias if bias is not None else None, None


normalize_channels.register_autograd(_differentiate_normalize, setup_context=_keep_normalize)
depthwise3x3.register_autograd(_differentiate_depthwise, setup_context=_keep_convolution)
depthwise3x3_gate.register_autograd(_differentiate_gate, setup_context=_keep_convolution)
