"""A training step of small networks in the fast formulation, against the plain one, as a Markdown table.

    OMP_NUM_THREADS=1 python -m benchmarks.small [--rounds 9] [--only demo]

PromptIR with one block a level, as in first experiments, that of options/demo.yml, AirNet with one group of three
blocks, and the other networks of benchmarks/recipes.py: forward, L1 loss and backward in CPU seconds of the process, in
turn, for a number of rounds. `of plain` is the median over rounds. Below, seconds of an optimizer's step for the demo's
network.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch

import promptir_basicsr  # noqa: F401  (registers)

# isort: split
from basicsr.archs import build_network
from torch import nn

from benchmarks.hardware import hardware
from benchmarks.recipes import NETWORKS
from promptir_basicsr.archs import AirNet, PromptIR
from promptir_basicsr.archs.layers.formulation import set_formulation
from promptir_basicsr.core.registry import arguments_of
from promptir_basicsr.optim.optimizers import build_optimizer
from promptir_basicsr.options.file import find_option_file, read_options

ONE_BLOCK: dict[str, Any] = {'num_blocks': [1, 1, 1, 1], 'num_refinement_blocks': 1}
CASES = [(dim, 4 if side < 128 else 1, side) for dim in (16, 24, 32) for side in (48, 64, 128)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--only', default='', metavar='WORD', help='networks whose first column contains the word')
    args = parser.parse_args()
    rounds = args.rounds
    sys.stdout.write('| dim | batch | crop | plain, s | fast, s | of plain |\n|:--|--:|--:|--:|--:|--:|\n')
    demo = arguments_of(read_options(find_option_file('demo.yml'))['network_g'])
    cases = [(str(dim), {**ONE_BLOCK, 'dim': dim}, batch, side) for dim, batch, side in CASES]
    nets: list[tuple[str, Callable[[], nn.Module], int, int]]
    nets = [(name, partial(PromptIR, **options), batch, side) for name, options, batch, side in cases]
    nets.append((f'{demo["dim"]}, demo', partial(PromptIR, **demo), 2, 48))
    nets.append(('64, AirNet', partial(AirNet, num_groups=1, num_blocks=3), 2, 64))
    for kind in ('backbone', 'pip', 'airnet'):
        nets.append((f'16, {kind}', partial(build_network, {**NETWORKS[kind], 'dim': 16}), 4, 48))
    for name, build, batch, side in [net for net in nets if args.only in net[0]]:
        plain, fast, ratio = measured(build, batch, side, rounds)
        sys.stdout.write(f'| {name} | {batch} | {side} | {plain:.3f} | {fast:.3f} | {ratio:.2f} |\n')
        sys.stdout.flush()
    train = read_options(find_option_file('demo.yml'))['train']
    sys.stdout.write('\n| optimizer of the demo | step, s |\n|:--|--:|\n')
    for options in (train['optim_g'], {'type': 'AdamW', 'lr': 1e-3, 'fused': True}):
        sys.stdout.write(f'| {options["type"]} | {optimizer_step(PromptIR(**demo), options, rounds):.3f} |\n')
    sys.stdout.write(f'\n{hardware(["torch"], torch.device("cpu"))}\n')
    return 0


def optimizer_step(net: nn.Module, options: dict[str, Any], rounds: int) -> float:
    """Median seconds of a step."""
    arguments = arguments_of(options)
    optimizer = build_optimizer(options['type'], net.parameters(), **arguments)
    net(torch.rand(1, 3, 48, 48)).mean().backward()
    seconds = []
    for _ in range(rounds + 1):
        begun = time.perf_counter()
        optimizer.step()
        seconds.append(time.perf_counter() - begun)
    return median(seconds[1:])


def measured(build: Callable[[], nn.Module], batch: int, side: int, rounds: int) -> tuple[float, float, float]:
    """CPU seconds of a step in the plain and in the fast formulation, and the second over the first."""
    torch.manual_seed(0)
    net, x = build(), torch.rand(batch, 3, side, side)
    seconds: dict[str, list[float]] = {'plain': [], 'fast': []}
    for number in range(rounds + 1):
        for formulation, found in seconds.items():
            set_formulation(net, formulation)
            net.zero_grad(set_to_none=True)
            begun = time.process_time()
            (net(x, 0) - x).abs().mean().backward()
            if number:  # the first one warms up
                found.append(time.process_time() - begun)
    plain, fast = seconds.values()
    return median(plain), median(fast), median(b / a for a, b in zip(plain, fast, strict=True))


if __name__ == '__main__':
    sys.exit(main())
