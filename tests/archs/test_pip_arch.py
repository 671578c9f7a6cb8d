"""What PIPRestormer promises; that its numbers are the released program's is in test_pip_parity."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import promptir_basicsr  # noqa: F401  (registers)

# isort: split
from basicsr.models import build_model
from basicsr.utils.registry import ARCH_REGISTRY

from promptir_basicsr.archs import PIPRestormer
from promptir_basicsr.archs.traits import growable_axes
from promptir_basicsr.checkpoints.pretrained import check_fit, grow
from promptir_basicsr.checks.run import check_network
from tests.golden.seeded import seeded_array, seeded_fill, seeded_image
from tests.models.model_options import run_options

GOLDEN = Path(__file__).parents[1] / 'golden'
UNUSED = {f'reduce_noise_channel_{i}.weight' for i in (1, 2, 3)}
FACTORS = {
    f'low_prompt_interaction_level{level}.prompt_transformer_cross.attn.attn{i}'
    for level in (1, 2, 3)
    for i in (1, 2, 3, 4)
}
INTERACTIONS = ('topm', 'cross', 'gate', 'promptir_gate')
SMALL: dict[str, Any] = {'dim': 8, 'num_blocks': (1, 2, 1, 1), 'num_refinement_blocks': 1, 'prompt_sizes': (6, 5, 3)}


def small(**options: Any) -> PIPRestormer:
    return seeded_fill(PIPRestormer(**{**SMALL, **options}))  # type: ignore[return-value]


def on_meta(**options: Any) -> PIPRestormer:
    with torch.device('meta'):
        return PIPRestormer(**options)


def size_of(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.fixture(scope='module')
def full() -> PIPRestormer:
    """The released network."""
    return seeded_fill(on_meta().to_empty(device='cpu'))  # type: ignore[return-value]


@pytest.fixture(scope='module')
def released_shapes() -> dict[str, tuple[int, ...]]:
    shapes = json.loads((GOLDEN / 'pip_official_keys.json').read_text())
    return {name: tuple(shape) for name, shape in shapes.items()}


def test_names_shapes_and_counts_are_the_released_ones(released_shapes: dict[str, tuple[int, ...]]) -> None:
    assert len(released_shapes) == 612
    assert sum(map(math.prod, released_shapes.values())) == 27_429_510
    net = on_meta()
    ours = {name: tuple(parameter.shape) for name, parameter in net.named_parameters()}
    assert ours == {name: shape for name, shape in released_shapes.items() if name not in UNUSED}
    assert net.state_dict().keys() == ours.keys()
    cross = {name for name, _ in on_meta(interaction='cross').named_parameters()}
    assert cross == ours.keys() - FACTORS


@pytest.mark.parametrize(
    ('options', 'released'),
    [
        ({}, 27_429_510),
        ({'interaction': 'cross'}, 27_429_498),
        ({'prompt_dims': [64, 128, 320]}, 28_386_956),
        ({'interaction': 'gate'}, 28_540_390),
        ({'interaction': 'promptir_gate'}, 30_949_832),
        ({'num_degradations': 6}, 27_429_510 + 448),
    ],
)
def test_number_of_parameters(options: dict[str, Any], released: int) -> None:
    assert size_of(on_meta(**options)) == released - 112_896


def test_is_registered_and_takes_lists_as_yaml_gives_them() -> None:
    options = {
        'dim': 8,
        'num_blocks': [1, 1, 1, 1],
        'heads': [1, 2, 4, 8],
        'num_degradations': 3,
        'degradations': ['snow', 'fog', 'dusk'],
        'prompt_dims': [12, 16, 20],
        'prompt_sizes': [4, 4, 4],
        'interaction': 'gate',
    }
    net = ARCH_REGISTRY.get('PIPRestormer')(**options)
    assert type(net) is PIPRestormer
    assert net(torch.rand(1, 3, 16, 16), 'fog').shape == (1, 3, 16, 16)
    assert check_network({'type': 'PIPRestormer', **options}) == []
    assert str(check_network({'type': 'PIPRestormer', 'interaction': 'top'})[0]).startswith(
        "network_g: PIPRestormer: unknown interaction 'top'. Did you mean 'topm'?"
    )


def test_constraints_are_values() -> None:
    assert (PIPRestormer.scale, PIPRestormer.size_multiple, PIPRestormer.takes_degradation) == (1, 8, True)


def test_size_that_does_not_divide_is_refused_and_so_are_wrong_channels() -> None:
    for call in (small(), small().prompt_weights):
        with pytest.raises(ValueError, match=r'PIPRestormer: the input is 15x16 .* divisible by 8.*Pad it to 16x16'):
            call(torch.rand(1, 3, 15, 16), 0)
        with pytest.raises(ValueError, match=r'the input is \(1, 4, 16, 16\); it must be \(B, 3, H, W\)'):
            call(torch.rand(1, 4, 16, 16), 0)


def test_without_a_label_or_a_sensor_the_error_explains_the_fix() -> None:
    net, x = small(), seeded_image((2, 3, 16, 16))
    with pytest.raises(ValueError, match=r'PIPRestormer: no degradation is passed .* Pass `degradation` .* sensor'):
        net(x)
    net.sensor = lambda images: F.one_hot(torch.tensor([4, 1]), 5).to(images)
    assert torch.equal(net(x), net(x, [4, 1]))
    assert torch.equal(net(x, 2), net(x, [2, 2]))
    assert torch.equal(net.prompt_weights(x)['level1'], torch.eye(5)[[4, 1]])


def test_a_label_can_be_given_in_several_forms() -> None:
    net, x = small(), seeded_image((2, 3, 16, 16))
    expected = net(x, torch.tensor([3, 0]))
    for said in ([3, 0], ['deblur', 'denoise'], torch.eye(5)[[3, 0]], [{'deblur': 2}, {0: 1.0}]):
        assert torch.equal(net(x, said), expected), said


@pytest.mark.parametrize('interaction', INTERACTIONS)
def test_labels_change_the_output(interaction: str) -> None:
    net, x = small(interaction=interaction).double(), seeded_image((1, 3, 16, 16)).double()
    outs = [net(x, label) for label in range(5)] + [net(x, {0: 0.5, 3: 0.5})]
    for i, out in enumerate(outs):
        for other in outs[:i]:
            assert (out - other).abs().max() > 1e-4


def test_each_level_hears_the_label() -> None:
    net, x = small().double(), seeded_image((1, 3, 16, 16)).double()
    outs = [net(x, 1), *(net(x, 1, overrides={level: 'lowlight'}) for level in net.levels)]
    for i, out in enumerate(outs):
        for other in outs[:i]:
            assert (out - other).abs().max() > 1e-4
    assert torch.equal(net(x, overrides=dict.fromkeys(net.levels, 4)), net(x, 4))


def test_strength_zero_forgets_the_label() -> None:
    net, x = small().double(), seeded_image((1, 3, 16, 16)).double()
    assert torch.equal(net(x, 1, strength=0.0), net(x, 4, strength=0.0))
    assert torch.equal(net(x, 1, strength=1.0), net(x, 1))
    assert torch.equal(net(x, 1, strength={'level2': 1}), net(x, 1))
    outs = [net(x, 1, strength=s) for s in (0.0, 0.5, 1.0, 2.0, {'level2': 0.5}, {'level1': 0.5})]
    for i, out in enumerate(outs):
        assert all((out - other).abs().max() > 1e-3 for other in outs[:i])


def test_images_of_a_batch_do_not_see_each_other() -> None:
    net, x, labels = small().double(), seeded_image((5, 3, 16, 24)).double(), torch.tensor([4, 0, 3, 1, 0])
    out, order = net(x, labels), torch.tensor([2, 0, 4, 3, 1])
    torch.testing.assert_close(net(x[order], labels[order]), out[order], rtol=0, atol=1e-11)
    for i in range(5):
        torch.testing.assert_close(net(x[i : i + 1], labels[i : i + 1]), out[i : i + 1], rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ('options', 'size'),
    [
        ({'interaction': 'cross', 'prompt_dims': [12, 16, 36]}, (2, 3, 24, 16)),  # wider than, as wide as the skips
        ({'dim': 24, 'heads': [2, 4, 3, 6], 'num_degradations': 2, 'prompt_dims': [12, 60, 12]}, (1, 3, 8, 32)),
        ({'bias': True, 'layer_norm_type': 'BiasFree', 'interaction': 'promptir_gate'}, (1, 3, 16, 16)),
        ({'interaction': 'gate', 'prompt_dims': [4, 6, 10]}, (1, 3, 16, 16)),  # narrower than 'topm' allows
        ({'inp_channels': 1, 'out_channels': 1, 'num_refinement_blocks': 0, 'interaction': 'gate'}, (2, 1, 16, 16)),
    ],
)
def test_other_sizes_restore(options: dict[str, Any], size: tuple[int, int, int, int]) -> None:
    out = small(**options)(seeded_image(size), 1)
    assert out.shape == size
    assert out.isfinite().all()


@pytest.mark.parametrize('interaction', INTERACTIONS)
@pytest.mark.parametrize('dim', [8, 24, 48])
def test_each_parameter_gets_a_gradient(dim: int, interaction: str) -> None:
    torch.manual_seed(dim)
    options = {'num_blocks': [1, 1, 1, 1], 'num_refinement_blocks': 1, 'prompt_sizes': [8, 4, 4]}
    net = PIPRestormer(dim=dim, interaction=interaction, **options)
    out = net(torch.rand(1, 3, 32, 32), torch.full((5,), 0.2))
    F.smooth_l1_loss(out, torch.rand(1, 3, 32, 32)).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.norm() > 0, name
    for level in (1, 2, 3):
        reached = getattr(net, f'prompt{level}').detask_prompt_param.grad[0, :, :, 0, 0].abs() > 0
        width = dim * 2 ** (level - 1)
        assert reached[:, :width].all()
        assert reached.shape[1] > width
        assert not reached[:, width:].any()  # as documented: prompts wider than the features


def test_prompts_as_wide_as_the_skips_have_no_dead_channels() -> None:
    net = small(dim=16, prompt_dims=[16, 32, 64])
    net(seeded_image((1, 3, 16, 16)), torch.full((5,), 0.2)).square().mean().backward()
    assert all((getattr(net, f'prompt{level}').detask_prompt_param.grad.abs() > 0).all() for level in (1, 2, 3))


def test_only_the_rows_of_the_labels_learn() -> None:
    net = small()
    net(seeded_image((2, 3, 16, 16)), [1, 4]).square().mean().backward()
    for level in (1, 2, 3):
        rows = getattr(net, f'prompt{level}').detask_prompt_param.grad[0, :, :, 0, 0].norm(dim=1)
        assert (rows > 0).tolist() == [False, True, False, False, True]


def test_prompt_weights() -> None:
    net, x = small(), seeded_image((2, 3, 16, 16))
    weights = net.prompt_weights(x, [1, {1: 1, 2: 3}], overrides={'level2': 0})
    assert list(weights) == ['level3', 'level2', 'level1']
    expected = torch.tensor([[0, 1, 0, 0, 0], [0, 0.25, 0.75, 0, 0]])
    assert torch.equal(weights['level3'], expected)
    assert torch.equal(weights['level1'], expected)
    assert torch.equal(weights['level2'], torch.eye(5)[[0, 0]])


def test_released_checkpoint_loads_strictly(full: PIPRestormer, released_shapes: dict[str, tuple[int, ...]]) -> None:
    checkpoint = {name: torch.from_numpy(seeded_array(name, shape)) for name, shape in released_shapes.items()}
    names, net = list(checkpoint), on_meta()
    net.load_state_dict(checkpoint, strict=True, assign=True)
    assert list(checkpoint) == names
    assert len(names) == 612
    for name, value in full.state_dict().items():
        assert torch.equal(net.state_dict()[name], value), name


def test_released_layout_has_the_released_shapes(
    full: PIPRestormer, released_shapes: dict[str, tuple[int, ...]]
) -> None:
    exported = full.released_state_dict()
    assert {name: tuple(value.shape) for name, value in exported.items()} == released_shapes
    assert all(exported[name].count_nonzero() == 0 for name in UNUSED)
    assert not any(value.requires_grad for value in exported.values())
    assert on_meta(interaction='cross').released_state_dict().keys() == released_shapes.keys() - FACTORS


@pytest.mark.parametrize('options', [{'dim': 8}, {'dim': 24}, {'interaction': 'cross'}, {'prompt_dims': [12, 16, 20]}])
def test_released_layout_comes_back(options: dict[str, Any]) -> None:
    net, other = small(**options), PIPRestormer(**{**SMALL, **options})
    net.sensor = nn.Linear(2, 2)
    exported = net.released_state_dict()
    assert exported.keys() - net.state_dict().keys() == UNUSED
    assert net.state_dict().keys() - exported.keys() == {'sensor.weight', 'sensor.bias'}
    other.load_state_dict(exported, strict=True)
    x = seeded_image((1, 3, 16, 16))
    assert torch.equal(other(x, 1), net(x, 1))


@pytest.mark.parametrize('interaction', ['gate', 'promptir_gate'])
def test_gates_have_no_released_layout(interaction: str) -> None:
    with pytest.raises(ValueError, match=f"interaction='{interaction}', which has no released layout"):
        on_meta(interaction=interaction).released_state_dict()


@pytest.mark.parametrize('wrap', [nn.Sequential, nn.DataParallel])
def test_released_layout_loads_through_a_prefix(wrap: Any) -> None:
    net, wrapped = small(), wrap(PIPRestormer(**SMALL))
    prefix, inner = next(iter(wrapped.named_children()))
    wrapped.load_state_dict(
        {f'{prefix}.{name}': value for name, value in net.released_state_dict().items()}, strict=True
    )
    x = seeded_image((1, 3, 16, 16))
    assert torch.equal(inner(x, 1), net(x, 1))
    with pytest.raises(RuntimeError, match='reduce_noise_channel_1'):
        wrapped.load_state_dict({**wrapped.state_dict(), 'reduce_noise_channel_1.weight': torch.zeros(1)}, strict=True)


@pytest.mark.parametrize('name', ['reduce_noise_channel_4.weight', 'reduce_noise_channel_1.bias', 'extra.weight'])
def test_any_other_surplus_tensor_is_refused(name: str) -> None:
    with pytest.raises(RuntimeError, match=f'Unexpected key.*"{name}"'):
        small().load_state_dict({**small().released_state_dict(), name: torch.zeros(1)}, strict=True)


def test_missing_tensor_is_refused() -> None:
    checkpoint = small().released_state_dict()
    del checkpoint['prompt2.detask_prompt_param']
    with pytest.raises(RuntimeError, match=r'Missing key.*"prompt2\.detask_prompt_param"'):
        small().load_state_dict(checkpoint, strict=True)


def test_a_sixth_degradation_starts_from_five() -> None:
    old, new, x = small().double(), small(num_degradations=6).double(), seeded_image((2, 3, 16, 16)).double()
    names = [f'prompt{level}.detask_prompt_param' for level in (1, 2, 3)]
    assert growable_axes(new) == dict.fromkeys(names, ('degradations', 1))
    weights = old.state_dict()
    new.load_state_dict(grow(weights, new.state_dict(), check_fit(weights, new, 'old.pth', {'grow_g': True})))
    assert all(torch.equal(new.state_dict()[name][:, :5], weights[name]) for name in names)
    # Not to the last digit: the prompt is a mean over all degradations, which the normalisation hides but for eps.
    assert (new(x, [1, 3]) - old(x, [1, 3])).norm() < 0.02 * (old(x, [4, 0]) - old(x, [1, 3])).norm()


@pytest.mark.slow
def test_no_graph_breaks_in_a_level() -> None:
    """From the labels to the modulated skip; the blocks of the backbone, slow to trace, are left to the next test."""
    torch._dynamo.reset()
    net, x, labels = small(), seeded_image((2, 3, 16, 16)), torch.tensor([1, 4])
    skip = torch.randn(2, 8, 16, 16, generator=torch.Generator().manual_seed(0))

    def modulated(x: Tensor, labels: Tensor) -> Tensor:
        return net._modulate(1, skip, net.prompt_context(x, labels))

    compiled = torch.compile(modulated, fullgraph=True, backend='eager')
    torch.testing.assert_close(compiled(x, labels), modulated(x, labels), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('interaction', INTERACTIONS)
def test_no_graph_breaks(interaction: str) -> None:
    torch._dynamo.reset()
    net = small(num_blocks=(1, 1, 1, 1), interaction=interaction)
    x, labels = seeded_image((2, 3, 16, 16)), torch.tensor([1, 4])
    compiled = torch.compile(net, fullgraph=True, backend='eager')
    torch.testing.assert_close(compiled(x, labels), net(x, labels), rtol=0, atol=1e-5)


def test_bfloat16_autocast_stays_close_and_trains() -> None:
    torch.manual_seed(0)
    net, x = PIPRestormer(**SMALL), seeded_image((2, 3, 16, 16))
    with torch.autocast('cpu', torch.bfloat16):
        out = net(x, [1, 4])
    exact = net(x, [1, 4])
    assert (out - exact).norm() < 0.03 * (exact - x).norm()
    out.mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())


@pytest.mark.parametrize('interaction', INTERACTIONS)
def test_whole_network_in_bfloat16(interaction: str) -> None:
    net, x = small(interaction=interaction), seeded_image((2, 3, 16, 16))
    exact = net(x, [1, 4])
    out = net.bfloat16()(x.bfloat16(), torch.tensor([1, 4]))
    assert out.dtype == torch.bfloat16
    assert (out.float() - exact).norm() < 0.1 * (exact - x).norm()


def test_channels_last_gives_the_same_numbers() -> None:
    net, x = small().double(), seeded_image((2, 3, 16, 24)).double()
    expected = net(x, [1, 4])
    net = copy.deepcopy(net).to(memory_format=torch.channels_last)
    assert net.output.weight.is_contiguous(memory_format=torch.channels_last)
    assert net.prompt1.detask_prompt_param.is_contiguous()
    out = net(x.to(memory_format=torch.channels_last), [1, 4])
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-11)


def test_trains_in_the_prompt_model_with_mixed_labels(tmp_path: Path) -> None:
    network = {'type': 'PIPRestormer', **{key: SMALL[key] for key in ('dim', 'num_blocks', 'prompt_sizes')}}
    model = build_model(run_options(tmp_path, network_g={**network, 'heads': [1, 1, 1, 1]}))
    before = {name: value.clone() for name, value in model.net_g.state_dict().items()}
    image = seeded_image((3, 3, 16, 16))
    model.feed_data({'lq': image, 'gt': image.flip(0), 'task': ['a', 'b', 'a'], 'degradation': torch.tensor([0, 4, 0])})
    model.optimize_parameters(1)
    assert all(not torch.equal(value, before[name]) for name, value in model.net_g.state_dict().items())
    model.feed_data({'lq': image[:1, :, :13, :15], 'degradation': torch.tensor([4])})
    model.test()
    assert model.output.shape == (1, 3, 13, 15)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'dim': 20}, r'PIPRestormer: dim is 20; it must be a positive multiple of 8, such as 16\.'),
        ({'num_blocks': [4, 6, 6]}, r'PIPRestormer: num_blocks is \[4, 6, 6\]; it must be a list of 4 integers'),
        ({'heads': [1, 2, 5, 8]}, r'PIPRestormer: heads\[2\] is 5, .* the 32 channels of level 3'),
        ({'ffn_expansion_factor': 0.1}, r'PIPRestormer: ffn_expansion_factor is 0\.1'),
        ({'layer_norm_type': 'Withbias'}, r"unknown layer_norm_type 'Withbias'\. Did you mean 'WithBias'"),
        ({'inp_channels': 0}, 'PIPRestormer: inp_channels is 0'),
        ({'out_channels': 1}, 'PIPRestormer: out_channels is 1 and inp_channels 3; they must be equal'),
        ({'num_refinement_blocks': -1}, 'PIPRestormer: num_refinement_blocks is -1'),
        ({'num_degradations': 0}, 'PIPRestormer: num_degradations is 0; it must be an integer of at least 1'),
        ({'degradations': ['a', 'b']}, 'it must be a list of num_degradations = 5 different names'),
        ({'prompt_dims': [64, 128]}, r'PIPRestormer: prompt_dims is \[64, 128\]; it must be a list of 3 integers'),
        ({'prompt_dims': 64}, 'prompt_dims is 64; it must be a list'),
        ({'prompt_dims': [64, 126, 256]}, r'PIPRestormer: prompt_dims\[1\]: 126; .* multiple of 4, such as 16'),
        ({'prompt_dims': [8, 16, 32]}, r'prompt_dims\[0\]: 8; .* at least 12 that is a multiple of 4'),
        ({'prompt_sizes': [64, 32]}, r'PIPRestormer: prompt_sizes is \[64, 32\]; it must be a list of 3 integers'),
        ({'prompt_sizes': [64, 32, 1]}, r'prompt_sizes\[2\]: 1 is not a whole number of at least 2'),
        (
            {'interaction': 'pip_cross'},
            r"unknown interaction 'pip_cross'\. Did you mean 'cross'\? Allowed: cross, gate",
        ),
    ],
)
def test_mistaken_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PIPRestormer(**{**SMALL, **options})
