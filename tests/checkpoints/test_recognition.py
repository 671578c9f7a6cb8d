"""Networks are told from the names and shapes of their weights: whatever the constructors allow comes back."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from promptir_basicsr.archs import PIPNAFNet
from promptir_basicsr.archs.layers.taps import default_width
from promptir_basicsr.checkpoints.matching import fit, new_network, shapes_of, unused_shapes
from promptir_basicsr.checkpoints.recognition import RECOGNIZED, expansion_factor, recognize
from promptir_basicsr.core.errors import OptionError

GOLDEN = Path(__file__).parents[1] / 'golden'
INTERACTIONS = ('topm', 'cross', 'gate', 'promptir_gate')
few = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


def shapes(options: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return shapes_of(new_network(options, 'meta').state_dict())


def assert_told(options: dict[str, Any], *traceless: str) -> None:
    """The same names, in the same order, and shapes; and the same arguments, as far as weights can tell them."""
    wanted = shapes(options)
    told = recognize(wanted)
    assert told is not None
    assert list(shapes(told).items()) == list(wanted.items())
    known = {name: value for name, value in options.items() if name not in (*traceless, 'ffn_expansion_factor')}
    assert {name: told.get(name) for name in known} == known


counts = st.integers(1, 3)
sizes = st.integers(2, 9)
expansions = st.one_of(st.integers(1, 4), st.floats(0.125, 4.5), st.decimals(0.125, 4, places=2).map(float))


@st.composite
def backbones(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of Restormer's backbone."""
    dim, channels = 8 * draw(st.integers(1, 6)), draw(st.integers(1, 4))
    splits = [[n for n in range(1, width) if width % n == 0] for width in (dim * 2**level for level in range(4))]
    return {
        'inp_channels': channels,
        'out_channels': channels,
        'dim': dim,
        'num_blocks': draw(st.lists(counts, min_size=4, max_size=4)),
        'num_refinement_blocks': draw(st.integers(0, 2)),
        'heads': [draw(st.sampled_from(allowed)) for allowed in splits],
        'ffn_expansion_factor': draw(expansions),
        'bias': draw(st.booleans()),
        'layer_norm_type': draw(st.sampled_from(['WithBias', 'BiasFree'])),
    }


SENSORS = st.none() | st.fixed_dictionaries(
    {'type': st.just('DegradationSensor'), 'dim': st.integers(4, 9), 'num_blocks': st.integers(0, 2)}
)


@few
@given(backbones(), st.integers(1, 7), st.lists(st.integers(1, 9), min_size=3, max_size=3), st.booleans())
def test_promptir(backbone: dict[str, Any], num_prompts: int, prompt_sizes: list[int], prompts: bool) -> None:
    options = {**backbone, 'num_prompts': num_prompts, 'prompt_sizes': prompt_sizes, 'prompts': prompts}
    assert_told({'type': 'PromptIR', **options}, *(() if prompts else ('num_prompts', 'prompt_sizes')))


@few
@given(
    backbones(),
    st.integers(1, 7),
    st.lists(st.integers(3, 10).map(lambda n: 4 * n), min_size=3, max_size=3),
    st.lists(sizes, min_size=3, max_size=3),
    st.sampled_from(INTERACTIONS),
    SENSORS,
)
def test_pip_restormer(
    backbone: dict[str, Any],
    num_degradations: int,
    prompt_dims: list[int],
    prompt_sizes: list[int],
    interaction: str,
    sensor: dict[str, Any] | None,
) -> None:
    own = {'num_degradations': num_degradations, 'prompt_dims': prompt_dims, 'prompt_sizes': prompt_sizes}
    options = {'type': 'PIPRestormer', **backbone, **own, 'interaction': interaction}
    sensor = sensor and {**sensor, 'inp_channels': backbone['inp_channels']}
    assert_told({**options, 'sensor': sensor})


