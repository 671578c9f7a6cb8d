"""Samples of the dataset, built and loaded by BasicSR, from real files."""

import copy
import hashlib
import itertools
import logging
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from promptir_basicsr.core.errors import ImageError, OptionError
from promptir_basicsr.data.allinone_dataset import AllInOneDataset, TrainingGenerator, stable_seed, unique_names
from promptir_basicsr.data.sampler import EpochSampler
from promptir_basicsr.degradations.spec import Degrade

# isort: split
# BasicSR can be imported once the package has prepared it
from basicsr.data import build_dataloader, build_dataset

TRAIN = {'name': 'mixed', 'type': 'AllInOneDataset', 'phase': 'train', 'gt_size': 32, 'seed': 7}
VAL = {'name': 'tests', 'type': 'AllInOneDataset', 'phase': 'val', 'seed': 7}


def training(*tasks, **options) -> AllInOneDataset:
    return build_dataset({**TRAIN, 'tasks': list(tasks), **options})


def validation(*tasks, **options) -> AllInOneDataset:
    return build_dataset({**VAL, 'tasks': list(tasks), **options})


def levels(image: torch.Tensor) -> np.ndarray:
    """(3, H, W) in [0, 1] -> (H, W, 3) grey levels; fails where the image holds anything else than k / 255."""
    scaled = image.numpy().transpose(1, 2, 0) * 255
    rounded = np.rint(scaled)
    np.testing.assert_allclose(scaled, rounded, atol=1e-4)
    return rounded.astype(np.uint8)


