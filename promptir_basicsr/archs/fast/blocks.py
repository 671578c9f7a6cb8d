"""Blocks of PromptIR and PIP in the fast formulation.

The same results as the plain formulation of `restormer` and `prompts`, from the same parameters, with less memory
traffic and memory:

- features are (B, H, W, C) in memory, so that normalisations and 1x1 convolutions run over contiguous channels;
- the affine part of a normalisation is folded into the following 1x1 convolution if there are more pixels than
  weights per channel, and its output is recomputed in the backward pass;
- q and k are not normalised at full size: the small matrix q^T k is divided by the products of their norms, and
  temperature, softmax and `project_out` become one matrix that is applied to v;
- gate and depthwise convolution of the feed-forward network are recomputed in the backward pass, and its odd hidden
  widths are padded with zeros.

Without gradients on a CPU a block is computed in strips (`strips`). On a GPU with Triton the depthwise convolutions,
including a following gate, and the bias-free normalisation are custom kernels (`kernels`); torch has one for the usual
normalisation.

Shapes: B batch, H W height and width, C channels, F hidden channels, h heads, c = C / h channels per head.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from promptir_basicsr.archs.fast import kernels, strips
from promptir_basicsr.archs.fast.strips import gate, widen
from promptir_basicsr.archs.layers.global_statistics import NORM_EPS

FEW = 4
"""Pixels per channel below which weights are not folded; measured by benchmarks/small.py."""


def transformer_block(block: Any, x: Tensor) -> Tensor:
    """Apply a `TransformerBlock` to x: (B, C, H, W). Returns (B, C, H, W), channels last in memory."""
    if strips.fits(x):
        return strips.transformer_block(block, x)
    return _run(block, _transformer_block, [x])


def prompt_cross_block(block: Any, x: Tensor, prompt: Tensor) -> Tensor:
    """Apply a `PromptCrossBlock` to x: (B, C, H, W) and prompt: (B, D, H, W). Returns (B, C, H, W), channels last."""
    return _run(block, _prompt_cross_block, [x, prompt])


def prompt_to_prompt(block: Any, basic: Tensor, degradation: Tensor, strength: float | Tensor) -> Tensor:
    """Apply a `PromptToPrompt` to basic: (1 or B, D, S, S), degradation: (B, D, S, S). Returns (B, D, S, S)."""
    return _run(block, _prompt_to_prompt, [basic, degradation], strength)


def _run(block: Any, function: Callable[..., Tensor], images: Sequence[Tensor], *extra: Any) -> Tensor:
    """Run a function of images (B, H, W, C) in autocast's dtype; checkpointed if the block is."""
    kind = images[0].device.type
    autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if autocast else images[0].dtype

    def run(*images: Tensor) -> Tensor:
        rows = [image.permute(0, 2, 3, 1).contiguous().to(dtype) for image in images]
        return function(block, *rows, *extra).permute(0, 3, 1, 2)

    def run_exactly(*images: Tensor) -> Tensor:
        # All dtypes are chosen here: statistics, norms and small matrices stay in float32.
        with torch.autocast(kind, enabled=False):
            return run(*images)

    chosen = run_exactly if autocast else run
    if block.checkpointing == 'block' and torch.is_grad_enabled():
        return checkpoint(chosen, *images, use_reentrant=False, preserve_rng_state=False)
    return chosen(*images)


def _transformer_block(block: Any, rows: Tensor) -> Tensor:
    attn = block.attn
    q, k, v = depthwise(norm_project(rows, block.norm1, attn.qkv), attn.qkv_dwconv).chunk(3, dim=-1)
    rows = mix(rows, v, mixing_matrix(q, k, attn), attn.project_out.bias)
    return feed_forward(rows, block.norm2, block.ffn, keep=block.checkpointing != 'gate')