@few
@given(
    st.integers(1, 4),
    st.integers(1, 8).map(lambda n: 2 * n),
    st.lists(counts, min_size=9, max_size=9),
    st.integers(1, 7),
    st.lists(st.integers(-1, 2), min_size=4, max_size=4),
    st.lists(sizes, min_size=4, max_size=4),
    st.sampled_from(INTERACTIONS),
    st.booleans(),
    st.booleans(),
    SENSORS,
)
def test_pip_nafnet(
    channels: int,
    width: int,
    blocks: list[int],
    num_degradations: int,
    steps: list[int],
    prompt_sizes: list[int],
    interaction: str,
    residual: bool,
    prompts: bool,
    sensor: dict[str, Any] | None,
) -> None:
    usual = [default_width(width * 2**level, interaction) for level in range(4)]
    prompt_dims = [dim + 4 * step if dim + 4 * step >= 12 else dim for dim, step in zip(usual, steps, strict=True)]
    backbone = {
        'type': 'PIPNAFNet',
        'img_channel': channels,
        'width': width,
        'middle_blk_num': blocks[8],
        'enc_blk_nums': blocks[:4],
        'dec_blk_nums': blocks[4:8],
        'prompts': prompts,
    }
    own = {
        'num_degradations': num_degradations,
        'prompt_dims': prompt_dims,
        'prompt_sizes': prompt_sizes,
        'interaction': interaction,
        'residual': residual,
        'sensor': sensor and {**sensor, 'inp_channels': channels},
    }
    assert_told({**backbone, **(own if prompts else {})})


@few
@given(st.integers(1, 4), st.integers(1, 20), counts, counts, st.integers(1, 30))
def test_airnet(channels: int, dim: int, num_groups: int, num_blocks: int, queue_length: int) -> None:
    told = {'img_channel': channels, 'dim': dim, 'num_groups': num_groups, 'num_blocks': num_blocks}
    assert_told({'type': 'AirNet', **told, 'queue_length': queue_length})


@few
@given(st.integers(1, 9), st.integers(4, 40), st.integers(0, 3), st.integers(1, 4))
def test_sensor(num_degradations: int, dim: int, num_blocks: int, channels: int) -> None:
    told = {'num_degradations': num_degradations, 'dim': dim, 'num_blocks': num_blocks, 'inp_channels': channels}
    assert_told({'type': 'DegradationSensor', **told})


@pytest.mark.parametrize('network', RECOGNIZED)
def test_the_defaults(network: str) -> None:
    wanted = shapes({'type': network})
    told = recognize(wanted)
    assert told is not None
    assert shapes(told) == wanted
    assert told.get('ffn_expansion_factor', 2.66) == 2.66


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.floats(0.126, 8), st.lists(st.integers(1, 100).map(lambda n: 8 * n), min_size=1, max_size=12))
@example(1.9999999999999998, [8, 704])  # a product is rounded up, the other is not
@example(0.1 + 0.2, [10, 20, 100])
@example(2.66, [48, 96, 192, 384, 704, 320, 160])
def test_a_factor_gives_every_hidden_width(factor: float, widths: list[int]) -> None:
    pairs = [(width, int(factor * width)) for width in widths]
    found = expansion_factor(pairs)
    assert found is not None
    assert [int(found * width) for width in widths] == [hidden for _, hidden in pairs]


def test_factors_are_rounded_as_people_write_them() -> None:
    widths = (8, 16, 32, 64)
    assert [expansion_factor([(w, int(factor * w)) for w in widths]) for factor in (2, 2.5, 2.66, 1.25)] == [
        2.0,
        2.5,
        2.66,
        1.25,
    ]
    assert expansion_factor([]) is None
    assert expansion_factor([(8, 16), (16, 48)]) is None


