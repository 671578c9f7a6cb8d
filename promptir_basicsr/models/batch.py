"""Batches of images with their tasks and labels, and the outputs of networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from promptir_basicsr.archs.airnet_arch import Contrasted
from promptir_basicsr.archs.traits import traits_of


@dataclass(frozen=True)
class Batch:
    """A batch on the device of the network.

    Attributes:
        lq: degraded images, (B, 3, H, W), RGB in [0, 1].
        gt: clean images of the same shape, or None.
        task: name of each image's task.
        lq_path: file of each image.
        degradation: labels (B,), or weights of the labels (B, T).
        key: second crops of the same images, degraded in the same way, same shape as `lq`; for contrastive training.
    """

    lq: Tensor
    gt: Tensor | None = None
    task: Sequence[str] | None = None
    lq_path: Sequence[str] | None = None
    degradation: Any = None
    key: Tensor | None = None

    @classmethod
    def of(cls, data: Mapping[str, Any], device: torch.device, channels_last: bool = False) -> Batch:
        """Create a batch from the data of a data loader, on a device.

        Args:
            channels_last: store `lq` and `key` in the channels-last memory format.
        """
        gt, degradation = data.get('gt'), data.get('degradation')

        def given(name: str) -> Tensor:
            x = data[name].to(device, non_blocking=True)
            return x.contiguous(memory_format=torch.channels_last) if channels_last else x

        return cls(
            given('lq'),
            None if gt is None else gt.to(device, non_blocking=True),
            data.get('task'),
            data.get('lq_path'),
            None if degradation is None else torch.as_tensor(degradation).to(device, non_blocking=True),
            given('lq_key') if 'lq_key' in data else None,
        )

    def __len__(self) -> int:
        return len(self.lq)

    def parts(self, number: int) -> Iterator[Batch]:
        """Micro-batches of consecutive images: at most `number`, none empty."""
        bounds = sorted({len(self) * part // number for part in range(number + 1)})
        for start, end in pairwise(bounds):
            values: list[Any] = [None if value is None else value[start:end] for value in vars(self).values()]
            yield Batch(*values)

    def images(self) -> list[Tensor]:
        """`lq`, `key` and `gt`, except those that are None."""
        return [x for x in (self.lq, self.key, self.gt) if x is not None]

    def members(self) -> dict[str, list[int]]:
        """The positions of each task's images."""
        tasks = self.task or ()
        return {name: [i for i, task in enumerate(tasks) if task == name] for name in sorted(set(tasks))}

    def names(self) -> list[str]:
        """A name for each image, for messages."""
        paths = self.lq_path or [f'image {place} of the batch' for place in range(len(self))]
        return [f'{task}: {path}' for task, path in zip(self.task, paths, strict=True)] if self.task else list(paths)


def run_network(net: nn.Module, batch: Batch) -> Tensor:
    """Run a network, with the labels if it takes them."""
    return net(batch.lq, batch.degradation) if traits_of(net).takes_degradation else net(batch.lq)


Output = Tensor | Contrasted
"""Output of a network in training; each tensor in it has one entry per image."""


def tensors_of(output: Output) -> list[Tensor]:
    """The tensors of an output."""
    return [output] if isinstance(output, Tensor) else [part for part in output if part is not None]


def mapped(function: Callable[[Tensor], Tensor], output: Output) -> Output:
    """Apply a function to each floating-point tensor of an output."""

    def changed(x: Tensor | None) -> Tensor | None:
        return function(x) if x is not None and x.is_floating_point() else x

    return function(output) if isinstance(output, Tensor) else Contrasted._make(map(changed, output))


def joined(outputs: Sequence[Output]) -> Output:
    """Join the outputs of micro-batches to the output of the batch."""
    if len(outputs) == 1:
        return outputs[0]
    parts = zip(*map(tensors_of, outputs), strict=True)
    whole = [torch.cat(part) for part in parts]
    return whole[0] if isinstance(outputs[0], Tensor) else Contrasted._make([None, *whole][-3:])


def image_of(output: Output) -> Tensor | None:
    """The restored images of an output; None if only the encoder is trained."""
    return output if isinstance(output, Tensor) else output.restored


def chosen(x: Tensor, members: Sequence[int]) -> Tensor:
    """Select images of x: (B, ...) by position. Indexing with a list would synchronise with the device."""
    return x if len(members) == len(x) else torch.cat([x[i : i + 1] for i in members])
