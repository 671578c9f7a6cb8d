"""The Triton kernels of promptir_basicsr.archs.fast.kernels against plain torch, at the four levels of PromptIR.

    python -m benchmarks.kernels [--batch 32] [--side 128] [--dtype bfloat16] [--tiles]

On a GPU: time of each operator forward, and forward and backward, beside torch in channels_last, eager and compiled;
the runs of the three take turns. The gain is over the faster of these two. The share is what of the memory's speed is
reached: the time that a copy of as many bytes as the operator must move would take, over the kernels' time. `--tiles`
times other tiles instead, to choose those of triton_kernels.py by.

Without a GPU there is nothing to time: the errors of the kernels against float64 are shown, in Triton's interpreter.
Writes a Markdown table.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.hardware import hardware
from promptir_basicsr.archs.fast import kernels

DIMS = (48, 96, 192, 384)
EXPANSION = 2.66
ROUNDS = 20
DTYPES = {'bfloat16': torch.bfloat16, 'float16': torch.float16, 'float32': torch.float32}
CANDIDATES = [
    (rows, columns, channels, warps)
    for rows, columns, channels, warps in product((1, 2, 4), (8, 16, 32), (32, 64), (4, 8))
    if columns * channels in (128 * warps, 256 * warps)  # four or eight channels a thread
]
GROUPS = {'depthwise3x3': ('CONVOLVE', 'BACKWARD'), 'depthwise3x3_gate': ('GATE', 'BACKWARD')}


class Operator(NamedTuple):
    """An operator on one batch of features.

    Attributes:
        name: as in kernels.
        kernel, plain: the same function of inputs.
        inputs: x: (B, C, H, W), then parameters.
        forward, backward: how many times as much as x has they read and write.
    """

    name: str
    kernel: Callable[..., Tensor]
    plain: Callable[..., Tensor]
    inputs: list[Tensor]
    forward: float
    backward: float

    @property
    def shape(self) -> str:
        return 'x'.join(map(str, self.inputs[0].shape))

    def moved(self, training: bool) -> float:
        """What it reads and writes, in sizes of x."""
        return self.forward + (self.backward if training else 0)


def normed(x: Tensor) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    variance, mean = torch.var_mean(wide, dim=1, correction=0, keepdim=True)
    return ((wide - mean) * torch.rsqrt(variance + 1e-5)).to(x.dtype)


def convolved(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight.to(x.dtype), padding=1, groups=len(weight))


def gated(x: Tensor, weight: Tensor) -> Tensor:
    gate, value = convolved(x, weight).chunk(2, dim=1)
    return F.gelu(gate) * value


def operators(batch: int, side: int, dtype: torch.dtype, device: str) -> Iterator[Operator]:
    """Those of a Transformer block at each level; hidden channels are padded to a multiple of 16."""
    generator = torch.Generator(device).manual_seed(0)

    def features(channels: int, side: int) -> Tensor:
        x = torch.randn(batch, channels, side, side, generator=generator, device=device)
        return x.to(dtype, memory_format=torch.channels_last).requires_grad_()

    def weight(channels: int) -> Tensor:
        return (torch.randn(channels, 1, 3, 3, generator=generator, device=device) / 3).requires_grad_()

    for level, dim in enumerate(DIMS):
        size = side // 2**level
        hidden = -(-int(EXPANSION * dim) // 16) * 16
        normalize = partial(kernels.normalize_channels, subtract_mean=True, eps=1e-5)
        yield Operator('normalize_channels', normalize, normed, [features(dim, size)], 2, 3)
        convolve = partial(kernels.depthwise3x3, bias=None)
        inputs = [features(3 * dim, size), weight(3 * dim)]
        yield Operator('depthwise3x3', convolve, convolved, inputs, 2, 3)
        gate = partial(kernels.depthwise3x3_gate, bias=None, dual=False)
        inputs = [features(2 * hidden, size), weight(2 * hidden)]
        yield Operator('depthwise3x3_gate', gate, gated, inputs, 1.5, 5.5)


def run_once(function: Callable[..., Tensor], inputs: list[Tensor], training: bool) -> None:
    if not training:
        with torch.no_grad():
            function(*inputs)
        return
    out = function(*inputs)
    torch.autograd.grad(out, inputs, torch.ones_like(out))


def seconds(actions: dict[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
    """The median time of each action; they take turns."""
    found: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(rounds + 3):
        for name, action in actions.items():
            wait()
            start = time.perf_counter()
            action()
            wait()
            if turn >= 3:
                found[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in found.items()}


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timings(cases: Iterator[Operator], rounds: int = ROUNDS) -> list[str]:
    """The lines of the table of speed."""
    lines = [
        '| operator | x | | torch ms | compiled ms | kernel ms | gain | share |',
        '|:--|:--|:--|--:|--:|--:|--:|--:|',
    ]
    for case in cases:
        torch.compiler.reset()
        compiled = torch.compile(case.plain)
        source = case.inputs[0].detach()
        for training in (False, True):
            found = seconds(
                {
                    'torch': partial(run_once, case.plain, case.inputs, training),
                    'compiled': partial(run_once, compiled, case.inputs, training),
                    'kernel': partial(run_once, case.kernel, case.inputs, training),
                    'copy': source.clone,
                },
                rounds,
            )
            ideal = case.moved(training) / 2 * found['copy']
            cells = [case.name, case.shape, 'forward and backward' if training else 'forward']
            cells += [f'{1e3 * found[name]:.3f}' for name in ('torch', 'compiled', 'kernel')]
            cells += [
                f'{min(found["torch"], found["compiled"]) / found["kernel"]:.2f}',
                f'{ideal / found["kernel"]:.0%}',
            ]
            lines.append(f'| {" | ".join(cells)} |')
    return lines


def tiles(cases: Iterator[Operator], rounds: int = ROUNDS) -> list[str]:
    """The lines of a table of tiles: the fastest three of each operator that has any."""
    from promptir_basicsr.archs.fast import triton_kernels

    lines = ['| operator | x | | rows, columns, channels, warps: ms |', '|:--|:--|:--|:--|']
    for case in cases:
        for group, training in zip(GROUPS.get(case.name, ()), (False, True), strict=False):
            chosen = getattr(triton_kernels, group)
            candidates = {chosen} | {triton_kernels.Tile(*each) for each in CANDIDATES}
            found = {}
            for tile in candidates:
                try:
                    setattr(triton_kernels, group, tile)
                    action = partial(run_once, case.kernel, case.inputs, training)
                    found[tile] = seconds({'kernel': action}, rounds)['kernel']
                finally:
                    setattr(triton_kernels, group, chosen)
            best = sorted(found, key=found.__getitem__)[:3]
            told = '; '.join(f'{", ".join(map(str, tile))}: {1e3 * found[tile]:.3f}' for tile in [*best, chosen])
            lines.append(f'| {case.name} | {case.shape} | {group} | {told} (chosen) |')
    return lines


def errors(dtypes: dict[str, torch.dtype]) -> list[str]:
    """The lines of the table of numbers: the error's norm over that of the float64 result."""
    lines = ['| operator | x | dtype | output | gradient of x | of the weight |', '|:--|:--|:--|--:|--:|--:|']
    for name, dtype in dtypes.items():
        for case in operators(1, 8, dtype, 'cpu'):
            if case.inputs[0].shape[1] > 300:
                continue
            exact = [each.detach().double().requires_grad_() for each in case.inputs]
            out, expected = case.kernel(*case.inputs), case.plain(*exact)
            upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
            found = out, *torch.autograd.grad(out, case.inputs, upstream)
            wanted = expected, *torch.autograd.grad(expected, exact, upstream.double())
            cells = [f'{((a.double() - b).norm() / b.norm()).item():.1e}' for a, b in zip(found, wanted, strict=True)]
            lines.append(f'| {case.name} | {case.shape} | {name} | {" | ".join([*cells, ""][:3])} |')
    return lines


