# Triton interprets the annotations of a kernel's arguments.
# mypy: disable-error-code="no-untyped-def,assignment"
"""Triton kernels, forward and backward: the depthwise 3x3 convolution, alone and with the following gate, and the
normalisation over the channels of each pixel.

Importing this requires Triton; kernels.py is the entry point.

Shapes: tensors are (B, C, H, W) packed in channels_last, that is (B, H, W, C) in memory. Taps are (9, C): the weights
of a depthwise convolution with the nine places first, so that channels are contiguous. A program computes a tile
of ROWS x COLUMNS pixels and CHANNELS channels. Each tap of a convolution is a separate load, served by the L1 cache;
rows of a tile share their loads. Only torch.sum adds across programs, so the same input results in the same bits.

Of the normalisation: P = B H W pixels, C channels, packed as (P, C).
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

ELEMENTS = 2048
"""Pixels times channels that one program keeps in registers."""


class Tile(NamedTuple):
    """The size of one program's work."""

    rows: int
    columns: int
    channels: int
    warps: int


# Four channels per thread: a load is eight bytes in half precision, and the taps and sums of all rows stay in
# registers. More rows in the gate or backward pass would leave too few for a second block on a multiprocessor.
CONVOLVE = Tile(rows=4, columns=16, channels=32, warps=4)
GATE = Tile(rows=2, columns=16, channels=32, warps=4)
BACKWARD = Tile(rows=2, columns=16, channels=32, warps=4)
PROGRAMS = 2048
"""Approximate number of programs per gradient of the weights; constant, so every GPU adds in the same order."""


@triton.jit
def _load(x, top, ROW: tl.constexpr, height, width, pitch, column, channel, within):
    """Load row top + ROW of an image at x: (COLUMNS, CHANNELS), zero outside the image."""
    row = top + ROW
    inside = (column >= 0) & (column < tl.where((row >= 0) & (row < height), width, 0))
    # An image may have more elements than 32 bits can index, a row may not.
    line = x + row.to(tl.int64) * width * pitch
    place = column[:, None] * pitch + channel[None, :]
    return tl.load(line + place, mask=inside[:, None] & within[None, :], other=0)


@triton.jit
def _store(y, values, top, ROW: tl.constexpr, height, width, pitch, column, channel, within):
    """Store (COLUMNS, CHANNELS) to row top + ROW of an image at y; pixels outside the image are dropped."""
    row = top + ROW
    inside = column < tl.where(row < height, width, 0)
    line = y + row.to(tl.int64) * width * pitch
    place = column[:, None] * pitch + channel[None, :]
    tl.store(line + place, values.to(y.dtype.element_ty), mask=inside[:, None] & within[None, :])


@triton.jit
def _taps(taps, pitch, channel, within, WIDE: tl.constexpr):
    """Load the nine taps of some channels: (1, CHANNELS) each."""
    found = ()
    for k in tl.static_range(9):
        found = found + (tl.load(taps + k * pitch + channel, mask=within, other=0).to(WIDE)[None, :],)
    return found


