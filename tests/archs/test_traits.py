"""What `traits_of` says of every registered network and of third-party ones, held against what they do."""

import ast
import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

import promptir_basicsr

# isort: split
from basicsr.utils.registry import ARCH_REGISTRY

from promptir_basicsr.archs import (
    AirNet,
    NetworkTraits,
    PIPNAFNet,
    PIPRestormer,
    PromptedNetwork,
    PromptIR,
    traits_of,
)
from promptir_basicsr.archs import traits as module
from promptir_basicsr.archs.traits import growable_axes, names_of, no_prompts, prompts_of, unwrapped

TINY_RESTORMER: dict[str, Any] = {
    'dim': 8,
    'num_blocks': [1, 1, 1, 1],
    'num_refinement_blocks': 1,
    'heads': [1, 1, 1, 1],
    'prompt_sizes': [4, 4, 4],
}
TINY_NAFNET: dict[str, Any] = {'width': 4, 'enc_blk_nums': [1] * 4, 'dec_blk_nums': [1] * 4, 'prompt_sizes': [4] * 4}
AIRNET: dict[str, Any] = {'dim': 4, 'num_groups': 1, 'num_blocks': 1, 'queue_length': 8}
EDSR: dict[str, Any] = {'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1, 'upscale': 1}
SWINIR: dict[str, Any] = {
    'img_size': 16,
    'window_size': 8,
    'embed_dim': 8,
    'depths': [1],
    'num_heads': [2],
    'upscale': 1,
}
ECBSR: dict[str, Any] = {
    'num_in_ch': 1,
    'num_out_ch': 1,
    'num_block': 1,
    'num_channel': 4,
    'with_idt': False,
    'act_type': 'prelu',
    'scale': 1,
}
SENSOR: dict[str, Any] = {'type': 'DegradationSensor', 'dim': 4}

# Networks that make an image (B, C, H, W) of an image, by their names; the arguments make them small.
RESTORERS: list[tuple[str, dict[str, Any]]] = [
    ('PromptIR', TINY_RESTORMER),
    ('PromptIR', {**TINY_RESTORMER, 'prompts': False}),
    ('PromptIR', {**TINY_RESTORMER, 'inp_channels': 1, 'out_channels': 1}),
    ('PIPRestormer', TINY_RESTORMER),
    ('PIPRestormer', {**TINY_RESTORMER, 'inp_channels': 2, 'out_channels': 2, 'num_degradations': 3}),
    ('PIPRestormer', {**TINY_RESTORMER, 'sensor': SENSOR, 'hard_sensor': True}),
    ('PIPNAFNet', TINY_NAFNET),
    ('PIPNAFNet', {**TINY_NAFNET, 'prompts': False}),
    ('PIPNAFNet', {**TINY_NAFNET, 'img_channel': 1, 'num_degradations': 2, 'degradations': ['rain', 'snow']}),
    ('PromptedNetwork', {'network': {'type': 'EDSR', **EDSR}, 'taps': ['body.0']}),
    ('PromptedNetwork', {'network': {'type': 'SwinIR', **SWINIR}, 'taps': ['conv_after_body']}),
    ('PromptedNetwork', {'network': {'type': 'EDSR', **EDSR}, 'taps': ['body.0'], 'prompts': 'promptir'}),
    ('AirNet', AIRNET),
    ('AirNet', {**AIRNET, 'img_channel': 1}),
    ('EDSR', EDSR),
    ('RCAN', {'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 16, 'num_group': 1, 'num_block': 1, 'upscale': 1}),
    ('SRVGGNetCompact', {'num_in_ch': 2, 'num_out_ch': 2, 'num_feat': 4, 'num_conv': 1, 'upscale': 1}),
    ('ECBSR', ECBSR),
    ('SwinIR', SWINIR),
    ('MSRResNet', {'num_feat': 4, 'num_block': 1}),
    ('MSRResNet', {'num_feat': 4, 'num_block': 1, 'num_in_ch': 1, 'num_out_ch': 1}),
    ('RIDNet', {'in_channels': 3, 'mid_channels': 16, 'out_channels': 3, 'num_block': 1}),
    ('RRDBNet', {'num_in_ch': 2, 'num_out_ch': 3, 'scale': 1, 'num_feat': 4, 'num_block': 1, 'num_grow_ch': 4}),
]

PROMPTED = ('PromptIR', 'PIPRestormer', 'PIPNAFNet', 'PromptedNetwork')

# Networks that make or take something else.
OTHERS: dict[str, dict[str, Any]] = {
    'DegradationSensor': {'dim': 4},
    'EDVR': {'num_feat': 8, 'num_extract_block': 1, 'num_reconstruct_block': 1, 'deformable_groups': 1},
    'HiFaceGAN': {'num_feat': 4, 'crop_size': 64, 'norm_g': 'spectralspadeinstance3x3'},
    'HiFaceGANDiscriminator': {'num_feat': 4},
    'SpyNet': {},
    'BasicVSR': {'num_feat': 8, 'num_block': 1},
    'IconVSR': {'num_feat': 8, 'num_block': 1},
    'BasicVSRPlusPlus': {'mid_channels': 8, 'num_blocks': 1},
    'VGGStyleDiscriminator': {'num_in_ch': 3, 'num_feat': 4},
    'UNetDiscriminatorSN': {'num_in_ch': 3, 'num_feat': 4},
    'StyleGAN2Generator': {'out_size': 8},
    'StyleGAN2Discriminator': {'out_size': 8},
    'TOFlow': {},
    'DUF': {'scale': 2, 'num_layer': 16},
}
UNBUILT = {'DFDNet': 'reads a dictionary of faces', 'VGGFeatureExtractor': 'downloads weights'}

PROTOCOLS: list[tuple[Callable[[NetworkTraits], bool], type, str]] = [
    (lambda traits: traits.conditioned, module.Conditioned, 'prompt_context'),
    (lambda traits: traits.conditioned, module.Conditioned, 'degradation_weights'),
    (lambda traits: traits.conditioned, module.Conditioned, 'sense'),
    (lambda traits: traits.has_prompt_weights, module.Prompted, 'prompt_weights'),
    (lambda traits: traits.has_prompt_vectors, module.Prompted, 'prompt_vectors'),
    (lambda traits: traits.is_sensor, module.Sensor, 'probabilities'),
    (lambda traits: traits.adds_prompts, module.PromptHost, 'with_prompts'),
    (lambda traits: traits.contrastive, module.Contrastive, 'with_queue'),
    (lambda traits: traits.released, module.Released, 'released_state_dict'),
]


def kind_of(name: str) -> Any:
    return ARCH_REGISTRY.get(name if name in ARCH_REGISTRY else f'{name}_basicsr')


def built(name: str, options: Mapping[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    return kind_of(name)(**options).eval()


def runs(net: nn.Module, x: Tensor, *told: Any) -> bool:
    try:
        with torch.no_grad():
            net(x, *told)
    except (RuntimeError, ValueError):
        return False
    return True


def test_every_registered_network_is_in_the_lists():
    registered = {
        name.removesuffix('_basicsr')
        for name, kind in ARCH_REGISTRY
        if kind.__module__.startswith(('basicsr.', 'promptir_basicsr.'))
    }
    listed = {name for name, _ in RESTORERS} | set(OTHERS) | set(UNBUILT)
    assert registered - {'StyleGAN2GeneratorBilinear'} == listed  # of BasicSR's master, as StyleGAN2Generator


@pytest.mark.parametrize(('name', 'options'), RESTORERS, ids=[f'{n}{i}' for i, (n, _) in enumerate(RESTORERS)])
def test_channels_sizes_and_degradations_are_those_of_a_forward_pass(name, options):
    net = built(name, options)
    traits = traits_of(net, {'type': name, **options})
    side = -(-16 // traits.size_multiple) * traits.size_multiple
    told = [0] if traits.needs_degradation else []
    x = torch.rand(1, traits.channels_in, side, 2 * side)
    with torch.no_grad():
        y = net(x, *told)
    assert y.ndim == 4
    assert traits.channels_out in (None, y.shape[1])
    assert traits.channels_out or name == 'SwinIR'  # whose arguments name the channels of the input alone
    assert not runs(net, torch.rand(1, traits.channels_in + 2, side, side), *told)
    if (
        traits.size_multiple > 1 and traits.declared_multiple and name != 'PromptedNetwork'
    ):  # which leaves it to its network to refuse a size
        assert not runs(net, torch.rand(1, traits.channels_in, side, side + traits.size_multiple // 2), *told)
    assert runs(net, x) != traits.needs_degradation
    if traits.takes_degradation:
        last = traits.num_degradations - 1
        assert runs(net, x, last)
        assert not runs(net, x, last + 1)
        assert runs(net, x, 0, 0.5)
        with torch.no_grad():
            weights = net.degradation_weights(x, traits.labels[last] if traits.degradations else last)
        assert weights.argmax(dim=1).item() == last


@pytest.mark.parametrize(('name', 'options'), RESTORERS, ids=[f'{n}{i}' for i, (n, _) in enumerate(RESTORERS)])
def test_prompts_are_those_that_the_network_shows(name, options):
    net: Any = built(name, options)
    traits = traits_of(net)
    assert traits.has_prompt_weights == traits.has_prompt_vectors == (name in PROMPTED)
    if not traits.has_prompt_weights or options.get('prompts') is False:
        assert not traits.levels
        return
    x = torch.rand(1, options.get('inp_channels', options.get('img_channel', 3)), 16, 16)
    with torch.no_grad():
        weights = net.prompt_weights(x, 0) if traits.takes_degradation else net.prompt_weights(x)
    assert traits.levels == tuple(weights) == tuple(net.prompt_vectors())
    assert [level.shape[0] for level in prompts_of(net)] == [each.shape[1] for each in weights.values()]


@pytest.mark.parametrize('name', list(OTHERS))
def test_networks_that_do_not_restore_a_single_image(name):
    net = built(name, OTHERS[name])
    traits = traits_of(net, OTHERS[name])
    assert not traits.takes_degradation
    assert traits.is_sensor == (name == 'DegradationSensor')
    assert traits.declared == traits.is_sensor
    assert not traits.has_prompt_weights
    assert not traits.has_prompt_vectors
    assert not traits.holds_sensor
    assert not traits.released


def test_a_sensor_is_one():
    net: Any = built('DegradationSensor', {'dim': 4, 'num_degradations': 3})
    traits = traits_of(net)
    assert traits.is_sensor
    assert (traits.channels_in, traits.channels_out) == (3, None)
    assert net.probabilities(torch.rand(2, 3, 17, 19)).shape == (2, traits.num_degradations)
    assert traits.labels == ('0', '1', '2')


@pytest.mark.parametrize(('name', 'options'), [case for case in RESTORERS if case[0] != 'PromptedNetwork'])
def test_traits_of_a_class_with_arguments_equal_those_of_its_network(name, options):
    planned, net = traits_of(kind_of(name), options), built(name, options)
    expected = traits_of(net, options)
    # PIPNAFNet takes a degradation or not, as its option `prompts` says; degradations have names by their number.
    changes = {name: getattr(expected, name) for name in ('takes_degradation', 'conditioned', 'degradations')}
    assert replace(planned, **changes) == expected


def test_arguments_that_are_unknown_are_not_guessed():
    assert traits_of(built('EDSR', {**EDSR, 'num_feat': 4})).channels_in is None
    assert traits_of(kind_of('EDSR')).channels_in is None  # has no default
    assert traits_of(kind_of('MSRResNet')).channels_in == 3
    assert traits_of(built('MSRResNet', {'num_feat': 4, 'num_block': 1, 'num_in_ch': 1})).channels_in is None


# Wrappers


def distributed(net: nn.Module) -> nn.Module:
    """A DistributedDataParallel without a group of processes, which only looks like one."""
    wrapper = DistributedDataParallel.__new__(DistributedDataParallel)
    nn.Module.__init__(wrapper)
    wrapper.module = net
    return wrapper


WRAPPERS: dict[str, tuple[Callable[[nn.Module], Any], bool]] = {
    'data parallel': (DataParallel, False),
    'distributed': (distributed, False),
    'compiled': (torch.compile, True),
    'compiled and distributed': (lambda net: distributed(torch.compile(net)), True),
    'distributed and compiled': (lambda net: torch.compile(distributed(net)), True),
}


@pytest.mark.parametrize('wrapper', WRAPPERS)
def test_wrapped_networks_are_seen_through(wrapper):
    wrap, compiled = WRAPPERS[wrapper]
    net = PIPRestormer(**TINY_RESTORMER, sensor=SENSOR)
    expected = traits_of(net)
    wrapped = wrap(net)
    assert unwrapped(wrapped) is net
    assert traits_of(wrapped) == replace(expected, compiled=compiled)
    assert [each.shape for each in prompts_of(wrapped)] == [each.shape for each in prompts_of(net)]


def test_a_network_that_is_compiled_in_place():
    net = PromptIR(**TINY_RESTORMER)
    assert not traits_of(net).compiled
    net.compile()
    assert traits_of(net).compiled
    assert unwrapped(net) is net


# Third-party networks


class Plain(nn.Module):
    """Declares nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Told(nn.Module):
    """Takes a degradation, and nothing else of the protocol."""

    takes_degradation = True
    size_multiple = 4
    num_degradations = 2
    degradations = ['rain', 'snow']

    def forward(self, x: Tensor, degradation: Any = None) -> Tensor:
        return x


def test_a_network_that_declares_nothing():
    traits = traits_of(Plain())
    nothing = NetworkTraits(
        declared=False,
        takes_degradation=False,
        conditioned=False,
        num_degradations=0,
        degradations=None,
        is_sensor=False,
        holds_sensor=False,
        hard_sensor=False,
        has_prompt_weights=False,
        has_prompt_vectors=False,
        levels=None,
        adds_prompts=False,
        contrastive=False,
        has_encodings=False,
        released=False,
        declared_multiple=None,
        window_size=None,
        channels_in=None,
        channels_out=None,
        compiled=False,
    )
    assert traits == nothing == traits_of(Plain)
    assert (traits.size_multiple, traits.labels, traits.needs_degradation) == (1, (), False)


def test_a_network_that_declares_a_part():
    net = Told()
    traits = traits_of(net)
    assert traits == traits_of(Told)
    assert (traits.declared, traits.takes_degradation, traits.conditioned, traits.needs_degradation) == (
        True,
        True,
        False,
        True,
    )
    assert (traits.size_multiple, traits.labels) == (4, ('rain', 'snow'))
    net.sensor = lambda x: x  # any callable
    assert traits_of(net).holds_sensor
    assert not traits_of(net).needs_degradation
    net.sensor = None
    assert traits_of(net, {'sensor': SENSOR}).needs_degradation  # the network has the last word


def test_a_factory_function_is_a_network_that_will_be_built():
    def factory(in_chans: int = 4, window_size: int = 6) -> nn.Module:
        return Plain()

    assert traits_of(factory).channels_in == 4
    assert traits_of(factory, {'in_chans': 2}).channels_in == 2
    assert traits_of(factory).size_multiple == 6


@pytest.mark.parametrize('value', [0, -8, True, 8.0, '8', None, property(lambda self: 8)])
def test_a_size_multiple_that_is_not_a_number_is_ignored(value):
    kind = type('Odd', (Plain,), {'size_multiple': value})
    assert traits_of(kind).declared_multiple is None
    assert traits_of(kind, {'window_size': 8}).size_multiple == 8


@pytest.mark.parametrize('value', ['rain', [1, 2], [], {'rain': 1}, nn.ModuleList([nn.ReLU()])])
def test_names_that_are_not_a_list_of_words_are_ignored(value):
    net = Plain()
    net.degradations = net.levels = value
    net.num_degradations = 2
    traits = traits_of(net)
    assert (traits.degradations, traits.levels, traits.labels) == (None, None, ('0', '1'))


def test_a_window_is_the_size_multiple_unless_one_is_declared():
    net = built('SwinIR', SWINIR)
    traits = traits_of(net, SWINIR)
    assert (traits.declared_multiple, traits.size_multiple) == (None, 8)
    assert traits_of(net).size_multiple == 1  # BasicSR's SwinIR keeps its window to itself
    net.window_size = 8
    assert traits_of(net).size_multiple == 8
    net.size_multiple = 16
    assert traits_of(net).size_multiple == 16


def test_registered_networks_by_trait():
    assert 'DegradationSensor' in names_of(lambda traits: traits.is_sensor)
    prompted = names_of(lambda traits: traits.has_prompt_vectors)
    assert prompted == sorted(prompted)
    assert {'PIPNAFNet', 'PIPRestormer', 'PromptIR', 'PromptedNetwork'} <= set(prompted)
    assert 'EDSR' not in prompted
    assert all(name in no_prompts('EDSR') for name in prompted)


def test_what_may_grow_is_read_of_all_modules():
    assert set(growable_axes(PromptIR(**TINY_RESTORMER)).values()) == {('prompts', 0), ('prompts', 1)}
    assert growable_axes(Plain()) == {}


@pytest.mark.parametrize(
    'kind', [PromptIR, PIPRestormer, PIPNAFNet, PromptedNetwork, AirNet, kind_of('DegradationSensor')]
)
def test_built_in_networks_have_the_methods_of_their_protocols(kind):
    kept = [(protocol, name) for wanted, protocol, name in PROTOCOLS if wanted(traits_of(kind))]
    assert kept
    for protocol, name in kept:
        expected = inspect.signature(inspect.getattr_static(protocol, name)).parameters
        found = inspect.signature(inspect.getattr_static(kind, name)).parameters
        assert list(found)[: len(expected)] == list(expected)


# Nobody else asks

PACKAGE = Path(promptir_basicsr.__file__).parent
NETWORKS = {'net', 'nets', 'net_g', 'net_g_ema', 'network', 'networks', 'bare', 'backbone', 'module', 'model', 'kind'}
NETWORKS |= {'built', 'plain', 'sensor', 'block', 'arch', 'get_bare_model'}
DECLARED = {'takes_degradation', 'growable_axes', 'size_multiple', 'window_size', 'sensor', 'hard_sensor', 'levels'}
DECLARED |= {'prompts', 'degradations', 'num_degradations', '_orig_mod', '_compiled_call_impl', 'attach_sensor'}
DECLARED |= {name for _, _, name in PROTOCOLS} | set(module._CHANNELS_IN + module._CHANNELS_OUT)
ALLOWED: dict[tuple[str, str], str] = {}


def questions(source: str) -> list[str]:
    """The objects that a program asks by hasattr or getattr what it should read of a network's traits."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ('hasattr', 'getattr') and len(node.args) > 1:
            asked, name = node.args[:2]
            words = {each.id for each in ast.walk(asked) if isinstance(each, ast.Name)}
            words |= {each.attr for each in ast.walk(asked) if isinstance(each, ast.Attribute)}
            if words & NETWORKS or (isinstance(name, ast.Constant) and name.value in DECLARED):
                found.append(ast.unparse(asked))
    return found


def test_questions_are_found():
    lines = (
        "hasattr(net, 'x')",
        'getattr(self.get_bare_model(self.net_g), name, None)',
        "getattr(anything, 'takes_degradation', False)",
        "getattr(loss, 'takes_prompts', False)",
    )
    assert [len(questions(line)) for line in lines] == [1, 1, 1, 0]


def test_only_the_traits_ask_a_network_what_it_is():
    asked = {
        (path.relative_to(PACKAGE).as_posix(), text)
        for path in PACKAGE.rglob('*.py')
        if path.relative_to(PACKAGE).parts[0] != 'archs'
        for text in questions(path.read_text(encoding='utf-8'))
    }
    assert asked == set(ALLOWED)
