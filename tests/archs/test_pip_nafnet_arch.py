"""What PIPNAFNet promises: NAFNet's numbers and names without prompts, PIP's on the four skips with them."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import promptir_basicsr  # noqa: F401  (registers)

# isort: split
from basicsr.models import build_model

from promptir_basicsr.archs import PIPNAFNet
from promptir_basicsr.checks.run import check_network
from tests.golden.seeded import seeded_fill, seeded_image
from tests.models.model_options import run_options

SMALL: dict[str, Any] = {'width': 4, 'enc_blk_nums': [1, 2, 1, 1], 'prompt_sizes': [6, 5, 4, 3]}
INTERACTIONS = ('topm', 'cross', 'gate', 'promptir_gate')
BIASED = ('weight', 'bias')
BLOCK = {
    **dict.fromkeys(('beta', 'gamma'), (1, 4, 1, 1)),
    **dict.fromkeys(('norm1.weight', 'norm1.bias', 'norm2.weight', 'norm2.bias'), (4,)),
    **dict.fromkeys(('conv1.weight', 'conv4.weight'), (8, 4, 1, 1)),
    **dict.fromkeys(('conv3.weight', 'conv5.weight', 'sca.1.weight'), (4, 4, 1, 1)),
    **dict.fromkeys(('conv3.bias', 'conv5.bias', 'sca.1.bias'), (4,)),
    **dict.fromkeys(('conv1.bias', 'conv2.bias', 'conv4.bias'), (8,)),
    'conv2.weight': (8, 1, 3, 3),
}


def small(**options: Any) -> PIPNAFNet:
    return seeded_fill(PIPNAFNet(**{**SMALL, **options})).eval()  # type: ignore[return-value]


def on_meta(**options: Any) -> PIPNAFNet:
    with torch.device('meta'):
        return PIPNAFNet(**options)


def size_of(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def block(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """NAFNet's block in its formulas: layer normalisation with eps 1e-6, gates, channel attention without softmax."""

    def conv(part: str, y: Tensor, **settings: Any) -> Tensor:
        return F.conv2d(y, w[f'{name}.{part}.weight'], w[f'{name}.{part}.bias'], **settings)

    def norm(part: str, y: Tensor) -> Tensor:
        weight, bias = w[f'{name}.{part}.weight'], w[f'{name}.{part}.bias']
        return F.layer_norm(y.movedim(1, -1), weight.shape, weight, bias, eps=1e-6).movedim(-1, 1)

    def gate(y: Tensor) -> Tensor:
        half = y.shape[1] // 2
        return y[:, :half] * y[:, half:]

    wide = len(w[f'{name}.conv2.weight'])
    y = gate(conv('conv2', conv('conv1', norm('norm1', x)), padding=1, groups=wide))
    y = y * conv('sca.1', y.mean(dim=(2, 3), keepdim=True))
    x = x + w[f'{name}.beta'] * conv('conv3', y)
    return x + w[f'{name}.gamma'] * conv('conv5', gate(conv('conv4', norm('norm2', x))))


def nafnet(w: dict[str, Tensor], x: Tensor, modulate: Any = lambda level, skip: skip) -> Tensor:
    """NAFNet with one block a stage, but two in the second of the encoder."""
    y, skips = F.conv2d(x, w['intro.weight'], w['intro.bias'], padding=1), []
    for level, count in enumerate((1, 2, 1, 1)):
        for number in range(count):
            y = block(w, f'encoders.{level}.{number}', y)
        skips.append(y)
        y = F.conv2d(y, w[f'downs.{level}.weight'], w[f'downs.{level}.bias'], stride=2)
    y = block(w, 'middle_blks.0', y)
    for step in range(4):
        y = F.pixel_shuffle(F.conv2d(y, w[f'ups.{step}.0.weight']), 2) + modulate(4 - step, skips[3 - step])
        y = block(w, f'decoders.{step}.0', y)
    return F.conv2d(y, w['ending.weight'], w['ending.bias'], padding=1) + x


def test_number_of_parameters() -> None:
    backbone = 17_111_907
    assert size_of(on_meta(prompts=False)) == backbone
    assert round(backbone / 1e6, 2) == 17.11  # as published

    def prompts(d: int, s: int) -> int:
        """The closed forms of the prompts and of the interaction, where prompt and skip have d channels."""
        h = int(2.66 * d)
        prompt = 5 * d + d * s * s + 6 * d + (4 * d * d + 27 * d + 2) + (3 * h * d + 18 * h) + 9 * d * d
        return prompt + 6 * d + (4 * d * d + 27 * d + 8) + (3 * h * d + 18 * h)

    added = sum(prompts(d, s) for d, s in ((32, 64), (64, 32), (128, 16), (256, 8)))
    assert size_of(on_meta()) == backbone + added


