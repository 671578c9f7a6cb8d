"""The numbers of the Triton kernels. test_kernels.py runs this file, as the interpreter is chosen before Python starts.

    TRITON_INTERPRET=1 python -m pytest tests/archs/fast/kernel_cases.py     on the CPU
    python -m pytest tests/archs/fast/kernel_cases.py                        on a GPU

What they are held to is plain torch in float64 on the CPU. Features lie between images of NaN, and fresh memory is full
of NaN, so that a place read outside the picture, or left unwritten, shows.
"""

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from promptir_basicsr.archs.fast import kernels, triton_kernels
from promptir_basicsr.archs.fast.kernels import (
    depthwise3x3,
    depthwise3x3_gate,
    depthwise3x3_gate_backward,
    normalize_channels,
    usable,
)
from promptir_basicsr.archs.layers.formulation import set_formulation
from promptir_basicsr.archs.layers.restormer import TransformerBlock
from tests.golden.seeded import seeded_fill

DEVICE = 'cpu' if kernels.interpreted else 'cuda'
# Relative to the whole tensor's norm. The interpreter cuts off to bfloat16 (2^-7), where a GPU rounds (2^-8).
BOUNDS = {torch.float64: 1e-13, torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}
DTYPES = list(BOUNDS)
OPERATORS = ('normalize_channels', 'depthwise3x3', 'depthwise3x3_gate')


@pytest.fixture(autouse=True)
def fresh_memory_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    with kernels.kernels_of('triton'):
        yield
    torch.use_deterministic_algorithms(False)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def features(*shape: int, dtype: torch.dtype) -> Tensor:
    """(B, C, H, W) in channels_last with a mean, between two images of NaN."""
    batch, *rest = shape
    surrounded = torch.full((batch + 2, *rest), math.nan, device=DEVICE, dtype=dtype)
    surrounded = surrounded.contiguous(memory_format=torch.channels_last)
    surrounded[1:-1] = (2 * random(*shape) + 1).to(DEVICE, dtype)
    return surrounded[1:-1].requires_grad_()


