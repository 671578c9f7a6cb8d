"""Tell the dataset the epoch, whatever the workers do."""

from collections.abc import Iterator

import basicsr.train
import numpy as np
import torch
from basicsr.data.data_sampler import EnlargedSampler


class EpochSampler(EnlargedSampler):
    """BasicSR's sampler; a dataset with `takes_epoch` is asked for (epoch, index) instead of index.

    The pair travels to the worker with every request, so persistent workers, their number and a resumed run do not
    matter. The order comes from (dataset.seed, epoch); BasicSR's comes from the epoch alone. An index at or beyond
    the length of the dataset is a further draw of the same image (`dataset_enlarge_ratio`). Of a fraction of the
    dataset, every epoch takes other images; BasicSR takes the first ones, which would be the first tasks.
    """

    def __iter__(self) -> Iterator[int | tuple[int, int]]:
        if not getattr(self.dataset, 'takes_epoch', False):
            return super().__iter__()
        state = np.random.SeedSequence([self.dataset.seed, self.epoch]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(state[0]))
        order = torch.randperm(self.total_size, generator=generator)
        whole = self.total_size // len(self.dataset) * len(self.dataset)
        part = whole + torch.randperm(len(self.dataset), generator=generator)[: self.total_size - whole]
        order = torch.cat([torch.arange(whole), part])[order][self.rank :: self.num_replicas]
        return ((self.epoch, index) for index in order.tolist())


def adapt() -> None:
    """`worker_init_fn` seeds numpy and random by worker only: noise and crops would repeat every epoch, and change with
    the number of workers."""
    basicsr.train.EnlargedSampler = EpochSampler
