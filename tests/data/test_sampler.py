"""Training data that depend on seed, epoch and index alone, through BasicSR's loader and real worker processes."""

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
import torch

from promptir_basicsr import cli
from promptir_basicsr.data.sampler import EpochIndex, EpochSampler
from promptir_basicsr.data.sampling import TaskShare, apportion
from promptir_basicsr.models.prompt_model import PromptModel

# isort: split
# BasicSR can be imported once the package has prepared it
import basicsr.train
from basicsr.data import build_dataloader, build_dataset
from basicsr.data.data_sampler import EnlargedSampler
from basicsr.utils import logger as host_logger

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


# What runs of the first version have seen


def digest(numbers: np.ndarray) -> str:
    return hashlib.sha256(numbers.tobytes()).hexdigest()[:16]


@pytest.mark.parametrize(
    ('length', 'replicas', 'rank', 'ratio', 'seed', 'epoch', 'expected'),
    [
        (11, 1, 0, 1, 3, 0, '2760dfa31d9bca53'),
        (11, 1, 0, 1, 3, 1, 'ae5c8ed6ee143ce3'),
        (11, 2, 1, 1, 3, 5, '4349f6723f640698'),
        (100, 1, 0, 0.25, 0, 2, '2f7cce0d31617e58'),
        (100, 3, 2, 2.25, 7, 4, '7d85e7867ccb4b21'),
        (142_431, 1, 0, 1, 0, 0, '723367c226eaff99'),
        (142_431, 4, 3, 1, 10, 119, '130b319a6bdef0b9'),
    ],
)
def test_the_order_is_that_of_the_first_version(length, replicas, rank, ratio, seed, epoch, expected) -> None:
    indices = drawn(EpochSampler(Plain(length, seed), replicas, rank, ratio), epoch)
    assert digest(np.array(indices, '<i8')) == expected


def test_index_and_crop_are_those_of_the_first_version(options) -> None:
    """Indices stand for the images of a task after one another, once a copy; crops and flips follow the index."""
    samples = [build_dataset(options)[2, index] for index in range(25)]
    epoch = 'n0 n1 n2 n3 n0 n1 n2 n3 r1 r2 r3'.split()
    assert [sample['task'][2] + sample['name'] for sample in samples] == [*epoch, *epoch, *epoch[:3]]
    crops = np.stack([np.rint(sample['gt'].numpy() * 255).astype(np.uint8) for sample in samples])
    assert digest(crops) == 'c48003d9b7be99c6'


# Fixed shares of every batch


class Mixed(Plain):
    """A dataset whose tasks have as many images and samples in a batch as given."""

    def __init__(self, images, in_batch, length, seed=0) -> None:
        super().__init__(length, seed)
        samples = apportion(length, in_batch)
        self.shares = [TaskShare('', *numbers, 0, 0, n) for *numbers, n in zip(images, samples, in_batch, strict=True)]
        self.index = EpochIndex(self.shares, seed)

    def task(self, index: int) -> int:
        return self.index.locate(0, index)[0]


