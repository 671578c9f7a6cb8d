"""Crops and batches that change at given iterations, through BasicSR's loader and trainer."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from promptir_basicsr import cli
from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.data.sampler import EpochSampler
from promptir_basicsr.data.stages import Stage, by_stage, stages_of
from promptir_basicsr.models.prompt_model import PromptModel
from tests.models.test_resume import log, options

# isort: split
# BasicSR can be imported once the package has prepared it
from basicsr.data import build_dataloader, build_dataset

STAGES = [{'until': 5}, {'until': 8, 'gt_size': 24, 'batch_size_per_gpu': 3}, {'batch_size_per_gpu': 1}]
PLAIN = {
    'name': 'train',
    'type': 'AllInOneDataset',
    'phase': 'train',
    'gt_size': 16,
    'use_hflip': True,
    'tasks': [
        {
            'type': 'denoise',
            'clean': 'skimage://',
            'files': ['astronaut.png', 'coffee.png'],
            'degrade': {'type': 'gaussian_noise', 'sigma': 25},
            'copies': 7,
        }
    ],
    'batch_size_per_gpu': 2,
    'num_worker_per_gpu': 0,
}


class Loaded:
    """A training set that is read as BasicSR's trainer does."""

    def __init__(self, opt: dict[str, Any], replicas: int = 1, rank: int = 0, gpus: int = 0) -> None:
        self.dataset = build_dataset(opt)
        self.sampler = EpochSampler(self.dataset, replicas, rank)
        self.loader = build_dataloader(self.dataset, opt, num_gpu=gpus, sampler=self.sampler, seed=0)
        if self.loader.num_workers:
            self.loader.multiprocessing_context = 'fork'
        self.sampler.drive(self.loader.batch_sampler)

    def train(self, iterations: int, start: int = 0) -> list[tuple[int, torch.Tensor]]:
        """(epoch, images) of every batch."""
        batches: list[tuple[int, torch.Tensor]] = []
        for epoch in range(start, self.sampler.last_epoch(start, iterations) + 1):
            self.sampler.set_epoch(epoch)
            for batch in self.loader:
                self.sampler.count()
                batches.append((epoch, batch['lq']))
                if self.sampler.iteration == iterations:
                    break
        assert self.sampler.iteration == iterations, 'the last epoch is long enough, and none is too many'
        return batches


def test_stages_of_options() -> None:
    inf = float('inf')
    assert stages_of({**PLAIN, 'stages': STAGES}) == [Stage(0, 5, 16, 2), Stage(5, 8, 24, 3), Stage(8, inf, 16, 1)]
    assert stages_of(PLAIN) == [Stage(0, inf, 16, 2)]
    assert by_stage({**PLAIN, 'stages': STAGES}, 'batch_size_per_gpu') == {
        ('batch_size_per_gpu',): 2,
        ('stages', 1, 'batch_size_per_gpu'): 3,
        ('stages', 2, 'batch_size_per_gpu'): 1,
    }


@pytest.mark.filterwarnings('ignore:This DataLoader will create')
@pytest.mark.parametrize(('workers', 'persistent'), [(0, False), (2, False), (2, True)])
def test_each_stage_has_its_crops_and_batches_and_ends_the_epoch(workers: int, persistent: bool) -> None:
    """An epoch of 14 samples: 7 iterations of 2, of which the first stage has 5; 4 of 3, of which the second has 3."""
    loading = {'num_worker_per_gpu': workers, 'persistent_workers': persistent}
    loaded = Loaded({**PLAIN, 'stages': STAGES, **loading})
    batches = loaded.train(25)
    assert [(epoch, tuple(images.shape)) for epoch, images in batches] == [
        *[(0, (2, 3, 16, 16))] * 5,
        *[(1, (3, 3, 24, 24))] * 3,
        *[(2, (1, 3, 16, 16))] * 14,
        *[(3, (1, 3, 16, 16))] * 3,
    ]
    assert loaded.sampler.seen == 3
    plain = Loaded(PLAIN)  # whose samples are the same in crops of its size
    for epoch, stage in ((0, range(5)), (2, range(8, 22))):
        plain.sampler.set_epoch(epoch)
        expected = torch.cat([batch['lq'] for batch in plain.loader])
        seen = torch.cat([batches[n][1] for n in stage])
        assert torch.equal(seen, expected[: len(seen)])


def test_a_sample_keeps_its_draws_but_for_the_crop() -> None:
    dataset = build_dataset({**PLAIN, 'stages': STAGES})
    assert torch.equal(dataset[3, 5, 16]['lq'], dataset[3, 5]['lq'])
    assert dataset[3, 5, 24]['lq'].shape == (3, 24, 24)
    assert dataset[3, 5, 24]['lq_path'] == dataset[3, 5]['lq_path']