def test_names_and_shapes_of_the_backbone_are_nafnets() -> None:
    shapes = {name: tuple(value.shape) for name, value in small(prompts=False).state_dict().items()}
    assert {name: shape for name, shape in shapes.items() if name.startswith('encoders.0.')} == {
        f'encoders.0.0.{part}': shape for part, shape in BLOCK.items()
    }
    stages = {'encoders.0.0', 'encoders.1.0', 'encoders.1.1', 'encoders.2.0', 'encoders.3.0', 'middle_blks.0'}
    stages |= {f'decoders.{n}.0' for n in range(4)}
    rest = {f'{name}.{part}' for name in ('intro', 'ending', *(f'downs.{n}' for n in range(4))) for part in BIASED}
    rest |= {f'ups.{n}.0.weight' for n in range(4)}
    assert shapes.keys() == {f'{stage}.{part}' for stage in stages for part in BLOCK} | rest
    assert [shapes[f'downs.{n}.weight'] for n in (0, 3)] == [(8, 4, 2, 2), (64, 32, 2, 2)]
    assert [shapes[f'ups.{n}.0.weight'] for n in (0, 3)] == [(128, 64, 1, 1), (16, 8, 1, 1)]
    assert shapes['decoders.0.0.conv2.weight'] == (64, 1, 3, 3)


def test_without_prompts_it_is_nafnet() -> None:
    net = small(prompts=False).double()
    x = seeded_image((2, 3, 16, 32)).double()
    torch.testing.assert_close(net(x), nafnet(dict(net.state_dict()), x), rtol=1e-11, atol=1e-11)
    assert torch.equal(net(x, 3), net(x))
    assert not net.takes_degradation
    assert net.prompt_weights(x) == {}
    with pytest.raises(ValueError, match='built with prompts=False'):
        net.prompt_vectors()


@pytest.mark.parametrize('residual', [False, True])
@pytest.mark.parametrize('interaction', INTERACTIONS)
def test_the_decoder_gets_the_modulated_skips_and_the_encoder_the_raw_ones(interaction: str, residual: bool) -> None:
    net = small(interaction=interaction, residual=residual).double()
    x = seeded_image((2, 3, 16, 32)).double()
    weights = torch.eye(5, dtype=x.dtype)[[1, 4]]

    def modulate(level: int, skip: Tensor) -> Tensor:
        prompt = getattr(net, f'prompt{level}')(skip, weights)
        return getattr(net, f'low_prompt_interaction_level{level}')(skip, prompt)

    expected = nafnet(dict(net.state_dict()), x, modulate)
    torch.testing.assert_close(net(x, ['derain', 'lowlight']), expected, rtol=1e-10, atol=1e-10)


def test_a_new_network_is_the_identity_around_its_prompts() -> None:
    """beta and gamma are 0 at first, as in NAFNet."""
    net = PIPNAFNet(**SMALL, prompts=False)
    assert all(not value.any() for name, value in net.state_dict().items() if name.endswith(('beta', 'gamma')))
    x = seeded_image((1, 3, 16, 16))
    assert torch.equal(net.encoders[1](net.intro(x).repeat(1, 2, 1, 1)), net.intro(x).repeat(1, 2, 1, 1))


def test_each_level_hears_the_label_and_batches_permute() -> None:
    net, x = small().double(), seeded_image((2, 3, 16, 16)).double()
    outs = [net(x, label) for label in range(5)] + [net(x, {0: 0.5, 3: 0.5})]
    outs += [net(x, 1, overrides={level: 'lowlight'}) for level in net.levels]
    for i, out in enumerate(outs):
        for other in outs[:i]:
            assert (out - other).abs().max() > 1e-6
    torch.testing.assert_close(net(x.flip(0), [2, 4]), net(x, [4, 2]).flip(0), rtol=1e-10, atol=1e-10)
    assert list(net.prompt_weights(x, 2)) == ['level4', 'level3', 'level2', 'level1']
    assert {level: tuple(value.shape) for level, value in net.prompt_vectors().items()} == {
        'level4': (5, 32),
        'level3': (5, 16),
        'level2': (5, 12),
        'level1': (5, 12),
    }


