"""Tell the dataset the epoch, whatever the workers do, and fill the batches as it asks."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import basicsr.train
import numpy as np
import torch
from basicsr.data.data_sampler import EnlargedSampler


class EpochSampler(EnlargedSampler):
    """BasicSR's sampler; a dataset with `takes_epoch` is asked for (epoch, index) instead of index.

    The pair travels to the worker with every request, so persistent workers, their number and a resumed run do not
    matter. The order comes from (dataset.seed, epoch); BasicSR's comes from the epoch alone. An index at or beyond
    the length of the dataset is a further draw (`dataset_enlarge_ratio`). Of a fraction of the dataset, every epoch
    takes other images; BasicSR takes the first ones, which would be the first tasks.

    Where the dataset's `shares` have a number of samples `in_batch`, every batch of their sum holds just these, on
    every process, and the epoch ends with the last whole batch.

    Attributes:
        seen: samples of the epoch that training has had, all processes together; `host.run` counts them.
    """

    def __init__(self, dataset: Any, num_replicas: int, rank: int, ratio: float = 1) -> None:
        super().__init__(dataset, num_replicas, rank, ratio)
        shares = getattr(dataset, 'shares', ())
        self._batch = sum(share.in_batch for share in shares) if getattr(dataset, 'takes_epoch', False) else 0
        if self._batch:
            self.num_samples -= self.num_samples % self._batch
            self.total_size = self.num_samples * num_replicas
        self.seen = 0
        self._start = (0, 0)

    def start_at(self, epoch: int, seen: int) -> None:
        """Leave out the first samples of one epoch, which a run before this one has seen.

        Args:
            seen: of all processes together, as in `seen`.
        """
        self._start = (epoch, seen)

    def set_epoch(self, epoch: int) -> None:
        """BasicSR's; counts anew."""
        super().set_epoch(epoch)
        self.seen = self._first

    @property
    def _first(self) -> int:
        return self._start[1] if self.epoch == self._start[0] else 0

    def __iter__(self) -> Iterator[int | tuple[int, int]]:
        first = self._first // self.num_replicas
        if not getattr(self.dataset, 'takes_epoch', False):
            return islice(super().__iter__(), first, None)
        epoch = self.epoch
        # Not the whole epoch as Python's numbers at once: they are ten times as large.
        return ((epoch, index) for part in self.order()[first:].split(8192) for index in part.tolist())

    def order(self) -> torch.Tensor:
        """(len(self),) int64: the indices of this process in this epoch, the first batch's first.

        They depend on (dataset.seed, epoch), the dataset's shares, `dataset_enlarge_ratio` and the number of
        processes alone.
        """
        state = np.random.SeedSequence([self.dataset.seed, self.epoch]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(state[0]))
        if not self._batch:
            return _shuffled(self.total_size, len(self.dataset), generator)[self.rank :: self.num_replicas]
        columns, start = [], 0
        for share in self.dataset.shares:
            draws = _shuffled(self.total_size // self._batch * share.in_batch, share.samples, generator)
            further, place = draws // share.samples, draws % share.samples
            columns.append((further * len(self.dataset) + start + place).view(-1, share.in_batch))
            start += share.samples
        batches = torch.cat(columns, dim=1)
        order = torch.rand(batches.shape, generator=generator)[self.rank :: self.num_replicas].argsort(dim=1)
        return batches[self.rank :: self.num_replicas].gather(1, order).flatten()


def _shuffled(number: int, length: int, generator: torch.Generator) -> torch.Tensor:
    """(number,) int64: the indices from 0 in random order; of the last, broken round of `length` a random part."""
    order = torch.randperm(number, generator=generator)
    whole = number // length * length
    if whole == number:
        return order
    part = whole + torch.randperm(length, generator=generator)[: number - whole]
    return torch.cat([torch.arange(whole), part])[order]


def adapt() -> None:
    """`worker_init_fn` seeds numpy and random by worker only: noise and crops would repeat every epoch, and change with
    the number of workers."""
    basicsr.train.EnlargedSampler = EpochSampler
