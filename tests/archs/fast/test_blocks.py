"""The fast formulation against the plain one: outputs, gradients, what is kept, types, compilation, hooks."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from promptir_basicsr.archs import PIPNAFNet, PIPRestormer, PromptIR
from promptir_basicsr.archs.fast import strips
from promptir_basicsr.archs.layers.formulation import set_checkpointing, set_formulation
from promptir_basicsr.archs.layers.prompts import PromptGenBlock
from promptir_basicsr.archs.layers.restormer import TransformerBlock
from promptir_basicsr.core.vocabulary import CHECKPOINTING

SMALL = {'dim': 8, 'num_blocks': (1, 1, 1, 1), 'num_refinement_blocks': 0, 'heads': (1, 2, 2, 4)}
OTHER = {'bias': True, 'layer_norm_type': 'BiasFree'}
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    'promptir': lambda: PromptIR(**SMALL),
    'promptir, biases, bias-free norm': lambda: PromptIR(**SMALL, **OTHER),
    'backbone alone': lambda: PromptIR(**SMALL, prompts=False),
    'pip topm': lambda: PIPRestormer(**SMALL),
    'pip topm, biases, bias-free norm': lambda: PIPRestormer(**SMALL, **OTHER),
    'pip topm, narrow prompts': lambda: PIPRestormer(**SMALL, prompt_dims=(12, 16, 24)),
    'pip cross': lambda: PIPRestormer(**SMALL, interaction='cross'),
    'pip gate': lambda: PIPRestormer(**SMALL, interaction='gate'),
    'pip promptir_gate': lambda: PIPRestormer(**SMALL, interaction='promptir_gate'),
    'pip nafnet': lambda: PIPNAFNet(
        width=8, enc_blk_nums=(1, 1, 1, 1), dec_blk_nums=(1, 1, 1, 1), prompt_dims=(12, 12, 16, 24)
    ),
}


def built(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A network off its start, where some parameters are zero or one."""
    torch.manual_seed(0)
    net = NETWORKS[name]().to(dtype)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return net


def picture(net: nn.Module, *shape: int) -> tuple[Tensor, ...]:
    """Images, and labels where the network takes them."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(shape, generator=generator, dtype=torch.float64).to(next(net.parameters()).dtype)
    return (x, torch.arange(len(x)) % 5) if getattr(net, 'takes_degradation', False) else (x,)


def step(net: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
    """The output, and the gradients of a sum over it in which no two numbers count the same."""
    net.zero_grad()
    y = net(*inputs)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    return y.detach(), [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in net.parameters()]


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def whole(gradients: list[Tensor]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients])


@pytest.mark.parametrize(
    'checkpointing', [pytest.param(kind, marks=[pytest.mark.slow] * (kind != 'gate')) for kind in CHECKPOINTING]
)
@pytest.mark.parametrize('name', NETWORKS)
def test_outputs_and_gradients_in_float64(name: str, checkpointing: str) -> None:
    net = built(name)
    inputs = picture(net, 2, 3, 32, 16)
    set_formulation(net, 'plain')
    expected, gradients = step(net, inputs)
    assert set_formulation(net, 'fast') == set_checkpointing(net, checkpointing) > 0
    y, found = step(net, inputs)
    assert relative(y, expected) < 1e-12
    assert relative(whole(found), whole(gradients)) < 1e-12
    assert max(map(relative, found, gradients)) < 1e-10


@pytest.mark.parametrize(
    'strip_bytes', [2**13, *(pytest.param(number, marks=pytest.mark.slow) for number in (1, 2**21))]
)
@pytest.mark.parametrize('name', NETWORKS)
def test_strips(name: str, strip_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strips of one row, of some, and of all rows: the same numbers."""
    net = built(name)
    inputs = picture(net, 2, 3, 48, 32)
    set_formulation(net, 'plain')
    with torch.no_grad():
        expected = net(*inputs)
        set_formulation(net, 'fast')
        monkeypatch.setattr(strips, 'STRIP_BYTES', strip_bytes)
        assert strips.fits(inputs[0])
        assert relative(net(*inputs), expected) < 1e-12


