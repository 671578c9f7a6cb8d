"""What the speed benchmarks run: a workload (network, image, training or not) in a variant (formulation, precision)."""

import argparse
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reference import ReferencePIP, ReferencePromptIR
from promptir_basicsr.archs import PIPRestormer, PromptIR
from promptir_basicsr.archs.fast.kernels import kernels_of
from promptir_basicsr.archs.layers.formulation import set_checkpointing, set_formulation
from promptir_basicsr.core.vocabulary import CHECKPOINTING, FORMULATIONS
from promptir_basicsr.runtime.precision import autocast, set_float32
from tests.golden.seeded import seeded_fill, seeded_image

NETWORKS = {'promptir': (PromptIR, ReferencePromptIR), 'pip': (PIPRestormer, ReferencePIP)}
TINY = {
    'dim': 8,
    'num_blocks': (1, 1, 1, 1),
    'num_refinement_blocks': 1,
    'heads': (1, 1, 2, 2),
    'prompt_sizes': (8, 6, 4),
}
"""Arguments of networks to try the benchmarks themselves with."""

COMPILED = ('compiled', 'max-autotune')
LOSS_SCALE = 2.0**10  # of fp16, so that small gradients are not lost; divided out again
WORDS = ('reference', *FORMULATIONS, *CHECKPOINTING, 'kernels', 'channels_last', *COMPILED)


@dataclass(frozen=True)
class Workload:
    """One network at work on one batch.

    Attributes:
        network: one of NETWORKS.
        training: a training step (forward, L1 loss, backward) instead of inference.
        height, width, batch: of the input.
        tiny: with the widths and depths of TINY.
    """

    network: str
    training: bool
    height: int
    width: int
    batch: int = 1
    tiny: bool = False

    @property
    def mode(self) -> str:
        return 'training' if self.training else 'inference'

    @property
    def image(self) -> str:
        return f'{self.height}x{self.width}'

    def input(self, device: torch.device) -> tuple[Tensor, ...]:
        """What the network is called with."""
        x = seeded_image((self.batch, 3, self.height, self.width)).to(device)
        return (x, torch.arange(self.batch, device=device) % 5) if self.network == 'pip' else (x,)

    def target(self, device: torch.device) -> Tensor:
        return seeded_image((self.batch, 3, self.height, self.width), seed=1).to(device)


@dataclass(frozen=True)
class Variant:
    """A way to compute the same.

    Attributes:
        name: words of WORDS joined by '+', e.g. 'fast+block+compiled': 'reference' or one of FORMULATIONS first.
        precision: one of `precision.PRECISIONS`. fp32 allows no TF32 anywhere; PyTorch itself allows it in
            convolutions, so a released program on a GPU runs between fp32 and tf32.
    """

    name: str
    precision: str = 'fp32'

    @property
    def words(self) -> list[str]:
        return self.name.split('+')

    @property
    def compiled(self) -> str:
        return next((word for word in self.words if word in COMPILED), '')

    @property
    def is_baseline(self) -> bool:
        """What everything is compared with: the reference, fp32, eager."""
        return (self.name, self.precision) == ('reference', 'fp32')


def parse_variant(text: str) -> str:
    """The name of a variant, for argparse."""
    words = text.split('+')
    if words[0] not in ('reference', *FORMULATIONS) or any(word not in WORDS for word in words):
        raise argparse.ArgumentTypeError(
            f"unknown variant '{text}'. It is 'reference', {' or '.join(map(repr, FORMULATIONS))}, with any of "
            f'{", ".join(WORDS[1 + len(FORMULATIONS) :])} behind it, e.g. fast+block+compiled.'
        )
    return text


def parse_size(text: str) -> tuple[int, int]:
    """Height and width of '320x480' or '128', for argparse."""
    numbers = text.split('x')
    if len(numbers) > 2 or not all(number.isdigit() and int(number) and int(number) % 8 == 0 for number in numbers):
        raise argparse.ArgumentTypeError(f"'{text}' is no size. Give HxW or one side, multiples of 8: 128 or 320x480.")
    return int(numbers[0]), int(numbers[-1])


