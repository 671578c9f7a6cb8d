"""PromptIR against golden numbers, and against a plain formulation of its own in float64."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptir_basicsr.archs import PromptIR
from tests.golden.seeded import seeded_array, seeded_fill, seeded_image

# isort: split
# BasicSR can be imported once the package has prepared it
from basicsr.utils.registry import ARCH_REGISTRY

GOLDEN = Path(__file__).parents[1] / 'golden'
UNUSED = {f'chnl_reduce{i}.weight' for i in (1, 2, 3)} | {f'reduce_noise_channel_{i}.weight' for i in (1, 2, 3)}
SMALL: dict[str, Any] = {'dim': 8, 'num_blocks': (1, 2, 1, 1), 'num_refinement_blocks': 1, 'prompt_sizes': (6, 5, 3)}


def small(**options: Any) -> PromptIR:
    return seeded_fill(PromptIR(**{**SMALL, **options}))  # type: ignore[return-value]


@pytest.fixture(scope='module')
def full() -> PromptIR:
    """The network of the paper."""
    return seeded_fill(PromptIR())  # type: ignore[return-value]


@pytest.fixture(scope='module')
def released_shapes() -> dict[str, tuple[int, ...]]:
    shapes = json.loads((GOLDEN / 'promptir_official_keys.json').read_text())
    return {name: tuple(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize(('key', 'shape', 'seed'), [('1x64x64', (1, 3, 64, 64), 0), ('2x32x48', (2, 3, 32, 48), 1)])
def test_golden_output(full: PromptIR, key: str, shape: tuple[int, int, int, int], seed: int) -> None:
    with np.load(GOLDEN / 'promptir_dev.npz') as golden, torch.no_grad():
        expected = torch.from_numpy(golden[f'y_{key}_s{seed}'])
        torch.testing.assert_close(full(seeded_image(shape, seed)), expected, rtol=0, atol=1e-4)


def test_golden_loss_and_gradients(full: PromptIR) -> None:
    golden = json.loads((GOLDEN / 'promptir_dev_grads.json').read_text())
    loss = F.l1_loss(full(seeded_image((1, 3, 32, 32), 2)), seeded_image((1, 3, 32, 32), 3))
    grads = torch.autograd.grad(loss, list(full.parameters()))
    norms = {name: grad.norm().item() for (name, _), grad in zip(full.named_parameters(), grads, strict=True)}
    assert loss.item() == pytest.approx(golden['loss'], rel=1e-3)
    assert norms == pytest.approx(golden['grad_norms'], rel=1e-3, abs=0)


def test_names_shapes_and_counts_are_the_released_ones(
    full: PromptIR, released_shapes: dict[str, tuple[int, ...]]
) -> None:
    assert len(released_shapes) == 548
    assert sum(map(math.prod, released_shapes.values())) == 35_592_263
    ours = {name: tuple(parameter.shape) for name, parameter in full.named_parameters()}
    assert ours == {name: shape for name, shape in released_shapes.items() if name not in UNUSED}
    assert full.state_dict().keys() == ours.keys()
    assert sum(parameter.numel() for parameter in full.parameters()) == 35_592_263 - 215_296


# From here to `restored`: a second formulation, straight from the paper's equations, on a state dict p.
def convolved(p: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """1x1 as a matrix, anything else by torch; depthwise where the weights have one input channel."""
    weight, bias = p[f'{name}.weight'], p.get(f'{name}.bias')
    if weight.shape[-1] == 1:
        out = torch.einsum('oi,bihw->bohw', weight[:, :, 0, 0], x)
        return out if bias is None else out + bias.reshape(1, -1, 1, 1)
    return F.conv2d(x, weight, bias, padding=1, groups=x.shape[1] // weight.shape[1])


def normed(p: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    weight, bias = p[f'{name}.body.weight'], p.get(f'{name}.body.bias')
    mean = x.sum(1, keepdim=True) / x.shape[1]
    deviation = (((x - mean) ** 2).sum(1, keepdim=True) / x.shape[1] + 1e-5).sqrt()
    if bias is None:
        return torch.einsum('c,bchw->bchw', weight, x / deviation)
    return torch.einsum('c,bchw->bchw', weight, (x - mean) / deviation) + bias.reshape(1, -1, 1, 1)


def attended(p: dict[str, Tensor], name: str, x: Tensor, heads: int) -> Tensor:
    mixed = convolved(p, f'{name}.qkv_dwconv', convolved(p, f'{name}.qkv', x))
    width = x.shape[1]
    per_head, outs = width // heads, []
    for head in range(heads):
        q, k, v = (
            mixed[:, part * width + head * per_head : part * width + (head + 1) * per_head].flatten(2)
            for part in range(3)
        )
        cosine = torch.einsum('bip,bjp->bij', q, k)
        cosine = cosine / (q.square().sum(2).sqrt()[:, :, None] * k.square().sum(2).sqrt()[:, None, :])
        score = (cosine * p[f'{name}.temperature'][head, 0, 0]).exp()
        outs.append(torch.einsum('bij,bjp->bip', score / score.sum(2, keepdim=True), v))
    return convolved(p, f'{name}.project_out', torch.cat(outs, 1).reshape(x.shape))


def block(p: dict[str, Tensor], name: str, x: Tensor, heads: int) -> Tensor:
    x = x + attended(p, f'{name}.attn', normed(p, f'{name}.norm1', x), heads)
    h = convolved(p, f'{name}.ffn.dwconv', convolved(p, f'{name}.ffn.project_in', normed(p, f'{name}.norm2', x)))
    half = h.shape[1] // 2
    gate = h[:, :half] * 0.5 * torch.special.erfc(-h[:, :half] / math.sqrt(2))
    return x + convolved(p, f'{name}.ffn.project_out', gate * h[:, half:])


def blocks(p: dict[str, Tensor], name: str, x: Tensor, heads: int) -> Tensor:
    count = 0
    while f'{name}.{count}.attn.temperature' in p:
        x = block(p, f'{name}.{count}', x, heads)
        count += 1
    return x


def halved(p: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    x = convolved(p, f'{name}.body.0', x)
    squares = [x[:, :, row::2, column::2] for row in (0, 1) for column in (0, 1)]
    return torch.stack(squares, 2).flatten(1, 2)


def doubled(p: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    x = convolved(p, f'{name}.body.0', x)
    out = x.new_zeros(x.shape[0], x.shape[1] // 4, 2 * x.shape[2], 2 * x.shape[3])
    for corner in range(4):
        out[:, :, corner // 2 :: 2, corner % 2 :: 2] = x[:, corner::4]
    return out


def resize_matrix(new: int, old: int) -> Tensor:
    """Bilinear weights (new, old), pixel centres at half-integers, edges repeated."""
    matrix = torch.zeros(new, old, dtype=torch.float64)
    for i in range(new):
        at = max((i + 0.5) * old / new - 0.5, 0.0)
        below = int(at)
        matrix[i, below] += 1 - (at - below)
        matrix[i, min(below + 1, old - 1)] += at - below
    return matrix


def shares_of(p: dict[str, Tensor], level: int, x: Tensor) -> Tensor:
    means = x.flatten(2).sum(2) / (x.shape[2] * x.shape[3])
    logits = means @ p[f'prompt{level}.linear_layer.weight'].T + p[f'prompt{level}.linear_layer.bias']
    return logits.exp() / logits.exp().sum(1, keepdim=True)


def interacted(p: dict[str, Tensor], level: int, x: Tensor) -> Tensor:
    if f'prompt{level}.prompt_param' in p:
        bank = p[f'prompt{level}.prompt_param'][0]
        rows, columns = (resize_matrix(new, old) for new, old in zip(x.shape[2:], bank.shape[2:], strict=True))
        prompt = torch.einsum('bn,ndij,hi,wj->bdhw', shares_of(p, level, x), bank, rows, columns)
        prompt = convolved(p, f'prompt{level}.conv3x3', prompt)
        x = block(p, f'noise_level{level}', torch.cat([x, prompt], 1), heads=4)
    return convolved(p, f'reduce_noise_level{level}', x) if f'reduce_noise_level{level}.weight' in p else x


def restored(p: dict[str, Tensor], image: Tensor, heads: tuple[int, ...] = (1, 2, 4, 8)) -> tuple[Tensor, list[Tensor]]:
    """The whole network, and the features that meet prompts 3, 2 and 1."""
    skip1 = blocks(p, 'encoder_level1', convolved(p, 'patch_embed.proj', image), heads[0])
    skip2 = blocks(p, 'encoder_level2', halved(p, 'down1_2', skip1), heads[1])
    skip3 = blocks(p, 'encoder_level3', halved(p, 'down2_3', skip2), heads[2])
    met = [blocks(p, 'latent', halved(p, 'down3_4', skip3), heads[3])]
    x = torch.cat([doubled(p, 'up4_3', interacted(p, 3, met[0])), skip3], 1)
    met.append(blocks(p, 'decoder_level3', convolved(p, 'reduce_chan_level3', x), heads[2]))
    x = torch.cat([doubled(p, 'up3_2', interacted(p, 2, met[1])), skip2], 1)
    met.append(blocks(p, 'decoder_level2', convolved(p, 'reduce_chan_level2', x), heads[1]))
    x = torch.cat([doubled(p, 'up2_1', interacted(p, 1, met[2])), skip1], 1)
    x = blocks(p, 'refinement', blocks(p, 'decoder_level1', x, heads[0]), heads[0])
    return convolved(p, 'output', x) + image, met


@pytest.mark.parametrize(
    ('options', 'size'),
    [
        ({}, (2, 3, 16, 24)),
        ({'prompts': False}, (2, 3, 24, 16)),
        ({'bias': True, 'layer_norm_type': 'BiasFree'}, (1, 3, 16, 16)),
        ({'dim': 24, 'heads': [2, 4, 3, 6], 'num_prompts': 3, 'ffn_expansion_factor': 1.5}, (1, 3, 8, 32)),
        ({'inp_channels': 1, 'out_channels': 1, 'num_refinement_blocks': 0}, (2, 1, 16, 16)),
    ],
    ids=['plain', 'promptless', 'bias', 'wide', 'grey'],
)
def test_agrees_with_the_second_formulation(options: dict[str, Any], size: tuple[int, int, int, int]) -> None:
    net = small(**options).double()
    x, target = seeded_image(size, 4).double(), seeded_image(size, 5).double()
    parameters = dict(net.named_parameters())
    expected, _ = restored(parameters, x, tuple(options.get('heads', (1, 2, 4, 8))))
    out = net(x)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)

    ours = torch.autograd.grad((out - target).square().mean(), list(parameters.values()))
    theirs = torch.autograd.grad((expected - target).square().mean(), list(parameters.values()))
    for name, grad, other in zip(parameters, ours, theirs, strict=True):
        assert (grad - other).norm() <= 1e-8 * other.norm() + 1e-13, name


def test_is_registered_and_takes_lists_as_yaml_gives_them() -> None:
    options = {'dim': 8, 'num_blocks': [1, 1, 1, 1], 'heads': [1, 2, 4, 8], 'prompt_sizes': [4, 4, 4]}
    net = ARCH_REGISTRY.get('PromptIR')(**options)
    assert type(net) is PromptIR
    assert net(torch.rand(1, 3, 16, 16)).shape == (1, 3, 16, 16)


def test_constraints_are_values() -> None:
    assert (PromptIR.scale, PromptIR.size_multiple, PromptIR.takes_degradation) == (1, 8, False)


@pytest.mark.parametrize('size', [(15, 16), (16, 20), (12, 12)])
def test_size_that_does_not_divide_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(
        ValueError, match=f'PromptIR: the input is {size[0]}x{size[1]} .* divisible by 8.*Pad it to 16x'
    ):
        small()(torch.rand(1, 3, *size))


def test_wrong_channels_are_refused() -> None:
    with pytest.raises(ValueError, match=r'the input is \(1, 4, 16, 16\); it must be \(B, 3, H, W\)'):
        small()(torch.rand(1, 4, 16, 16))


def test_degradation_is_ignored() -> None:
    net, x = small(), seeded_image((2, 3, 16, 16))
    assert torch.equal(net(x, torch.tensor([0, 3])), net(x))
    assert torch.equal(net.prompt_weights(x, 'rain')['level2'], net.prompt_weights(x)['level2'])


def test_images_of_a_batch_do_not_see_each_other() -> None:
    net, x = small().double(), seeded_image((4, 3, 16, 24)).double()
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(net(x[order]), net(x)[order], rtol=0, atol=1e-11)
    torch.testing.assert_close(net(x[1:2]), net(x)[1:2], rtol=0, atol=1e-11)


@pytest.mark.parametrize('prompts', [True, False])
@pytest.mark.parametrize('dim', [8, 16, 24, 40, 48])
def test_each_parameter_gets_a_gradient(dim: int, prompts: bool) -> None:
    torch.manual_seed(dim)
    net = PromptIR(dim=dim, num_blocks=[1, 1, 1, 1], num_refinement_blocks=1, prompt_sizes=[8, 4, 4], prompts=prompts)
    F.l1_loss(net(torch.rand(1, 3, 32, 32)), torch.rand(1, 3, 32, 32)).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.norm() > 0, name


def test_promptless_network_has_the_backbone_only() -> None:
    with_prompts, without = small().state_dict(), small(prompts=False).state_dict()
    gone = with_prompts.keys() - without.keys()
    assert without.keys() < with_prompts.keys()
    assert {name.split('.')[0] for name in gone} == {
        *('prompt1', 'prompt2', 'prompt3', 'noise_level1', 'noise_level2', 'noise_level3'),
        *('reduce_noise_level1', 'reduce_noise_level2'),
    }
    assert without['reduce_noise_level3.weight'].shape == (32, 64, 1, 1)


def test_prompt_weights_are_those_of_the_second_formulation() -> None:
    net, x = small().double(), seeded_image((2, 3, 16, 24)).double()
    weights, parameters = net.prompt_weights(x), dict(net.named_parameters())
    assert list(weights) == ['level3', 'level2', 'level1']
    for (name, found), features in zip(weights.items(), restored(parameters, x)[1], strict=True):
        torch.testing.assert_close(found, shares_of(parameters, int(name[-1]), features), rtol=0, atol=1e-10)
        torch.testing.assert_close(found.sum(1), torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-12)


def test_prompt_weights_answer_to_the_image() -> None:
    net = small(num_prompts=3)
    weights = net.prompt_weights(torch.cat([seeded_image((1, 3, 16, 16), 0), torch.zeros(1, 3, 16, 16)]))
    for name, found in weights.items():
        assert found.shape == (2, 3), name
        assert (found[0] - found[1]).abs().max() > 1e-3, name


def test_prompts_change_the_output() -> None:
    net, x = small().double(), seeded_image((1, 3, 16, 16)).double()
    before = net(x)
    for level in (1, 2, 3):
        other = copy.deepcopy(net)
        getattr(other, f'prompt{level}').prompt_param.data.mul_(-1)
        assert (other(x) - before).abs().max() > 1e-4, level


def test_promptless_network_has_no_prompt_weights_and_no_released_layout() -> None:
    net = small(prompts=False)
    with pytest.raises(ValueError, match=r'no prompt weights\. Build it with prompts=True'):
        net.prompt_weights(torch.rand(1, 3, 16, 16))
    with pytest.raises(ValueError, match='released layout requires prompts=True'):
        net.released_state_dict()


def test_released_checkpoint_loads_strictly(full: PromptIR, released_shapes: dict[str, tuple[int, ...]]) -> None:
    checkpoint = {name: torch.from_numpy(seeded_array(name, shape)) for name, shape in released_shapes.items()}
    names = list(checkpoint)
    net = PromptIR()
    net.load_state_dict(checkpoint, strict=True)
    assert list(checkpoint) == names
    for name, value in full.state_dict().items():
        assert torch.equal(net.state_dict()[name], value), name


def test_released_layout_has_the_released_shapes(full: PromptIR, released_shapes: dict[str, tuple[int, ...]]) -> None:
    exported = full.released_state_dict()
    assert {name: tuple(value.shape) for name, value in exported.items()} == released_shapes
    assert all(exported[name].count_nonzero() == 0 for name in UNUSED)
    assert not any(value.requires_grad for value in exported.values())


@pytest.mark.parametrize('dim', [8, 24])
def test_released_layout_comes_back(dim: int) -> None:
    net, other = small(dim=dim), PromptIR(**{**SMALL, 'dim': dim})
    exported = net.released_state_dict()
    assert exported.keys() - net.state_dict().keys() == UNUSED
    other.load_state_dict(exported, strict=True)
    x = seeded_image((1, 3, 16, 16))
    assert torch.equal(other(x), net(x))


@pytest.mark.parametrize('wrap', [nn.Sequential, nn.DataParallel])
def test_released_layout_loads_through_a_prefix(wrap: Any) -> None:
    net, wrapped = small(), wrap(PromptIR(**SMALL))
    prefix = next(iter(wrapped.state_dict())).split('.')[0]
    wrapped.load_state_dict(
        {f'{prefix}.{name}': value for name, value in net.released_state_dict().items()}, strict=True
    )
    x = seeded_image((1, 3, 16, 16))
    assert torch.equal(wrapped(x), net(x))
    with pytest.raises(RuntimeError, match='chnl_reduce1'):
        wrapped.load_state_dict({**wrapped.state_dict(), 'chnl_reduce1.weight': torch.zeros(1)}, strict=True)


@pytest.mark.parametrize('name', ['chnl_reduce4.weight', 'chnl_reduce1.bias', 'reduce_noise_channel_1', 'extra.weight'])
def test_any_other_surplus_tensor_is_refused(name: str) -> None:
    with pytest.raises(RuntimeError, match=f'Unexpected key.*"{name}"'):
        small().load_state_dict({**small().released_state_dict(), name: torch.zeros(1)}, strict=True)


def test_missing_tensor_is_refused() -> None:
    checkpoint = small().released_state_dict()
    del checkpoint['prompt2.prompt_param']
    with pytest.raises(RuntimeError, match=r'Missing key.*"prompt2\.prompt_param"'):
        small().load_state_dict(checkpoint, strict=True)


def test_no_graph_breaks() -> None:
    torch._dynamo.reset()
    net, x = small(num_blocks=(1, 1, 1, 1)), seeded_image((1, 3, 16, 16))
    compiled = torch.compile(net, fullgraph=True, backend='eager')
    torch.testing.assert_close(compiled(x), net(x), rtol=0, atol=1e-5)


def test_bfloat16_autocast_stays_close_and_trains() -> None:
    torch.manual_seed(0)
    net, x = PromptIR(**SMALL), seeded_image((2, 3, 16, 16))
    with torch.autocast('cpu', torch.bfloat16):
        out = net(x)
    exact = net(x)
    assert (out - exact).norm() < 0.02 * (exact - x).norm()
    out.mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())


def test_channels_last_gives_the_same_numbers_and_trains() -> None:
    net, x = small().double(), seeded_image((2, 3, 16, 24)).double()
    parameters = list(net.parameters())
    expected = net(x)
    expected_grads = torch.autograd.grad(expected.mean(), parameters)
    net = net.to(memory_format=torch.channels_last)
    assert all(after is before for after, before in zip(net.parameters(), parameters, strict=True))
    assert net.output.weight.is_contiguous(memory_format=torch.channels_last)
    assert net.prompt1.prompt_param.is_contiguous()
    out = net(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-11)
    out.mean().backward()
    for parameter, grad in zip(parameters, expected_grads, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'dim': 20}, r'dim is 20; it must be a positive multiple of 8, such as 16\.'),
        ({'dim': 0}, 'dim is 0; it must be a positive multiple of 8, such as 48'),
        ({'dim': 48.0}, 'dim is 48.0; it must be'),
        ({'num_blocks': [4, 6, 6]}, r'num_blocks is \[4, 6, 6\]; it must be a list of 4 integers of at least 1'),
        ({'num_blocks': 4}, 'num_blocks is 4; it must be a list of 4 integers'),
        ({'num_blocks': (4, 6, 0, 8)}, r'num_blocks is \(4, 6, 0, 8\)'),
        ({'num_blocks': '4668'}, "num_blocks is '4668'"),
        ({'heads': [1, 2, 4]}, r'heads is \[1, 2, 4\]; it must be a list of 4 integers'),
        ({'heads': [1, True, 4, 8]}, r'heads is \[1, True, 4, 8\]'),
        ({'heads': [1, 2, 5, 8]}, r'heads\[2\] is 5, .* the 32 channels of level 3 .* one of \[1, 2, 4, 8, 16\]'),
        ({'heads': [8, 2, 4, 8]}, r'heads\[0\] is 8, .* the 8 channels of level 1 .* one of \[1, 2, 4\]'),
        ({'ffn_expansion_factor': 0.1}, 'ffn_expansion_factor is 0.1; it must be a number of at least 0.125'),
        ({'ffn_expansion_factor': 'wide'}, "ffn_expansion_factor is 'wide'; it must be a number"),
        ({'layer_norm_type': 'Withbias'}, "unknown layer_norm_type 'Withbias'. Did you mean 'WithBias'?"),
        ({'inp_channels': 0}, 'inp_channels is 0; it must be an integer of at least 1'),
        ({'out_channels': 1}, 'out_channels is 1 and inp_channels 3; they must be equal, .* Set out_channels to 3'),
        ({'num_refinement_blocks': -1}, 'num_refinement_blocks is -1; it must be an integer of at least 0'),
        ({'num_prompts': 0}, 'num_prompts is 0; it must be an integer of at least 1.* set prompts to False'),
        ({'prompt_sizes': [64, 32]}, r'prompt_sizes is \[64, 32\]; it must be a list of 3 integers'),
        ({'prompt_sizes': [64, 32, 0]}, r'prompt_sizes is \[64, 32, 0\]'),
    ],
)
def test_mistaken_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PromptIR(**{**SMALL, **options})
