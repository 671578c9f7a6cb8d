"""The fast formulation without gradients on a CPU: blocks in horizontal strips that fit the CPU cache.

Depthwise convolutions read one row above and below a strip; these rows are reused from the previous strip. The C x C
matrix of an attention and the norms of its channels are summed strip by strip; then the matrix is applied to v, strip
by strip, before the feed-forward network. Besides its input a block stores its output and a few strips.

Shapes: B batch, H W height and width, C channels, F hidden channels, h heads, c = C / h channels per head.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from promptir_basicsr.archs.layers.global_statistics import similarity_of

LANES = 16  # hidden widths are padded to multiples of it, for vector units and tensor cores

STRIP_BYTES = 2**21
"""Approximate size of a strip of the widest features of a block: the L2 caches of two cores."""

Fill = Callable[[int, int, Tensor], None]
"""Called with (start, stop, out): writes the image's rows from start to stop to out: (stop - start, W, C)."""


def widen(ffn: Any, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None, Tensor]:
    """Pad the hidden channels of the weights of a `GDFN` with zeros, up to a multiple of LANES.

    Returns weight (2F, C) and bias (2F,) of its first convolution, which are arguments, those of its depthwise
    convolution, and the weight (C, F) of its last one.
    """
    conv, last = ffn.dwconv, ffn.project_out.weight.flatten(1)
    more = -last.shape[1] % LANES
    if not more:
        return weight, bias, conv.weight, conv.bias, last

    def halves(x: Tensor) -> Tensor:
        padding = [0, 0] * (x.ndim - 1) + [0, more]
        return F.pad(x.unflatten(0, (2, -1)), padding).flatten(0, 1)

    bias = None if bias is None else halves(bias)
    conv_bias = None if conv.bias is None else halves(conv.bias)
    return halves(weight), bias, halves(conv.weight), conv_bias, F.pad(last, (0, more))


def fits(x: Tensor) -> bool:
    """Return whether blocks of x are computed in strips."""
    return (
        x.device.type == 'cpu'
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled('cpu')
        and not torch.compiler.is_compiling()
    )


def transformer_block(block: Any, x: Tensor) -> Tensor:
    """Apply a `TransformerBlock` to x: (B, C, H, W). Returns (B, C, H, W), channels last in memory."""
    images = x.permute(0, 2, 3, 1).contiguous()
    out = torch.empty_like(images)
    attn, channels = block.attn, x.shape[1]
    bias = attn.project_out.bias
    feed_forward = FeedForward(block.norm2, block.ffn, images)
    for number, (image, result) in enumerate(zip(images, out, strict=True)):
        # v shares memory with the result: the feed-forward network reads rows of v before it overwrites them.
        matrix = attend(image, result, block.norm1, attn, number).t()

        def mixed(start: int, stop: int, rows: Tensor, image=image, v=result, matrix=matrix) -> None:  # type: ignore[no-untyped-def]
            inputs, values = (part[start:stop].view(-1, channels) for part in (image, v))
            torch.addmm(inputs, values, matrix, out=rows.view(-1, channels))
            if bias is not None:
                rows += bias

        feed_forward(mixed, result)
    return out.permute(0, 3, 1, 2)


def feed_forward(rows: Tensor, norm: Any, ffn: Any) -> Tensor:
    """Return rows + ffn(normalised rows): (B, H, W, C), for a `GDFN`."""
    run, out = FeedForward(norm, ffn, rows), torch.empty_like(rows)
    for image, result in zip(rows, out, strict=True):
        run(lambda start, stop, part, image=image: part.copy_(image[start:stop]), result)  # type: ignore[misc]
    return out