def _prompt_cross_block(block: Any, x: Tensor, prompt: Tensor) -> Tensor:
    width, prompt_width = x.shape[-1], prompt.shape[-1]
    normed = affine_normalize(x, block.norm11)
    y = normed[..., :prompt_width] if width >= prompt_width else F.pad(normed, (0, prompt_width - width))
    attn = block.attn
    q = depthwise(linear(y, attn.q), attn.q_dwconv)
    k, v = depthwise(norm_project(prompt, block.norm12, attn.kv), attn.kv_dwconv).chunk(2, dim=-1)
    y = mix(y, v, mixing_matrix(q, k, attn), attn.project_out.bias)
    if width < prompt_width:
        y = linear(y, block.reduce_channel)
    elif width > prompt_width:
        y = torch.cat([y, normed[..., prompt_width:]], dim=-1)
    if strips.fits(y):
        return strips.feed_forward(y, block.norm2, block.ffn)
    return feed_forward(y, block.norm2, block.ffn, keep=block.checkpointing != 'gate')


def _prompt_to_prompt(block: Any, basic: Tensor, degradation: Tensor, strength: float | Tensor) -> Tensor:
    attn = block.attn
    q = depthwise(norm_project(basic, block.norm11, attn.q), attn.q_dwconv).expand_as(degradation)
    k, v = depthwise(norm_project(degradation, block.norm12, attn.kv), attn.kv_dwconv).chunk(2, dim=-1)
    attended = torch.bmm(v.flatten(1, 2), mixing_matrix(q, k, attn).transpose(1, 2)).view_as(degradation)
    if attn.project_out.bias is not None:
        attended = attended + attn.project_out.bias.to(attended.dtype)
    z = basic + (strength * attended).to(basic.dtype)
    return feed_forward(z, block.norm2, block.ffn, keep=block.checkpointing != 'gate')


def affine_normalize(rows: Tensor, norm: Any) -> Tensor:
    """Apply a `LayerNorm2d` to (B, H, W, C)."""
    body = norm.body
    weight, bias = body.weight.to(rows.dtype), getattr(body, 'bias', None)
    if bias is not None:
        return F.layer_norm(rows, rows.shape[-1:], weight, bias.to(rows.dtype), body.eps)
    return normalize(rows, body.eps, subtract_mean=False)[0] * weight


def linear(rows: Tensor, conv: nn.Conv2d) -> Tensor:
    """Apply a 1x1 convolution to (B, H, W, C)."""
    bias = None if conv.bias is None else conv.bias.to(rows.dtype)
    return F.linear(rows, conv.weight.flatten(1).to(rows.dtype), bias)


def norm_project(rows: Tensor, norm: nn.Module, conv: nn.Conv2d) -> Tensor:
    """Normalise features (B, H, W, C) and apply a 1x1 convolution. Returns (B, H, W, out channels)."""
    if few(rows, conv.out_channels):
        return linear(affine_normalize(rows, norm), conv)
    return _normed_linear(rows, *fold(norm, conv), norm.body)


def few(rows: Tensor, channels: int) -> bool:
    """Return whether features (B, H, W, C) have so few pixels that folding weights costs more than it saves."""
    return rows[..., 0].numel() < FEW * channels


def fold(norm: Any, conv: nn.Conv2d) -> tuple[Tensor, Tensor | None]:
    """Fold the affine part of a normalisation into a 1x1 convolution. Returns weight (out, C) and bias (out,)."""
    weight, shift, bias = conv.weight.flatten(1), getattr(norm.body, 'bias', None), conv.bias
    if shift is not None:
        bias = weight @ shift if bias is None else torch.addmv(bias, weight, shift)
    return weight * norm.body.weight, bias


def _normed_linear(rows: Tensor, weight: Tensor, bias: Tensor | None, body: Any) -> Tensor:
    bias = None if bias is None else bias.to(rows.dtype)
    return _NormedLinear.apply(rows, weight.to(rows.dtype), bias, body.eps, hasattr(body, 'bias'))


