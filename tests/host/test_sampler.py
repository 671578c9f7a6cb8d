"""Training data that depend on seed, epoch and index alone, through BasicSR's loader and real worker processes."""

from collections import Counter

import cv2
import numpy as np
import pytest
import skimage.data
import torch

from promptir_basicsr.host.sampler import EpochSampler

# isort: split
# BasicSR can be imported once the package has prepared it
import basicsr.train
from basicsr.data import build_dataloader, build_dataset
from basicsr.data.data_sampler import EnlargedSampler

BATCH = 4


@pytest.fixture
def options(tmp_path) -> dict:
    """Noise on four photographs, twice an epoch, and three pairs: 11 samples."""
    for number in range(4):
        crop = skimage.data.astronaut()[64 * number : 64 * number + 64, 100:164]
        folders = ['clean', 'lq', 'gt'] if number else ['clean']
        for folder in folders:
            (tmp_path / folder).mkdir(exist_ok=True)
            assert cv2.imwrite(str(tmp_path / folder / f'{number}.png'), crop[..., ::-1])
    noise = {'type': 'denoise', 'clean': 'clean', 'degrade': {'type': 'gaussian_noise', 'sigma': [5, 50]}, 'copies': 2}
    return {
        'name': 'mixed',
        'type': 'AllInOneDataset',
        'phase': 'train',
        'dataroot': str(tmp_path),
        'gt_size': 24,
        'use_hflip': True,
        'use_rot': True,
        'seed': 3,
        'tasks': [noise, {'type': 'derain', 'lq': 'lq', 'gt': 'gt'}],
        'batch_size_per_gpu': BATCH,
        'num_worker_per_gpu': 0,
    }


class Run:
    """A training run that reads its data as `basicsr.train` does."""

    def __init__(self, options, replicas=1, rank=0, ratio=1, spawn=False) -> None:
        self.dataset = build_dataset(options)
        self.sampler = basicsr.train.EnlargedSampler(self.dataset, replicas, rank, ratio)
        self.loader = build_dataloader(self.dataset, options, num_gpu=0, sampler=self.sampler, seed=0)
        if self.loader.num_workers:
            self.loader.multiprocessing_context = 'spawn' if spawn else 'fork'

    def epoch(self, epoch: int) -> list[dict]:
        self.sampler.set_epoch(epoch)
        return list(self.loader)


def same(first: list[dict], second: list[dict]) -> bool:
    """Whether two epochs are equal bit by bit and in order."""

    def equal(a, b) -> bool:
        return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b

    return len(first) == len(second) and all(
        a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a) for a, b in zip(first, second, strict=True)
    )


def drawn(sampler: EpochSampler, epoch: int) -> list[int]:
    sampler.set_epoch(epoch)
    keys = list(sampler)
    assert {key[0] for key in keys} == {epoch}
    return [index for _, index in keys]


class Plain:
    """A dataset of a given length."""

    takes_epoch = True

    def __init__(self, length: int, seed: int = 0) -> None:
        self.length, self.seed = length, seed

    def __len__(self) -> int:
        return self.length


def test_basicsr_trains_with_this_sampler() -> None:
    assert basicsr.train.EnlargedSampler is EpochSampler


@pytest.mark.filterwarnings('ignore:This DataLoader will create')
@pytest.mark.parametrize('persistent', [False, True])
@pytest.mark.parametrize('workers', [1, 3])
def test_workers_do_not_change_a_sample(workers, persistent, options) -> None:
    alone = Run(options)
    loaded = Run({**options, 'num_worker_per_gpu': workers, 'persistent_workers': persistent})
    first, second = alone.epoch(0), alone.epoch(1)
    assert len(first) == 11 // BATCH
    assert not same(first, second)
    assert same(loaded.epoch(0), first)
    assert same(loaded.epoch(1), second)
    assert same(loaded.epoch(0), first)


def test_spawned_workers_do_not_change_a_sample(options) -> None:
    spawned = Run({**options, 'num_worker_per_gpu': 1}, spawn=True)
    assert same(spawned.epoch(2), Run(options).epoch(2))


def test_a_resumed_run_sees_the_epochs_that_an_unbroken_one_sees(options) -> None:
    unbroken = Run(options)
    epochs = [unbroken.epoch(epoch) for epoch in range(3)]
    np.random.seed(1)
    torch.manual_seed(1)
    assert same(Run(options).epoch(2), epochs[2])