def table(batch: int, side: int, dtype: str, sweep: bool) -> list[str]:
    """The lines of the Markdown table that this machine can fill."""
    packages = ['torch', 'triton']
    if kernels.interpreted:
        note = "No GPU is used: errors in Triton's interpreter, which cuts off to bfloat16 where a GPU rounds. "
        return [*errors(DTYPES), '', note + hardware(packages, torch.device('cpu'))]
    cases = operators(batch, side, DTYPES[dtype], 'cuda')
    return [*(tiles if sweep else timings)(cases), '', f'{dtype}. {hardware(packages, torch.device("cuda"))}']


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--batch', type=int, default=32)
    parser.add_argument('--side', type=int, default=128, help='of the image, divisible by 8')
    parser.add_argument('--dtype', choices=DTYPES, default='bfloat16')
    parser.add_argument('--tiles', action='store_true', help='time other tiles instead')
    arguments = parser.parse_args()
    if not kernels.available:
        raise SystemExit('benchmarks.kernels: needs Triton 3.3 or newer, which torch 2.7 and newer bring on Linux.')
    if not (torch.cuda.is_available() or kernels.interpreted):
        environment = {**os.environ, 'TRITON_INTERPRET': '1'}
        raise SystemExit(subprocess.run([sys.executable, '-m', 'benchmarks.kernels'], env=environment).returncode)
    lines = table(arguments.batch, arguments.side, arguments.dtype, arguments.tiles)
    sys.stdout.write('\n'.join(lines) + '\n')


if __name__ == '__main__':
    main()
