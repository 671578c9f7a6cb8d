"""A second crop of each training image: where it comes from, how it is degraded, and that nothing else changes."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.data.allinone_dataset import AllInOneDataset
from promptir_basicsr.data.lmdb.writer import DatabasePlan, DatabaseWriter, make_record
from promptir_basicsr.data.sampler import EpochSampler
from promptir_basicsr.data.sources import FolderSource

# isort: split
# BasicSR can be imported once the package has prepared it
from basicsr.data import build_dataloader, build_dataset

TRAIN = {'name': 'mixed', 'type': 'AllInOneDataset', 'phase': 'train', 'gt_size': 32, 'seed': 7, 'second_crop': True}
DEGRADATIONS: dict[str, Any] = {
    'a range': {'type': 'gaussian_noise', 'sigma': [5, 50]},
    'weather': [{'type': 'haze'}, {'type': 'rain'}, {'type': 'snow'}],
    'a sensor': [{'type': 'defocus_blur'}, {'type': 'low_light'}, {'type': 'jpeg'}],
}


def training(*tasks: Any, **options: Any) -> AllInOneDataset:
    return build_dataset({**TRAIN, 'tasks': list(tasks), **options})


def levels(image: torch.Tensor) -> np.ndarray:
    """(3, H, W) in [0, 1] -> (H, W, 3) grey levels."""
    return np.rint(image.numpy().transpose(1, 2, 0) * 255).astype(np.uint8)


def places(crop: np.ndarray) -> np.ndarray:
    """The crop of an image whose pixels say where they are, turned back: top, left, and whether it was turned."""
    for turns, mirrored in itertools.product(range(4), (False, True)):
        back = np.rot90(crop, -turns)
        back = back[:, ::-1] if mirrored else back
        rows, columns = back[:, 0, 0].astype(int), back[0, :, 1].astype(int)
        if (np.diff(rows) == 1).all() and (np.diff(columns) == 1).all():
            return np.array([rows[0], columns[0], 2 * turns + mirrored])
    raise AssertionError('no crop of the image')


def coordinates(write: Any, side: int = 96) -> dict[str, Any]:
    """A task of one pair whose degraded image is the negative of the clear one."""
    rows, columns = np.mgrid[:side, :side].astype(np.uint8)
    image = np.dstack([rows, columns, np.full_like(rows, 100)])
    write('gt/1.png', image)
    folder = write('lq/1.png', 255 - image).parents[1]
    return {'name': 'derain', 'type': 'derain', 'lq': f'{folder}/lq', 'gt': f'{folder}/gt'}


@pytest.mark.parametrize('spec', DEGRADATIONS.values(), ids=list(DEGRADATIONS))
def test_nothing_else_of_a_sample_changes(spec: Any, denoise: Any, derain: Any) -> None:
    tasks, flips = [{**denoise, 'degrade': spec}, derain], {'use_hflip': True, 'use_rot': True}
    for options in ({}, {'gt_size': 120}, {'crop_multiple': 8, 'gt_size': 40}, flips):
        pairs = zip(training(*tasks, **options), training(*tasks, **options, second_crop=False), strict=True)
        for sample, before in pairs:
            key = sample.pop('lq_key')
            assert sample.keys() == before.keys()
            assert all(torch.equal(sample[name], before[name]) for name in ('lq', 'gt'))
            assert (key.shape, key.dtype, key.is_contiguous()) == (sample['lq'].shape, torch.float32, True)
            assert 0 <= key.min() < key.max() <= 1
            assert options.get('gt_size') == 120 or not torch.equal(key, sample['lq'])  # there is one place for it


def test_both_crops_are_windows_of_one_pair(write: Any) -> None:
    dataset = training(coordinates(write), use_hflip=True, use_rot=True, seed=3)
    found = []
    for index in range(60):
        sample = dataset[index]
        first, second = places(levels(sample['gt'])), places(255 - levels(sample['lq_key']))
        np.testing.assert_array_equal(places(255 - levels(sample['lq'])), first)
        found.append([first, second])
    tops, lefts, turns = np.moveaxis(np.array(found), -1, 0)
    for values in (tops, lefts, turns):  # all over the image, and the one says nothing of the other
        assert np.ptp(values, axis=0).min() > 0.8 * np.ptp(values)
        assert abs(np.corrcoef(values.T)[0, 1]) < 0.4


def test_the_strength_is_the_same_and_the_noise_another(write: Any) -> None:
    grey = write('grey/1.png', np.full((64, 64, 3), 128, np.uint8)).parent
    degrade = {'type': 'gaussian_noise', 'sigma': [2, 30], 'quantize': 'float'}
    dataset = training({'type': 'denoise', 'clean': str(grey), 'degrade': degrade})
    ratios = []
    for index in range(12):
        sample = dataset[index]
        first, second = (sample[name] - sample['gt'] for name in ('lq', 'lq_key'))
        ratios.append((first.std() / second.std()).item())
        assert abs(np.corrcoef(first.flatten(), second.flatten())[0, 1]) < 0.1
    assert max(ratios) < 1.1
    assert min(ratios) > 0.9


def test_a_stage_sets_the_size_of_both(denoise: Any) -> None:
    sample = training(denoise)[0, 1, 24]
    assert sample['lq'].shape == sample['lq_key'].shape == (3, 24, 24)


def test_crops_depend_on_seed_epoch_and_index_alone(denoise: Any, derain: Any) -> None:
    options = {'batch_size_per_gpu': 4, 'num_worker_per_gpu': 0, 'sampling': {'fixed_shares': True}}
    tasks = [{**denoise, 'degrade': DEGRADATIONS['a range']}, derain]
    keys = []
    for workers in (0, 2):
        dataset = training(*tasks, **options)
        opt = {**dataset.opt, 'num_worker_per_gpu': workers}
        loader = build_dataloader(dataset, opt, num_gpu=0, sampler=EpochSampler(dataset, 1, 0), seed=0)
        keys.append(torch.cat([batch['lq_key'] for batch in loader]))
        del loader
    assert len(keys[0]) == 4
    assert torch.equal(*keys)
    assert not torch.equal(training(*tasks)[0, 0]['lq_key'], training(*tasks)[1, 0]['lq_key'])


@pytest.mark.parametrize('storage', ['original', 'raw'])
def test_crops_of_an_lmdb_are_those_of_the_folder(storage: str, write: Any, tmp_path: Path) -> None:
    task = coordinates(write)
    stored = dict(task)
    for key in ('lq', 'gt'):
        source = FolderSource(task[key])
        stored[key] = f'{task[key]}.lmdb'
        plan = DatabasePlan(Path(stored[key]), source, source.names(), storage)
        with DatabaseWriter(plan) as writer:
            for name in writer.missing:
                writer.add(*make_record(plan, name, writer.kinds[name]))
            writer.complete()
    for index in range(3):
        one, other = training(task)[index], training(stored)[index]
        assert all(torch.equal(one[name], other[name]) for name in ('lq', 'gt', 'lq_key'))


def test_it_belongs_to_training(denoise: Any) -> None:
    with pytest.raises(OptionError, match='second_crop'):
        build_dataset({**TRAIN, 'phase': 'val', 'tasks': [denoise]})
    with pytest.raises(OptionError, match=r"second_crop: 'yes' is neither true nor false"):
        training(denoise, second_crop='yes')