@pytest.mark.parametrize('ratio', [1, 0.3, 2, 2.6])
@pytest.mark.parametrize('replicas', [1, 2, 3])
@pytest.mark.parametrize(
    ('images', 'in_batch', 'length'),
    [((5, 7, 100), (1, 2, 5), 160), ((5, 7, 100), (3, 3, 1), 167), ((4,), (3,), 40), ((30, 3), (1, 1), 37)],
)
def test_every_batch_on_every_process_has_the_shares(images, in_batch, length, replicas, ratio) -> None:
    dataset, batch = Mixed(images, in_batch, length), sum(in_batch)
    orders = []
    for epoch in (0, 1):
        samplers = [EpochSampler(dataset, replicas, rank, ratio) for rank in range(replicas)]
        ranks = [drawn(sampler, epoch) for sampler in samplers]
        orders.append(ranks)
        # As many batches as BasicSR makes of its own sampler's epoch.
        batches = len(EnlargedSampler(dataset, replicas, 0, ratio)) // batch
        assert {len(rank) for rank in ranks} == {len(sampler) for sampler in samplers} == {batches * batch}
        for rank in ranks:
            for start in range(0, len(rank), batch):
                tasks = Counter(dataset.task(index) for index in rank[start : start + batch])
                assert [tasks[task] for task in range(len(in_batch))] == list(in_batch)
        everything = [index for rank in ranks for index in rank]
        assert len(set(everything)) == len(everything), 'no index twice'
        for task, share in enumerate(dataset.shares):
            # Whole rounds first; of the last one as many as are left, wherever they lie in it.
            rounds = Counter(index // length for index in everything if dataset.task(index) == task)
            total = batches * replicas * share.in_batch
            assert [rounds[n] for n in sorted(rounds)] == [
                min(share.samples, total - start) for start in range(0, total, share.samples)
            ]
    assert orders[0] != orders[1] or not batches


def test_fixed_shares_draw_every_image_alike() -> None:
    """An epoch that is a multiple of the batch loses nothing."""
    dataset = Mixed((5, 7, 100), (1, 2, 5), 160)
    for epoch in range(3):
        indices = drawn(EpochSampler(dataset, 2, 0), epoch) + drawn(EpochSampler(dataset, 2, 1), epoch)
        counts = Counter(dataset.index.locate(epoch, index) for index in indices)
        for task, (images, samples) in enumerate([(5, 20), (7, 40), (100, 100)]):
            drawn_as = {counts[task, image] for image in range(images)}
            assert drawn_as <= {samples // images, -(-samples // images)}
            assert sum(counts[task, image] for image in range(images)) == samples


def test_a_fraction_with_fixed_shares_takes_all_images_in_turn() -> None:
    dataset, counts = Mixed((20, 60), (2, 6), 80), Counter()
    for epoch in range(60):
        counts.update(drawn(EpochSampler(dataset, 1, 0, 0.5), epoch))
    assert sorted(counts) == list(range(80))
    assert sum(counts.values()) == 60 * 40
    assert max(counts.values()) < 45
    assert min(counts.values()) > 15


def test_tasks_are_in_random_order_within_a_batch() -> None:
    dataset = Mixed((20, 60), (1, 3), 4000)
    tasks = np.array([dataset.task(index) for index in drawn(EpochSampler(dataset, 1, 0), 0)]).reshape(-1, 4)
    places = Counter(np.argmin(tasks, axis=1).tolist())
    assert all(200 < places[place] < 300 for place in range(4))


def test_the_order_is_a_function_of_seed_epoch_and_options() -> None:
    """Nothing that was drawn before plays a part, so that a later batch can be found without the earlier ones."""

    def order(seed=1, epoch=4, replicas=2, in_batch=(1, 3)) -> torch.Tensor:
        sampler = EpochSampler(Mixed((20, 60), in_batch, 400, seed), replicas, 1)
        sampler.set_epoch(epoch)
        return sampler.order()

    expected = order()
    torch.manual_seed(5)
    np.random.seed(5)
    used = EpochSampler(Mixed((20, 60), (1, 3), 400, 1), 2, 1)
    list(used)
    assert torch.equal(torch.tensor(drawn(used, 4)), expected)
    assert torch.equal(order(), expected)
    for other in (order(seed=2), order(epoch=5), order(in_batch=(2, 2)), order(replicas=3)):
        assert not torch.equal(other, expected)


@pytest.mark.parametrize('in_batch', [(), (4, 4, 3, 5, 16)])
def test_an_order_of_the_three_degradation_protocol_is_made_at_once(in_batch) -> None:
    images = (5144, 5144, 5144, 200, 72_135)
    dataset = Mixed(images, in_batch, 142_431) if in_batch else Plain(142_431)
    sampler, seconds = EpochSampler(dataset, 1, 0), []
    for epoch in range(5):
        sampler.set_epoch(epoch)
        start = time.perf_counter()
        assert len(sampler.order()) == (142_431 if not in_batch else 142_431 // 32 * 32)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.1


@pytest.fixture
def fixed(options) -> dict:
    """One noisy image and three pairs in each batch of 4; 22 samples an epoch."""
    tasks = [{**task, 'weight': weight} for task, weight in zip(options['tasks'], (1, 3), strict=True)]
    return {**options, 'tasks': tasks, 'sampling': {'fixed_shares': True, 'epoch_size': 22}}


@pytest.mark.parametrize('workers', [0, 2])
def test_the_loader_gives_batches_of_fixed_shares(workers, fixed) -> None:
    alone = Run(fixed)
    loaded = Run({**fixed, 'num_worker_per_gpu': workers})
    assert len(loaded.dataset) == 22
    assert len(loaded.loader) == 22 // BATCH
    seen = []
    for epoch in (0, 1):
        batches = loaded.epoch(epoch)
        assert [Counter(batch['task']) for batch in batches] == [{'denoise': 1, 'derain': 3}] * 5
        assert same(batches, alone.epoch(epoch))
        seen += [image.numpy().tobytes() for batch in batches for image in batch['lq']]
    assert len(set(seen)) == len(seen) == 40


def test_ranks_share_fixed_batches_without_overlap(fixed) -> None:
    ranks = [Run(fixed, replicas=2, rank=rank).epoch(3) for rank in (0, 1)]
    assert [len(rank) for rank in ranks] == [2, 2]
    assert all(Counter(batch['task']) == {'denoise': 1, 'derain': 3} for rank in ranks for batch in rank)
    images = [image.numpy().tobytes() for rank in ranks for batch in rank for image in batch['lq']]
    assert len(set(images)) == 16


def test_each_gpu_of_one_process_gets_the_shares(fixed) -> None:
    """With two GPUs in one process BasicSR loads twice the batch; DataParallel hands out the halves."""
    run = Run(fixed)
    run.loader = build_dataloader(run.dataset, fixed, num_gpu=2, sampler=run.sampler, seed=0)
    batches = run.epoch(0)
    assert [len(batch['task']) for batch in batches] == [2 * BATCH] * 2
    halves = [batch['task'][start : start + BATCH] for batch in batches for start in (0, BATCH)]
    assert [Counter(half) for half in halves] == [{'denoise': 1, 'derain': 3}] * 4


TRAINING = """
name: tiny
model_type: PromptModel
num_gpu: 0
manual_seed: 0
datasets:
  train:
    name: tiny_train
    type: AllInOneDataset
    gt_size: 16
    sampling: {fixed_shares: true, epoch_size: 10}
    tasks:
      - {type: derain, clean: 'skimage://', files: [astronaut.png], degrade: {type: rain}, weight: 1}
      - {type: denoise, clean: 'skimage://', files: [coffee.png, rocket.jpg], weight: 2,
         degrade: {type: gaussian_noise, sigma: 25}}
    batch_size_per_gpu: 5
    num_worker_per_gpu: 0
network_g: {type: PromptIR, dim: 8, num_blocks: [1, 1, 1, 1], num_refinement_blocks: 1, heads: [1, 1, 1, 1],
            prompt_sizes: [4, 4, 4]}
path: {}
train:
  total_iter: 2
  optim_g: {type: AdamW, lr: 1e-3}
  scheduler: {type: FixedLR}
  pixel_opt: {type: L1Loss}
logger: {print_freq: 1, save_checkpoint_freq: 2, use_tb_logger: false}
"""


@pytest.fixture
def own_logger() -> Iterator[None]:
    """BasicSR sets its logger up once a process; a run writes a log of its own."""

    def reset() -> None:
        host_logger.initialized_logger.clear()
        logger = logging.getLogger('basicsr')
        for handler in list(logger.handlers):
            handler.close()
            logger.removeHandler(handler)

    reset()
    yield
    reset()


def test_a_training_sees_the_shares(tmp_path, monkeypatch, own_logger) -> None:
    monkeypatch.chdir(tmp_path)
    Path('tiny.yml').write_text(TRAINING, encoding='utf-8')
    batches, feed_data = [], PromptModel.feed_data

    def feed(self, data) -> None:
        batches.append(Counter(data['task']))
        feed_data(self, data)

    monkeypatch.setattr(PromptModel, 'feed_data', feed)
    assert cli.main(['train', '-opt', 'tiny.yml']) == 0
    assert batches[1:] == [{'derain': 2, 'denoise': 3}] * 2  # behind the rehearsal
    assert Path('experiments/tiny/models/net_g_latest.pth').exists()
    (log,) = Path('experiments/tiny').glob('*.log')
    said = log.read_text(encoding='utf-8')
    assert "Dataset 'tiny_train': 2 tasks, 10 samples per epoch, 5 in every batch as shown" in said
    assert 'Number of train images: 10' in said


def test_an_epoch_size_below_the_batch_size_is_reported(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Path('tiny.yml').write_text(TRAINING.replace('epoch_size: 10', 'epoch_size: 4'), encoding='utf-8')
    assert cli.main(['train', '-opt', 'tiny.yml']) == 2
    said = capsys.readouterr().err
    assert 'an epoch has 4 samples, 0 full batches of 5; training would end after 0 of 2 iterations.' in said
    assert 'Raise `sampling.epoch_size` or `dataset_enlarge_ratio`' in said


@pytest.mark.parametrize('kind', [Plain, Mixed])
@pytest.mark.parametrize('replicas', [1, 2])
def test_a_started_epoch_continues_after_the_samples_already_seen(kind, replicas) -> None:
    """In that epoch alone; the others are whole."""
    dataset = Plain(40) if kind is Plain else Mixed((20, 60), (1, 3), 80)
    for rank in range(replicas):
        whole, begun = (EpochSampler(dataset, replicas, rank) for _ in range(2))
        begun.start_at(3, 8 * replicas)
        for epoch in (2, 3, 4):
            expected = drawn(whole, epoch)
            assert drawn(begun, epoch) == (expected[8:] if epoch == 3 else expected)
            assert begun.seen == (8 * replicas if epoch == 3 else 0)
    begun.start_at(3, begun.total_size)
    begun.set_epoch(3)
    assert list(begun) == []


def test_a_dataset_without_epochs_resumes_as_well() -> None:
    dataset = list(range(10))
    whole, begun = (EpochSampler(dataset, 1, 0) for _ in range(2))
    begun.start_at(0, 4)
    assert list(begun) == list(whole)[4:]
