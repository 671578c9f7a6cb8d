"""AirNet against golden numbers, and what holds for every one of them."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from promptir_basicsr.archs import AirNet, airnet_arch, set_formulation
from promptir_basicsr.archs.airnet_arch import (
    Contrasted,
    GuidedConv,
    deform_conv,
    deformed,
    sampled,
    sampled_again,
)
from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.runtime.recompute import set_activation_checkpointing, set_blocks
from tests.golden.seeded import airnet_fill, seeded_image

# isort: split
# BasicSR can be imported once the package has prepared it
from basicsr.utils.registry import ARCH_REGISTRY

GOLDEN = Path(__file__).parents[1] / 'golden'
GRADS: dict[str, Any] = json.loads((GOLDEN / 'airnet_dev_grads.json').read_text())
SMALL: dict[str, Any] = {'dim': 4, 'num_groups': 2, 'num_blocks': 2, 'queue_length': 8}


def small(**options: Any) -> AirNet:
    return airnet_fill(AirNet(**{**SMALL, **options}))  # type: ignore[return-value]


@pytest.fixture(params=['fast', pytest.param('plain', marks=pytest.mark.slow)])
def full(request: pytest.FixtureRequest) -> AirNet:
    """The released network in either formulation; training changes it."""
    net = AirNet()
    set_formulation(net, request.param)
    return airnet_fill(net)  # type: ignore[return-value]


@pytest.fixture(scope='module')
def golden() -> dict[str, Tensor]:
    with np.load(GOLDEN / 'airnet_dev.npz') as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@pytest.fixture(scope='module')
def released_shapes() -> dict[str, tuple[int, ...]]:
    shapes = json.loads((GOLDEN / 'airnet_official_keys.json').read_text())
    return {name: tuple(shape) for name, shape in shapes.items()}


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(found.detach(), expected, rtol=0, atol=tolerance)


def test_golden_outputs_and_intermediate_values(full: AirNet, golden: dict[str, Tensor]) -> None:
    full.eval()
    with torch.no_grad():
        for key, shape, seed in (
            ('1x64x64', (1, 3, 64, 64), 0),
            ('2x32x48', (2, 3, 32, 48), 1),
            ('1x21x30', (1, 3, 21, 30), 4),
        ):
            close(full(seeded_image(shape, seed)), golden[f'y_{key}_s{seed}'])

        x, found = seeded_image((1, 3, 8, 10), 5), {}
        group: Any = full.R.body[0]
        block = group.body[0]
        module = block.dgm1
        parts = {'head': full.R.head, 'dcn': module.dcn, 'sft': module.sft, 'dgm': module, 'block': block}
        for name, part in {**parts, 'group': group, 'offset': module.dcn.conv_offset_mask}.items():
            part.register_forward_hook(lambda _, __, y, name=name: found.update({name: y}))
        found['y'] = full(x)
        found['fea'], found['out'], found['inter'] = full.encoder.encoder_q(x)
        found['mask'] = found['offset'][:, 18:].sigmoid()
        found['offset'] = found['offset'][:, :18]
        found['dgm'] = F.leaky_relu(found['dgm'], 0.1)  # recorded behind the activation that follows, in place there
    assert len(found) == 12
    for name, value in found.items():
        assert (value - golden[f'{name}_1x8x10_s5']).abs().max() < 1e-4, name


def norms(net: AirNet) -> dict[str, float]:
    return {name: p.grad.norm().item() for name, p in net.named_parameters() if p.grad is not None}


def test_golden_training_pass(full: AirNet, golden: dict[str, Tensor]) -> None:
    """Outputs, gradients, and what the pass leaves behind."""
    query, key, target = (seeded_image((2, 3, 24, 32), seed) for seed in (2, 6, 3))
    found = full(query, key=key)
    for name in ('restored', 'logits', 'labels'):
        close(getattr(found, name), golden[f'{name}_2x24x32_s2'])
    state = full.state_dict()
    close(state['E.E.queue'][:, :2], golden['queue_new_columns'], 1e-6)
    assert torch.equal(state['E.E.queue_ptr'], golden['queue_ptr'])
    for name in (name for name in golden if name.startswith('after_E.')):
        close(state[name.removeprefix('after_')], golden[name], 1e-6)

    expected = GRADS['stage2']
    pixel, contrast = F.l1_loss(found.restored, target), F.cross_entropy(found.logits, found.labels)
    loss = pixel + 0.1 * contrast
    assert [each.item() for each in (pixel, contrast, loss)] == pytest.approx(
        [expected['l_pix'], expected['l_contrast'], expected['loss']], rel=1e-5
    )
    loss.backward()
    assert norms(full) == pytest.approx(expected['grad_norms'], rel=2e-3, abs=0)
    assert len(norms(full)) == 497


def test_golden_training_pass_of_the_encoder(full: AirNet) -> None:
    query, key = (seeded_image((2, 3, 24, 32), seed) for seed in (2, 6))
    found = full(query, key=key, restore=False)
    assert found.restored is None
    loss = F.cross_entropy(found.logits, found.labels)
    loss.backward()
    expected = GRADS['stage1']
    assert loss.item() == pytest.approx(expected['l_contrast'], rel=1e-5)
    assert norms(full) == pytest.approx(expected['grad_norms'], rel=1e-3, abs=0)


def test_the_pixel_loss_alone_reaches_one_block_of_the_encoder() -> None:
    net = small()
    net(seeded_image((2, 3, 8, 8), 1), key=seeded_image((2, 3, 8, 8), 2)).restored.mean().backward()
    assert {name for name in norms(net) if name.startswith('E.')} == set(GRADS['pixel_loss_alone_reaches'])


@pytest.mark.slow
def test_golden_steps_of_both_stages(full: AirNet, golden: dict[str, Tensor]) -> None:
    """Three steps of the encoder and two of everything, by one Adam."""
    optimizer = torch.optim.Adam([p for p in full.parameters() if p.requires_grad])
    found = []
    for step in range(5):
        shape, restore = (2, 3, 16, 16), step >= 3
        optimizer.param_groups[0]['lr'] = 1e-4 if restore else 1e-3
        result = full(seeded_image(shape, 20 + 2 * step), key=seeded_image(shape, 21 + 2 * step), restore=restore)
        loss = contrast = F.cross_entropy(result.logits, result.labels)
        found.append({'l_contrast': contrast.item()})
        if restore:
            pixel = F.l1_loss(result.restored, seeded_image(shape, 40 + step))
            loss, found[-1]['l_pix'] = pixel + 0.1 * contrast, pixel.item()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    for losses, expected in zip(found, GRADS['steps'], strict=True):
        assert losses == pytest.approx(expected, rel=1e-3)
    assert full.encoder.queue_ptr.item() == GRADS['steps_queue_ptr']
    with torch.no_grad():
        close(full.eval()(seeded_image((1, 3, 16, 16), 50)), golden['after_steps_y_1x16x16_s50'], 3e-2)


def test_names_shapes_and_counts_are_the_released_ones(
    full: AirNet, released_shapes: dict[str, tuple[int, ...]]
) -> None:
    assert len(released_shapes) == 584
    state = full.state_dict()
    assert [(name, tuple(value.shape)) for name, value in state.items()] == list(released_shapes.items())
    assert sum(p.numel() for p in full.parameters()) == 8_930_313
    assert sum(p.numel() for p in full.parameters() if p.requires_grad) == 7_610_377
    used = [*full.R.parameters(), *full.encoder.encoder_q.E_pre.parameters()]
    assert sum(p.numel() for p in used) == 6_329_609
    assert sum(math.prod(b.shape) for b in full.buffers()) == 333_075
    assert {name: tuple(value.shape) for name, value in full.released_state_dict().items()} == released_shapes


def test_is_registered_and_restores_any_size() -> None:
    net = ARCH_REGISTRY.get('AirNet')(**SMALL).eval()
    assert type(net) is AirNet
    with torch.no_grad():
        for size in ((1, 1), (1, 7), (5, 3), (16, 33)):
            assert net(torch.rand(2, 3, *size)).shape == (2, 3, *size)
    grey = AirNet(**SMALL, img_channel=1).eval()
    assert grey(torch.rand(1, 1, 9, 8)).shape == (1, 1, 9, 8)
    assert (AirNet.scale, AirNet.size_multiple, AirNet.takes_degradation) == (1, 1, False)


def test_evaluation_ignores_keys_and_changes_nothing() -> None:
    net = small().eval()
    x, key = seeded_image((2, 3, 12, 10), 1), seeded_image((2, 3, 12, 10), 2)
    before = copy.deepcopy(net.state_dict())
    used: list[str] = []
    for name, part in net.named_modules():
        part.register_forward_hook(lambda *_, name=name: used.append(name))
    with torch.no_grad():
        assert torch.equal(net(x, key=key), net(x))
        assert torch.equal(net(x, 'rain'), net(x))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert {name.split('.E_pre')[0] for name in used if name.startswith('E')} == {'E.E.encoder_q'}
    assert not any(name.startswith(('E.E.encoder_q.E.', 'E.E.encoder_q.mlp')) for name in used)


def test_images_of_a_batch_see_each_other_in_training_only() -> None:
    net, x = small().double(), seeded_image((3, 3, 8, 8), 1).double()
    with torch.no_grad():
        assert (net(x)[:1] - net(x[:1])).abs().max() > 1e-6
        net.eval()
        torch.testing.assert_close(net(x)[:1], net(x[:1]), rtol=0, atol=1e-12)


def test_a_training_pass_without_keys_restores() -> None:
    net, x = small(), seeded_image((2, 3, 8, 8), 1)
    state = copy.deepcopy(net.encoder.moving_state())
    assert net(x).shape == x.shape
    assert all(map(torch.equal, state, net.encoder.moving_state()))


def test_each_trained_parameter_gets_a_gradient() -> None:
    torch.manual_seed(0)
    net = AirNet(**SMALL)
    for module in net.modules():
        if isinstance(module, GuidedConv):  # whose taps do not look at features while they are 0
            torch.nn.init.normal_(module.conv_offset_mask.weight, std=0.1)
    found = net(torch.rand(2, 3, 16, 16), key=torch.rand(2, 3, 16, 16))
    assert isinstance(found, Contrasted)
    (F.l1_loss(found.restored, torch.rand(2, 3, 16, 16)) + F.cross_entropy(found.logits, found.labels)).backward()
    for name, parameter in net.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad == (not name.startswith('E.E.encoder_k.')), name
        assert parameter.grad is None or parameter.grad.norm() > 0, name


def test_at_first_the_deformable_convolution_is_half_a_plain_one() -> None:
    torch.manual_seed(0)
    module = GuidedConv(4)
    x = torch.rand(1, 4, 6, 7)
    assert module.weight.abs().max() <= 1 / 6
    close(module(x, torch.rand(1, 4, 6, 7)), 0.5 * F.conv2d(x, module.weight, padding=1).detach(), 1e-6)


def tap_by_tap(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    """A deformable convolution tap by tap, by torch's bilinear sampling with zeros around the image."""
    _, _, height, width = x.shape
    rows, columns = torch.meshgrid(torch.arange(height).to(x), torch.arange(width).to(x), indexing='ij')
    out = torch.zeros_like(x)
    for tap in range(9):
        y = rows + tap // 3 - 1 + offset[:, 2 * tap]
        z = columns + tap % 3 - 1 + offset[:, 2 * tap + 1]
        grid = torch.stack([(2 * z + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
        values = F.grid_sample(x, grid, padding_mode='zeros', align_corners=False) * mask[:, tap : tap + 1]
        out = out + torch.einsum('oi,bihw->bohw', weight[:, :, tap // 3, tap % 3], values)
    return out


def test_the_deformable_convolution_is_that_of_its_definition() -> None:
    torch.manual_seed(1)
    x, weight = torch.randn(2, 3, 7, 9, dtype=torch.float64), torch.randn(3, 3, 3, 3, dtype=torch.float64)
    offset, mask = 3 * torch.randn(2, 18, 7, 9).double(), torch.rand(2, 9, 7, 9).double()
    for by in (deform_conv, sampled, sampled_again):
        found = deformed(x, offset, mask, weight, by)
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, tap_by_tap(x, offset, mask, weight), rtol=0, atol=1e-10)


def test_what_is_not_finite_comes_out_and_ends_no_process() -> None:
    net, x = small(), seeded_image((2, 3, 12, 12), 1)
    for value in (float('nan'), float('inf'), -float('inf')):
        broken = x.clone()
        broken[1, 0, 3, 4] = value
        found = net(broken, key=x)
        (found.restored.mean() + found.logits.mean()).backward()
        with torch.no_grad():
            out = small().eval()(broken)
            assert out[0].isfinite().all()
            assert not out[1].isfinite().all()
    offset = torch.zeros(1, 18, 4, 4)
    offset[0, 5, 1, 2] = torch.nan
    for by in (deform_conv, sampled):
        out = deformed(torch.ones(1, 4, 4, 4), offset, torch.ones(1, 9, 4, 4), torch.ones(4, 4, 3, 3), by)
        assert out.isnan().nonzero()[:, 2:].unique(dim=0).tolist() == [[1, 2]]


@pytest.mark.parametrize('kind', [torch.bfloat16, torch.float16])
def test_narrow_formats_on_the_cpu(kind: torch.dtype) -> None:
    net, x, key = small(), seeded_image((2, 3, 12, 12), 1), seeded_image((2, 3, 12, 12), 2)
    with torch.autocast('cpu', dtype=kind):
        found = net(x, key=key)
        (found.restored.mean() + found.logits.mean()).backward()
        assert net.eval()(x).isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())
    assert found.logits.dtype == net.encoder.queue.dtype == torch.float32
    with torch.no_grad():
        expected = net(x)
        narrow = copy.deepcopy(net).to(kind)(x.to(kind))
    assert narrow.dtype == kind
    close(narrow.float(), expected, 0.1 * expected.abs().max().item())


def trained(net: AirNet, side: int = 8) -> tuple[dict[str, Tensor], int]:
    """What a training pass returns, gradients, and what it leaves; and the bytes that were kept for the gradients."""
    kept = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    x, key = (seeded_image((2, 3, side, side), seed).to(next(net.parameters()).dtype) for seed in (1, 2))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found = net(x, key=key)
    (found.restored.square().mean() + F.cross_entropy(found.logits, found.labels)).backward()
    grads = {f'grad of {name}': p.grad for name, p in net.named_parameters() if p.grad is not None}
    return {**found._asdict(), **grads, **net.state_dict()}, kept


@pytest.mark.parametrize('checkpointing', ['none', 'gate', 'block'])
def test_the_fast_formulation_is_the_plain_one(checkpointing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs, gradients and what a pass leaves in the encoder, which no checkpointing runs twice."""
    monkeypatch.setattr(airnet_arch, 'STRIP', 40)  # several strips, the last one narrower
    plain, fast = small().double(), small().double()
    assert set_formulation(plain, 'plain') == set_formulation(fast, 'fast') == 4
    assert set_activation_checkpointing(fast, checkpointing) == (0 if checkpointing == 'none' else 4)
    expected, _ = trained(plain, 13)
    found, _ = trained(fast, 13)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-7, atol=1e-10, msg=name)
    with torch.no_grad():
        x = seeded_image((1, 3, 9, 17), 3).double()
        torch.testing.assert_close(fast.eval()(x), plain.eval()(x), rtol=0, atol=1e-10)


def test_checkpointing_keeps_less() -> None:
    kept = {}
    for checkpointing in ('none', 'gate', 'block'):
        net = small()
        set_activation_checkpointing(net, checkpointing)
        kept[checkpointing] = trained(net, 24)[1]
    plain = small()
    set_formulation(plain, 'plain')
    assert kept['block'] < 0.9 * kept['gate'] < 0.6 * kept['none']
    assert kept['gate'] < 1.2 * trained(plain, 24)[1]


@pytest.mark.slow
@pytest.mark.parametrize('checkpointing', ['gate', 'block'])
def test_a_compiled_training_pass_is_the_plain_one(checkpointing: str) -> None:
    plain = small()
    set_activation_checkpointing(plain, checkpointing)
    compiled = copy.deepcopy(plain)
    compiled.compile(backend='aot_eager', fullgraph=checkpointing == 'gate')
    expected, found = trained(plain)[0], trained(compiled)[0]
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_kernels_are_not_for_it() -> None:
    (problem,) = set_blocks(small(), None, None, 'triton')
    assert str(problem) == (
        'kernels: triton is for the fast formulation of PromptIR and PIP, not AirNet. Omit the key.'
    )


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'dim': 0}, r'AirNet: dim is 0; it must be an integer of at least 1'),
        ({'num_blocks': [5]}, r'AirNet: num_blocks is \[5\]'),
        ({'queue_length': 1.5}, r'AirNet: queue_length is 1.5'),
        ({'momentum': 2}, r'AirNet: momentum is 2; it must be a number from 0 to 1'),
        ({'temperature': 0}, r'AirNet: temperature is 0; it must be a number above 0'),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        AirNet(**options)


def test_wrong_channels_are_refused() -> None:
    net, x = small(), torch.rand(1, 3, 8, 8)
    with pytest.raises(ValueError, match=r'the input is \(1, 4, 8, 8\); it must be \(B, 3, H, W\)'):
        net(torch.rand(1, 4, 8, 8))
    with pytest.raises(ValueError, match=r'the input is \(1, 2, 8, 8\)'):
        net(x, key=torch.rand(1, 2, 8, 8))