def attend(image: Tensor, values: Tensor, norm: Any, attn: Any, number: int = 0) -> Tensor:
    """Compute normalisation and the first half of an `MDTA`: (C, C), the matrix of attention and `project_out` for v.

    Args:
        image: (H, W, C).
        values: (H, W, C), receives v.
        number: of the image in its batch.
    """
    channels, heads = image.shape[-1], len(attn.temperature)
    weight, bias = attn.qkv.weight.view(3 * channels, channels).t(), attn.qkv.bias

    def project(start: int, stop: int, out: Tensor) -> None:
        _linear(normalize(image[start:stop], norm.body).view(-1, channels), weight, bias, out.view(-1, 3 * channels))

    products = image.new_zeros(heads, channels // heads, channels // heads, dtype=torch.float64)
    squares = image.new_zeros(2 * channels, dtype=torch.float64)
    whole = attn.whole
    rows, columns = (slice(0, side) for side in image.shape[:2]) if whole is None else whole.core(*image.shape[:2])
    window = Window(image, 3 * channels)
    for start, stop in window.strips():
        qkv = depthwise(window.slide(start, stop, project), attn.qkv_dwconv.weight, attn.qkv_dwconv.bias)
        values[start:stop] = qkv[..., 2 * channels :]
        if whole is not None and whole.known:
            continue
        counted = slice(*(min(max(edge - start, 0), stop - start) for edge in (rows.start, rows.stop)))
        qk = qkv[counted, columns, : 2 * channels].reshape(-1, 2 * channels)
        squares += qk.square().sum(dim=0)
        q, k = qk.unflatten(1, (2, heads, -1)).unbind(1)  # (strip's pixels, h, c)
        products += q.permute(1, 2, 0) @ k.permute(1, 0, 2)
    sums = tuple(part[None] for part in (products, *squares.view(2, heads, -1)))
    if whole is not None:
        sums = whole.settled(number, 1) if whole.known else whole.of_whole(*sums, first=number)
    weights = attn.attention(similarity_of(sums, attn.temperature))[0]
    project_out = attn.project_out.weight.view(channels, heads, -1).transpose(0, 1)  # (h, C, c)
    return (project_out.to(weights.dtype) @ weights).transpose(0, 1).flatten(1).to(image.dtype)


class FeedForward:
    """rows + ffn(normalised rows), for a `GDFN` and one image at a time of images: (B, H, W, C)."""

    def __init__(self, norm: Any, ffn: Any, images: Tensor) -> None:
        weight = ffn.project_in.weight.flatten(1)
        weight, self.bias, self.conv_weight, self.conv_bias, last = widen(ffn, weight, ffn.project_in.bias)
        self.weight, self.out_weight, self.out_bias = weight.t(), last.t(), ffn.project_out.bias
        self.body, self.dual = norm.body, ffn.dual
        self.channels = images.shape[-1]
        self.hidden = Window(images[0], len(weight))
        self.rows = Window(images[0], self.channels, self.hidden.rows)

    def __call__(self, fill: Fill, out: Tensor) -> None:
        """Write the result of the rows that `fill` returns to out: (H, W, C). Each row is read once, in order."""
        for start, stop in self.hidden.strips():
            rows = self.rows.slide(start, stop, fill)
            d = depthwise(self.hidden.slide(start, stop, self._project), self.conv_weight, self.conv_bias)
            gated = gate(d, self.dual)
            inside = rows[0, 1:-1].view(-1, self.channels)
            result = out[start:stop].view(-1, self.channels)
            torch.addmm(inside, gated.view(len(inside), -1), self.out_weight, out=result)
            if self.out_bias is not None:
                result += self.out_bias

    def _project(self, start: int, stop: int, out: Tensor) -> None:
        rows = normalize(self.rows.between(start, stop), self.body)
        _linear(rows.view(-1, self.channels), self.weight, self.bias, out.view(-1, out.shape[-1]))


class Window:
    """A sliding strip of an image's features, with one more row above and below.

    Args:
        image: (H, W, any), for sizes and type.
        channels: C of the features.
        rows: height of a strip. Default: as STRIP_BYTES allows.
    """

    def __init__(self, image: Tensor, channels: int, rows: int | None = None) -> None:
        self.height, width = image.shape[:2]
        most = max(1, STRIP_BYTES // (width * channels * image.element_size()))
        self.rows = rows or -(-self.height // -(-self.height // most))  # as many strips as needed, nearly equal
        self.memory = image.new_empty(1, self.rows + 2, width, channels)
        self.start = 0

    def strips(self) -> Iterator[tuple[int, int]]:
        """Yield start and stop of each strip."""
        return ((start, min(start + self.rows, self.height)) for start in range(0, self.height, self.rows))

    def slide(self, start: int, stop: int, fill: Fill) -> Tensor:
        """Return (1, stop - start + 2, W, C): the rows from start - 1 to stop; 0 outside the image."""
        self.start = start
        if start:
            self.memory[0, :2] = self.memory[0, self.rows : self.rows + 2].clone()
        else:
            self.memory[0, 0] = 0
        first, last = (start + 1 if start else 0), min(stop + 1, self.height)
        if first < last:
            fill(first, last, self.between(first, last))
        if stop == self.height:
            self.memory[0, stop - start + 1] = 0
        return self.memory[:, : stop - start + 2]

    def between(self, first: int, last: int) -> Tensor:
        """Return (last - first, W, C): rows of the image that the window holds."""
        return self.memory[0, first - self.start + 1 : last - self.start + 1]


def gate(d: Tensor, dual: bool) -> Tensor:
    """Return gelu(a) b, plus gelu(b) a if `dual`, for the halves a and b of d: (..., 2F). Returns (..., F)."""
    a, b = d.chunk(2, dim=-1)
    gated = F.gelu(a).mul_(b)
    return gated.add_(F.gelu(b).mul_(a)) if dual else gated


def depthwise(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply a 3x3 depthwise convolution to (1, n + 2, W, C), zero-padded left and right. Returns (n, W, C)."""
    out = F.conv2d(rows.permute(0, 3, 1, 2), weight, bias, padding=(0, 1), groups=rows.shape[-1])
    return out.permute(0, 2, 3, 1)[0].contiguous()


def normalize(rows: Tensor, body: Any) -> Tensor:
    """Apply a `LayerNorm2d` to (..., C)."""
    if hasattr(body, 'bias'):
        return F.layer_norm(rows, rows.shape[-1:], body.weight, body.bias, body.eps)
    variance = rows.var(dim=-1, correction=0, keepdim=True)
    return rows * torch.rsqrt(variance + body.eps) * body.weight


def _linear(rows: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    if bias is None:
        torch.mm(rows, weight, out=out)
    else:
        torch.addmm(bias, rows, weight, out=out)
