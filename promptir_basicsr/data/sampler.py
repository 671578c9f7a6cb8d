"""EpochSampler: passes the epoch to the dataset with each index, and composes the batches."""

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
    """BasicSR's sampler, which requests (epoch, index) instead of index from a dataset with `takes_epoch`.

    Every request to a worker contains the pair, so samples do not depend on persistent workers, their number, or
    resuming. The order depends on (dataset.seed, epoch); BasicSR's on the epoch only. An index at or beyond the length
    of the dataset is a further draw (`dataset_enlarge_ratio`). With a fraction of the dataset, every epoch uses
    different images; BasicSR uses the first ones, which would be the first tasks.

    If the dataset's `shares` have a number of samples `in_batch`, every batch on every process consists of exactly
    these, and the epoch ends with the last full batch.

    If the dataset has `stages`, requests are (epoch, index, gt_size). An epoch belongs to one stage: it ends when the
    stage ends.

    Attributes:
        seen: samples of the epoch that the training has used, over all processes; see `count`.
        iteration: batches that the training has used.
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
        """Skip the first samples of an epoch, which the training has used before it was interrupted.

        Args:
            seen: over all processes, as in `seen`.
        """
        self._start = (epoch, seen)

    def drive(self, batches: BatchSampler) -> None:
        """Register the batch sampler, to set and count its batch size in each stage.

        Args:
            batches: of a loader that was built from the dataset's options.
        """
        self._batches = batches
        if self.stages:
            self._gpus = batches.batch_size // self.dataset.opt['batch_size_per_gpu']

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch as BasicSR does, reset the count, and start a stage if it is due."""
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
        """Count a batch that the training has received, as in every process."""
        self.iteration += 1
        self.seen += self._batches.batch_size * self.num_replicas

    def last_epoch(self, epoch: int, total_iter: int) -> int:
        """The epoch of the last iteration, of a training in stages that starts or resumes in `epoch`."""
        iteration, seen = self.iteration, self._start[1] if epoch == self._start[0] else 0
        while (iteration := iteration + self._left(iteration, seen)) < total_iter:
            epoch, seen = epoch + 1, 0
        return epoch

    def _stage_at(self, iteration: int) -> Stage:
        return next(stage for stage in self.stages if iteration < stage.until)

    def _left(self, iteration: int, seen: int) -> int:
        """Remaining batches to the end of the epoch or the stage; 0 if a stage has just ended within the epoch."""
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
        # Not the whole epoch as Python numbers at once, which take ten times the memory.
        return ((epoch, index, *crop) for part in order.split(8192) for index in part.tolist())

    def order(self) -> torch.Tensor:
        """Indices of this process in this epoch, in the order of the batches: (len(self),) int64.

        They depend only on (dataset.seed, epoch), the dataset's shares, `dataset_enlarge_ratio` and the number of
        processes.
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
    """Indices from 0 in random order, with a random part of the last, incomplete round of `length`: (number,) int64."""
    order = torch.randperm(number, generator=generator)
    whole = number // length * length
    if whole == number:
        return order
    part = whole + torch.randperm(length, generator=generator)[: number - whole]
    return torch.cat([torch.arange(whole), part])[order]


class EpochIndex:
    """Maps the indices of an epoch to images.

    The indices 0 to length - 1 are divided among the tasks in the order of the options; each task has as many indices
    as samples. A task's indices map to its images in order, from first to last, repeated as often as possible. If the
    samples are not a multiple of the images, the remaining indices map to a part of the images. Over the epochs, these
    parts go through a random order that depends on the seed, so that every image is used before one is used again.

    An index at or beyond the length is a further draw: index + length maps to the same image as index, or to one of the
    next epoch's part.
    """

    def __init__(self, shares: Sequence[TaskShare], seed: int) -> None:
        self._images = [share.images for share in shares]
        self._samples = [share.samples for share in shares]
        self._ends = np.cumsum(self._samples)
        # A spawn key, because a plain list of numbers would also be the seed of a sample.
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
    """Length of an epoch, and number of epochs, in BasicSR.

    Attributes:
        samples: per epoch, over all processes.
        batch: per iteration, over all processes and GPUs.
        iterations: full batches of an epoch; BasicSR drops the last, smaller one.
        epochs: largest number of epochs that BasicSR runs.
        in_process: GPUs that share the batch of a process.
    """

    samples: int
    batch: int
    iterations: int
    epochs: int
    in_process: int


def plan_epochs(options: Mapping[str, Any], samples: int, processes: int = 1) -> EpochPlan | None:
    """The epochs of a training; None if `num_gpu` or `train.total_iter` is not a valid count.

    BasicSR runs ceil(total_iter / ceil(samples / batch)) + 1 epochs and drops the last, smaller batch of each. With
    several GPUs in one process it counts the epochs as if there were one.

    Args:
        options: of the whole run, with a valid `datasets.train`.
        samples: length of the training set.
        processes: number of processes that share an iteration.
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
