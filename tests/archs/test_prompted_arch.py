"""What PromptedNetwork promises of networks that are BasicSR's, and of ours."""

import copy
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import promptir_basicsr  # noqa: F401  (registers)

# isort: split
from basicsr.models import build_model
from basicsr.utils.registry import ARCH_REGISTRY

from promptir_basicsr.archs import PromptedNetwork
from promptir_basicsr.archs.layers.taps import TapPoint, survey
from promptir_basicsr.checkpoints.pretrained import check_fit, grow, start_problems, with_prompts
from promptir_basicsr.checks.run import check_network, check_options
from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.core.registry import find_registered
from tests.golden.seeded import seeded_fill, seeded_image
from tests.models.model_options import run_options

EDSR = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 2, 'upscale': 1}
SWINIR = {
    'type': 'SwinIR',
    'upscale': 1,
    'img_size': 16,
    'window_size': 4,
    'depths': [2, 2],
    'embed_dim': 12,
    'num_heads': [2, 2],
    'mlp_ratio': 2,
    'upsampler': '',
}
RRDBNET = {
    'type': 'RRDBNet',
    'num_in_ch': 3,
    'num_out_ch': 3,
    'scale': 1,
    'num_feat': 8,
    'num_block': 1,
    'num_grow_ch': 4,
}
RIDNET = {'type': 'RIDNet', 'in_channels': 3, 'mid_channels': 16, 'out_channels': 3, 'num_block': 1}
COMPACT = {'type': 'SRVGGNetCompact', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_conv': 2, 'upscale': 1}
PROMPTIR = {
    'type': 'PromptIR',
    'dim': 8,
    'num_blocks': [1, 1, 1, 1],
    'num_refinement_blocks': 1,
    'heads': [1, 1, 1, 1],
    'prompts': False,
}
NAFNET = {'type': 'PIPNAFNet', 'width': 4, 'enc_blk_nums': [1, 1, 1, 1], 'prompts': False}
TAPS: list[tuple[dict[str, Any], list[str]]] = [
    (EDSR, ['conv_first', 'body.1', 'conv_after_body']),
    (SWINIR, ['layers.0', 'conv_after_body', 'layers.1.residual_group.blocks.1.mlp']),
    (RRDBNET, ['body', 'conv_up1']),
    (RIDNET, ['body.0']),
    (COMPACT, ['body.1']),
    (PROMPTIR, ['latent', 'decoder_level3', 'decoder_level2']),
    (NAFNET, ['middle_blks', 'decoders.0']),
]
NAMES = [network['type'] for network, _ in TAPS]
SMALL = {'prompt_dim': 12, 'prompt_size': 4}


def plain(network: dict[str, Any]) -> nn.Module:
    kind = find_registered(ARCH_REGISTRY, network['type'])
    return seeded_fill(kind(**{key: value for key, value in network.items() if key != 'type'})).eval()


def prompted(network: dict[str, Any], taps: list[str], **options: Any) -> PromptedNetwork:
    """With small prompts and the weights of `plain`; the prompts are seeded, too."""
    points = [{'module': tap, 'prompt_size': 4} for tap in taps]
    net = seeded_fill(PromptedNetwork(network, points, **options)).eval()
    net.network.load_state_dict(plain(network).state_dict())
    return net  # type: ignore[return-value]


def at_start(net: PromptedNetwork) -> PromptedNetwork:
    for name, parameter in net.named_parameters():
        if name.endswith('.alpha'):
            nn.init.zeros_(parameter)
    return net


# where the taps are


def test_the_taps_are_those_of_the_network() -> None:
    found = survey(plain(EDSR), 3, 64)
    conv = TapPoint(8, 1)
    block = {f'body.{n}.{part}': conv for n in (0, 1) for part in ('conv1', 'relu', 'conv2')}
    outer = dict.fromkeys(('conv_first', 'body', 'body.0', 'body.1', 'conv_after_body', 'upsample'), conv)
    assert dict(found.taps) == {**block, **outer, 'conv_last': TapPoint(3, 1)}
    assert list(found.taps)[:5] == ['conv_first', 'body.0.conv1', 'body.0.relu', 'body.0.conv2', 'body.0']
    assert dict(found.others) == {}
    assert found.stride == 1


def test_features_that_do_not_scale_with_the_image_are_not_taps() -> None:
    found = survey(plain(NAFNET), 3, 64)
    assert found.taps['encoders.2'] == TapPoint(16, 4)
    assert found.taps['middle_blks'] == TapPoint(64, 16)
    assert 'returns (2, 4, 1, 1) for an image (2, 3, 64, 128)' in found.others['encoders.0.0.sca.0']
    assert 'is called 2 times in a pass' in found.others['encoders.0.0.sg']
    assert 'not called' in found.others['encoders']
    assert found.stride == 16


def test_tokens_and_windows() -> None:
    found = survey(plain(SWINIR), 3, 64)
    assert found.taps['layers.0'] == TapPoint(12, 1, tokens=True)
    assert found.taps['layers.0.conv'] == TapPoint(12, 1)
    assert 'layers.0.residual_group.blocks.0.attn' in found.others  # (B windows, tokens, C)


class Lists(nn.Module):
    """Features of three dimensions that are no tokens: as many channels as an image of 64x128 could have tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.flat = nn.Flatten(2)
        self.conv = nn.Conv2d(3, 32, 1)
        self.back = nn.Conv2d(32, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.back(self.flat(y).view_as(y))


def test_flattened_channels_are_not_treated_as_tokens() -> None:
    found = survey(Lists(), 3, 64)
    assert list(found.taps) == ['conv', 'back']
    assert 'returns (2, 32, 8192)' in found.others['flat']


class Values(nn.Module):
    """Looks at its values, which the meta device has none of, and pads by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 4, stride=4)
        self.up = nn.Conv2d(8, 48, 1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if x.sum().item() != x.sum().item():
            raise ValueError('not a number')
        y = self.up(self.down(F.pad(x, (0, -width % 4, 0, -height % 4))))
        return F.pixel_shuffle(y, 4)[..., :height, :width] + x


@pytest.fixture
def registered() -> Iterator[None]:
    ARCH_REGISTRY.register(Values)
    yield
    ARCH_REGISTRY._obj_map.pop('Values')


@pytest.mark.usefixtures('registered')
def test_a_network_that_pads_itself_and_cannot_run_on_the_meta_device() -> None:
    net = prompted({'type': 'Values'}, ['down'], residual=False)
    assert net.size_multiple == 4
    x = seeded_image((2, 3, 13, 18))
    assert net(x, 1).shape == x.shape
    assert not torch.equal(net(x, 1), net(x, 2))


# at the start


@pytest.mark.parametrize('prompts', ['pip', 'promptir'])
@pytest.mark.parametrize(('network', 'taps'), TAPS, ids=NAMES)
def test_at_the_start_the_output_is_the_networks_bit_by_bit(
    network: dict[str, Any], taps: list[str], prompts: str
) -> None:
    x = seeded_image((2, 3, 16, 32))
    expected = plain(network)(x)
    torch.manual_seed(0)
    fresh = PromptedNetwork(network, taps, prompts=prompts).eval()
    assert fresh.load_state_dict(plain(network).state_dict()) == nn.modules.module._IncompatibleKeys([], [])
    assert torch.equal(fresh(x, 1), expected)
    for parameter in fresh.taps.parameters():  # one step later
        nn.init.normal_(parameter, std=0.1)
    assert not torch.equal(fresh(x, 1), expected)


@pytest.mark.parametrize('network', [EDSR, SWINIR], ids=['EDSR', 'SwinIR'])
def test_every_tap_that_is_named_can_be_tapped(network: dict[str, Any]) -> None:
    x = seeded_image((1, 3, 16, 16))
    modules = list(survey(plain(network), 3, 64).taps)
    net = at_start(prompted(network, modules, interaction='gate'))
    assert net.levels == tuple(modules)
    assert torch.equal(net(x, 1), plain(network)(x))
    assert not torch.equal(prompted(network, modules, interaction='gate')(x, 1), plain(network)(x))


def test_the_network_is_initialised_as_it_is_alone() -> None:
    kind = ARCH_REGISTRY.get('EDSR')
    torch.manual_seed(5)
    alone = kind(**{key: value for key, value in EDSR.items() if key != 'type'}).state_dict()
    torch.manual_seed(5)
    net = PromptedNetwork(EDSR, ['conv_after_body'])
    assert all(torch.equal(value, alone[name]) for name, value in net.network.state_dict().items())


# what it computes


@pytest.mark.parametrize('residual', [True, False])
@pytest.mark.parametrize('interaction', ['topm', 'cross', 'gate', 'promptir_gate', 'promptir'])
def test_it_computes_what_its_parts_do(interaction: str, residual: bool) -> None:
    net = prompted(EDSR, ['body.1', 'conv_after_body'], interaction=interaction, residual=residual).double()
    x = seeded_image((2, 3, 12, 16)).double()
    edsr: Any = plain(EDSR).double()
    weights = torch.eye(5, dtype=torch.float64)[[3, 1]]

    def modulated(number: int, features: Tensor) -> Tensor:
        tap: Any = net.taps[number]
        y = tap.interact(features, tap.prompt(features, weights))
        return features + tap.alpha * y if residual else y

    first = edsr.conv_first((x - edsr.mean.double()) * edsr.img_range)
    y = modulated(0, edsr.body[1](edsr.body[0](first)))
    y = modulated(1, edsr.conv_after_body(y)) + first
    expected = edsr.conv_last(y) / edsr.img_range + edsr.mean.double()
    torch.testing.assert_close(net(x, [3, 1]), expected, rtol=1e-12, atol=1e-12)


def test_tokens_are_taken_row_by_row() -> None:
    """SwinIR's layers with their own unpacking of tokens."""
    net = prompted(SWINIR, ['layers.0'], residual=False).double()
    swinir: Any = plain(SWINIR).double()
    x, size = seeded_image((2, 3, 16, 24)).double(), (16, 24)
    centred = x - swinir.mean
    first = swinir.conv_first(centred)
    features = swinir.patch_unembed(swinir.layers[0](swinir.patch_embed(first), size), size)
    features = net.taps[0](features, torch.eye(5, dtype=x.dtype)[[2, 0]], 1.0)
    tokens = swinir.norm(swinir.layers[1](features.flatten(2).transpose(1, 2), size))
    y = swinir.conv_after_body(swinir.patch_unembed(tokens, size)) + first
    expected = centred + swinir.conv_last(y) + swinir.mean
    torch.testing.assert_close(net(x, [2, 0]), expected, rtol=1e-12, atol=1e-12)


def test_labels_change_the_output_and_batches_permute() -> None:
    net = prompted(SWINIR, ['layers.0', 'conv_after_body']).double()
    x = seeded_image((3, 3, 16, 16)).double()
    outs = [net(x, label) for label in range(5)]
    for i, out in enumerate(outs):
        for other in outs[:i]:
            assert (out - other).abs().max() > 1e-6
    mixed = net(x, [4, 0, 2])
    torch.testing.assert_close(net(x[[2, 0, 1]], [2, 4, 0]), mixed[[2, 0, 1]], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(net(x, torch.eye(5, dtype=x.dtype)[[4, 0, 2]]), mixed, rtol=0, atol=0)
    assert (net(x, 1, strength=0) - net(x, 2, strength=0)).abs().max() == 0
    changed = net(x, 1, overrides={'conv_after_body': 'lowlight'})
    assert (changed - outs[1]).abs().max() > 1e-6
    assert (changed - outs[4]).abs().max() > 1e-6


def test_prompts_of_pip_need_a_label_and_those_of_promptir_do_not() -> None:
    x = seeded_image((2, 3, 16, 16))
    net = prompted(EDSR, ['conv_after_body'])
    assert net.takes_degradation
    with pytest.raises(ValueError, match='no degradation is passed'):
        net(x)
    assert torch.equal(net.prompt_weights(x, ['derain', 4])['conv_after_body'], torch.eye(5)[[1, 4]])
    net.sensor = lambda images: torch.eye(5)[[1, 4]]
    assert torch.equal(net(x), net(x, [1, 4]))

    blind = prompted(EDSR, ['body.0', 'conv_after_body'], prompts='promptir', num_prompts=3)
    assert not blind.takes_degradation
    assert torch.equal(blind(x), blind(x, 3))
    weights = blind.prompt_weights(x)
    assert list(weights) == ['body.0', 'conv_after_body']
    edsr: Any = blind.network
    features = edsr.body[0].conv2(edsr.body[0].relu(edsr.body[0].conv1(edsr.conv_first((x - edsr.mean) * 255.0))))
    features = features + edsr.conv_first((x - edsr.mean) * 255.0)
    expected = blind.taps[0].prompt.linear_layer(features.mean(dim=(2, 3))).softmax(dim=1)
    torch.testing.assert_close(weights['body.0'], expected)


def test_a_sensor_is_a_part_of_it_and_of_its_checkpoint() -> None:
    sensor = {'type': 'DegradationSensor'}
    net = PromptedNetwork(EDSR, ['conv_after_body'], sensor=sensor).eval()
    x = seeded_image((2, 3, 32, 32))
    torch.testing.assert_close(net(x), net(x, net.sensor.probabilities(x)))
    copied = PromptedNetwork(EDSR, ['conv_after_body'], sensor=sensor).eval()
    copied.load_state_dict(net.state_dict())
    assert torch.equal(copied(x), net(x))
    copied.load_state_dict(plain(EDSR).state_dict())
    assert torch.equal(copied.sensor.probabilities(x), net.sensor.probabilities(x))


# copies


def test_a_copy_uses_its_own_prompts() -> None:
    x = seeded_image((1, 3, 16, 16))
    net = prompted(SWINIR, ['layers.0', 'conv_after_body'])
    before = net(x, 1)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(twin(x, 1), before)
        for parameter in twin.taps.parameters():
            parameter.data.mul_(1.5)
        changed = twin(x, 1)
        assert not torch.equal(changed, before)
        assert torch.equal(net(x, 1), before)
        for parameter in twin.taps.parameters():
            parameter.data.div_(1.5)
        torch.testing.assert_close(twin(x, 1), before)


def test_hooks_are_registered_once() -> None:
    net = prompted(EDSR, ['conv_after_body'])
    for _ in range(3):
        net(seeded_image((1, 3, 8, 8)), 1)
    assert [len(module._forward_hooks) for module in net.modules() if module._forward_hooks] == [1]
    assert len(copy.deepcopy(net).network.conv_after_body._forward_hooks) == 1


def test_passes_in_several_threads_do_not_meet() -> None:
    """DataParallel runs replicas that share their hooks, a thread each."""
    x = seeded_image((1, 3, 16, 16))
    net = prompted(SWINIR, ['layers.0', 'layers.1', 'conv_after_body'])
    alone = [net(x, label) for label in range(5)]
    wrong: list[int] = []

    def repeat(label: int) -> None:
        for _ in range(4):
            if not torch.equal(net(x, label), alone[label]):
                wrong.append(label)

    threads = [threading.Thread(target=repeat, args=(label,)) for label in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_outside_of_a_pass_a_tapped_module_refuses() -> None:
    net = prompted(EDSR, ['conv_after_body'])
    with pytest.raises(RuntimeError, match=r"'conv_after_body' was called outside the forward pass.*use_checkpoint"):
        net.network(seeded_image((1, 3, 8, 8)))
    with pytest.raises(RuntimeError, match='size of tensor'):
        net(torch.zeros(1, 5, 8, 8), 1)
    with pytest.raises(RuntimeError, match='outside'):  # a pass that failed is over
        net.network(seeded_image((1, 3, 8, 8)))


# training


def test_a_frozen_network_stays_as_it_is() -> None:
    """SwinIR drops paths at random while it trains."""
    x = seeded_image((2, 3, 16, 16))
    net = PromptedNetwork({**SWINIR, 'drop_path_rate': 0.9}, ['conv_after_body'], freeze_network=True)
    net.load_state_dict(plain(SWINIR).state_dict())
    assert net.training
    assert not net.network.training
    assert torch.equal(net(x, 1), plain(SWINIR)(x))
    before = copy.deepcopy(net.network.state_dict())
    learned = [parameter for parameter in net.parameters() if parameter.requires_grad]
    assert {id(parameter) for parameter in learned} == {id(parameter) for parameter in net.taps.parameters()}
    optimizer = torch.optim.SGD(learned, lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (net(x, 1) - x).abs().mean().backward()
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in net.network.state_dict().items())
    assert not torch.equal(net.eval()(x, 1), plain(SWINIR)(x))
    assert not PromptedNetwork(EDSR, ['body'], freeze_network=True).eval().train().network.training
    assert PromptedNetwork(EDSR, ['body']).eval().train().network.training


@pytest.mark.parametrize('prompts', ['pip', 'promptir'])
@pytest.mark.parametrize('freeze_network', [False, True])
def test_no_parameter_is_unused_in_distributed_training(tmp_path: Path, prompts: str, freeze_network: bool) -> None:
    """DistributedDataParallel refuses the second pass if one is."""
    torch.distributed.init_process_group(
        'gloo',
        init_method=f'file://{tmp_path}/store',
        rank=0,
        world_size=1,
        timeout=torch.distributed.default_pg_timeout,
    )
    try:
        net = PromptedNetwork(SWINIR, ['layers.0', 'conv_after_body'], prompts=prompts, freeze_network=freeze_network)
        parallel = DistributedDataParallel(net)
        optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=1e-2)
        x = seeded_image((2, 3, 16, 16))
        for _ in range(3):
            optimizer.zero_grad()
            (parallel(x, torch.tensor([0, 3])) - x).square().mean().backward()
            optimizer.step()
    finally:
        torch.distributed.destroy_process_group()
    assert all((parameter.grad is not None) == parameter.requires_grad for parameter in net.parameters())
    assert all(tap.alpha.abs() > 0 for tap in net.taps)
    learned = [tap.prompt.outconv if prompts == 'pip' else tap.prompt.conv3x3 for tap in net.taps]
    assert all(conv.weight.grad.abs().max() > 0 for conv in learned)


def model_options(root: Path, **changes: Any) -> dict[str, Any]:
    network = {
        'type': 'PromptedNetwork',
        'network': dict(SWINIR),
        'taps': [{'module': 'layers.0', **SMALL}, {'module': 'conv_after_body', **SMALL}],
    }
    return run_options(root, network_g=network, **changes)


def test_a_run_starts_from_weights_of_the_plain_network(tmp_path: Path) -> None:
    file = tmp_path / 'plain.pth'
    torch.save({'params': plain(SWINIR).state_dict()}, file)
    options = model_options(tmp_path, path__pretrain_network_g=str(file), path__strict_load_g=True)
    options['train'] |= {'ema_decay': 0.5, 'prompt_opt': {'type': 'PromptDecorrelationLoss'}}
    model = build_model(copy.deepcopy(options))
    x = seeded_image((1, 3, 16, 16))
    assert torch.equal(model.net_g.eval()(x, 1), plain(SWINIR)(x))
    averaged = model.net_g_ema.state_dict()
    assert all(torch.equal(value, averaged[name]) for name, value in model.net_g.state_dict().items())

    model.net_g.train()
    model.feed_data({'lq': x, 'gt': x, 'degradation': torch.tensor([3])})
    model.optimize_parameters(1)
    model.optimize_parameters(2)
    trained, averaged = model.net_g.eval()(x, 3), model.net_g_ema.eval()(x, 3)
    assert not torch.equal(trained, averaged)
    assert not torch.equal(averaged, plain(SWINIR)(x))
    model.save(0, 2)

    again = copy.deepcopy(options)
    again['path'] |= {'pretrain_network_g': str(tmp_path / 'models' / 'net_g_2.pth')}
    loaded = build_model(again)
    assert torch.equal(loaded.net_g.eval()(x, 3), trained)
    assert torch.equal(loaded.net_g_ema.eval()(x, 3), averaged)


def test_images_of_any_size_are_padded_for_the_network(tmp_path: Path) -> None:
    model = build_model(model_options(tmp_path))
    assert model.size_multiple == 4
    x = seeded_image((1, 3, 13, 18))
    model.feed_data({'lq': x, 'degradation': torch.tensor([1])})
    model.test()
    assert model.output.shape == x.shape
    padded = F.pad(x, (0, 2, 0, 3), mode='reflect')
    assert torch.equal(model.output, model.net_g.eval()(padded, 1)[..., :13, :18])


def test_weights_that_do_not_fit_are_reported_by_name(tmp_path: Path) -> None:
    net = PromptedNetwork(EDSR, ['conv_after_body'])
    wider = with_prompts(plain({**EDSR, 'num_feat': 16}).state_dict(), net)
    with pytest.raises(OptionError, match=r'are of another PromptedNetwork; other sizes: network\.conv_first\.weight'):
        check_fit(wider, net, 'wide.pth', {})
    longer = with_prompts(plain({**EDSR, 'num_block': 3}).state_dict(), net)
    with pytest.raises(OptionError, match=r'not in the network: network\.body\.2\.conv1\.weight'):
        check_fit(longer, net, 'long.pth', {})
    assert check_fit(with_prompts(plain(EDSR).state_dict(), net), net, 'right.pth', {}) == []


def test_plain_weights_are_checked_before_anything_is_created(tmp_path: Path) -> None:
    options = run_file(tmp_path)
    options['path']['pretrain_network_g'] = str(tmp_path / 'plain.pth')
    torch.save({'params': plain(SWINIR).state_dict()}, tmp_path / 'plain.pth')
    assert check_options(options, is_train=True) == []
    (problem,) = map(str, start_problems(options, is_train=False))
    assert "plain.pth' contains a network without prompts. A training can start from it, but a test needs" in problem
    torch.save({'params': plain({**SWINIR, 'embed_dim': 16}).state_dict()}, tmp_path / 'plain.pth')
    (problem,) = map(str, check_options(options, is_train=True))
    assert problem.startswith('path.pretrain_network_g: ')
    assert 'other sizes: network.conv_first.weight (16, 3, 3, 3) -> (12, 3, 3, 3)' in problem


def test_prompts_can_grow() -> None:
    three = prompted(EDSR, ['conv_after_body'], num_degradations=3)
    four = prompted(EDSR, ['conv_after_body'], num_degradations=4)
    found = check_fit(three.state_dict(), four, 'three.pth', {'grow_g': True})
    four.load_state_dict(grow(three.state_dict(), four.state_dict(), found))
    vectors = {net.num_degradations: net.prompt_vectors()['conv_after_body'] for net in (three, four)}
    assert torch.equal(vectors[4][:3], vectors[3])


def test_prompt_vectors() -> None:
    net = PromptedNetwork(EDSR, [{'module': 'body', **SMALL}, 'conv_after_body'], num_degradations=3)
    assert {name: tuple(value.shape) for name, value in net.prompt_vectors().items()} == {
        'body': (3, 12),
        'conv_after_body': (3, 12),  # eight channels are too few for four heads of three
    }
    blind = PromptedNetwork(EDSR, [{'module': 'body', **SMALL}], prompts='promptir', num_prompts=2)
    assert blind.prompt_vectors()['body'].shape == (2, 12 * 4 * 4)


# options


def test_defaults_of_the_prompts_follow_the_features() -> None:
    net = PromptedNetwork(NAFNET, ['middle_blks', 'encoders.1', 'intro'])
    assert net.levels == ('intro', 'encoders.1', 'middle_blks')  # in the order of the network
    shapes = [tuple(tap.prompt.low_prompt_param.shape[1:]) for tap in net.taps]
    assert shapes == [(12, 64, 64), (12, 32, 32), (64, 4, 4)]
    assert net.size_multiple == 16
    assert PromptedNetwork(RRDBNET, ['body']).size_multiple == 4
    assert PromptedNetwork(PROMPTIR, ['latent']).size_multiple == 8


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (
            {'taps': ['conv_after_bdy']},
            r"taps\[0\].module: the network has no module 'conv_after_bdy'. Did you mean 'conv_",
        ),
        ({'taps': ['x']}, r'Taps: conv_first \(8 channels, stride 1\), body \(8 channels, stride 1\), conv_after_body'),
        ({'taps': []}, r"taps is \[\]; must be a list of modules, such as \['upsample', 'conv_last'\]"),
        ({'taps': 'body'}, "taps is 'body'; must be a list of modules"),
        ({'taps': [3]}, r'taps\[0\]: must be \{module: name\}, not 3'),
        ({'taps': ['body', 'body']}, r"taps\[1\].module: 'body' is in the list twice"),
        ({'taps': [{'module': 'body', 'dim': 3}]}, r"taps\[0\]: unknown option 'dim'.* Allowed: module, prompt_dim"),
        (
            {'taps': [{'module': 'body', 'prompt_dim': 10}]},
            r'prompt_dim: 10; for .* least 12 .* multiple of 4, such as 12',
        ),
        (
            {'taps': [{'module': 'body', 'prompt_size': 1}]},
            r'taps\[0\].prompt_size: 1 is not a whole number of at least 2',
        ),
        ({'taps': ['conv_last'], 'interaction': 'promptir_gate'}, 'needs an even number of channels, not 3'),
        ({'prompts': 'pipp'}, "prompts: unknown kind 'pipp'. Did you mean 'pip'?"),
        ({'interaction': 'top'}, "interaction: unknown interaction 'top'. Did you mean 'topm'?"),
        ({'num_prompts': 0}, 'num_prompts: 0 is not a whole number of at least 1'),
        ({'prompts': 'promptir', 'sensor': {'type': 'DegradationSensor'}}, "sensor: PromptIR's prompts are blind"),
        ({'network': 'EDSR'}, "network: must be options with a type, .* not 'EDSR'"),
        ({'network': {'type': 'SwinR'}}, "network.type: unknown network 'SwinR'. Did you mean 'SwinIR'?"),
        ({'network': {**EDSR, 'num_blocks': 3}}, "network: unknown option 'num_blocks'. Did you mean 'num_block'?"),
        (
            {'network': {**EDSR, 'upscale': 2}},
            r'network: EDSR returns \(2, 3, 128, 256\) for an image \(2, 3, 64, 128\)',
        ),
        ({'network': {'type': 'MSRResNet', 'upscale': 1}}, 'network: MSRResNet cannot be built: .*upconv1'),
        ({'network': {'type': 'PIPRestormer'}}, 'network.type: PIPRestormer already has such prompts'),
        ({'network': {'type': 'PromptedNetwork', 'network': EDSR, 'taps': ['body']}}, 'already has such prompts'),
        ({'num_degradations': 0}, 'num_degradations is 0'),
    ],
)
def test_mistakes_are_reported(options: dict[str, Any], message: str) -> None:
    given = {'network': EDSR, 'taps': ['conv_after_body'], **options}
    with pytest.raises(ValueError, match=message):
        PromptedNetwork(**given)
    (problem, *_) = map(str, check_network({'type': 'PromptedNetwork', **given}))
    assert problem.startswith('network_g: ')