@triton.jit
def _convolve(x, taps, offset, top, ROW: tl.constexpr, height, width, pitch, column, channel, within):
    """Compute row top + ROW of the convolution: (COLUMNS, CHANNELS). Rows share their loads."""
    total = offset
    for k in tl.static_range(9):
        values = _load(x, top, ROW + k // 3 - 1, height, width, pitch, column + (k % 3 - 1), channel, within)
        total += values.to(offset.dtype) * taps[k]
    return total


@triton.jit
def _offset(bias, channel, within, HAS_BIAS: tl.constexpr, COLUMNS: tl.constexpr, WIDE: tl.constexpr):
    """Return the initial value of a convolution, bias or 0: (COLUMNS, CHANNELS)."""
    offset = tl.zeros((COLUMNS, channel.shape[0]), WIDE)
    if HAS_BIAS:
        offset += tl.load(bias + channel, mask=within, other=0).to(WIDE)[None, :]
    return offset


@triton.jit
def _gelu(x):
    """Return the exact GELU and its derivative."""
    below = 0.5 + 0.5 * tl.erf(x * 0.7071067811865476)
    return x * below, below + x * tl.exp(-0.5 * x * x) * 0.3989422804014327


@triton.jit
def _place(index, height, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return image, first row and columns of a tile. Tiles go down an image first, so halo rows are still cached."""
    row_tiles = tl.cdiv(height, ROWS)
    column_tiles = tl.cdiv(width, COLUMNS)
    image = index // (row_tiles * column_tiles)
    within_image = index % (row_tiles * column_tiles)
    column = (within_image // row_tiles) * COLUMNS + tl.arange(0, COLUMNS)
    return image.to(tl.int64), (within_image % row_tiles) * ROWS, column


@triton.jit(do_not_specialize=['height', 'width'])
def convolve_kernel(
    x,
    taps,
    bias,
    y,
    height,
    width,
    channels,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """y = depthwise convolution of x."""
    blocks = tl.cdiv(channels, CHANNELS)
    image, top, column = _place(tl.program_id(0) // blocks, height, width, ROWS, COLUMNS)
    channel = (tl.program_id(0) % blocks) * CHANNELS + tl.arange(0, CHANNELS)
    within = channel < channels
    start = image * height * width * channels
    held = _taps(taps, channels, channel, within, WIDE)
    offset = _offset(bias, channel, within, HAS_BIAS, COLUMNS, WIDE)
    # All loads precede the first store, because the compiler cannot move a load across it.
    found = ()
    for r in tl.static_range(ROWS):
        found = found + (_convolve(x + start, held, offset, top, r, height, width, channels, column, channel, within),)
    for r in tl.static_range(ROWS):
        _store(y + start, found[r], top, r, height, width, channels, column, channel, within)


@triton.jit(do_not_specialize=['height', 'width', 'tiles', 'share'])
def convolve_backward_kernel(
    grad,
    x,
    taps,
    grad_x,
    sums,
    height,
    width,
    channels,
    tiles,
    share,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Compute grad_x and this program's part of the gradients of taps and bias, reading grad and x once.

    sums: (programs, 10, C). grad_x at a pixel needs grad at its nine neighbours; the gradients of the taps are sums of
    these times x at the pixel.
    """
    blocks = tl.cdiv(channels, CHANNELS)
    program = tl.program_id(0) // blocks
    channel = (tl.program_id(0) % blocks) * CHANNELS + tl.arange(0, CHANNELS)
    within = channel < channels
    held = _taps(taps, channels, channel, within, WIDE)
    zero = tl.zeros((COLUMNS, CHANNELS), WIDE)
    added = (zero, zero, zero, zero, zero, zero, zero, zero, zero, zero)
    for index in range(program * share, tl.minimum(program * share + share, tiles)):
        image, top, column = _place(index, height, width, ROWS, COLUMNS)
        start = image * height * width * channels
        found = ()
        for r in tl.static_range(ROWS):
            own = _load(x + start, top, r, height, width, channels, column, channel, within).to(WIDE)
            total = zero
            fresh = ()
            for k in tl.static_range(9):
                beside = column - (k % 3 - 1)
                upstream = _load(grad + start, top, r - (k // 3 - 1), height, width, channels, beside, channel, within)
                total += upstream.to(WIDE) * held[k]
                fresh = fresh + (added[k] + upstream.to(WIDE) * own,)
            centre = _load(grad + start, top, r, height, width, channels, column, channel, within)
            added = fresh + (added[9] + centre.to(WIDE),)
            found = found + (total,)
        for r in tl.static_range(ROWS):
            _store(grad_x + start, found[r], top, r, height, width, channels, column, channel, within)
    mine = sums + program.to(tl.int64) * 10 * channels + channel
    for k in tl.static_range(10):
        tl.store(mine + k * channels, tl.sum(added[k], axis=0), mask=within)


@triton.jit(do_not_specialize=['height', 'width'])
def gate_kernel(
    x,
    taps,
    bias,
    y,
    height,
    width,
    hidden,
    HAS_BIAS: tl.constexpr,
    DUAL: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """y = gelu(a) b, DUAL: gelu(a) b + gelu(b) a, where a and b are the halves of the convolution of x."""
    blocks = tl.cdiv(hidden, CHANNELS)
    image, top, column = _place(tl.program_id(0) // blocks, height, width, ROWS, COLUMNS)
    channel = (tl.program_id(0) % blocks) * CHANNELS + tl.arange(0, CHANNELS)
    within = channel < hidden
    first = x + image * height * width * 2 * hidden
    first_taps = _taps(taps, 2 * hidden, channel, within, WIDE)
    second_taps = _taps(taps + hidden, 2 * hidden, channel, within, WIDE)
    first_offset = _offset(bias, channel, within, HAS_BIAS, COLUMNS, WIDE)
    second_offset = _offset(bias + hidden, channel, within, HAS_BIAS, COLUMNS, WIDE)
    found = ()
    for r in tl.static_range(ROWS):
        a = _convolve(first, first_taps, first_offset, top, r, height, width, 2 * hidden, column, channel, within)
        b = _convolve(
            first + hidden, second_taps, second_offset, top, r, height, width, 2 * hidden, column, channel, within
        )
        gated = _gelu(a)[0] * b
        if DUAL:
            gated += _gelu(b)[0] * a
        found = found + (gated,)
    for r in tl.static_range(ROWS):
        _store(y + image * height * width * hidden, found[r], top, r, height, width, hidden, column, channel, within)


@triton.jit(do_not_specialize=['height', 'width'])
def gate_backward_kernel(
    grad,
    x,
    taps,
    bias,
    grad_ab,
    y,
    height,
    width,
    hidden,
    HAS_BIAS: tl.constexpr,
    DUAL: tl.constexpr,
    AGAIN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Compute grad_ab: (B, 2F, H, W), the gradients of the halves a and b, which are recomputed; with AGAIN also y."""
    blocks = tl.cdiv(hidden, CHANNELS)
    image, top, column = _place(tl.program_id(0) // blocks, height, width, ROWS, COLUMNS)
    channel = (tl.program_id(0) % blocks) * CHANNELS + tl.arange(0, CHANNELS)
    within = channel < hidden
    start = image * height * width * hidden
    first = x + 2 * start
    first_taps = _taps(taps, 2 * hidden, channel, within, WIDE)
    second_taps = _taps(taps + hidden, 2 * hidden, channel, within, WIDE)
    first_offset = _offset(bias, channel, within, HAS_BIAS, COLUMNS, WIDE)
    second_offset = _offset(bias + hidden, channel, within, HAS_BIAS, COLUMNS, WIDE)
    grad_a, grad_b, gated = (), (), ()
    for r in tl.static_range(ROWS):
        upstream = _load(grad + start, top, r, height, width, hidden, column, channel, within).to(WIDE)
        a = _convolve(first, first_taps, first_offset, top, r, height, width, 2 * hidden, column, channel, within)
        b = _convolve(
            first + hidden, second_taps, second_offset, top, r, height, width, 2 * hidden, column, channel, within
        )
        gelu_a, slope_a = _gelu(a)
        by_a, by_b, found = slope_a * b, gelu_a, gelu_a * b
        if DUAL:
            gelu_b, slope_b = _gelu(b)
            by_a += gelu_b
            by_b += slope_b * a
            found += gelu_b * a
        gated = gated + (found,)
        grad_a, grad_b = grad_a + (upstream * by_a,), grad_b + (upstream * by_b,)
    for r in tl.static_range(ROWS):
        mine = grad_ab + 2 * start
        _store(mine, grad_a[r], top, r, height, width, 2 * hidden, column, channel, within)
        _store(mine + hidden, grad_b[r], top, r, height, width, 2 * hidden, column, channel, within)
        if AGAIN:
            _store(y + start, gated[r], top, r, height, width, hidden, column, channel, within)


def convolve(x: Tensor, taps: Tensor, bias: Tensor | None) -> Tensor:
    """Apply the depthwise convolution of taps: (9, C) to x: (B, C, H, W). Returns (B, C, H, W)."""
    y = torch.empty_like(x, memory_format=torch.channels_last)
    _, channels, height, width = x.shape
    launch(
        convolve_kernel,
        _tiles(x, CONVOLVE) * triton.cdiv(channels, CONVOLVE.channels),
        *(x, taps, taps if bias is None else bias, y, height, width, channels),
        HAS_BIAS=bias is not None,
        **options(x, CONVOLVE),
    )
    return y


def convolve_backward(grad: Tensor, x: Tensor, taps: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the gradients of `convolve` from grad: (B, C, H, W) of the output.

    Returns:
        The gradient of x: (B, C, H, W), and those of the nine taps and of the bias: (10, C), in float32 or wider.
    """
    grad_x = torch.empty_like(x, memory_format=torch.channels_last)
    _, channels, height, width = x.shape
    tiles, blocks = _tiles(x, BACKWARD), triton.cdiv(channels, BACKWARD.channels)
    share = triton.cdiv(tiles * blocks, PROGRAMS)
    programs = triton.cdiv(tiles, share) if tiles else 0
    sums = torch.empty(programs, 10, channels, device=x.device, dtype=taps.dtype)
    launch(
        convolve_backward_kernel,
        programs * blocks,
        *(grad, x, taps, grad_x, sums, height, width, channels, tiles, share),
        **options(x, BACKWARD),
    )
    return grad_x, sums.sum(0)


def gate(x: Tensor, taps: Tensor, bias: Tensor | None, dual: bool) -> Tensor:
    """Return the gated halves of the convolution of x: (B, 2F, H, W) with taps: (9, 2F). Returns (B, F, H, W)."""
    batch, channels, height, width = x.shape
    hidden = channels // 2
    y = torch.empty(batch, hidden, height, width, device=x.device, dtype=x.dtype, memory_format=torch.channels_last)
    launch(
        gate_kernel,
        _tiles(x, GATE) * triton.cdiv(hidden, GATE.channels),
        *(x, taps, taps if bias is None else bias, y, height, width, hidden),
        HAS_BIAS=bias is not None,
        DUAL=dual,
        **options(x, GATE),
    )
    return y


def gate_backward(
    grad: Tensor, x: Tensor, taps: Tensor, bias: Tensor | None, dual: bool, again: bool
) -> tuple[Tensor, Tensor]:
    """Compute the gradients of `gate` from grad: (B, F, H, W) of the output.

    Returns:
        The gradient of the convolution of x: (B, 2F, H, W), and the output: (B, F, H, W), empty unless `again`.
    """
    y = torch.empty_like(grad, memory_format=torch.channels_last) if again else grad.new_empty(0)
    grad_ab = torch.empty_like(x, memory_format=torch.channels_last)
    _, hidden, height, width = grad.shape
    launch(
        gate_backward_kernel,
        _tiles(x, GATE) * triton.cdiv(hidden, GATE.channels),
        *(grad, x, taps, taps if bias is None else bias, grad_ab, y if again else grad_ab, height, width, hidden),
        HAS_BIAS=bias is not None,
        DUAL=dual,
        AGAIN=again,
        **options(x, GATE),
    )
    return grad_ab, y


def launch(kernel: triton.JITFunction, programs: int, *arguments: Any, **options: Any) -> None:
    """Run a kernel on the device of its first tensor."""
    if programs:
        with torch.cuda.device_of(arguments[0]):
            kernel[(programs,)](*arguments, **options, enable_fp_fusion=True)


def wide_type(x: Tensor) -> tl.dtype:
    """Return the dtype of sums over x."""
    return tl.float64 if x.dtype == torch.float64 else tl.float32


def _tiles(x: Tensor, tile: Tile) -> int:
    batch, _, height, width = x.shape
    return batch * triton.cdiv(height, tile.rows) * triton.cdiv(width, tile.columns)


def options(x: Tensor, tile: Tile) -> dict[str, Any]:
    return {
        'ROWS': tile.rows,
        'COLUMNS': tile.columns,
        'CHANNELS': tile.channels,
        'WIDE': wide_type(x),
        'num_warps': tile.warps,
    }


@triton.jit
def _centre(x, within, channels, EPS: tl.constexpr):
    """Centre x: (PIXELS, CHANNELS), zero outside `within`. Returns x - mean over channels, and 1 / sqrt(var + EPS)."""
    mean = tl.sum(x, axis=1) / channels
    centred = tl.where(within, x - mean[:, None], 0)
    return centred, tl.rsqrt(tl.sum(centred * centred, axis=1) / channels + EPS)


@triton.jit
def _rows(pixels, channels, PIXELS: tl.constexpr, CHANNELS: tl.constexpr):
    """Return the offsets of this program's pixels, and which of them are inside the image."""
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
    """Compute the gradient of x. Recomputes mean and variance without more memory traffic: x is read anyway."""
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
    """Normalise x: (B, C, H, W), packed in channels_last. Returns the same layout."""
    y = torch.empty_like(x, memory_format=torch.channels_last)
    run(normalize_kernel, x, y, subtract_mean=subtract_mean, eps=eps)
    return y


def normalize_backward(grad: Tensor, x: Tensor, subtract_mean: bool, eps: float) -> Tensor:
    """Return the gradient of x for grad and x: (B, C, H, W), packed in channels_last, in the same layout."""
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