def test_without_a_label_the_error_explains_the_fix_and_a_sensor_suffices() -> None:
    x = seeded_image((2, 3, 32, 32))
    with pytest.raises(ValueError, match=r'PIPNAFNet: no degradation is passed .* Pass `degradation`'):
        small()(x)
    net = small(sensor={'type': 'DegradationSensor'})
    assert torch.equal(net(x), net(x, net.sensor.probabilities(x)))
    assert any(name.startswith('sensor.') for name in net.state_dict())


@pytest.mark.parametrize('interaction', INTERACTIONS)
def test_every_parameter_gets_a_gradient(interaction: str) -> None:
    net = small(interaction=interaction, residual=True).train()
    (net(seeded_image((5, 3, 32, 32)), list(range(5))) ** 2).mean().backward()
    gradients = {name: parameter.grad for name, parameter in net.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None or not gradient.any()] == []


def test_plain_weights_are_a_start_and_give_nafnets_output(tmp_path: Path) -> None:
    plain = small(prompts=False)
    x = seeded_image((1, 3, 16, 16))
    net = PIPNAFNet(**SMALL, residual=True).eval()
    net.load_state_dict(plain.state_dict())
    assert torch.equal(net(x, 2), plain(x))

    file = tmp_path / 'nafnet.pth'
    torch.save({'params': plain.state_dict()}, file)
    network = {'type': 'PIPNAFNet', **SMALL, 'residual': True}
    options = run_options(
        tmp_path, network_g=network, path__pretrain_network_g=str(file), path__strict_load_g=True, train__ema_decay=0.9
    )
    model = build_model(copy.deepcopy(options))
    assert torch.equal(model.net_g.eval()(x, 1), plain(x))
    averaged = model.net_g_ema.state_dict()
    assert all(torch.equal(value, averaged[name]) for name, value in model.net_g.state_dict().items())
    model.save(0, 1)
    again = PIPNAFNet(**SMALL, residual=True)
    again.load_state_dict(torch.load(tmp_path / 'models' / 'net_g_1.pth', weights_only=True)['params'])


def test_it_trains_and_restores_images_of_any_size(tmp_path: Path) -> None:
    model = build_model(run_options(tmp_path, network_g={'type': 'PIPNAFNet', **SMALL}))
    assert model.size_multiple == 16
    x = seeded_image((2, 3, 32, 32))
    model.feed_data({'lq': x, 'gt': x * 0.5, 'degradation': torch.tensor([0, 3])})
    losses = []
    for step in range(8):
        model.optimize_parameters(step)
        losses.append(float(model.get_current_log()['l_pix']))
    assert losses[-1] < losses[0]
    model.feed_data({'lq': x[:1, :, :19, :27], 'degradation': torch.tensor([3])})
    model.test()
    assert model.output.shape == (1, 3, 19, 27)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'width': 31}, 'width is 31; it must be a positive even number'),
        ({'img_channel': 0}, 'img_channel is 0; it must be an integer of at least 1'),
        ({'middle_blk_num': 0}, 'middle_blk_num is 0'),
        ({'enc_blk_nums': [1, 1]}, r'enc_blk_nums is \[1, 1\]; it must be a list of 4 integers'),
        ({'dec_blk_nums': [1, 1, 1, 0]}, r'dec_blk_nums is \[1, 1, 1, 0\]'),
        ({'prompt_dims': [12, 12, 13, 12]}, r'prompt_dims\[2\]: 13; .* multiple of 4, such as 16'),
        ({'prompt_sizes': [4, 4, 4, 1]}, r'prompt_sizes\[3\]: 1 is not a whole number of at least 2'),
        ({'interaction': 'crss'}, "unknown interaction 'crss'. Did you mean 'cross'?"),
        ({'num_degradations': 0}, 'num_degradations is 0'),
        (
            {'prompts': False, 'sensor': {'type': 'DegradationSensor'}},
            'a network without prompts does not use a sensor',
        ),
    ],
)
def test_mistakes_are_reported(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PIPNAFNet(**{**SMALL, **options})
    (problem,) = map(str, check_network({'type': 'PIPNAFNet', **SMALL, **options}))
    assert problem.startswith('network_g: PIPNAFNet: ')


def test_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match=r'PIPNAFNet: the input is 24x16 .* divisible by 16'):
        small()(torch.rand(1, 3, 24, 16), 0)