class _NormedLinear(Function):
    """linear(normalised x) of (B, H, W, C). Saves x and the statistics of its pixels, not its normalised form."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, subtract_mean: bool) -> Tensor:
        normed, mean, rstd = normalize(x, eps, subtract_mean)
        ctx.save_for_backward(x, mean, rstd, weight)
        ctx.eps, ctx.subtract_mean, ctx.has_bias = eps, subtract_mean, bias is not None
        out = F.linear(normed, weight)
        return out if bias is None else out.add_(bias)  # addmm would first write the bias everywhere

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, rstd, weight = ctx.saved_tensors
        flat = grad.reshape(-1, grad.shape[-1])
        weight_grad = flat.t() @ normalize_again(x, mean, rstd, ctx.eps, ctx.subtract_mean).flatten(0, -2)
        bias_grad = flat.sum(0) if ctx.has_bias else None
        x_grad = normalize_backward((flat @ weight).view_as(x), x, mean, rstd, ctx.eps, ctx.subtract_mean)
        return x_grad, weight_grad, bias_grad, None, None


def normalize(x: Tensor, eps: float, subtract_mean: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise x: (B, H, W, C) over C without affine part. Also returns mean and 1 / std: (B, H, W, 1)."""
    if subtract_mean:
        return torch.native_layer_norm(x, x.shape[-1:], None, None, eps)
    image = x.permute(0, 3, 1, 2)
    if kernels.usable(image):  # recomputes the statistics in the backward pass
        nothing = x.new_empty(0)
        return kernels.normalize_channels(image, subtract_mean, eps).permute(0, 2, 3, 1), nothing, nothing
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    variance, mean = torch.var_mean(wide, dim=-1, correction=0, keepdim=True)
    rstd = torch.rsqrt(variance + eps)
    return (wide * rstd).to(x.dtype), mean, rstd


def normalize_again(x: Tensor, mean: Tensor, rstd: Tensor, eps: float, subtract_mean: bool) -> Tensor:
    """Normalise x: (B, H, W, C), given the statistics that `normalize` returned."""
    if not rstd.numel():
        return normalize(x, eps, subtract_mean)[0]
    centred = x - mean if subtract_mean else x
    return (centred * rstd).to(x.dtype)


def normalize_backward(grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, eps: float, subtract_mean: bool) -> Tensor:
    """Return the gradient of x: (B, H, W, C), given that of its normalised form and the statistics of `normalize`."""
    if subtract_mean:
        native = torch.ops.aten.native_layer_norm_backward
        return native(grad, x, x.shape[-1:], mean, rstd, None, None, [True, False, False])[0]
    if not rstd.numel():
        images = grad.permute(0, 3, 1, 2), x.permute(0, 3, 1, 2)
        return kernels.normalize_channels_backward(*images, subtract_mean, eps).permute(0, 2, 3, 1)
    wide, wide_grad = x.to(rstd.dtype), grad.to(rstd.dtype)
    along = (wide_grad * wide).mean(dim=-1, keepdim=True) * rstd.square()
    return ((wide_grad - along * (wide - mean)) * rstd).to(x.dtype)


def depthwise(rows: Tensor, conv: nn.Conv2d) -> Tensor:
    """Apply a 3x3 depthwise convolution to (B, H, W, C)."""
    image = rows.permute(0, 3, 1, 2)
    if kernels.usable(image):
        return kernels.depthwise3x3(image, conv.weight, conv.bias).permute(0, 2, 3, 1)
    bias = None if conv.bias is None else conv.bias.to(rows.dtype)
    return _depthwise(rows, conv.weight.to(rows.dtype), bias)


