"""Validation distributed over several processes."""

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
    """Share of one of several processes: every `processes`-th image of a dataset, starting at `rank`.

    Entries per image can be merged in the order of the dataset, so results are the same as with a single process. All
    processes must call the methods in the same order.

    Args:
        rank: of this process.
        processes: number of processes. With one, the share is everything, and nothing is sent.
    """

    def __init__(self, rank: int = 0, processes: int = 1) -> None:
        self.rank, self.processes = rank, processes

    def of(self, loader: DataLoader) -> DataLoader:
        """Return a loader of this process's images with batch size 1."""
        if self.processes == 1:
            return loader
        return DataLoader(
            loader.dataset,
            sampler=range(self.rank, len(loader.dataset), self.processes),  # type: ignore[arg-type]
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
        )

    def gather(self, own: T) -> list[T]:
        """Gather a value of each process, by rank. It is pickled."""
        if self.processes == 1:
            return [own]
        found: list[Any] = [None] * self.processes
        distributed.all_gather_object(found, own)
        return found

    def in_order(self, own: Sequence[T]) -> list[T]:
        """Merge entries per image of all processes, in the order of the dataset."""
        parts = self.gather(list(own))
        rounds = itertools.zip_longest(*([(entry,) for entry in part] for part in parts))
        return [entry for one in rounds for held in one if held for entry in held]

    def equalize(self, net: nn.Module) -> None:
        """Copy the buffers of the first process to all. In training, buffers depend on each process's own batches,
        while parameters are shared."""
        if self.processes == 1:
            return
        with torch.no_grad():
            for buffer in net.buffers():
                values = buffer.contiguous()
                distributed.broadcast(values, src=0)
                buffer.copy_(values)

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """Context manager for separate work of each process: if one fails, all fail, and none waits for it.

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
    """Return the error of another process."""
    if kind == OptionError.__name__:
        return OptionError(f'process {rank}: {line}' for line in lines)
    message = '\n'.join(lines)
    if kind == ImageError.__name__:
        return ImageError(f'process {rank}: {message}')
    return RuntimeError(f'The validation failed in process {rank}: {kind}: {message}')
