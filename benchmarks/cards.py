"""How many patches of 128x128 fit into a GPU at once, and how a batch of 32 is made of them, as a Markdown table.

    python -m benchmarks.cards [--networks promptir pip] [--batch 32]

The model: memory = fixed + patches x (one patch's share). Fixed are weights, gradients, two moments of Adam and the
averaged weights in float32, and RESERVE for the CUDA context, workspaces and fragments. The share of a patch is the
peak of a step with two patches less that with one, measured by benchmarks/memory.py: on a GPU what PyTorch allocates,
without one the resident memory of the same computation on the CPU.
"""

import argparse
import sys

import torch

from benchmarks.hardware import hardware
from benchmarks.memory import peak_memory
from benchmarks.variants import NETWORKS, Run, Variant, Workload
from promptir_basicsr.core.vocabulary import CHECKPOINTING

CARDS = (12, 24, 48, 80)  # GB
RESERVE = 1.5e9
SIDE = 128
COPIES = 5  # weights, gradients, two moments, averaged weights
TINY_SIDE = 32


def share(network: str, variant: Variant, device: torch.device, tiny: bool) -> float:
    """Bytes that a second patch takes."""
    side = TINY_SIDE if tiny else SIDE
    peaks = []
    for batch in (1, 2):
        run = Run(Workload(network, True, side, side, batch, tiny), variant, device, weights=None)
        peak = peak_memory(run)
        if peak is None:
            raise SystemExit('benchmarks.cards: needs a GPU, or the /proc of Linux.')
        peaks.append(peak)
    return peaks[1] - peaks[0]


def parts(patches: float, batch: int) -> str:
    """The largest micro-batch that divides the batch and fits, and `train.accumulate` for it."""
    fitting = [size for size in range(1, batch + 1) if batch % size == 0 and size <= patches]
    return f'{max(fitting)} x {batch // max(fitting)}' if fitting else 'none fits'


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
    parser.add_argument('--networks', nargs='+', choices=list(NETWORKS), default=['promptir'])
    parser.add_argument('--batch', type=int, default=32)
    parser.add_argument('--tiny', action='store_true', help='tiny networks and patches, to try this script')
    arguments = parser.parse_args(argv)
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    cards = ' | '.join(f'{card} GB' for card in CARDS)
    sys.stdout.write(
        f'| network | precision | keeps | MB a patch | {cards} |\n|:--|:--|:--|--:|{"--:|" * len(CARDS)}\n'
    )
    for network in arguments.networks:
        fixed = RESERVE + 4 * COPIES * sum(p.numel() for p in NETWORKS[network][0]().parameters())
        for name in ('reference', *(f'fast+{kept}' for kept in CHECKPOINTING)):
            for precision in ('fp32', 'bf16'):
                size = share(network, Variant(name, precision), device, arguments.tiny)
                cells = [parts((card * 1e9 - fixed) / size, arguments.batch) for card in CARDS]
                cells = [network, precision, name.replace('+', ', '), f'{size / 1e6:.0f}', *cells]
                sys.stdout.write(f'| {" | ".join(cells)} |\n')
                sys.stdout.flush()
    line = hardware(('torch',), device)
    sys.stdout.write(f'\nMicro-batch x `train.accumulate` for a batch of {arguments.batch}. {line}\n')


if __name__ == '__main__':
    main()
