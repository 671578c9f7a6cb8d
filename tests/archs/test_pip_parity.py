"""PIPRestormer against numbers of the released program: golden files, and an oracle in float64."""

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from promptir_basicsr.archs import PIPRestormer
from tests.golden.seeded import seeded_fill, seeded_image

GOLDEN = Path(__file__).parents[1] / 'golden'
KINDS = [('topm', 'pip_cross_topm_dev'), ('cross', 'pip_cross_dev')]


def on_meta(**options: Any) -> PIPRestormer:
    with torch.device('meta'):
        return PIPRestormer(**options)


@pytest.fixture(scope='module')
def full() -> dict[str, PIPRestormer]:
    """The released networks of which there are golden numbers."""
    nets = {kind: on_meta(interaction=kind).to_empty(device='cpu') for kind, _ in KINDS}
    return {kind: seeded_fill(net) for kind, net in nets.items()}  # type: ignore[misc]


@pytest.mark.parametrize(('kind', 'file'), KINDS)
@pytest.mark.parametrize(
    ('key', 'shape', 'labels'), [('1x64x64_s0_c1', (1, 3, 64, 64), [1]), ('2x32x48_s1_c0_3', (2, 3, 32, 48), [0, 3])]
)
def test_golden_output(full: dict[str, PIPRestormer], kind: str, file: str, key: str, shape: Any, labels: Any) -> None:
    x = seeded_image(shape, seed=len(labels) - 1)
    with np.load(GOLDEN / f'{file}.npz') as golden, torch.no_grad():
        expected = torch.from_numpy(golden[f'y_{key}'])
        torch.testing.assert_close(full[kind](x, torch.tensor(labels)), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(('kind', 'file'), KINDS)
def test_golden_loss_and_gradients(full: dict[str, PIPRestormer], kind: str, file: str) -> None:
    golden, net = json.loads((GOLDEN / f'{file}_grads.json').read_text()), full[kind]
    loss = F.smooth_l1_loss(net(seeded_image((1, 3, 32, 32), 2), 2), seeded_image((1, 3, 32, 32), 3))
    grads = torch.autograd.grad(loss, list(net.parameters()))
    norms = {name: grad.norm().item() for (name, _), grad in zip(net.named_parameters(), grads, strict=True)}
    assert loss.item() == pytest.approx(golden['loss'], rel=1e-6)
    assert norms == pytest.approx(golden['grad_norms'], rel=1e-3, abs=0)


# The oracle: another rule to fill the weights, in float64, with ten digits of the released program's output.
ORACLE = {
    0: (0.7144588988, 2.7668120398, 0.4566146747, 1.8637036432, -4.5267127647),
    3: (0.7071156398, 2.7713822849, 0.5218790995, 2.0181960746, -4.4872909721),
    (0, 3): (0.7168373545, 2.7707390137, 0.4650166534, 1.9629628103, -4.7936354489),
}
INSIDE = {
    'encoder_level1': (0.09078227, 1.67090888, -0.95860897),
    'encoder_level2': (-0.06895686, 2.20209144, 1.45127519),
    'encoder_level3': (-0.41523075, 2.81865531, -0.29291105),
    'latent': (-0.07183980, 3.31941962, -1.15408747),
    'prompt3': (-0.00558190, 1.13968349, 0.06746861),
    'low_prompt_interaction_level3': (0.02652576, 1.32759980, -1.78163090),
    'chnl_reduce3': (-0.03755995, 3.23122617, 1.42920034),
    'reduce_chan_level3': (-0.07956273, 2.07658499, 0.29816734),
    'decoder_level3': (-0.06763107, 2.59867385, -0.09050810),
    'prompt2': (0.00083989, 1.18228498, 0.39656136),
    'low_prompt_interaction_level2': (0.07397298, 1.45017287, -0.06291283),
    'decoder_level2': (-0.01583610, 2.62390818, 2.07155896),
    'prompt1': (0.00802183, 1.22049645, -0.60828379),
    'low_prompt_interaction_level1': (0.13106295, 1.38047845, 0.54994522),
    'decoder_level1': (0.08205916, 2.46609380, 0.52709452),
    'refinement': (0.09283577, 2.81504544, 0.44094157),
}


def oracle_values(name: str, shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    r = torch.randn(shape, generator=generator, dtype=torch.float64)
    last = name.split('.')[-1]
    if last.endswith('prompt_param'):
        return r
    if last == 'temperature' or name.endswith('body.weight'):
        return 1 + 0.1 * r
    if last in ('attn1', 'attn2', 'attn3', 'attn4'):
        return 0.2 + 0.1 * r
    return 0.1 * r if name.endswith('body.bias') else r / math.sqrt(r[0].numel())


def oracle_image(height: int, width: int, seed: int) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope='module')
def oracle() -> PIPRestormer:
    net = on_meta()
    values = {name: oracle_values(name, tuple(value.shape)) for name, value in net.state_dict().items()}
    net.load_state_dict(values, assign=True)
    return net


def features_of(x: Tensor) -> tuple[float, ...]:
    return x.mean().item(), x.std().item(), x.flatten()[0].item()


def corners_of(y: Tensor) -> tuple[float, ...]:
    return (*features_of(y), y[2, 63, 63].item(), y[1, 31, 17].item())


def test_oracle_in_float64_and_everything_inside(oracle: PIPRestormer) -> None:
    """Class 0, and 0 and 3 half each."""
    x, inside = oracle_image(64, 64, seed=0), {}
    assert x.flatten()[:3].tolist() == pytest.approx([0.9700530018, 0.7078198644, 0.4593829431], abs=1e-10)
    hooks = [
        getattr(oracle, name).register_forward_hook(
            lambda module, args, out, name=name: inside.update({name: features_of(out[0])})
        )
        for name in INSIDE
    ]
    with torch.no_grad():
        out = oracle(x.expand(2, -1, -1, -1), ['denoise', {'denoise': 0.5, 'deblur': 0.5}])
    for hook in hooks:
        hook.remove()
    assert corners_of(out[0]) == pytest.approx(ORACLE[0], abs=1e-10)
    assert corners_of(out[1]) == pytest.approx(ORACLE[0, 3], abs=1e-10)
    for name, values in INSIDE.items():
        assert inside[name] == pytest.approx(values, abs=1e-8), name


@pytest.mark.slow
def test_oracle_of_another_class_and_size(oracle: PIPRestormer) -> None:
    with torch.no_grad():
        assert corners_of(oracle(oracle_image(64, 64, seed=0), 3)[0]) == pytest.approx(ORACLE[3], abs=1e-10)
        out = oracle(oracle_image(96, 160, seed=1), torch.tensor([2]))
    assert features_of(out) == pytest.approx((0.7479567285, 2.8288623967, -0.4433211858), abs=1e-10)