def parameters(channels: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    weight = (random(channels, 1, 3, 3, seed=1) / 3).to(DEVICE, dtype)
    return weight.requires_grad_(), random(channels, seed=2).to(DEVICE, dtype).requires_grad_()


def normed(x: Tensor, subtract_mean: bool, eps: float) -> Tensor:
    mean = x.sum(1, keepdim=True) / x.shape[1]
    variance = ((x - mean) ** 2).sum(1, keepdim=True) / x.shape[1]
    return (x - mean if subtract_mean else x) / (variance + eps).sqrt()


def convolved(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(x, weight, bias, padding=1, groups=len(weight))


def gated(x: Tensor, weight: Tensor, bias: Tensor | None, dual: bool) -> Tensor:
    def gelu(x: Tensor) -> Tensor:
        return x * (1 + torch.erf(x / math.sqrt(2))) / 2

    a, b = convolved(x, weight, bias).chunk(2, dim=1)
    return gelu(a) * b + (gelu(b) * a if dual else 0)


def hold(operator: Callable[..., Tensor], plain: Callable[..., Tensor], inputs: list[Tensor | None]) -> None:
    """Output and gradients of the operator must be those of the plain formula."""
    exact = [each if each is None else each.detach().cpu().double().requires_grad_() for each in inputs]
    out, expected = operator(*inputs), plain(*exact)
    dtype = out.dtype
    assert dtype == inputs[0].dtype
    assert out.is_contiguous(memory_format=torch.channels_last)
    upstream = random(*out.shape, seed=3).to(dtype)
    found = torch.autograd.grad(out, [each for each in inputs if each is not None], upstream.to(DEVICE))
    wanted = torch.autograd.grad(expected, [each for each in exact if each is not None], upstream.double())
    for mine, true in zip((out, *found), (expected, *wanted), strict=True):
        # One channel less its mean is nothing but rounding: hence the 1e-6.
        error = (mine.detach().cpu().double() - true).norm() / (true.norm() + 1e-6)
        assert error <= BOUNDS[dtype], f'{tuple(mine.shape)}: {error:.1e}'


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('subtract_mean', [True, False])
@pytest.mark.parametrize('shape', [(1, 1, 1, 1), (2, 12, 5, 7), (1, 48, 9, 17), (3, 127, 3, 2), (1, 2040, 1, 3)])
def test_normalize(shape: tuple[int, ...], subtract_mean: bool, dtype: torch.dtype) -> None:
    choice = {'subtract_mean': subtract_mean, 'eps': 1e-5}
    hold(partial(normalize_channels, **choice), partial(normed, **choice), [features(*shape, dtype=dtype)])


@pytest.mark.parametrize('subtract_mean', [True, False])
def test_normalize_takes_statistics_of_half_precision_in_float32(subtract_mean: bool) -> None:
    """Large mean, small spread: bfloat16 statistics would be useless here."""
    x = (100 + random(1, 64, 4, 4)).to(DEVICE, torch.bfloat16).requires_grad_()
    choice = {'subtract_mean': subtract_mean, 'eps': 1e-5}
    hold(partial(normalize_channels, **choice), partial(normed, **choice), [x])


def test_normalize_is_finite_for_a_constant_pixel() -> None:
    x = torch.full((1, 4, 2, 2), 7.0, device=DEVICE, requires_grad=True)
    out = normalize_channels(x, True, 1e-5)
    out.sum().backward()
    assert (out == 0).all()
    assert x.grad.isfinite().all()


# Tiles are of 2 or 4 rows, 16 columns, 32 channels: these end within, at and just behind one.
SMALL = [(1, 1, 1, 1), (2, 12, 5, 3), (1, 33, 1, 17)]
LARGE = [(1, 127, 3, 2), (1, 255, 2, 5), (2, 48, 8, 16), (1, 32, 9, 33)]


@pytest.mark.parametrize('shape', SMALL)
def test_depthwise(shape: tuple[int, ...]) -> None:
    hold(depthwise3x3, convolved, [features(*shape, dtype=torch.float32), *parameters(shape[1])])


@pytest.mark.parametrize('dtype', DTYPES)
def test_depthwise_without_bias_of_each_dtype(dtype: torch.dtype) -> None:
    hold(depthwise3x3, convolved, [features(1, 6, 2, 4, dtype=dtype), parameters(6, dtype)[0], None])


@pytest.mark.slow
@pytest.mark.parametrize(('dtype', 'bias'), [(torch.float32, False), (torch.bfloat16, True), (torch.float16, True)])
@pytest.mark.parametrize('shape', LARGE)
def test_depthwise_of_many_tiles(shape: tuple[int, ...], bias: bool, dtype: torch.dtype) -> None:
    weight, offset = parameters(shape[1])
    hold(depthwise3x3, convolved, [features(*shape, dtype=dtype), weight, offset if bias else None])


@pytest.mark.parametrize(('shape', 'dual'), [((1, 2, 1, 1), False), ((1, 10, 3, 5), True), ((1, 66, 1, 17), False)])
def test_gate(shape: tuple[int, ...], dual: bool) -> None:
    inputs = [features(*shape, dtype=torch.float32), *parameters(shape[1])]
    hold(partial(depthwise3x3_gate, dual=dual), partial(gated, dual=dual), inputs)


@pytest.mark.parametrize('dtype', DTYPES)
def test_gate_without_bias_of_each_dtype(dtype: torch.dtype) -> None:
    inputs = [features(1, 6, 2, 4, dtype=dtype), parameters(6, dtype)[0], None]
    hold(partial(depthwise3x3_gate, dual=True), partial(gated, dual=True), inputs)


@pytest.mark.parametrize('dual', [False, True])
def test_gate_backward_gives_the_output_again(dual: bool) -> None:
    x = features(1, 6, 3, 4, dtype=torch.float32)
    weight, bias = parameters(6)
    expected = depthwise3x3_gate(x, weight, bias, dual)
    upstream = random(*expected.shape, seed=3).float().to(DEVICE)
    out, *found = depthwise3x3_gate_backward(upstream, x.detach(), weight.detach(), bias.detach(), dual)
    wanted = torch.autograd.grad(expected, (x, weight, bias), upstream)
    for mine, other in zip((out, *found), (expected, *wanted), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(('dtype', 'bias'), [(torch.float32, False), (torch.bfloat16, True), (torch.float16, True)])
@pytest.mark.parametrize('shape', [(1, 254, 3, 2), (2, 48, 8, 16), (1, 32, 9, 33)])
def test_gate_of_many_tiles(shape: tuple[int, ...], bias: bool, dtype: torch.dtype) -> None:
    weight, offset = parameters(shape[1])
    inputs = [features(*shape, dtype=dtype), weight, offset if bias else None]
    hold(partial(depthwise3x3_gate, dual=bias), partial(gated, dual=bias), inputs)


@pytest.mark.slow
def test_gradients_are_the_numerical_ones() -> None:
    x = random(1, 4, 2, 3).to(DEVICE).requires_grad_()
    weight, bias = parameters(4, torch.float64)
    check = partial(torch.autograd.gradcheck, fast_mode=True)
    assert check(partial(normalize_channels, subtract_mean=True, eps=1e-5), (x,))
    assert check(partial(normalize_channels, subtract_mean=False, eps=1e-5), (x,))
    assert check(depthwise3x3, (x, weight, bias))
    assert check(partial(depthwise3x3_gate, dual=True), (x, weight, bias))


def test_features_in_any_layout_give_the_same_numbers() -> None:
    """Packed by rows, every second column, and a gradient that is one number everywhere."""
    weight, bias = parameters(4)
    for x in (random(1, 4, 1, 3).float(), random(1, 4, 1, 6).float()[..., ::2]):
        mine = x.to(DEVICE).requires_grad_()
        packed = x.to(DEVICE).contiguous(memory_format=torch.channels_last).requires_grad_()
        assert usable(packed)
        assert not usable(mine)
        for operator in (partial(normalize_channels, subtract_mean=True, eps=1e-5), lambda x: gate(x, weight, bias)):
            out, expected = operator(mine), operator(packed)
            torch.testing.assert_close(out, expected, rtol=0, atol=0)
            (found,) = torch.autograd.grad(out.sum(), mine)
            (wanted,) = torch.autograd.grad(expected, packed, torch.ones_like(expected))
            torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def gate(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return depthwise3x3_gate(x, weight, bias, dual=False)


def test_the_same_input_gives_the_same_bits() -> None:
    weight, bias = parameters(4)
    x = features(1, 4, 3, 3, dtype=torch.float32)
    first, second = (torch.autograd.grad(gate(x, weight, bias).sum(), (x, weight, bias)) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


def test_an_empty_batch_has_empty_features_and_no_gradient_of_weights() -> None:
    weight, bias = parameters(4)
    x = torch.zeros(0, 4, 3, 3, device=DEVICE, requires_grad=True)
    assert normalize_channels(x, True, 1e-5).shape == (0, 4, 3, 3)
    out = gate(x, weight, bias)
    assert out.shape == (0, 2, 3, 3)
    out.sum().backward()
    assert (weight.grad == 0).all()
    assert (bias.grad == 0).all()


def test_nothing_is_written_outside_the_output() -> None:
    x = features(1, 5, 3, 3, dtype=torch.float32).detach()
    for kernel in ('normalize', 'convolve'):
        written = torch.full((3, 5, 3, 3), math.pi, device=DEVICE).contiguous(memory_format=torch.channels_last)
        if kernel == 'normalize':
            triton_kernels.run(triton_kernels.normalize_kernel, x, written[1:2], subtract_mean=True, eps=1e-5)
        else:
            taps, tile = torch.ones(9, 5, device=DEVICE), triton_kernels.CONVOLVE
            options = triton_kernels.options(x, tile)
            arguments = (x, taps, taps, written[1:2], 3, 3, 5)
            triton_kernels.launch(triton_kernels.convolve_kernel, 1, *arguments, HAS_BIAS=False, **options)
        assert not torch.isclose(written[1], torch.tensor(math.pi, device=DEVICE)).any()
        assert (written[[0, 2]] == math.pi).all()


@pytest.mark.parametrize('kind', ['WithBias', 'BiasFree'])
def test_a_fast_block_computes_with_them_what_a_plain_one_does(kind: str) -> None:
    block = seeded_fill(TransformerBlock(8, 2, 2.66, True, kind)).to(DEVICE)
    plain = deepcopy(block).cpu().double()
    set_formulation(block, 'fast')
    set_formulation(plain, 'plain')
    x = features(1, 8, 3, 4, dtype=torch.float32)
    with torch.profiler.profile() as profile:
        out = block(x)
        found = torch.autograd.grad(out.square().sum(), (x, *block.parameters()))
    called = {event.name for event in profile.events()}
    assert {'promptir_basicsr::depthwise3x3_gate', 'promptir_basicsr::depthwise3x3_gate_backward'} <= called
    exact = x.detach().cpu().double().requires_grad_()
    expected = plain(exact)
    wanted = torch.autograd.grad(expected.square().sum(), (exact, *plain.parameters()))
    for mine, true in zip((out, *found), (expected, *wanted), strict=True):
        assert (mine.detach().cpu().double() - true).norm() <= 1e-5 * true.norm()


@pytest.mark.slow
@pytest.mark.skipif(DEVICE == 'cpu', reason='needs a GPU of 24 GB: more than 2^31 elements')
def test_places_beyond_32_bits() -> None:
    x = torch.zeros(1, 32, 8200, 8200, device=DEVICE, dtype=torch.float16).contiguous(memory_format=torch.channels_last)
    x[..., -8:, :] = torch.randn(1, 32, 8, 8200, device=DEVICE)
    weight, bias = (each.detach() for each in parameters(32))
    out = depthwise3x3(x, weight, bias)[..., -8:, :]
    expected = convolved(x[..., -8:, :].float(), weight, bias)
    torch.testing.assert_close(out.float(), expected, rtol=2**-10, atol=1e-3)
    out = normalize_channels(x, True, 1e-5)[..., -8:, :]
    torch.testing.assert_close(out.float(), normed(x[..., -8:, :].float(), True, 1e-5), rtol=2**-10, atol=1e-3)


def block(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """What a Transformer block does with the three, and the way around where they are not usable."""
    if not usable(x):
        return x
    x = x + normalize_channels(x, False, 1e-5)
    x = x + depthwise3x3(x, weight, bias)
    return depthwise3x3_gate(x, weight, bias, True)


def test_compile_has_no_graph_break() -> None:
    inputs = features(1, 4, 2, 3, dtype=torch.float32), *parameters(4)
    compiled = torch.compile(block, backend='aot_eager', fullgraph=True)
    out, expected = compiled(*inputs), block(*inputs)
    assert out.shape == (1, 2, 2, 3)
    torch.testing.assert_close(out, expected, rtol=0, atol=0)
    found, wanted = (torch.autograd.grad(each.square().sum(), inputs) for each in (out, expected))
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


@pytest.mark.parametrize('name', ['normalize_channels', 'depthwise3x3_gate'])
def test_operators_are_as_torch_wants_them(name: str) -> None:
    check_operator(name)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['depthwise3x3', *(f'{name}_backward' for name in OPERATORS)])
def test_all_operators_are_as_torch_wants_them(name: str) -> None:
    check_operator(name)


def check_operator(name: str) -> None:
    """torch.library.opcheck: schema, autograd, shapes and strides without data, tracing with symbolic shapes."""
    operator, backward, _ = name.partition('_backward')
    x, grad = features(1, 4, 2, 3, dtype=torch.float32), features(1, 4, 2, 3, dtype=torch.float32)
    weight, bias = parameters(4)
    arguments = {
        'normalize_channels': (x, True, 1e-5),
        'depthwise3x3': (x, weight) if backward else (x, weight, bias),
        'depthwise3x3_gate': (x, weight, bias, True),
    }[operator]
    if backward:
        grad = grad[:, :2] if operator == 'depthwise3x3_gate' else grad
        arguments = tuple(each.detach() if isinstance(each, Tensor) else each for each in (grad, *arguments))
    if name == 'depthwise3x3_gate_backward':
        arguments = (*arguments, True)
    torch.library.opcheck(getattr(torch.ops.promptir_basicsr, name).default, arguments)


def test_mistakes_are_named() -> None:
    x = features(1, 4, 2, 3, dtype=torch.float32)
    weight, bias = parameters(4)
    with pytest.raises(ValueError, match=r'depthwise3x3: weight is \(3, 1, 3, 3\); it must be \(4, 1, 3, 3\)'):
        depthwise3x3(x, weight[:3], None)
    with pytest.raises(ValueError, match=r'depthwise3x3_gate: bias is \(3,\); it must be \(4,\)'):
        depthwise3x3_gate(x, weight, bias[:3], False)
    with pytest.raises(ValueError, match='depthwise3x3_gate: x has 3 channels; it must have an even number'):
        depthwise3x3_gate(x[:, :3], weight[:3], None, False)
    with pytest.raises(
        ValueError, match=r'normalize_channels: no Triton kernel supports x, which is \(1, 4, 2, 3\) of torch'
    ):
        normalize_channels(x.long(), True, 1e-5)


def test_usable_is_false_for_what_the_kernels_do_not_support(monkeypatch: pytest.MonkeyPatch) -> None:
    x = features(1, 4, 2, 3, dtype=torch.float32).detach()
    assert usable(x)
    assert not usable(x[0])
    assert not usable(x.long())
    assert not usable(x.contiguous())
    assert usable(torch.empty(1, kernels.MAX_CHANNELS, 1, 1, device=DEVICE))
    assert not usable(torch.empty(1, kernels.MAX_CHANNELS + 1, 1, 1, device=DEVICE))
    monkeypatch.setattr(kernels, 'enabled', False)
    assert not usable(x)
