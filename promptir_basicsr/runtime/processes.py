"""A validation that several processes share."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import distributed, nn
from torch.utils.data import DataLoader

from promptir_basicsr.core.errors import ImageError, OptionError

T = TypeVar('T')


class Share:
    """What one of several processes does: of the images of a data set, every `processes`-th from `rank` on.

    What has one entry an image can be put together in the order of the data set, so that everything made of it is what
    a single process makes of all images. All processes have to call the methods in the same order.

    Args:
        rank: of this process.
        processes: how many there are. Of one, the share is everything, and nothing is sent.
    """

    def __init__(self, rank: int = 0, processes: int = 1) -> None:
        self.rank, self.processes = rank, processes

    def of(self, loader: DataLoader) -> DataLoader:
        """A loader of this process's images, one a batch."""
        if self.processes == 1:
            return loader
        return DataLoader(
            loader.dataset,
            sampler=range(self.rank, len(loader.dataset), self.processes),  # type: ignore[arg-type]
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
        )

    def gather(self, own: T) -> list[T]:
        """What each process has, by rank. It is pickled."""
        if self.processes == 1:
            return [own]
        found: list[Any] = [None] * self.processes
        distributed.all_gather_object(found, own)
        return found

    def in_order(self, own: Sequence[T]) -> list[T]:
        """One entry an image of the whole data set, from those of each process's images."""
        parts = self.gather(list(own))
        rounds = itertools.zip_longest(*([(entry,) for entry in part] for part in parts))
        return [entry for one in rounds for held in one if held for entry in held]

    def equalize(self, net: nn.Module) -> None:
        """Give all processes the buffers of the first. In training each has those of its own batches, while its
        parameters are everybody's."""
        if self.processes == 1:
            return
        with torch.no_grad():
            for buffer in net.buffers():
                values = buffer.contiguous()
                distributed.broadcast(values, src=0)
                buffer.copy_(values)

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """Around work of each process by itself: where one fails, all do, and none waits for it.

        Raises:
            ImageError, OptionError: another process raised it.
            RuntimeError: another process failed otherwise.
        """
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            if self.processes == 1:
                raise
            failure = error
        if self.processes == 1:
            return
        lines = failure.lines if isinstance(failure, OptionError) else [str(failure)]
        told = self.gather(None if failure is None else (type(failure).__name__, lines))
        if failure is not None:
            raise failure
        for rank, found in enumerate(told):
            if found is not None:
                raise _same(rank, *found)


def _same(rank: int, kind: str, lines: Sequence[str]) -> Exception:
    """An error of another process."""
    if kind == OptionError.__name__:
        return OptionError(f'process {rank}: {line}' for line in lines)
    message = '\n'.join(lines)
    if kind == ImageError.__name__:
        return ImageError(f'process {rank}: {message}')
    return RuntimeError(f'The validation failed in process {rank}: {kind}: {message}')
