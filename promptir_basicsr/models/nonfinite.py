"""Non-finite training steps: detect, report, count and skip steps whose loss or gradient is not finite."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from promptir_basicsr.archs.layers.contrast import ContrastiveEncoder
from promptir_basicsr.core.messages import first_few

logger = logging.getLogger('basicsr')

Names = tuple[list[str], list[str], list[str]]

MOST_IN_A_ROW = 10

_MOST_NAMES = 8


@dataclass
class Step:
    """Data of a step, needed until it is known whether the step is finite.

    Attributes:
        iteration: counted from 1.
        flags: (2,) float32, the same on all processes; above 0: the step is non-finite, a stop was requested.
        losses: terms of the loss by name.
        norm: of the whole gradient.
        images: such as lq and gt, (B, ...) each.
        outputs: what the network made of them, (B, ...) each.
        names: of the B images, `task: path`.
    """

    iteration: int
    flags: Tensor
    losses: Mapping[str, Tensor]
    norm: Tensor
    images: Sequence[Tensor]
    outputs: Sequence[Tensor]
    names: Sequence[str]
    _event: torch.cuda.Event | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.flags.is_cuda:
            self.flags = self.flags.to('cpu', non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def read(self) -> tuple[bool, bool]:
        """Whether the step is non-finite, and whether a stop was requested; waits for the device to finish the step."""
        if self._event is not None:
            self._event.synchronize()
        sick, asked = self.flags.tolist()
        return sick > 0, asked > 0

    def suspects(self) -> Names:
        """Names of the non-finite images, of the images with non-finite outputs, and of all images."""
        found = []
        for images in (self.images, self.outputs):
            finite = [image.isfinite().flatten(1).all(dim=1).tolist() for image in images]
            found.append([name for name, *each in zip(self.names, *finite, strict=False) if not all(each)])
        return found[0], found[1], list(self.names)


class SickSteps:
    """Counts non-finite steps, which are skipped, and logs each of them.

    Args:
        processes: number of processes.
        rank: of the current process; rank 0 writes to the log.

    Attributes:
        total: non-finite steps of the whole run.
        row: consecutive non-finite steps.
    """

    def __init__(self, processes: int = 1, rank: int = 0) -> None:
        self.processes, self.rank = processes, rank
        self.total = self.row = 0

    def take(self, step: Step, sick: bool) -> None:
        """Count a step."""
        if not sick:
            self.row = 0
            return
        self.total += 1
        self.row += 1
        inputs, outputs, names = self._of_processes(step.suspects())
        if self.rank:
            return
        values = ', '.join(f'{name} {float(value):.4g}' for name, value in step.losses.items())
        about = 'Images (not finite)' if inputs else 'Images (finite, their outputs not)' if outputs else 'Images (any)'
        logger.error(
            f'Iteration {step.iteration}: {values}, gradient norm {float(step.norm):.4g}. Non-finite step skipped '
            f'({self.row} in a row, {self.total} in total). {about}: '
            f'{first_few(inputs or outputs or names, _MOST_NAMES)}.'
        )

    def _of_processes(self, names: Names) -> Names:
        if self.processes == 1:
            return names
        gathered: list[Names] = [names] * self.processes
        torch.distributed.all_gather_object(gathered, names)
        inputs, outputs, everything = ([name for part in each for name in part] for each in zip(*gathered, strict=True))
        return inputs, outputs, everything


def moving_state(net: nn.Module) -> list[Tensor]:
    """State that a forward pass changes in training: BatchNorm buffers, queue and key encoder of a contrast."""
    found: list[Tensor] = []
    for module in net.modules():
        if isinstance(module, _NormBase) and module.track_running_stats:
            found += module.buffers(recurse=False)
        elif isinstance(module, ContrastiveEncoder):
            found += module.moving_state()
    return found
