"""Batches of a training, through BasicSR's loader: the same from every storage and with any number of workers."""

import hashlib
from pathlib import Path
from typing import Any

import cv2
import pytest
import skimage.data
import torch
import yaml

from promptir_basicsr.cli import main

# isort: split
import basicsr.train
from basicsr.data import build_dataloader, build_dataset

WAYS = ('folder', 'original', 'lossless', 'raw')
OPTIONS = {
    'name': 'mixed',
    'type': 'AllInOneDataset',
    'gt_size': 48,
    'crop_multiple': 16,
    'use_hflip': True,
    'use_rot': True,
    'augment_identity': False,
    'batch_size_per_gpu': 4,
    'num_worker_per_gpu': 0,
    'tasks': [
        {
            'name': 'denoise_25',
            'type': 'denoise',
            'clean': 'Denoise',
            'list': 'denoise.txt',
            'degrade': {'type': 'gaussian_noise', 'sigma': 25},
            'copies': 2,
        },
        {'name': 'derain', 'type': 'derain', 'root': 'Derain', 'pairing': 'rain100l_train', 'copies': 3},
        {'name': 'dehaze', 'type': 'dehaze', 'root': 'Dehaze', 'pairing': 'reside_ots'},
        {'name': 'small', 'type': 'derain', 'lq': 'small', 'gt': 'small_gt'},
    ],
}


@pytest.fixture(scope='module')
def options(tmp_path_factory) -> dict[str, dict[str, Any]]:
    """Options that read the same images in every way."""
    root = tmp_path_factory.mktemp('corpora')

    def write(name: str, number: int, size: tuple[int, int] = (90, 71)) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        photograph = (skimage.data.chelsea(), skimage.data.coffee())[number % 2]
        part = photograph[20 * number : 20 * number + size[0], 30 : 30 + size[1], ::-1]
        cv2.imwrite(str(root / name), part, [cv2.IMWRITE_JPEG_QUALITY, 90])

    for number, name in enumerate(['00001.bmp', 'a100.jpg', 'left out.jpg']):
        write(f'Denoise/{name}', number)
    (root / 'denoise.txt').write_text('00001.bmp\na100.jpg\n')
    for number in range(3):
        write(f'Derain/rainy/rain-{number}.png', number)
        write(f'Derain/gt/norain-{number}.png', number + 5)
    for number, haze in enumerate(['0.8_0.04', '0.85_0.2', '1_0.16']):
        write(f'Dehaze/synthetic/part{number % 2 + 1}/0025_{haze}.jpg', number)
    write('Dehaze/original/0025.jpg', 3)
    write('small/a.png', 1, (20, 60))
    write('small_gt/a.png', 2, (20, 60))

    plain = {**OPTIONS, 'dataroot': str(root)}
    file = root / 'loading.yml'
    file.write_text(yaml.safe_dump({'name': 'loading', 'datasets': {'train': plain}}, sort_keys=False))
    found = {'folder': plain}
    for storage in WAYS[1:]:
        out = root / storage
        assert main(['prepare', '-opt', str(file), '--out', str(out), '--storage', storage, '--verify', 'all']) == 0
        found[storage] = yaml.safe_load((out / 'loading.yml').read_text())['datasets']['train']
    return found


def epochs(options: dict[str, Any], workers: int, method: str | None = None) -> list[str]:
    """A fingerprint of two epochs: every batch, its pixels bit by bit, its tasks and labels."""
    options = {**options, 'phase': 'train', 'seed': 5, 'num_worker_per_gpu': workers, 'persistent_workers': workers > 0}
    dataset = build_dataset(options)
    sampler = basicsr.train.EnlargedSampler(dataset, 1, 0, 1)
    loader = build_dataloader(dataset, options, num_gpu=0, sampler=sampler, seed=1)
    loader.multiprocessing_context = method
    found = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        content = hashlib.sha256()
        for batch in loader:
            for key in ('lq', 'gt'):
                assert batch[key].dtype == torch.float32
                content.update(batch[key].numpy().tobytes())
            content.update(repr([batch['task'], batch['degradation'].tolist(), batch['name']]).encode())
        found.append(content.hexdigest())
    return found


@pytest.fixture(scope='module')
def expected(options) -> list[str]:
    return epochs(options['folder'], 0)


def test_epochs_differ(expected) -> None:
    assert len(set(expected)) == 2


@pytest.mark.parametrize('way', WAYS)
def test_no_worker(way, options, expected) -> None:
    assert epochs(options[way], 0) == expected


@pytest.mark.filterwarnings('ignore:This DataLoader will create')
@pytest.mark.parametrize(('way', 'workers'), [*((way, 1) for way in WAYS), ('folder', 4), ('raw', 4)])
def test_forked_workers(way, workers, options, expected) -> None:
    assert epochs(options[way], workers, 'fork') == expected


# The default of macOS and Windows; of Python 3.14.
@pytest.mark.parametrize('method', [pytest.param('spawn', marks=pytest.mark.slow), 'forkserver'])
def test_workers_that_start_from_nothing(method, options, expected) -> None:
    assert epochs(options['raw'], 2, method) == expected


def test_a_damaged_record_names_itself_and_its_task(options, tmp_path) -> None:
    """Through real workers, without their tracebacks."""
    stored = options['original']
    broken = tmp_path / 'stored'
    broken.mkdir()
    for path in Path(stored['dataroot']).rglob('*'):
        if path.is_file():
            copy = broken / path.relative_to(stored['dataroot'])
            copy.parent.mkdir(parents=True, exist_ok=True)
            content = path.read_bytes()
            if path.name == 'data.mdb' and 'Derain' in str(path):
                png = Path(options['folder']['dataroot'], 'Derain/rainy/rain-1.png').read_bytes()
                at = content.index(png)
                content = content[: at + 1000] + b'\0' * (len(png) - 1000) + content[at + len(png) :]
            copy.write_bytes(content)
    with pytest.raises(RuntimeError) as raised:
        epochs({**stored, 'dataroot': str(broken)}, 2)
    assert "task 'derain': " in str(raised.value)
    assert 'Derain.lmdb/rainy/rain-1.png: not a readable image' in str(raised.value)
    assert 'Traceback' not in str(raised.value)
