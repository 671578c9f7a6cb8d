"""Speed and memory of PromptIR and PIPRestormer against a plain reference, as a Markdown table.

    python -m benchmarks.speed [--networks promptir pip] [--sizes 128 320x480] [--batches 1 8 32]
        [--precisions fp32 bf16] [--modes inference training] [--variants reference fast+block] [--compile]

The reference (benchmarks/reference.py) and the variants work on the same images with the same weights, in turn, for a
number of rounds in one process. A training step is forward, L1 loss and backward; for the optimizer and the rest of an
iteration see benchmarks/profile_step.py. A variant is named by words: `reference`, `fast` or `plain`, then what it
keeps for the backward pass (`none`, `gate`, `block`), `kernels` (of Triton), `channels_last`, `compiled`,
`max-autotune`.

- s, images/s: medians over rounds. What compiling takes is not counted.
- time: of the time that the fp32 eager reference took in the same round; the median over rounds.
- peak: memory above the weights, gradients included. On a GPU what PyTorch allocated; on a CPU resident memory of a
  process of its own that gives back what it frees (benchmarks/memory.py).
- saved: of it, what a step keeps between forward and backward.
- output, gradient: the largest difference of a value of the output (values are of order 1 to 10) and the norm of the
  difference of the whole gradient over its norm, both to the fp32 eager reference.

fp32 is without TF32, which PyTorch by itself allows in convolutions; bf16 and fp16 are autocast. Defaults: on a CPU
what ends in a quarter of an hour on two cores, on a GPU the table of docs/performance.md. Rows appear as they are
measured; what does not fit into a GPU's memory says so.
"""

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.hardware import hardware
from benchmarks.memory import WARM_UP_SIDE, peak_memory, saved_bytes
from benchmarks.variants import (
    NETWORKS,
    Run,
    Variant,
    Workload,
    parse_size,
    parse_variant,
    weights_of,
)
from promptir_basicsr.core.vocabulary import PRECISIONS

VARIANTS = {
    'inference': ('reference', 'fast'),
    'training': ('reference', 'fast+none', 'fast+gate', 'fast+block'),
}
KERNELS = {'inference': 'fast+kernels', 'training': 'fast+gate+kernels'}
"""On a GPU beside VARIANTS."""

SIZES = {
    'cpu': {'inference': ((128, 128), (320, 480)), 'training': ((128, 128),)},
    'cuda': {'inference': ((128, 128), (256, 256)), 'training': ((128, 128),)},
}
BATCHES = {'cpu': (1,), 'cuda': (1, 8, 32)}
LEAST_SECONDS = {'cpu': 0.0, 'cuda': 0.3}
"""Of one measurement; a shorter step is repeated."""

COLUMNS = ('network', 'mode', 'image', 'batch', 'variant', 'precision')
FIGURES = ('s', 'images/s', 'time', 'peak, MB', 'of it', 'saved, MB', 'of it', 'output', 'gradient')


@dataclass
class Result:
    """What is known of a workload in a variant; None is not known.

    Attributes:
        seconds: of a step, by round.
        peak, saved: bytes.
        output: the largest difference to the baseline's.
        gradient: relative difference to the baseline's.
        failed: why there is nothing more.
    """

    variant: Variant
    seconds: list[float] = field(default_factory=list)
    peak: int | None = None
    saved: int | None = None
    output: float | None = None
    gradient: float | None = None
    failed: str = ''


def measure(
    workload: Workload, variants: list[Variant], device: torch.device, rounds: int, memory: bool = True
) -> list[Result]:
    """All variants of a workload; the baseline is the first of them. `memory`: whether it is measured."""
    assert variants[0].is_baseline
    torch.compiler.reset()
    weights = weights_of(workload)
    results, runs = [Result(variant) for variant in variants], {}
    expected: tuple[Tensor, dict[str, Tensor]] | None = None
    for number, result in enumerate(results):
        run = Run(workload, result.variant, device, weights)
        found = _attempt(result, partial(_first_step, run))
        if result.variant.is_baseline:
            expected = found
        if found is not None and expected is not None:
            result.output = (found[0] - expected[0]).abs().max().item()
            result.gradient = gradient_difference(found[1], expected[1])
        if memory:
            result.saved = _attempt(result, partial(saved_bytes, run))
            result.peak = _attempt(result, partial(peak_memory, run))
        runs[number] = run
    for _ in range(rounds):
        for number, run in runs.items():
            seconds = _attempt(results[number], partial(seconds_of, run))
            if seconds is not None:
                results[number].seconds.append(seconds)
    return results


def _attempt(result: Result, work: Callable[[], Any]) -> Any:
    """What the work gives; nothing if there was or is not enough memory."""
    if result.failed:
        return None
    try:
        return work()
    except torch.OutOfMemoryError:
        result.failed = 'out of memory'
    gc.collect()
    torch.cuda.empty_cache()
    return None