@pytest.mark.parametrize(('height', 'width'), [(1, 1), (1, 7), (2, 1), (3, 5), (17, 9)])
@pytest.mark.parametrize('strip_bytes', [1, 2**12])
def test_strips_of_any_size(height: int, width: int, strip_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    block = TransformerBlock(12, 2, 2.66, bias=True, layer_norm_type='WithBias').double()
    x = torch.randn(3, 12, height, width, dtype=torch.float64)
    monkeypatch.setattr(strips, 'STRIP_BYTES', strip_bytes)
    with torch.no_grad():
        found = block(x)
        set_formulation(block, 'plain')
        torch.testing.assert_close(found, block(x), rtol=0, atol=1e-12)


@pytest.mark.slow
def test_the_networks_of_the_papers_in_float32() -> None:
    """Bounds on rounding at full width: output and whole gradient 1e-5, one parameter 1e-3."""
    torch.manual_seed(0)
    for net in (PromptIR(), PIPRestormer()):
        inputs = picture(net, 1, 3, 32, 32)
        set_formulation(net, 'plain')
        expected, gradients = step(net, inputs)
        set_formulation(net, 'fast')
        y, found = step(net, inputs)
        assert (y - expected).abs().max() < 1e-5
        assert relative(whole(found), whole(gradients)) < 1e-5
        assert max(map(relative, found, gradients)) < 1e-3
        with torch.no_grad():
            assert (net(*inputs) - expected).abs().max() < 1e-5


@pytest.mark.parametrize('name', ['promptir', 'pip topm', 'pip nafnet'])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast(name: str, dtype: torch.dtype) -> None:
    """Within the rounding of the type: 2^-8 and 2^-11 of a value, several times over."""
    net = built(name, torch.float32)
    inputs = picture(net, 2, 3, 32, 32)
    expected, gradients = step(net, inputs)
    with torch.autocast('cpu', dtype):
        y, found = step(net, inputs)
    bound = {torch.bfloat16: 0.06, torch.float16: 0.01}[dtype]
    assert relative(y.float(), expected) < bound
    assert relative(whole(found), whole(gradients)) < 4 * bound
    assert all(part.dtype == torch.float32 for part in found)


def test_products_of_many_pixels_stay_in_the_range_of_float16() -> None:
    torch.manual_seed(0)
    block = TransformerBlock(8, 2, 2.66, bias=False, layer_norm_type='WithBias')
    nn.init.constant_(block.attn.qkv.weight, 3.0)
    x = torch.randn(1, 8, 64, 64) + torch.arange(8).view(1, 8, 1, 1)
    expected = block(x)
    with torch.autocast('cpu', torch.float16):
        found = block(x)
    assert found.isfinite().all()
    assert relative(found.float(), expected) < 0.01


@pytest.mark.parametrize(
    ('name', 'checkpointing'),
    [
        pytest.param('promptir', 'gate', marks=pytest.mark.slow),
        pytest.param('promptir', 'block', marks=pytest.mark.slow),
        pytest.param('promptir', 'none', marks=pytest.mark.slow),
        pytest.param('pip topm', 'gate', marks=pytest.mark.slow),
        pytest.param('pip topm', 'block', marks=pytest.mark.slow),
    ],
)
def test_compilation_breaks_no_graph(name: str, checkpointing: str) -> None:
    net = built(name)
    inputs = picture(net, 2, 3, 16, 16)
    set_checkpointing(net, checkpointing)
    expected, gradients = step(net, inputs)
    torch._dynamo.reset()
    compiled = torch.compile(net, backend='aot_eager', fullgraph=True)
    y = compiled(*inputs)
    net.zero_grad()
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    assert relative(y, expected) < 1e-12
    assert relative(whole([p.grad for p in net.parameters() if p.grad is not None]), whole(gradients)) < 1e-12


def kept(net: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """Bytes that a forward pass keeps for the backward pass, beside the parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in net.parameters()}
    storages = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        y = net(*inputs)
    assert y.requires_grad
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize(
    ('network', 'side', 'bound'),
    [
        (PromptIR, 64, 0.6),
        pytest.param(PromptIR, 128, 0.45, marks=pytest.mark.slow),
        pytest.param(PIPRestormer, 64, 0.6, marks=pytest.mark.slow),
    ],
)
def test_what_is_kept_for_the_backward_pass(network: type[nn.Module], side: int, bound: float) -> None:
    """Of small images more, since folded weights are kept, whatever the size of an image."""
    net = network()
    inputs = picture(net, 1, 3, side, side)
    set_formulation(net, 'plain')
    plain = kept(net, inputs)
    set_formulation(net, 'fast')
    share = {}
    for checkpointing in CHECKPOINTING:
        set_checkpointing(net, checkpointing)
        share[checkpointing] = kept(net, inputs) / plain
    assert share['block'] < 0.05 < share['gate'] < bound < share['none'] < 0.75


def test_hooks_inside_a_block_are_called() -> None:
    block = TransformerBlock(8, 2, 2.66, bias=False, layer_norm_type='WithBias')
    x = torch.randn(1, 8, 4, 4)
    seen = []
    handle = block.attn.qkv.register_forward_hook(lambda *_: seen.append(1))
    with_hook = block(x)
    assert seen
    handle.remove()
    torch.testing.assert_close(block(x), with_hook)
    assert len(seen) == 1


def test_a_second_derivative_is_refused() -> None:
    block = TransformerBlock(8, 2, 2.66, bias=False, layer_norm_type='WithBias').double()
    x = torch.randn(1, 8, 4, 4, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(block(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match='once_differentiable'):
        gradient.sum().backward()
    set_formulation(block, 'plain')
    assert torch.autograd.gradgradcheck(lambda x: block(x), x)


@pytest.mark.parametrize('norm', ['WithBias', 'BiasFree'])
def test_gradcheck(norm: str) -> None:
    torch.manual_seed(0)
    block = TransformerBlock(6, 2, 2.0, bias=True, layer_norm_type=norm).double()
    x = torch.randn(2, 6, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block, x)


def test_dead_channels_get_finite_gradients() -> None:
    """Where a channel of q is zero at every pixel, the gradient of its norm is taken as zero, as torch has it."""
    torch.manual_seed(0)
    block = TransformerBlock(8, 2, 2.66, bias=False, layer_norm_type='WithBias').double()
    with torch.no_grad():
        block.attn.qkv.weight[:2] = 0
    x = torch.randn(1, 8, 4, 4, dtype=torch.float64)
    _, found = step(block, (x,))
    set_formulation(block, 'plain')
    _, expected = step(block, (x,))
    assert all(part.isfinite().all() for part in found)
    torch.testing.assert_close(found[1:], expected[1:])


@pytest.mark.parametrize('side', [8, 16])
def test_a_bank_is_convolved_before_it_is_mixed_for_many_images(side: int) -> None:
    torch.manual_seed(0)
    generate = PromptGenBlock(6, 2, 8, feature_dim=4).double()
    x = torch.randn(5, 4, side, side, dtype=torch.float64)
    found, gradients = step(generate, (x,))
    set_formulation(generate, 'plain')
    expected, plain = step(generate, (x,))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradients, plain, rtol=1e-10, atol=1e-12)


def test_unknown_formulation() -> None:
    net = PromptIR(**SMALL)
    with pytest.raises(ValueError, match=r"PromptIR: unknown formulation 'fats'\. Did you mean 'fast'\?"):
        set_formulation(net, 'fats')
    with pytest.raises(ValueError, match=r"PromptIR: unknown checkpointing 'blocks'\. Did you mean 'block'\?"):
        set_checkpointing(net, 'blocks')
    assert set_formulation(nn.Linear(2, 2), 'plain') == 0


KERNELS = """
import torch
from promptir_basicsr.archs.fast import kernels
from tests.archs.fast.test_blocks import built, picture, relative, step, whole
assert kernels.interpreted and kernels.available
for name in ('promptir, biases, bias-free norm', 'pip topm'):
    net = built(name)
    inputs = picture(net, 1, 3, 8, 16)
    kernels.set_kernels(None)
    expected, gradients = step(net, inputs)
    kernels.set_kernels('triton')
    y, found = step(net, inputs)
    assert relative(y, expected) < 1e-12
    assert relative(whole(found), whole(gradients)) < 1e-12
"""


@pytest.mark.slow
def test_networks_with_kernels() -> None:
    """In Triton's interpreter, which must be chosen before Python starts."""
    pytest.importorskip('triton', reason='Triton is not installed')
    environment = {**os.environ, 'TRITON_INTERPRET': '1', 'OMP_NUM_THREADS': '1'}
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, '-c', KERNELS], cwd=root, env=environment, check=True, timeout=900)