def _depthwise(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out = F.conv2d(rows.permute(0, 3, 1, 2), weight, bias, padding=1, groups=rows.shape[-1])
    return out.permute(0, 2, 3, 1)


def mixing_matrix(q: Tensor, k: Tensor, attn: Any) -> Tensor:
    """Return a transposed attention and the following convolution as one matrix per image, to be applied to v.

    Args:
        q, k: (B, H, W, C).
        attn: the attention, with `temperature`, `project_out` and `attention(similarity)`.

    Returns:
        (B, C, C), in the dtype of q; computed in float32 or wider.
    """
    heads = len(attn.temperature)
    if attn.whole is None:
        products, norm_q, norm_k = _Gram.apply(q, k, heads)
        norms = norm_q.clamp_min(NORM_EPS)[..., :, None] * norm_k.clamp_min(NORM_EPS)[..., None, :]
        similarity = products / norms * attn.temperature
    else:
        similarity = attn.whole.similarity(q.permute(0, 3, 1, 2), k.permute(0, 3, 1, 2), attn.temperature)
    weights = attn.attention(similarity)  # (B, h, c, c)
    project = attn.project_out.weight.flatten(1).unflatten(1, (heads, -1)).transpose(0, 1)  # (h, C, c)
    return (project.to(weights.dtype) @ weights).transpose(1, 2).flatten(2).to(q.dtype)


class _Gram(Function):
    """q^T k of each head: (B, h, c, c), and the norms of the channels of q and k over the pixels: (B, h, c)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
        wide = torch.promote_types(q.dtype, torch.float32)
        norms = [_channel_norm(x, wide).unflatten(-1, (heads, -1)) for x in (q, k)]
        ctx.heads = heads
        ctx.save_for_backward(q, k, *norms)
        pairs = zip(_by_head(q, heads), _by_head(k, heads), strict=True)
        products = torch.stack([a.transpose(1, 2) @ b for a, b in pairs], dim=1)
        return products.to(wide), *norms

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_norm_q: Tensor, grad_norm_k: Tensor) -> tuple[Tensor | None, ...]:
        q, k, norm_q, norm_k = ctx.saved_tensors
        by_head = list(zip(_by_head(q, ctx.heads), _by_head(k, ctx.heads), grad.unbind(1), strict=True))
        grad_q = torch.cat([b @ part.transpose(1, 2).to(b.dtype) for _, b, part in by_head], dim=-1).view(q.shape)
        grad_k = torch.cat([a @ part.to(a.dtype) for a, _, part in by_head], dim=-1).view(k.shape)
        return _add_norm_grad(grad_q, q, norm_q, grad_norm_q), _add_norm_grad(grad_k, k, norm_k, grad_norm_k), None


def _channel_norm(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the norms of the channels of (B, H, W, C) over the pixels: (B, C)."""
    if x.dtype in (torch.float32, torch.float64):  # several times faster than a norm over pixels, and more accurate
        return x.square().sum(dim=(1, 2)).sqrt()
    return torch.linalg.vector_norm(x, dim=(1, 2), dtype=dtype)


def _by_head(x: Tensor, heads: int) -> Sequence[Tensor]:
    """Split (B, H, W, C) into h times (B, P, c). Sums over pixels would exceed the range of float16."""
    x = x.float() if x.dtype == torch.float16 else x
    return x.flatten(1, 2).chunk(heads, dim=-1)


def _add_norm_grad(grad: Tensor, x: Tensor, norm: Tensor, grad_norm: Tensor) -> Tensor:
    """Add the gradients of x through its products and through its norms; the latter is 0 where a norm is 0."""
    factor = torch.where(norm > 0, grad_norm / norm, 0).flatten(1)[:, None, None].to(grad.dtype)
    return torch.addcmul(grad, x.to(grad.dtype), factor).to(x.dtype)


def mix(rows: Tensor, v: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    """Return rows + matrix v + bias: (B, H, W, C), for rows and v: (B, H, W, C) and matrix: (B, C, C)."""
    out = torch.baddbmm(rows.flatten(1, 2), v.flatten(1, 2), matrix.transpose(1, 2)).view_as(rows)
    return out if bias is None else out + bias.to(out.dtype)


def feed_forward(rows: Tensor, norm: nn.Module, ffn: Any, keep: bool) -> Tensor:
    """Return rows + ffn(normalised rows): (B, H, W, C), for a `GDFN`.

    `keep` saves the output of its depthwise convolution for the backward pass, which recomputes it otherwise.
    """
    if few(rows, ffn.project_in.out_channels):
        hidden = linear(affine_normalize(rows, norm), ffn.project_in)
        conv_weight, conv_bias, out_weight = ffn.dwconv.weight, ffn.dwconv.bias, ffn.project_out.weight.flatten(1)
    else:
        weight, bias, conv_weight, conv_bias, out_weight = widen(ffn, *fold(norm, ffn.project_in))
        hidden = _normed_linear(rows, weight, bias, norm.body)
    conv_bias = None if conv_bias is None else conv_bias.to(rows.dtype)
    conv_weight, out_weight = conv_weight.to(rows.dtype), out_weight.to(rows.dtype)
    out = _GatedLinear.apply(hidden, conv_weight, conv_bias, out_weight, rows, ffn.dual, keep)
    return out if ffn.project_out.bias is None else out + ffn.project_out.bias.to(out.dtype)


class _GatedLinear(Function):
    """residual + linear(gate(depthwise convolution of p)): (B, H, W, C), for p: (B, H, W, 2F) and C from weight."""

    @staticmethod
    def forward(
        ctx: Any,
        p: Tensor,
        conv_weight: Tensor,
        conv_bias: Tensor | None,
        weight: Tensor,
        residual: Tensor,
        dual: bool,
        keep: bool,
    ) -> Tensor:
        d, gated = _convolve_and_gate(p, conv_weight, conv_bias, dual)
        ctx.save_for_backward(p, conv_weight, conv_bias, weight, d if keep else None)
        ctx.dual = dual
        flat = torch.addmm(residual.flatten(0, 2), gated.flatten(0, 2), weight.t())
        return flat.view_as(residual)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        p, conv_weight, conv_bias, weight, d = ctx.saved_tensors
        flat = grad.flatten(0, 2)
        grad_gated = (flat @ weight).view(*p.shape[:3], -1)
        gated, p_grad, conv_grad, bias_grad = _convolve_and_gate_backward(
            p, conv_weight, conv_bias, d, grad_gated, ctx.dual
        )
        return p_grad, conv_grad, bias_grad, flat.t() @ gated.flatten(0, 2), grad, None, None


def _convolve_and_gate(p: Tensor, weight: Tensor, bias: Tensor | None, dual: bool) -> tuple[Tensor | None, Tensor]:
    """Return the depthwise convolution of p: (B, H, W, 2F), None if never in memory, and its gate: (B, H, W, F)."""
    image = p.permute(0, 3, 1, 2)
    if kernels.usable(image):
        return None, kernels.depthwise3x3_gate(image, weight, bias, dual).permute(0, 2, 3, 1)
    d = _depthwise(p, weight, bias)
    return d, gate(d, dual)


def _convolve_and_gate_backward(
    p: Tensor, weight: Tensor, bias: Tensor | None, d: Tensor | None, grad: Tensor, dual: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return the gate of `_convolve_and_gate`, and the gradients of p, weight and bias."""
    image, channels = p.permute(0, 3, 1, 2), p.shape[-1]
    if kernels.usable(image):
        gated, p_grad, weight_grad, bias_grad = kernels.depthwise3x3_gate_backward(
            grad.permute(0, 3, 1, 2), image, weight, bias, dual
        )
        gated, p_grad = gated.permute(0, 2, 3, 1), p_grad.permute(0, 2, 3, 1)
        return gated, p_grad, weight_grad, None if bias is None else bias_grad
    gated, grad_d = gate_backward(_depthwise(p, weight, bias) if d is None else d, grad, dual)
    bias_shape = None if bias is None else [channels]
    wanted = [True, True, bias is not None]
    p_grad, weight_grad, bias_grad = torch.ops.aten.convolution_backward(
        grad_d.permute(0, 3, 1, 2), image, weight, bias_shape, [1, 1], [1, 1], [1, 1], False, [0, 0], channels, wanted
    )
    return gated, p_grad.permute(0, 2, 3, 1), weight_grad, bias_grad


def gate_backward(d: Tensor, grad: Tensor, dual: bool) -> tuple[Tensor, Tensor]:
    """Return the gate of d: (B, H, W, 2F), and the gradient of d, given that of the gate: (B, H, W, F)."""
    a, b = d.chunk(2, dim=-1)
    gelu_a = F.gelu(a)
    if torch.compiler.is_compiling():  # the compiler does not need preallocated memory
        grad_a, grad_b = torch.ops.aten.gelu_backward(b * grad, a), gelu_a * grad
    else:
        grad_d = torch.empty_like(d)
        grad_a, grad_b = grad_d.chunk(2, dim=-1)
        torch.ops.aten.gelu_backward.grad_input(b * grad, a, grad_input=grad_a)
        torch.mul(gelu_a, grad, out=grad_b)
    gated = gelu_a.mul_(b)
    if dual:
        gelu_b = F.gelu(b)
        grad_b.add_(torch.ops.aten.gelu_backward(a * grad, b))
        grad_a.addcmul_(gelu_b, grad)
        gated.addcmul_(gelu_b, a)
    return gated, torch.cat([grad_a, grad_b], dim=-1) if torch.compiler.is_compiling() else grad_d
