"""How close a training step and inference come to what the device can do, as a Markdown table.

    python -m benchmarks.roofline [--networks promptir pip] [--sizes 128] [--batches 1 32] [--precisions fp32 bf16]
        [--variants reference fast+gate] [--compile] [--peak-flops 9e14 --bandwidth 4.8e12]

A step must do its operations and move its bytes; it cannot be faster than the slower of the two at the device's peaks.
Share is that shortest time over the measured one.

Operations are those of convolutions and matrix products as papers describe the network (the reference, counted by
torch.utils.flop_counter on tensors without memory), two for a multiplication and an addition. A training step has
three times those of the forward pass: the gradients of inputs and of weights take as many each. What is recomputed
does not count.

Bytes are what a perfectly fused implementation must read and write, in the given precision:

- The attention half of a block needs a sum over all pixels before it can give a single one. Forward: x is read and v
  written, then x and v are read and the result written. Backward: the same sum comes first, so that x and the gradient
  of the result are read, then both again, and the gradient of x is written.
- The feed-forward half reads its input once and writes its output once; backward it reads input and gradient and
  writes a gradient. Everything within the halves stays in cache and is recomputed backward.
- Other convolutions and the prompts read their inputs and write their outputs; backward they read both the inputs and
  the gradient and write a gradient. Concatenations, residuals and normalisations are part of what follows.
- Weights are read once in the forward pass; in a training step once more, and their gradients are written, in fp32.

Peaks are the best that a large matrix product and a large copy reach here, or given.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import reference, speed
from benchmarks.hardware import hardware
from benchmarks.variants import NETWORKS, TINY, Workload, computing, parse_size, parse_variant
from promptir_basicsr.core.vocabulary import PRECISIONS
from promptir_basicsr.runtime.precision import HALF

PRODUCT_SIDE = {'cpu': 2048, 'cuda': 8192}
COPY_BYTES = {'cpu': 2**28, 'cuda': 2**31}
TRIALS = 5
TINY_PEAKS = 64


@dataclass(frozen=True)
class Cost:
    """Of one image.

    Attributes:
        operations: of the forward pass.
        forward, backward: numbers that are read and written at least.
        parameters: numbers in the weights.
    """

    operations: int
    forward: int
    backward: int
    parameters: int

    def of(self, workload: Workload, precision: str) -> tuple[float, float]:
        """Operations and bytes of a workload's step."""
        size, training = HALF.get(precision, torch.float32).itemsize, workload.training
        moved = self.forward + self.backward if training else self.forward
        weights = self.parameters * (2 * size + 4 if training else size)
        return self.operations * workload.batch * (3 if training else 1), moved * workload.batch * size + weights


@dataclass(frozen=True)
class Peaks:
    """Operations a second and bytes a second."""

    operations: float
    bandwidth: float


def cost_of(workload: Workload) -> Cost:
    """What the model of this file says of one image; no network is run."""
    with torch.device('meta'):
        net = NETWORKS[workload.network][1](**(TINY if workload.tiny else {}))
        x = torch.zeros(1, 3, workload.height, workload.width)
        told = [torch.zeros(1, dtype=torch.long)] if workload.network == 'pip' else []
    moved: list[tuple[int, int]] = []
    handles = [
        module.register_forward_hook(lambda module, inputs, output: moved.append(traffic(module, inputs, output)))
        for module in fused(net)
    ]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(x, *told)
    for handle in handles:
        handle.remove()
    return Cost(
        counter.get_total_flops(),
        sum(forward for forward, _ in moved),
        sum(backward for _, backward in moved),
        sum(parameter.numel() for parameter in net.parameters()),
    )


def fused(net: nn.Module) -> list[nn.Module]:
    """The modules that read and write features: the outermost of those that `traffic` knows."""
    found: list[nn.Module] = []
    for child in net.children():
        found += [child] if isinstance(child, _KNOWN) else fused(child)
    return found


_KNOWN = (reference.Block, reference.CrossBlock, reference.PromptBlock, reference.PromptInPrompt, nn.Conv2d)