def weights_of(workload: Workload) -> dict[str, Tensor]:
    """Weights that follow from their names, of which tests/golden has the released programs' outputs."""
    kind = NETWORKS[workload.network][0]
    return seeded_fill(kind(**(TINY if workload.tiny else {}))).state_dict()


def build(workload: Workload, variant: Variant, device: torch.device, weights: dict[str, Tensor] | None) -> nn.Module:
    """The network of a variant, in the mode of the workload; without weights it keeps its own random ones."""
    words = variant.words
    kind = NETWORKS[workload.network][words[0] == 'reference']
    net = kind(**(TINY if workload.tiny else {}))
    if weights is not None:
        net.load_state_dict(weights)
    for word in words:
        if word in FORMULATIONS:
            set_formulation(net, word)
        elif word in CHECKPOINTING:
            set_checkpointing(net, word)
        elif word == 'channels_last':
            net.to(memory_format=torch.channels_last)
    net.to(device).train(workload.training).requires_grad_(workload.training)
    if variant.compiled:
        # Variants share their code, and beyond a number of them PyTorch would go on uncompiled.
        torch._dynamo.config.recompile_limit = 1000
        # As PromptModel does; graphs of CUDA would keep memory that is not the network's.
        mode = 'default' if variant.compiled == 'compiled' else 'max-autotune-no-cudagraphs'
        net = torch.compile(net, dynamic=False, mode=mode)
    return net


@contextmanager
def computing(precision: str, device: torch.device) -> Iterator[None]:
    """Compute in a precision: TF32 as it says, and autocast for the half ones."""
    flags = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [flag.allow_tf32 for flag in flags]
    set_float32(precision)
    try:
        with autocast(precision, device):
            yield
    finally:
        for flag, value in zip(flags, before, strict=True):
            flag.allow_tf32 = value


class Run:
    """A workload in a variant, ready to be done again and again.

    Args:
        weights: of the network; None for random ones.
    """

    def __init__(
        self, workload: Workload, variant: Variant, device: torch.device, weights: dict[str, Tensor] | None
    ) -> None:
        self.workload, self.variant, self.device = workload, variant, device
        self.net = build(workload, variant, device, weights)
        self.input, self.target = workload.input(device), workload.target(device)
        self.scale = LOSS_SCALE if variant.precision == 'fp16' else 1.0

    def forward(self) -> Tensor:
        """The output; in training with its graph."""
        input = self.input
        if 'channels_last' in self.variant.words:
            input = (input[0].contiguous(memory_format=torch.channels_last), *input[1:])
        training, precision = self.workload.training, self.variant.precision
        with self._kernels(), torch.set_grad_enabled(training), computing(precision, self.device):
            return self.net(*input)

    def step(self) -> Tensor:
        """One inference, or forward, loss and backward; gradients are left in the parameters."""
        output = self.forward()
        if self.workload.training:
            with self._kernels():
                (F.l1_loss(output.float(), self.target) * self.scale).backward()
        return output.detach()

    def clear(self) -> None:
        self.net.zero_grad(set_to_none=True)

    def _kernels(self) -> AbstractContextManager[None]:
        return kernels_of('triton' if 'kernels' in self.variant.words else None)

    def gradients(self) -> dict[str, Tensor]:
        """Those of the last step by the names of parameters, in float64 on the CPU, without the scale of the loss."""
        net = getattr(self.net, '_orig_mod', self.net)
        return {name: p.grad.double().cpu() / self.scale for name, p in net.named_parameters() if p.grad is not None}


def as_json(workload: Workload, variant: Variant) -> str:
    return json.dumps({'workload': asdict(workload), 'variant': asdict(variant)})


def from_json(text: str) -> tuple[Workload, Variant]:
    given: dict[str, Any] = json.loads(text)
    return Workload(**given['workload']), Variant(**given['variant'])
