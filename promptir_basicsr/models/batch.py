"""Images that pass a network together, and what is known of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from promptir_basicsr.archs.traits import traits_of


@dataclass(frozen=True)
class Batch:
    """A batch on the device of the network.

    Attributes:
        lq: degraded images, (B, 3, H, W), RGB in [0, 1].
        gt: clean images of the same shape, if there are any.
        task: name of each image's task.
        lq_path: file of each image.
        degradation: labels (B,), or weights of the labels (B, T).
    """

    lq: Tensor
    gt: Tensor | None = None
    task: Sequence[str] | None = None
    lq_path: Sequence[str] | None = None
    degradation: Any = None

    @classmethod
    def of(cls, data: Mapping[str, Any], device: torch.device, channels_last: bool = False) -> Batch:
        """A sample of a data loader, moved to a device.

        Args:
            channels_last: store `lq` with the channels of a pixel side by side.
        """
        lq, gt, degradation = data['lq'].to(device, non_blocking=True), data.get('gt'), data.get('degradation')
        return cls(
            lq.contiguous(memory_format=torch.channels_last) if channels_last else lq,
            None if gt is None else gt.to(device, non_blocking=True),
            data.get('task'),
            data.get('lq_path'),
            None if degradation is None else torch.as_tensor(degradation).to(device, non_blocking=True),
        )

    def __len__(self) -> int:
        return len(self.lq)

    def parts(self, number: int) -> Iterator[Batch]:
        """Micro-batches of consecutive images: at most `number`, none of them empty."""
        bounds = sorted({len(self) * part // number for part in range(number + 1)})
        for start, end in pairwise(bounds):
            values: list[Any] = [None if value is None else value[start:end] for value in vars(self).values()]
            yield Batch(*values)

    def members(self) -> dict[str, list[int]]:
        """The positions of each task's images."""
        tasks = self.task or ()
        return {name: [i for i, task in enumerate(tasks) if task == name] for name in sorted(set(tasks))}

    def names(self) -> list[str]:
        """A name for each image, for messages."""
        paths = self.lq_path or [f'image {place} of the batch' for place in range(len(self))]
        return [f'{task}: {path}' for task, path in zip(self.task, paths, strict=True)] if self.task else list(paths)


def run_network(net: nn.Module, batch: Batch) -> Tensor:
    """The output of a network, which gets the labels where it takes them."""
    return net(batch.lq, batch.degradation) if traits_of(net).takes_degradation else net(batch.lq)


def chosen(x: Tensor, members: Sequence[int]) -> Tensor:
    """The images of x: (B, ...) at some positions. A list as an index would be copied to the device, which waits."""
    return x if len(members) == len(x) else torch.cat([x[i : i + 1] for i in members])
