"""Tell the dataset the epoch, whatever the workers do, and fill the batches as it asks."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from basicsr.data.data_sampler import EnlargedSampler
from torch.utils.data import BatchSampler

from promptir_basicsr.core.messages import check_count
from promptir_basicsr.data.sampling import TaskShare
from promptir_basicsr.data.stages import Stage

logger = logging.getLogger('basicsr')


class EpochSampler(EnlargedSampler):
    """BasicSR's sampler; a dataset with `takes_epoch` is asked for (epoch, index) instead of index.

    The pair travels to the worker with every request, so persistent workers, their number and a resumed run do not
    matter. The order comes from (dataset.seed, epoch); BasicSR's comes from the epoch alone. An index at or beyond
    the length of the dataset is a further draw (`dataset_enlarge_ratio`). Of a fraction of the dataset, every epoch
    takes other images; BasicSR takes the first ones, which would be the first tasks.

    Where the dataset's `shares` have a number of samples `in_batch`, every batch of their sum holds just these, on
    every process, and the epoch ends with the last whole batch.

    Where the dataset has `stages`, it is asked for (epoch, index, gt_size). An epoch has one stage: it ends where the
    stage does, and the next one begins.

    Attributes:
        seen: samples of the epoch that training has had, all processes together; see `count`.
        iteration: batches that training has had.
    """

    def __init__(self, dataset: Any, num_replicas: int, rank: int, ratio: float = 1) -> None:
        super().__init__(dataset, num_replicas, rank, ratio)
        shares, stages = getattr(dataset, 'shares', ()), getattr(dataset, 'stages', ())
        takes_epoch = getattr(dataset, 'takes_epoch', False)
        self._batch = sum(share.in_batch for share in shares) if takes_epoch else 0
        self.stages: Sequence[Stage] = stages if takes_epoch else ()
        self._batches = BatchSampler(self, 1, drop_last=True)
        self._gpus = 1
        self._stage: Stage | None = None
        if self._batch:
            self.num_samples -= self.num_samples % self._batch
            self.total_size = self.num_samples * num_replicas
        self.seen = self.iteration = 0
        self._start = (0, 0)

    def start_at(self, epoch: int, seen: int) -> None:
        """Leave out the first samples of one epoch, which a run before this one has seen.

        Args:
            seen: of all processes together, as in `seen`.
        """
        self._start = (epoch, seen)

    def drive(self, batches: BatchSampler) -> None:
        """Set the size of the batches in each stage, and count with it.

        Args:
            batches: of a loader that was built by the dataset's options.
        """
        self._batches = batches
        if self.stages:
            self._gpus = batches.batch_size // self.dataset.opt['batch_size_per_gpu']

    def set_epoch(self, epoch: int) -> None:
        """BasicSR's; counts anew, and begins a stage where its time has come."""
        super().set_epoch(epoch)
        self.seen = self._first
        if self.stages and self._stage != (stage := self._stage_at(self.iteration)):
            self._stage, self._batches.batch_size = stage, stage.batch * self._gpus
            number, end = self.stages.index(stage) + 1, 'on' if stage.until == math.inf else f'to {stage.until:,}'
            logger.info(
                f'Stage {number} of {len(self.stages)}, from iteration {stage.begin + 1:,} {end}: '
                f'gt_size {stage.gt_size}, batch_size_per_gpu {stage.batch}.'
            )

    def count(self) -> None:
        """Training has received a batch, as in every process."""
        self.iteration += 1
        self.seen += self._batches.batch_size * self.num_replicas

    def last_epoch(self, epoch: int, total_iter: int) -> int:
        """The epoch of the last iteration, in a training in stages that begins or goes on in `epoch`."""
        iteration, seen = self.iteration, self._start[1] if epoch == self._start[0] else 0
        while (iteration := iteration + self._left(iteration, seen)) < total_iter:
            epoch, seen = epoch + 1, 0
        return epoch

    def _stage_at(self, iteration: int) -> Stage:
        return next(stage for stage in self.stages if iteration < stage.until)

    def _left(self, iteration: int, seen: int) -> int:
        """Batches of an epoch from here on, to its end or the stage's; none where a stage has just ended within it."""
        stage = self._stage_at(iteration)
        if seen and stage.begin == iteration:
            return 0
        whole = (self.num_samples - seen // self.num_replicas) // (stage.batch * self._gpus)
        return int(min(whole, stage.until - iteration))

    @property
    def _first(self) -> int:
        return self._start[1] if self.epoch == self._start[0] else 0

    def __iter__(self) -> Iterator[int | tuple[int, ...]]:
        first = self._first // self.num_replicas
        if not getattr(self.dataset, 'takes_epoch', False):
            return islice(super().__iter__(), first, None)
        epoch, order = self.epoch, self.order()[first:]
        crop: tuple[int, ...] = ()
        if self.stages:
            stage = self._stage_at(self.iteration)
            order = order[: self._left(self.iteration, self.seen) * stage.batch * self._gpus]
            crop = (stage.gt_size,)
        # Not the whole epoch as Python's numbers at once: they are ten times as large.
        return ((epoch, index, *crop) for part in order.split(8192) for index in part.tolist())

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


class EpochIndex:
    """Which image an index of an epoch stands for.

    Of the indices 0 to length - 1, each task has as many as it has samples, one task after another in the order of
    the options. A task's indices stand for its images in their order, from the first to the last, as many times as
    that goes; then for a part of them, where the samples are not a multiple of the images. The parts of successive
    epochs follow one another through an order that is drawn from the seed, round and round, so that every image has
    had its turn before one has another.

    An index at or beyond the length is a further draw: index + length stands for the same image as index, or for one
    of the next epoch's part.
    """

    def __init__(self, shares: Sequence[TaskShare], seed: int) -> None:
        self._images = [share.images for share in shares]
        self._samples = [share.samples for share in shares]
        self._ends = np.cumsum(self._samples)
        # A spawn key, because a plain list of numbers would be the seed of a sample, too.
        self._turns = [
            np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number,))).permutation(images)
            if samples % images
            else None
            for number, (images, samples) in enumerate(zip(self._images, self._samples, strict=True))
        ]

    def __len__(self) -> int:
        return int(self._ends[-1])

    def locate(self, epoch: int, index: int) -> tuple[int, int]:
        """Number of the task, and position of the image in it."""
        further, place = divmod(index, len(self))
        task = int(np.searchsorted(self._ends, place, side='right'))
        images, samples, turns = self._images[task], self._samples[task], self._turns[task]
        draw = place - (int(self._ends[task]) - samples)
        part = samples % images
        if turns is None or draw < samples - part:
            return task, draw % images
        return task, int(turns[((epoch + further) * part + draw) % images])