def test_several_mistakes_are_reported_at_once() -> None:
    with pytest.raises(ValueError, match='PromptedNetwork: ') as caught:
        PromptedNetwork(SWINIR, ['layers', {'module': 'layers.0', 'prompt_dim': 13}, 'nothing'])
    first, second, third = str(caught.value).splitlines()
    assert "taps[0].module: 'layers' is not called itself" in first
    assert 'taps[1].prompt_dim: 13;' in second
    assert "taps[2].module: the network has no module 'nothing'" in third
    assert ' more.' in third


def test_it_can_be_built_without_memory() -> None:
    with torch.device('meta'):
        net = PromptedNetwork(SWINIR, ['layers.0', 'conv_after_body'])
    assert {tensor.device.type for tensor in (*net.parameters(), *net.buffers())} == {'meta'}
    assert net(torch.zeros(1, 3, 8, 8, device='meta'), torch.zeros(1, dtype=torch.long)).shape == (1, 3, 8, 8)


def run_file(root: Path) -> dict[str, Any]:
    """The same as an option file has it."""
    options = model_options(root)
    options = {key: options[key] for key in 'name model_type num_gpu datasets network_g train val'.split()}
    options['datasets']['train'] |= {'batch_size_per_gpu': 1, 'num_worker_per_gpu': 0}
    logger = {'print_freq': 1, 'save_checkpoint_freq': 1, 'use_tb_logger': False}
    return {**options, 'path': {'experiments_root': str(root)}, 'logger': logger}


def test_the_size_of_a_training_patch_is_checked(tmp_path: Path) -> None:
    options = run_file(tmp_path)
    assert check_options(options, is_train=True) == []
    options['datasets']['train']['gt_size'] = 18
    (problem,) = map(str, check_options(options, is_train=True))
    assert 'gt_size: 18 is not a multiple of 4, which PromptedNetwork needs. Set 16.' in problem


def test_tokens_of_an_image_that_the_network_pads() -> None:
    point = TapPoint(8, 2, tokens=True)
    assert point.size(16, 24, 8, 96) == (8, 12)
    assert point.size(15, 23, 8, 96) == (8, 12)
    assert point.size(14, 20, 8, 96) == (8, 12)  # padded to 16x24
    with pytest.raises(ValueError, match='100 tokens of an image of 14x20'):
        point.size(14, 20, 8, 100)