@pytest.mark.parametrize('at', range(1, 25))
def test_a_training_resumes_from_any_iteration(at: int) -> None:
    opt = {**PLAIN, 'stages': STAGES}
    whole, first, second = (Loaded(opt) for _ in range(3))
    expected = whole.train(25)
    before = first.train(at)
    second.sampler.start_at(before[-1][0], first.sampler.seen)
    second.sampler.iteration = at
    found = before + second.train(25, before[-1][0])
    assert [epoch for epoch, _ in found] == [epoch for epoch, _ in expected]
    assert all(torch.equal(one[1], other[1]) for one, other in zip(found, expected, strict=True))
    assert second.sampler.seen == whole.sampler.seen


def test_processes_and_gpus_change_stages_together() -> None:
    opt = {**PLAIN, 'stages': STAGES}
    ranks = [Loaded(opt, 2, rank) for rank in (0, 1)]
    batches = [rank.train(12) for rank in ranks]
    for (epoch, images), (other_epoch, others) in zip(*batches, strict=True):
        assert (epoch, images.shape) == (other_epoch, others.shape)
        assert not torch.equal(images, others)
    assert [epoch for epoch, _ in batches[0]] == [0, 0, 0, 1, 1, 2, 2, 3, 4, 4, 4, 4]
    several = Loaded(opt, gpus=2)
    assert [len(images) for _, images in several.train(10)] == [4] * 5 + [6] * 3 + [2] * 2


@pytest.mark.parametrize(
    ('stages', 'message'),
    [
        (
            [{'until': 5}, {'until': 5}, {}],
            '`until` must increase from stage to stage; only the last stage may omit it.',
        ),
        ([{}, {'until': 5}], '`until` must increase from stage to stage; only the last stage may omit it.'),
        ([{'until': 5}, {'gt_sise': 8}], "unknown option 'gt_sise'. Did you mean 'gt_size'?"),
        ([{'until': 0}, {}], '0 is not a whole number of at least 1.'),
        ([], 'stages'),
        (5, 'stages'),
    ],
)
def test_wrong_stages_are_refused(stages: Any, message: str) -> None:
    with pytest.raises(OptionError) as refused:
        build_dataset({**PLAIN, 'stages': stages})
    assert message in str(refused.value)
    assert str(refused.value).startswith('datasets.train.stages')


def test_stages_belong_to_training() -> None:
    with pytest.raises(OptionError, match=r"unknown option 'stages'"):
        build_dataset({**PLAIN, 'phase': 'val', 'stages': STAGES})


def test_fixed_shares_go_with_one_batch_size() -> None:
    fixed = {**PLAIN, 'sampling': {'fixed_shares': True}}
    with pytest.raises(OptionError, match=r'needs the same batch_size_per_gpu in all stages, not 2, 3, 1\.'):
        build_dataset({**fixed, 'stages': STAGES})
    loaded = Loaded({**fixed, 'stages': [{'until': 3}, {'gt_size': 24}]})
    assert [images.shape[-1] for _, images in loaded.train(5)] == [16] * 3 + [24] * 2


def test_a_crop_that_is_not_a_multiple_is_noted(host_log: pytest.LogCaptureFixture) -> None:
    build_dataset({**PLAIN, 'crop_multiple': 16, 'stages': STAGES})
    assert 'gt_size 24 is not a multiple of crop_multiple 16.' in host_log.text
    assert 'gt_size 16' not in host_log.text


def test_basicsr_trains_to_the_end_in_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """BasicSR counts epochs of the first batch size, 12 samples in batches of 2, and would end too early."""
    stages = [{'until': 4}, {'until': 6, 'gt_size': 24, 'batch_size_per_gpu': 5}, {'batch_size_per_gpu': 12}]
    options(tmp_path, 'PromptIR', datasets__train__stages=stages, train__total_iter=16, logger__print_freq=1)
    monkeypatch.chdir(tmp_path)
    shapes, optimize = [], PromptModel.optimize_parameters

    def step(self: PromptModel, iteration: int) -> None:
        shapes.append(tuple(self.batch.lq.shape[::3]))
        optimize(self, iteration)

    monkeypatch.setattr(PromptModel, 'optimize_parameters', step)
    assert cli.main(['train', '-opt', 'run.yml']) == 0
    assert shapes == [(2, 16)] * 4 + [(5, 24)] * 2 + [(12, 16)] * 10
    said = log(tmp_path)
    assert 'In 3 stages training ends in epoch 11.' in said
    assert 'batches of 2, 5, 12 at once' in said
    assert re.findall(r'Stage .*', said) == [
        'Stage 1 of 3, from iteration 1 to 4: gt_size 16, batch_size_per_gpu 2.',
        'Stage 2 of 3, from iteration 5 to 6: gt_size 24, batch_size_per_gpu 5.',
        'Stage 3 of 3, from iteration 7 on: gt_size 16, batch_size_per_gpu 12.',
    ]
    epochs = re.findall(r'epoch: *(\d+), iter: +\d+, lr', said)
    assert [int(epoch) for epoch in epochs] == [0] * 4 + [1] * 2 + list(range(2, 12))