class EpochPlan(NamedTuple):
    """What BasicSR makes of an epoch.

    Attributes:
        samples: drawn in an epoch, by all processes together.
        batch: of an iteration, over all processes and GPUs.
        iterations: whole batches of an epoch; BasicSR drops the last, smaller one.
        epochs: that BasicSR runs at most.
        in_process: GPUs that share the batch of a process.
    """

    samples: int
    batch: int
    iterations: int
    epochs: int
    in_process: int


def plan_epochs(options: Mapping[str, Any], samples: int, processes: int = 1) -> EpochPlan | None:
    """The epochs of a training; None where `num_gpu` or `train.total_iter` are no counts.

    BasicSR runs ceil(total_iter / ceil(samples / batch)) + 1 epochs and drops the last, smaller batch of each. With
    several GPUs in one process it counts the epochs as if there were one.

    Args:
        options: of the whole run, with a sound `datasets.train`.
        samples: length of the training set.
        processes: how many processes share an iteration.
    """
    dataset, total = options['datasets']['train'], options['train'].get('total_iter')
    gpus: Any = torch.cuda.device_count() if options.get('num_gpu') == 'auto' else options.get('num_gpu')
    if check_count('', gpus, least=0) or check_count('', total):
        return None
    samples = math.ceil(samples * dataset.get('dataset_enlarge_ratio', 1) / processes)
    in_process = 1 if processes > 1 else max(1, gpus)
    batch = dataset['batch_size_per_gpu'] * in_process
    epochs = math.ceil(total / math.ceil(samples / dataset['batch_size_per_gpu'])) + 1
    return EpochPlan(samples * processes, batch * processes, samples // batch, epochs, in_process)