def coordinates(height: int, width: int) -> np.ndarray:
    """An image whose pixels say where they are: (row, column, 100)."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    return np.dstack([rows, columns, np.full_like(rows, 100)])


def pair_task(write, image: np.ndarray, name: str = 'one', **options) -> dict:
    """A task of one pair, the degraded image being the negative of the clear one."""
    write(f'{name}/gt/1.png', image)
    folder = write(f'{name}/lq/1.png', 255 - image).parents[1]
    return {'name': name, 'type': 'derain', 'lq': f'{folder}/lq', 'gt': f'{folder}/gt', **options}


EIGHT = list(itertools.product(range(4), (False, True)))
"""The symmetries of a square: quarter turns counter-clockwise, after a horizontal flip or not."""


def symmetry(image: np.ndarray, of: np.ndarray) -> tuple[int, bool]:
    """The one of the eight that makes `image` of the other one."""
    (found,) = [
        (turns, mirrored)
        for turns, mirrored in EIGHT
        if np.array_equal(image, np.rot90(of[:, ::-1] if mirrored else of, turns))
    ]
    return found


# What a sample is


def test_a_training_sample(denoise, derain) -> None:
    dataset = training(denoise, derain, use_hflip=True, use_rot=True)
    assert len(dataset) == 5
    for sample in dataset:
        assert list(sample) == ['lq', 'gt', 'lq_path', 'gt_path', 'task', 'degradation', 'name']
        for image in (sample['lq'], sample['gt']):
            assert (image.shape, image.dtype) == ((3, 32, 32), torch.float32)
            assert image.is_contiguous()
            assert 0 <= image.min() < image.max() <= 1
    samples = [(s['task'], s['degradation'], s['name']) for s in dataset]
    assert samples == [
        ('denoise25', 0, '00001'),
        ('denoise25', 0, '00002'),
        ('derain', 1, 'rain-1'),
        ('derain', 1, 'rain-2'),
        ('derain', 1, 'rain-3'),
    ]


def test_a_validation_sample_is_the_whole_image(derain, denoise, photographs) -> None:
    dataset = validation(derain, denoise)
    for photograph, sample in zip(photographs, itertools.islice(dataset, 3), strict=True):
        np.testing.assert_array_equal(levels(sample['gt']), photograph)
        np.testing.assert_array_equal(levels(sample['lq']), 255 - photograph)
    first = dataset[0]
    assert first['lq_path'] == f'{derain["root"]}/rainy/rain-1.png'
    assert first['gt_path'] == f'{derain["root"]}/gt/norain-1.png'
    assert dataset[-1]['lq_path'] == dataset[-1]['gt_path'] == f'{denoise["clean"]}/00002.bmp'


def test_batches_of_basicsr_carry_tasks_and_labels(denoise, derain) -> None:
    options = {**TRAIN, 'tasks': [denoise, derain], 'batch_size_per_gpu': 5, 'num_worker_per_gpu': 0}
    dataset = build_dataset(options)
    (batch,) = build_dataloader(dataset, options, num_gpu=0, sampler=EpochSampler(dataset, 1, 0), seed=0)
    assert batch['lq'].shape == batch['gt'].shape == (5, 3, 32, 32)
    assert Counter(batch['task']) == {'derain': 3, 'denoise25': 2}
    assert torch.equal(batch['degradation'], torch.tensor([task == 'derain' for task in batch['task']]).long())


@pytest.mark.parametrize(('height', 'width', 'expected'), [(1, 1, (1, 1)), (7, 300, (7, 288)), (300, 7, (288, 7))])
def test_tiny_and_thin_images_are_validated(height, width, expected, denoise, write) -> None:
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    for name in ('clean', 'thin/lq', 'thin/gt'):
        folder = write(f'{name}/1.png', image).parent
    options = {**VAL, 'crop_multiple': 16}
    noisy = {**denoise, 'clean': str(folder.parents[1] / 'clean')}
    pair = {'type': 'derain', 'lq': str(folder.parent / 'lq'), 'gt': str(folder)}
    dataset = build_dataset({**options, 'tasks': [noisy, pair]})
    batches = list(build_dataloader(dataset, options))
    assert [tuple(batch['lq'].shape) for batch in batches] == [(1, 3, *expected)] * 2
    assert torch.equal(batches[1]['lq'], batches[1]['gt'])


@pytest.mark.parametrize('suffix', ['png', 'jpg', 'bmp'])
def test_clear_images_lose_their_border_before_anything_else(write, suffix) -> None:
    """As in SOTS indoor, whose hazy images are 620 x 460 and whose clear ones are 640 x 480."""
    clear = cv2.imread(str(write(f'gt/1400.{suffix}', coordinates(60, 80))))[..., ::-1]
    folder = write('hazy/1400_1.png', 255 - clear[10:-10, 10:-10]).parents[1]
    task = {'type': 'dehaze', 'lq': f'{folder}/hazy', 'gt': f'{folder}/gt', 'pairing': 'reside_sots'}
    sample = validation({**task, 'crop_border_gt': 10})[0]
    np.testing.assert_array_equal(levels(sample['gt']), clear[10:-10, 10:-10])
    np.testing.assert_array_equal(levels(sample['lq']), 255 - clear[10:-10, 10:-10])
    (cut,) = validation({**task, 'crop_border_gt': 10}, crop_multiple=16)
    np.testing.assert_array_equal(levels(cut['gt']), clear[14:-14, 16:-16])
    for crop in training({**task, 'crop_border_gt': 10, 'copies': 20}, use_hflip=True, use_rot=True):
        np.testing.assert_array_equal(levels(crop['lq']), 255 - levels(crop['gt']))
    for border, size in ((0, '80x60'), (9, '62x42'), (40, '0x0')):
        with pytest.raises(ImageError, match=rf'differ in size \(60x40 and {size}\).* or set `crop_border_gt`'):
            validation({**task, 'crop_border_gt': border})[0]


def test_16_bit_pairs_keep_their_depth(write) -> None:
    deep = np.arange(32 * 32 * 3, dtype=np.uint16).reshape(32, 32, 3) * 21
    write('gt/1.png', deep)
    folder = write('lq/1.png', (deep >> 8).astype(np.uint8)).parents[1]
    sample = validation({'type': 'lowlight', 'lq': f'{folder}/lq', 'gt': f'{folder}/gt'})[0]
    np.testing.assert_array_equal(np.rint(sample['gt'].numpy().transpose(1, 2, 0) * 65535), deep)
    assert abs(sample['gt'] - sample['lq']).max() < 1 / 128


# Grey images


@pytest.mark.parametrize('kind', [np.uint8, np.uint16])
def test_colours_become_the_grey_of_opencv_in_the_depth_of_the_file(kind, write) -> None:
    image = np.random.default_rng(0).integers(0, np.iinfo(kind).max, (32, 40, 3), kind, endpoint=True)
    write('gt/1.png', image)
    folder = write('lq/1.png', image // 2).parents[1]
    sample = validation({'type': 'lowlight', 'lq': f'{folder}/lq', 'gt': f'{folder}/gt', 'channels': 1})[0]
    assert sample['bits'] == 8 * np.dtype(kind).itemsize
    for key, expected in (('gt', image), ('lq', image // 2)):
        assert sample[key].shape == (1, 32, 40)
        values = np.rint(sample[key][0].numpy() * np.float64(np.iinfo(kind).max))
        np.testing.assert_array_equal(values, cv2.cvtColor(expected, cv2.COLOR_RGB2GRAY))


@pytest.mark.parametrize('kind', [np.uint8, np.uint16])
@pytest.mark.parametrize('extension', ['png', 'tif', 'bmp', 'jpg'])
def test_the_values_of_a_grey_file_come_through(kind, extension, tmp_path) -> None:
    if kind == np.uint16 and extension in ('bmp', 'jpg'):
        pytest.skip('holds 8 bits')
    (tmp_path / 'clean').mkdir()
    path = str(tmp_path / 'clean' / f'1.{extension}')
    image = np.random.default_rng(0).integers(0, np.iinfo(kind).max, (20, 30), kind, endpoint=True)
    assert cv2.imwrite(path, image)
    stored = cv2.imread(path, cv2.IMREAD_UNCHANGED)
    degrade = {'type': 'gaussian_noise', 'sigma': 25}
    sample = validation({'type': 'denoise', 'clean': str(tmp_path / 'clean'), 'degrade': degrade, 'channels': 1})[0]
    np.testing.assert_array_equal(np.rint(sample['gt'][0].numpy() * np.float64(np.iinfo(kind).max)), stored)


def test_noise_is_drawn_on_the_grey_image(denoise) -> None:
    grey = {**denoise, 'channels': 1}
    sample = validation(grey)[0]
    clear = sample['gt'].numpy().transpose(1, 2, 0)
    rng = np.random.default_rng(stable_seed(VAL['seed'], '00001', Degrade(denoise['degrade']).key))
    np.testing.assert_array_equal(sample['lq'].numpy().transpose(1, 2, 0), Degrade(denoise['degrade'])(clear, rng))

    options = {'use_hflip': True, 'use_rot': True, 'gt_size': 24}
    colours = training(denoise, **options)
    for one, other in zip(training(grey, **options), colours, strict=True):  # the same crops and flips
        assert one['lq'].shape == one['gt'].shape == (1, 24, 24)
        expected = cv2.cvtColor(levels(other['gt']), cv2.COLOR_RGB2GRAY)
        np.testing.assert_array_equal(levels(one['gt'])[..., 0], expected)
        assert 15 < (one['lq'] - one['gt']).std() * 255 < 30


def test_the_log_reports_that_images_are_grey(denoise, log) -> None:
    training({**denoise, 'channels': 1})
    assert any("Dataset 'mixed': 1 tasks of grey images, 2 samples" in record.getMessage() for record in log)


# Crops, flips and rotations


def test_lq_and_gt_stay_aligned(derain) -> None:
    dataset = training({**derain, 'copies': 20}, use_hflip=True, use_rot=True)
    for sample in dataset:
        np.testing.assert_array_equal(levels(sample['lq']), 255 - levels(sample['gt']))


@pytest.mark.parametrize(
    ('options', 'expected'),
    [
        ({}, [(0, False)]),
        ({'augment_identity': False}, [(0, False)]),
        ({'use_hflip': True}, [(0, False), (0, True)]),
        ({'use_hflip': True, 'augment_identity': False}, [(0, True)]),
        ({'use_rot': True}, [(0, False), (2, True), (1, False), (3, True)]),
        ({'use_hflip': True, 'use_rot': True}, EIGHT),
        ({'use_hflip': True, 'use_rot': True, 'augment_identity': False}, [one for one in EIGHT if one != (0, False)]),
    ],
    ids=str,
)
def test_flips_and_rotations_are_equally_frequent(options, expected, write, photographs) -> None:
    image = photographs[0][:16, :16]
    dataset = training(pair_task(write, image, copies=240), gt_size=16, **options)
    counts = Counter(symmetry(levels(sample['gt']), image) for sample in dataset)
    assert counts.keys() == set(expected)
    assert min(counts.values()) > 0.5 * 240 / len(expected)


def test_noise_is_added_after_flips_and_rotations(denoise, write, photographs) -> None:
    """The noise field itself is not turned: subtracting the augmented clean crop leaves what the generator drew."""
    folder = write('flat/1.png', np.full((16, 16, 3), 128, np.uint8)).parent
    turned = training({**denoise, 'clean': str(folder)}, gt_size=16, use_hflip=True, use_rot=True, seed=0)[0]
    rng = TrainingGenerator([0, 0, 0])
    rng.integers(1), rng.integers(1), rng.integers(8)
    expected = np.floor(np.clip(128 + 25 * rng.standard_normal((16, 16, 3), np.float32), 0, 255))
    np.testing.assert_array_equal(levels(turned['lq']), expected)


def test_every_place_is_cropped_equally_often(write) -> None:
    dataset = training(pair_task(write, coordinates(20, 18), copies=300), gt_size=16)
    places = Counter()
    for sample in dataset:
        crop = levels(sample['gt'])
        row, column = crop[0, 0, :2]
        np.testing.assert_array_equal(crop, coordinates(20, 18)[row : row + 16, column : column + 16])
        places[int(row), int(column)] += 1
    assert places.keys() == set(itertools.product(range(5), range(3)))
    assert min(places.values()) >= 8


def test_images_are_cut_at_the_centre_to_multiples(write) -> None:
    task = pair_task(write, coordinates(37, 55))
    expected = coordinates(37, 55)[2:34, 3:51]
    sample = validation(task, crop_multiple=16)[0]
    np.testing.assert_array_equal(levels(sample['gt']), expected)
    np.testing.assert_array_equal(levels(sample['lq']), 255 - expected)
    assert validation(task)[0]['gt'].shape == (3, 37, 55)
    crops = [levels(s['gt'])[..., :2] for s in training({**task, 'copies': 200}, crop_multiple=16, gt_size=16)]
    assert (np.min(crops, axis=(0, 1, 2)) == (2, 3)).all()
    assert (np.max(crops, axis=(0, 1, 2)) == (33, 50)).all()


@pytest.mark.parametrize(('height', 'width'), [(10, 20), (20, 10), (5, 3), (1, 1), (1, 16), (2, 40)])
def test_images_smaller_than_the_crop_are_reflected(height, width, write) -> None:
    def place(position: int, side: int) -> int:
        """Where a position comes from: 0 1 2 3 2 1 0 1 ... for a side of 4."""
        period = max(1, 2 * (side - 1))
        return min(position % period, period - position % period) if side > 1 else 0

    image = coordinates(height, width)
    crop = levels(training(pair_task(write, image), gt_size=16)[0]['gt'])
    top, left = (int(crop[0, 0, axis]) if side > 16 else 0 for axis, side in enumerate((height, width)))
    expected = [[image[place(top + y, height), place(left + x, width)] for x in range(16)] for y in range(16)]
    np.testing.assert_array_equal(crop, expected)


def test_reflection_is_reported_once_per_task(write, log) -> None:
    small = [pair_task(write, coordinates(10, 12), name, copies=5) for name in ('a', 'b')]
    list(training(*small, pair_task(write, coordinates(16, 16), 'c'), gt_size=16))
    warnings = [record.getMessage() for record in log if record.levelno == logging.WARNING]
    assert len(warnings) == 2
    assert warnings[0].startswith("task 'a': 1.png is 12x10, smaller than the 16 pixel crop;")
    assert warnings[1].startswith("task 'b': ")


def test_reflection_is_reported_once_for_all_workers_and_epochs(write, tmp_path) -> None:
    dataset = training(pair_task(write, coordinates(10, 12), copies=8), gt_size=16)
    handler = logging.FileHandler(tmp_path / 'log')
    handler.setLevel(logging.WARNING)
    logging.getLogger('basicsr').addHandler(handler)
    for workers in (1, 2, 0):
        context = 'fork' if workers else None
        loader = torch.utils.data.DataLoader(dataset, 2, num_workers=workers, multiprocessing_context=context)
        assert len(list(loader)) == 4
    logging.getLogger('basicsr').removeHandler(handler)
    handler.close()
    assert len((tmp_path / 'log').read_text().splitlines()) == 1


# Copies and shares of the epoch


def test_every_image_is_drawn_as_often_as_its_copies(denoise, derain) -> None:
    noise = [{**denoise, 'name': f's{sigma}', 'copies': 3} for sigma in (15, 25, 50)]
    options = {**TRAIN, 'tasks': [*noise, {**derain, 'copies': 5}], 'batch_size_per_gpu': 3, 'num_worker_per_gpu': 0}
    dataset = build_dataset(options)
    assert len(dataset) == 3 * 2 * 3 + 3 * 5
    loader = build_dataloader(dataset, options, num_gpu=0, sampler=EpochSampler(dataset, 1, 0), seed=0)
    drawn = Counter(pair for batch in loader for pair in zip(batch['task'], batch['name'], strict=True))
    expected = {(f's{sigma}', name): 3 for sigma in (15, 25, 50) for name in ('00001', '00002')}
    assert drawn == expected | {('derain', f'rain-{number}'): 5 for number in (1, 2, 3)}


def test_copies_are_different_draws(denoise) -> None:
    crops = [sample['lq'].numpy().tobytes() for sample in training({**denoise, 'files': ['00001.bmp'], 'copies': 10})]
    assert len(set(crops)) == 10


def test_validation_has_one_copy(denoise, derain) -> None:
    assert len(validation({**denoise, 'copies': 9}, derain)) == 5


def test_the_log_shows_tasks_counts_and_shares(denoise, derain, log) -> None:
    training({**denoise, 'copies': 6, 'expected_images': 2}, {**derain, 'expected_images': 200})
    lines = [record.getMessage() for record in log]
    assert "Dataset 'mixed': 2 tasks, 15 samples per epoch" in lines
    (noise,) = [line for line in lines if line.startswith('  denoise25 ')]
    assert noise.split() == ['denoise25', 'denoise', '0', '2', '6', '12', '80.0%', 'gaussian_noise(sigma=25,', 'floor)']
    (rain,) = [line for line in lines if line.startswith('  derain ')]
    assert rain.split() == ['derain', 'derain', '1', '3', '1', '3', '20.0%', 'pairs']
    notes = [line for line in lines if 'Note:' in line]
    assert notes == [
        "  Note: task 'derain' has 3 images, the protocol has 200: results will not be comparable with published ones."
    ]


def test_the_log_names_files_that_a_pairing_rule_leaves_out(derain, write, log) -> None:
    root = Path(derain['root'])
    write('Derain/rainy/thumbnail.png')
    folders = {'lq': str(root / 'rainy'), 'gt': str(root / 'gt')}
    training({'type': 'derain', **folders, 'pairing': {'lq': 'rain-{id}.png', 'gt': 'norain-{id}.png'}})
    (note,) = [line for line in (record.getMessage() for record in log) if ' skips ' in line]
    assert '1 images' in note
    assert note.endswith('thumbnail.png.')


# What a sample depends on


def test_training_samples_depend_on_seed_epoch_and_index_alone(denoise, derain) -> None:
    options = {'use_hflip': True, 'use_rot': True}
    first, second = training(denoise, derain, **options), training(denoise, derain, **options)
    other_seed = training(denoise, derain, seed=8, **options)
    np.random.seed(0)
    torch.manual_seed(0)
    sample = first[3, 4]
    first.set_epoch(3)
    for same in (first[3, 4], first[4], second[3, 4]):
        assert torch.equal(same['lq'], sample['lq'])
        assert torch.equal(same['gt'], sample['gt'])
    for other in (first[4, 4], first[3, 4 + len(first)], other_seed[3, 4]):
        assert other['name'] == sample['name']
        assert not torch.equal(other['lq'], sample['lq'])


def test_validation_noise_is_the_documented_formula(denoise, photographs) -> None:
    for index, (photograph, name) in enumerate(zip(photographs, ('00001', '00002'), strict=False)):
        text = f'7\x1f{name}\x1f[{{"sigma":25,"type":"gaussian_noise"}}]'
        seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), 'big')
        normal = np.random.default_rng(seed).standard_normal(photograph.shape, dtype=np.float32)
        expected = np.clip(photograph + 25 * normal, 0, 255).astype(np.uint8)
        np.testing.assert_array_equal(levels(validation(denoise)[index]['lq']), expected)


def test_a_validation_sample_is_the_same_in_every_dataset(denoise, derain, write, photographs) -> None:
    alone = validation(denoise)
    reference = {sample['name']: sample['lq'] for sample in alone}
    # another place, other folders around, another format, another order of creation, other files beside
    for number, photograph in reversed(list(enumerate(photographs, 1))):
        elsewhere = write(f'another/place/{number:05}.png', photograph).parents[1]
    variants = [
        validation(denoise),
        validation(derain, {**denoise, 'name': 'noise'}),
        validation({**denoise, 'files': ['00002.bmp', '00001.bmp'], 'copies': 5}),
        validation({**denoise, 'clean': str(elsewhere)}),
        validation({**denoise, 'degrade': [{'sigma': 25.0, 'type': 'gaussian_noise', 'quantize': 'floor'}]}),
    ]
    for dataset in variants:
        found = {sample['name']: sample['lq'] for sample in dataset}
        for name, lq in reference.items():
            assert torch.equal(found[name], lq)


def test_validation_noise_differs_between_images_sigmas_and_seeds(denoise, write) -> None:
    for name in ('1', '2'):
        folder = write(f'grey/{name}.png', np.full((40, 40, 3), 128, np.uint8)).parent
    tasks = [
        {**denoise, 'name': f's{sigma}', 'clean': str(folder), 'degrade': {'type': 'gaussian_noise', 'sigma': sigma}}
        for sigma in (15, 25, 50)
    ]
    noise = [sample['lq'].flatten() - 128 / 255 for seed in (0, 1) for sample in validation(*tasks, seed=seed)]
    correlation = np.corrcoef(torch.stack(noise)) - np.eye(12)
    assert np.abs(correlation).max() < 0.1
    assert [round(float(field.std()) * 255) for field in noise[::2]] == pytest.approx([15, 25, 50] * 2, abs=2)


# What cannot be used


@pytest.mark.parametrize('workers', [0, 2])
def test_a_corrupt_image_is_named_with_its_task(workers, derain) -> None:
    broken = Path(derain['root'], 'rainy', 'rain-2.png')
    broken.write_bytes(broken.read_bytes()[:500])
    options = {**TRAIN, 'tasks': [derain], 'batch_size_per_gpu': 1, 'num_worker_per_gpu': workers}
    dataset = build_dataset(options)
    batches = iter(build_dataloader(dataset, options, num_gpu=0, sampler=EpochSampler(dataset, 1, 0), seed=0))
    with pytest.raises(ImageError) as raised:
        list(batches)
    if workers:
        batches._shutdown_workers()  # the garbage collector would wait 5 s for each of them
    assert f"task 'derain': {broken}: not a readable image (500 bytes)." in str(raised.value)


def test_a_pair_of_different_sizes_is_named_with_both_sizes(derain, write, photographs) -> None:
    lq = write('Derain/rainy/rain-3.png', photographs[0][:90, :96])
    gt = Path(derain['root'], 'gt', 'norain-3.png')
    for dataset in (training(derain), validation(derain)):
        with pytest.raises(ImageError) as raised:
            dataset[2]
        assert str(raised.value).startswith(f"task 'derain': {lq} and {gt} differ in size (96x90 and 96x96).")


# Options


@pytest.mark.parametrize(
    ('change', 'expected'),
    [
        ({'gt_sise': 128}, "unknown option 'gt_sise'. Did you mean 'gt_size'?"),
        ({'geometric_augs': True}, "unknown option 'geometric_augs'."),
        ({'gt_size': None}, '.gt_size: None is not a whole number of at least 1.'),
        ({'gt_size': '128'}, ".gt_size: '128' is not a whole number"),
        ({'crop_multiple': 0}, '.crop_multiple: 0 is not a whole number of at least 1.'),
        ({'use_hflip': 'yes'}, ".use_hflip: 'yes' is neither true nor false."),
        ({'use_rot': 1}, '.use_rot: 1 is neither true nor false.'),
        ({'augment_identity': None}, '.augment_identity: None is neither true nor false.'),
        ({'seed': -1}, '.seed: -1 is not a whole number of at least 0.'),
    ],
    ids=str,
)
def test_mistakes_in_the_options(change, expected, denoise) -> None:
    with pytest.raises(OptionError) as raised:
        training(denoise, **change)
    (problem,) = raised.value.lines
    assert expected in problem
    assert problem.startswith('datasets.mixed')


def test_mistakes_of_the_dataset_and_of_its_tasks_come_in_one_report(denoise) -> None:
    with pytest.raises(OptionError) as raised:
        training({**denoise, 'copys': 2}, {**denoise, 'clean': 'nowhere'}, gt_sise=1, use_rot='x')
    assert len(raised.value.lines) == 4


def test_options_are_not_changed(denoise, derain) -> None:
    options = {**TRAIN, 'tasks': [dict(denoise), dict(derain)], 'io_backend': {'type': 'disk'}}
    before = copy.deepcopy(options)
    first, second = AllInOneDataset(options), AllInOneDataset(options)
    assert options == before
    assert torch.equal(first[4]['lq'], second[4]['lq'])


def test_a_crop_that_is_not_a_multiple_is_reported(derain, log) -> None:
    training(derain, gt_size=24, crop_multiple=16)
    assert 'gt_size 24 is not a multiple of crop_multiple 16' in log[0].getMessage()


# Names


@pytest.mark.parametrize(
    ('paths', 'names'),
    [
        (['rainy/rain-1.png', 'rainy/rain-2.png'], ['rain-1', 'rain-2']),
        (['s/part1/0025_0.8_0.04.jpg', 's/part2/0025_0.8_0.04.jpg'], ['part1_0025_0.8_0.04', 'part2_0025_0.8_0.04']),
        (['a/b/1.png', 'a/c/1.png', 'a/2.png'], ['b_1', 'c_1', '2']),
        (['a.jpg', 'a.png', 'a_2.png'], ['a', 'a_2', 'a_2_2']),
        (['only.png'], ['only']),
        (['x/only.png'], ['only']),
    ],
)
def test_names_are_short_and_unique(paths, names) -> None:
    assert unique_names(paths) == names