@pytest.mark.parametrize(
    ('file', 'network', 'names', 'unused', 'first'),
    [
        ('promptir_official_keys.json', 'PromptIR', 548, 6, 'chnl_reduce1.weight'),
        ('pip_official_keys.json', 'PIPRestormer', 612, 3, 'reduce_noise_channel_1.weight'),
        ('airnet_official_keys.json', 'AirNet', 584, 0, None),
    ],
)
def test_the_released_layouts(file: str, network: str, names: int, unused: int, first: str | None) -> None:
    whole = ('queue_ptr', 'num_batches_tracked')
    released = {
        name: torch.empty(shape, device='meta', dtype=torch.long if name.endswith(whole) else None)
        for name, shape in json.loads((GOLDEN / file).read_text()).items()
    }
    assert len(released) == names
    told = recognize(shapes_of(released))
    assert told is not None
    assert told['type'] == network
    assert shapes(told) == shapes({'type': network})
    found = fit({f'net.{name}': value for name, value in released.items()}, told)
    assert (found.prefix, len(found.dropped), found.outside) == ('net.', unused, [])
    assert first is None or first in found.dropped
    assert set(found.dropped) == set(unused_shapes(new_network(told, 'meta')))
    assert released.keys() - found.weights.keys() == set(found.dropped)


def test_other_weights_are_not_recognised_as_a_built_in_network() -> None:
    linear = {'weight': (3, 3), 'bias': (3,)}
    assert recognize(linear) is None
    assert recognize({}) is None
    torn = {name: shape for name, shape in shapes({'type': 'PromptIR', 'dim': 8}).items() if 'latent' not in name}
    assert recognize(torn) is None


def test_weights_that_differ_are_reported_with_the_difference() -> None:
    options = {'type': 'PromptIR', 'dim': 8, 'num_blocks': [1, 1, 1, 1], 'num_refinement_blocks': 1}
    weights = dict(new_network(options, 'meta').state_dict())
    missing = {name: value for name, value in weights.items() if name != 'latent.0.norm1.body.weight'}
    with pytest.raises(OptionError, match=r'do not fit PromptIR\(dim=8.*1 missing, latent.0.norm1.body.weight'):
        fit(missing, options)
    with pytest.raises(OptionError, match=r'1 unknown, fre1.weight'):
        fit({**weights, 'fre1.weight': torch.empty(1)}, options)
    with pytest.raises(OptionError, match=r'1 other shapes, output.weight \(3,\) -> \(3, 16, 3, 3\)'):
        fit({**weights, 'output.weight': torch.empty(3)}, options)
    # A tensor of the name of a released one, but of another shape, is not what nothing uses.
    with pytest.raises(OptionError, match=r'1 unknown, chnl_reduce1.weight'):
        fit({**weights, 'chnl_reduce1.weight': torch.empty(1)}, options)


def test_wrappers_before_the_names_are_taken_off() -> None:
    options = {'type': 'PIPNAFNet', 'width': 4, 'enc_blk_nums': [1, 1, 1, 1], 'prompts': False}
    weights = PIPNAFNet(width=4, enc_blk_nums=[1, 1, 1, 1], prompts=False).state_dict()
    for prefix in ('', 'module.', 'net.', 'model.', 'net_g.', '_orig_mod.', 'module._orig_mod.', 'model.net.'):
        found = fit({prefix + name: value for name, value in weights.items()}, options)
        assert (found.prefix, list(found.weights)) == (prefix, list(weights))
    besides = {f'net.{name}': value for name, value in weights.items()} | {'loss.weight': torch.ones(1)}
    found = fit(besides, options)
    assert (found.prefix, found.outside, list(found.weights)) == ('net.', ['loss.weight'], list(weights))


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(RECOGNIZED), st.data())
def test_whatever_names_and_shapes_there_are_the_answer_is_plain(network: str, data: st.DataObject) -> None:
    small = {'dim': 8, 'num_blocks': [1, 1, 1, 1], 'num_refinement_blocks': 0}
    others = {'PIPNAFNet': {'width': 4, 'enc_blk_nums': [1, 1, 1, 1]}, 'AirNet': {'dim': 4}, 'DegradationSensor': {}}
    options = others.get(network, small)
    weights = dict(new_network({'type': network, **options}, 'meta').state_dict())
    for name in data.draw(st.lists(st.sampled_from(list(weights)), min_size=1, max_size=3, unique=True)):
        shape = data.draw(st.none() | st.lists(st.integers(0, 9), max_size=5))
        weights.pop(name)
        if shape is not None:
            weights[name] = torch.empty(shape, device='meta')
    told = recognize(shapes_of(weights))
    if told is not None:
        with suppress(OptionError):
            assert shapes_of(fit(weights, told).weights) == shapes(told)