def _first_step(run: Run) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and gradients, on the CPU."""
    _warm_up(run)
    output, gradients = run.step().float().cpu(), run.gradients()
    run.clear()
    return output, gradients


def _warm_up(run: Run) -> None:
    """What is done once a size on a GPU or by a compiler, and once a process on a CPU."""
    if run.device.type == 'cuda' or run.variant.compiled:
        for _ in range(2):
            run.step()
    else:
        whole = run.input, run.target
        run.input = (run.input[0][..., :WARM_UP_SIDE, :WARM_UP_SIDE], *run.input[1:])
        run.target = run.target[..., :WARM_UP_SIDE, :WARM_UP_SIDE]
        run.step()
        run.input, run.target = whole
    run.clear()


def seconds_of(run: Run) -> float:
    """One step's, the mean of as many as a measurement must last."""
    least, passed, steps = LEAST_SECONDS[run.device.type], 0.0, 0
    wait(run.device)
    start = time.perf_counter()
    while steps == 0 or passed < least:
        run.step()
        run.clear()
        steps += 1
        wait(run.device)
        passed = time.perf_counter() - start
    return passed / steps


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == 'cuda':
        torch.cuda.synchronize()


def gradient_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float | None:
    """Norm of the difference over the norm, all parameters together."""
    if not expected:
        return None
    difference = sum((found[name] - value).square().sum().item() for name, value in expected.items())
    return (difference / sum(value.square().sum().item() for value in expected.values())) ** 0.5


def row(workload: Workload, result: Result, baseline: Result) -> str:
    """A line of the table."""
    variant = result.variant
    cells = [workload.network, workload.mode, workload.image, str(workload.batch), variant.name, variant.precision]
    if result.failed:
        return f'| {" | ".join(cells + [result.failed] + [""] * (len(FIGURES) - 1))} |'
    seconds = statistics.median(result.seconds)
    cells += [f'{seconds:.4g}', f'{workload.batch / seconds:.3g}']
    ratios = [] if baseline.failed else [a / b for a, b in zip(result.seconds, baseline.seconds, strict=True)]
    cells.append(f'{statistics.median(ratios):.2f}' if ratios else '')
    for name in ('peak', 'saved'):
        value, of = getattr(result, name), getattr(baseline, name)
        cells += ['' if value is None else f'{value / 1e6:,.0f}', f'{value / of:.2f}' if value and of else '']
    cells += ['' if value is None else f'{value:.1e}' for value in (result.output, result.gradient)]
    return f'| {" | ".join(cells)} |'


def variants_of(given: argparse.Namespace, mode: str, device: torch.device) -> list[Variant]:
    """The baseline, then every variant in every precision."""
    names = given.variants or [*VARIANTS[mode], *([KERNELS[mode]] if device.type == 'cuda' else [])]
    names = [*names, *(f'{name}+compiled' for name in names if given.compile)]
    variants = [Variant(name, precision) for precision in given.precisions for name in names]
    return list(dict.fromkeys([Variant('reference'), *variants]))


def workloads(given: argparse.Namespace, device: torch.device) -> Iterator[Workload]:
    for network in given.networks:
        for mode in given.modes:
            for height, width in given.sizes or SIZES[device.type][mode]:
                for batch in given.batches or BATCHES[device.type]:
                    yield Workload(network, mode == 'training', height, width, batch, given.tiny)


def device_of(word: str) -> torch.device:
    """'auto' is the GPU if there is one."""
    return torch.device(('cuda' if torch.cuda.is_available() else 'cpu') if word == 'auto' else word)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Those that all benchmarks of speed have."""
    parser.add_argument('--device', default='auto', choices=('auto', 'cpu', 'cuda'))
    parser.add_argument('--tiny', action='store_true', help='tiny networks, to try the benchmark itself')


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog='python -m benchmarks.speed')
    parser.add_argument('--networks', nargs='+', choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument('--sizes', nargs='+', type=parse_size, metavar='HxW', help='one number is a square')
    parser.add_argument('--batches', nargs='+', type=int, metavar='N')
    parser.add_argument('--precisions', nargs='+', choices=PRECISIONS, help='fp32; on a GPU also bf16')
    parser.add_argument('--modes', nargs='+', choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument('--variants', nargs='+', type=parse_variant, metavar='WORD+WORD')
    parser.add_argument('--compile', action='store_true', help='every variant compiled, too')
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--no-memory', dest='memory', action='store_false', help='leave memory out, to save time')
    add_common_arguments(parser)
    given = parser.parse_args(arguments)
    device = device_of(given.device)
    given.precisions = given.precisions or (['fp32', 'bf16'] if device.type == 'cuda' else ['fp32'])
    command = ' '.join(['python -m benchmarks.speed', *(sys.argv[1:] if arguments is None else arguments)])
    lines = [hardware(('torch',), device), f'`{command}`', '']
    lines += [f'| {" | ".join((*COLUMNS, *FIGURES))} |', '|' + ':--|' * len(COLUMNS) + '--:|' * len(FIGURES)]
    sys.stdout.write('\n'.join(lines) + '\n')
    for workload in workloads(given, device):
        results = measure(workload, variants_of(given, workload.mode, device), device, given.rounds, given.memory)
        sys.stdout.writelines(f'{row(workload, result, results[0])}\n' for result in results)
        sys.stdout.flush()


if __name__ == '__main__':
    main()
