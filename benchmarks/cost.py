"""Parameters and operations of the networks with prompts, each beside its own network without.

    python -m benchmarks.cost

Writes the Markdown table of docs/backbones.md. Networks have no memory here (meta tensors); operations are those of
convolutions and matrix products, two for a multiplication and an addition, for one image.
"""

import sys
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import promptir_basicsr  # noqa: F401  (registers)

# isort: split
from basicsr.utils.registry import ARCH_REGISTRY

from promptir_basicsr.archs.airnet_arch import OPERATIONS
from promptir_basicsr.archs.layers.formulation import set_formulation
from promptir_basicsr.archs.layers.restormer import Upsample
from promptir_basicsr.core.yaml_loader import load_yaml
from tests.test_extending import ROOT

SIDES = (128, 256)
EDSR = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 64, 'num_block': 16, 'upscale': 1}


def build(type: str, **options: Any) -> nn.Module:
    with torch.device('meta'):
        return ARCH_REGISTRY.get(type)(**options)


def plain(type: str, **options: Any) -> nn.Module:
    """A network whose constructor may need memory."""
    return ARCH_REGISTRY.get(type)(**options).to('meta')


def restormer() -> nn.Module:
    """Restormer as published, whose way up from level 4 is wider than PromptIR's and PIP's."""
    net = build('PromptIR', prompts=False)
    with torch.device('meta'):
        net.reduce_noise_level3, net.up4_3 = nn.Identity(), Upsample(8 * net.dim)
        net.reduce_chan_level3 = nn.Conv2d(8 * net.dim, 4 * net.dim, 1, bias=False)
    return net


def cost(net: nn.Module) -> tuple[int, list[float]]:
    """Parameters, and 10^9 operations for an image of each of SIDES."""
    set_formulation(net, 'plain')  # as papers count; the fast one saves a few products
    told = [torch.zeros(1, dtype=torch.long, device='meta')] if getattr(net, 'takes_degradation', False) else []
    operations = []
    for side in SIDES:
        with FlopCounterMode(display=False, custom_mapping=OPERATIONS) as counter, torch.no_grad():
            net.eval()(torch.zeros(1, 3, side, side, device='meta'), *told)
        operations.append(counter.get_total_flops() / 1e9)
    return sum(parameter.numel() for parameter in net.parameters()), operations


def groups() -> Iterator[list[tuple[str, nn.Module]]]:
    """Networks with what each is compared with in front."""
    yield [('Restormer', restormer())]
    backbone = ("Restormer with PromptIR's way up", build('PromptIR', prompts=False))
    yield [backbone, ('PromptIR', build('PromptIR'))] + [
        (f'PIPRestormer, {interaction}', build('PIPRestormer', interaction=interaction))
        for interaction in ('topm', 'cross', 'gate', 'promptir_gate')
    ]
    nafnet = partial(build, 'PIPNAFNet')
    yield [
        ('NAFNet, width 32', nafnet(prompts=False)),
        ('PIPNAFNet, topm', nafnet()),
        ('PIPNAFNet, gate', nafnet(interaction='gate')),
    ]
    yield [('AirNet', build('AirNet'))]
    shown = load_yaml(str(ROOT / 'options' / 'pip_swinir.yml'))['network_g']
    yield prompted('SwinIR', shown['network'], shown['taps'])
    yield prompted('EDSR, 16 blocks of 64', EDSR, ['conv_after_body'])


def prompted(name: str, network: dict[str, Any], taps: list[Any]) -> list[tuple[str, nn.Module]]:
    add = partial(build, 'PromptedNetwork', network=network, taps=taps)
    places = f'{len(taps)} tap{"s" if len(taps) > 1 else ""}'
    return [
        (name, plain(**network)),
        (f'{name}, {places}, PIP topm', add()),
        (f'{name}, {places}, PIP gate', add(interaction='gate')),
        (f'{name}, {places}, PromptIR', add(prompts='promptir')),
    ]


def row(name: str, found: tuple[int, list[float]], without: tuple[int, list[float]]) -> str:
    def more(value: float, than: float) -> str:
        return '' if value == than else f'{value / than - 1:+.1%}'.replace('%', ' %')

    cells = [name, f'{found[0]:,}', more(found[0], without[0])]
    for operations, before in zip(found[1], without[1], strict=True):
        cells += [f'{operations:.2f}', more(operations, before)]
    return f'| {" | ".join(cells)} |'


def table() -> list[str]:
    """The lines of the Markdown table."""
    sides = ''.join(f' G at {side}x{side} | |' for side in SIDES)
    lines = [f'| network | parameters | |{sides}', '|:--|--:|--:|' + '--:|--:|' * len(SIDES)]
    for group in groups():
        found = {name: cost(net) for name, net in group}
        without = next(iter(found.values()))
        lines += [row(name, each, without) for name, each in found.items()]
    return lines


def main() -> None:
    sys.stdout.write('\n'.join([*table(), '', f'torch {version("torch")}.']) + '\n')


if __name__ == '__main__':
    main()