def test_every_epoch_has_other_crops_noise_and_order(options) -> None:
    options = {**options, 'batch_size_per_gpu': 1}
    run = Run(options)
    epochs = [run.epoch(epoch) for epoch in range(3)]
    orders = [[batch['lq_path'][0] for batch in epoch] for epoch in epochs]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    crops = {batch['gt'].numpy().tobytes() for epoch in epochs for batch in epoch}
    inputs = {batch['lq'].numpy().tobytes() for epoch in epochs for batch in epoch}
    assert len(crops) == len(inputs) == 3 * 11


def test_another_seed_gives_another_order_and_other_samples(options) -> None:
    first, other = Run({**options, 'batch_size_per_gpu': 1}), Run({**options, 'batch_size_per_gpu': 1, 'seed': 4})
    assert drawn(first.sampler, 0) != drawn(other.sampler, 0)
    crops = [{batch['lq'].numpy().tobytes() for batch in run.epoch(0)} for run in (first, other)]
    assert not crops[0] & crops[1]


def test_ranks_share_the_epoch_without_overlap(options) -> None:
    options = {**options, 'batch_size_per_gpu': 1}
    whole = Run(options).epoch(5)
    ranks = [Run(options, replicas=2, rank=rank).epoch(5) for rank in (0, 1)]
    assert len(ranks[0]) == len(ranks[1]) == 6  # 11 samples and one more draw, so that both have as many
    seen = Counter(batch['lq'].numpy().tobytes() for rank in ranks for batch in rank)
    assert max(seen.values()) == 1
    alone = {batch['lq'].numpy().tobytes() for batch in whole}
    assert alone <= seen.keys()


@pytest.mark.parametrize('length', [1, 7, 12, 1000])
@pytest.mark.parametrize('replicas', [1, 2, 3, 8])
def test_ranks_partition_the_epoch(length, replicas) -> None:
    ranks = [drawn(EpochSampler(Plain(length), replicas, rank), 4) for rank in range(replicas)]
    assert len({len(rank) for rank in ranks}) == 1
    everything = [index for rank in ranks for index in rank]
    assert len(set(everything)) == len(everything)
    assert set(range(length)) <= set(everything)


def test_an_enlarged_epoch_draws_the_same_images_differently(options) -> None:
    run = Run({**options, 'batch_size_per_gpu': 1}, ratio=3)
    epoch = run.epoch(0)
    images = Counter((batch['task'][0], batch['name'][0]) for batch in epoch)
    assert images == {('denoise', str(n)): 6 for n in range(4)} | {('derain', str(n)): 3 for n in range(1, 4)}
    assert len({batch['lq'].numpy().tobytes() for batch in epoch}) == 33


@pytest.mark.parametrize('ratio', [0.25, 0.5, 1.5, 2.25])
def test_a_fraction_of_the_epoch_takes_all_images_in_turn(ratio) -> None:
    """BasicSR takes the first ones, which would leave out or favour the same tasks in every epoch."""
    sampler = EpochSampler(Plain(100), 1, 0, ratio)
    counts = Counter()
    for epoch in range(80):
        indices = drawn(sampler, epoch)
        assert len(set(indices)) == len(indices) == len(sampler) == 100 * ratio
        images = Counter(index % 100 for index in indices)
        assert {images[image] for image in range(100)} == {int(ratio), int(ratio) + 1}
        counts += images
    assert np.mean([counts[image] for image in range(50)]) == pytest.approx(80 * ratio, abs=3)
    assert min(counts[image] for image in range(100)) > 80 * int(ratio)


def test_the_order_is_a_shuffle() -> None:
    sampler = EpochSampler(Plain(2000), 1, 0)
    orders = np.array([drawn(sampler, epoch) for epoch in range(5)])
    correlation = np.corrcoef(np.vstack([orders, np.arange(2000)])) - np.eye(6)
    assert np.abs(correlation).max() < 0.1


def test_another_dataset_is_sampled_as_by_basicsr() -> None:
    for epoch in (0, 3):
        ours, theirs = (kind(range(10), 2, 1, 1.5) for kind in (EpochSampler, EnlargedSampler))
        ours.set_epoch(epoch)
        theirs.set_epoch(epoch)
        assert list(ours) == list(theirs)