def traffic(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> tuple[int, int]:
    """Numbers that a module reads and writes, forward and backward."""
    given, result = sum(x.numel() for x in inputs), output.numel()
    if not isinstance(module, reference.Block | reference.CrossBlock):
        return given + result, given + result + given
    # Keys and values are of the last input: the features themselves, or the prompt.
    values = inputs[-1].numel()
    forward, backward = given + values + inputs[0].numel() + values + result, 3 * given + 2 * result
    return forward + 2 * result, backward + 3 * result


def measured_peaks(precision: str, device: torch.device, tiny: bool) -> Peaks:
    """The best of some trials; a copy reads and writes."""
    side = TINY_PEAKS if tiny else PRODUCT_SIDE[device.type]
    dtype = HALF.get(precision, torch.float32)
    a, b, out = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(3))
    with computing(precision, device):
        product = _shortest(lambda: torch.mm(a, b, out=out), device)
    count = (TINY_PEAKS**2 if tiny else COPY_BYTES[device.type]) // dtype.itemsize
    source, target = (torch.ones(count, dtype=dtype, device=device) for _ in range(2))
    copy = _shortest(lambda: target.copy_(source), device)
    return Peaks(2 * side**3 / product, 2 * count * dtype.itemsize / copy)


def _shortest(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of the fastest of TRIALS, after one that is not counted."""
    seconds = []
    for _ in range(1 + TRIALS):
        speed.wait(device)
        start = time.perf_counter()
        work()
        speed.wait(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def row(workload: Workload, result: speed.Result, cost: Cost, peaks: Peaks) -> str:
    """A line of the table."""
    variant = result.variant
    operations, moved = cost.of(workload, variant.precision)
    least = [operations / peaks.operations, moved / peaks.bandwidth]
    cells = [workload.network, workload.mode, workload.image, str(workload.batch), variant.name, variant.precision]
    cells += [f'{operations / 1e9:,.0f}', f'{moved / 1e9:.2f}', f'{operations / moved:.0f}']
    cells += [f'{1000 * seconds:.3g}' for seconds in least]
    if result.failed:
        return f'| {" | ".join([*cells, result.failed, "", "", ""])} |'
    seconds = statistics.median(result.seconds)
    cells += [f'{1000 * seconds:.4g}', *(f'{100 * one / seconds:.1f} %' for one in (*least, max(least)))]
    return f'| {" | ".join(cells)} |'


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog='python -m benchmarks.roofline')
    parser.add_argument('--networks', nargs='+', choices=NETWORKS, default=['promptir'])
    parser.add_argument('--sizes', nargs='+', type=parse_size, default=[(128, 128)], metavar='HxW')
    parser.add_argument('--batches', nargs='+', type=int, metavar='N')
    parser.add_argument('--precisions', nargs='+', choices=PRECISIONS)
    parser.add_argument('--modes', nargs='+', choices=speed.VARIANTS, default=list(speed.VARIANTS))
    parser.add_argument('--variants', nargs='+', type=parse_variant, default=['reference', 'fast'])
    parser.add_argument('--compile', action='store_true', help='every variant compiled, too')
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--peak-flops', type=float, metavar='N', help='operations a second; default: measured')
    parser.add_argument('--bandwidth', type=float, metavar='N', help='bytes a second; default: measured')
    speed.add_common_arguments(parser)
    given = parser.parse_args(arguments)
    device = speed.device_of(given.device)
    given.precisions = given.precisions or (['fp32', 'bf16'] if device.type == 'cuda' else ['fp32'])
    peaks = {}
    lines = [hardware(('torch',), device), '']
    for precision in dict.fromkeys(['fp32', *given.precisions]):
        found = measured_peaks(precision, device, given.tiny)
        peaks[precision] = Peaks(given.peak_flops or found.operations, given.bandwidth or found.bandwidth)
        operations, bandwidth = peaks[precision].operations, peaks[precision].bandwidth
        lines.append(
            f'- {precision}: {operations / 1e12:.3g} T operations a second, {bandwidth / 1e9:.3g} GB a second.'
        )
    head = ['network', 'mode', 'image', 'batch', 'variant', 'precision', 'G operations', 'GB', 'operations/byte']
    head += ['operations, ms', 'bytes, ms', 'step, ms', 'of peak operations', 'of peak bandwidth', 'share']
    lines += ['', f'| {" | ".join(head)} |', '|' + ':--|' * 6 + '--:|' * 9]
    sys.stdout.write('\n'.join(lines) + '\n')
    for workload in speed.workloads(given, device):
        cost = cost_of(workload)
        variants = speed.variants_of(given, workload.mode, device)
        for result in speed.measure(workload, variants, device, given.rounds, memory=False):
            sys.stdout.write(row(workload, result, cost, peaks[result.variant.precision]) + '\n')
        sys.stdout.flush()


if __name__ == '__main__':
    main()
