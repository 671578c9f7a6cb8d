"""How fast training samples are made, by storage, as Markdown tables.

    python -m benchmarks.data_loading

Photographs of scikit-image are brought to the sizes and file formats of the papers' corpora. The reference is written
from the description of the released pipeline: open the whole image with Pillow, cut it at the centre to multiples of
16, take a random 128 x 128 crop, flip and turn it, add noise, make tensors. It and every storage are timed in turn, on
one thread, with the files in the system's cache; figures are medians over rounds. Nothing is kept: the corpora lie in a
temporary folder.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import skimage.data
import torch
import yaml
from torch.utils.data import DataLoader, Dataset

from benchmarks.hardware import hardware
from promptir_basicsr.data import AllInOneDataset

PATCH, MULTIPLE, BATCH = 128, 16, 32
# Name, width, height, file format, whether it is a task of pairs, samples of the three-degradation protocol.
CORPORA = (
    ('noise', 481, 321, 'jpg', False, 46_296),
    ('rain', 481, 321, 'png', True, 24_000),
    ('rain_jpg', 481, 321, 'jpg', True, 24_000),
    ('haze', 550, 413, 'jpg', True, 72_135),
    ('blur', 1280, 720, 'png', True, 0),
)
MIXES = {'mix': ('noise', 'rain', 'haze'), 'mix, all JPEG': ('noise', 'rain_jpg', 'haze')}
STORAGES = ('original', 'lossless', 'raw')


def photograph(width: int, height: int, number: int) -> np.ndarray:
    """(height, width, 3) uint8: a part of a photograph at a random place and scale, with a little grain."""
    rng = np.random.default_rng(number)
    source = getattr(skimage.data, ('astronaut', 'chelsea', 'coffee', 'rocket')[number % 4])()
    scale = rng.uniform(1.0, 1.3) * max(width / source.shape[1], height / source.shape[0])
    large = cv2.resize(source, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    top, left = rng.integers(large.shape[0] - height + 1), rng.integers(large.shape[1] - width + 1)
    part = large[top : top + height, left : left + width] + rng.normal(0, 2, (height, width, 3))
    return np.clip(np.rint(part), 0, 255).astype(np.uint8)


def write_corpora(root: Path, count: int, names: Collection[str] = tuple(corpus[0] for corpus in CORPORA)) -> None:
    for name, width, height, extension, paired, _ in (corpus for corpus in CORPORA if corpus[0] in names):
        for folder in ('lq', 'gt') if paired else ('gt',):
            (root / name / folder).mkdir(parents=True)
            for number in range(count):
                image = photograph(width, height, number)
                if folder == 'lq':
                    image = cv2.GaussianBlur(image, None, 1.5)
                options = {'quality': 90} if extension == 'jpg' else {}
                PIL.Image.fromarray(image).save(root / name / folder / f'{number:03}.{extension}', **options)


def task_of(name: str) -> dict[str, Any]:
    if name == 'noise':
        noise = {'type': 'gaussian_noise', 'sigma': 25}
        return {'name': name, 'type': 'denoise', 'clean': f'{name}/gt', 'degrade': noise}
    kind = {'blur': 'deblur', 'haze': 'dehaze'}.get(name, 'derain')
    return {'name': name, 'type': kind, 'lq': f'{name}/lq', 'gt': f'{name}/gt'}


def options_of(root: Path, names: list[str]) -> dict[str, Any]:
    return {
        'name': 'loading',
        'type': 'AllInOneDataset',
        'dataroot': str(root),
        'gt_size': PATCH,
        'crop_multiple': MULTIPLE,
        'use_hflip': True,
        'use_rot': True,
        'augment_identity': False,
        'tasks': [task_of(name) for name in names],
    }


class Reference(Dataset):
    """The released pipeline, as described; a file is opened anew for every sample."""

    def __init__(self, root: Path, name: str) -> None:
        self.gt = sorted((root / name / 'gt').iterdir())
        self.lq = sorted((root / name / 'lq').iterdir()) if name != 'noise' else self.gt

    def __len__(self) -> int:
        return len(self.gt)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = index % len(self.gt)
        images = [self.open(self.gt[number])]
        if self.lq is not self.gt:
            images.insert(0, self.open(self.lq[number]))
        top = random.randint(0, images[0].shape[0] - PATCH)
        left = random.randint(0, images[0].shape[1] - PATCH)
        mode = random.randint(1, 7)
        patches = [self.turn(image[top : top + PATCH, left : left + PATCH], mode) for image in images]
        if self.lq is self.gt:
            noisy = patches[0] + np.random.randn(*patches[0].shape) * 25
            patches.insert(0, np.clip(noisy, 0, 255).astype(np.uint8))
        lq, gt = (torch.from_numpy(p.transpose(2, 0, 1).copy()).float().div(255) for p in patches)
        return {'lq': lq, 'gt': gt, 'lq_path': str(self.lq[number]), 'gt_path': str(self.gt[number]), 'degradation': 0}

    @staticmethod
    def open(path: Path) -> np.ndarray:
        image = np.array(PIL.Image.open(path).convert('RGB'))
        height, width = image.shape[:2]
        cut_rows, cut_columns = height % MULTIPLE, width % MULTIPLE
        top, left = cut_rows // 2, cut_columns // 2
        return image[top : top + height - cut_rows, left : left + width - cut_columns]

    @staticmethod
    def turn(image: np.ndarray, mode: int) -> np.ndarray:
        turned = np.rot90(image, mode // 2)
        return np.flipud(turned) if mode % 2 else turned


class Mix(Dataset):
    """Tasks in the proportion of their shares, evenly interleaved."""

    def __init__(self, parts: list[Dataset], shares: list[float], length: int) -> None:
        self.parts = parts
        times = [
            ((j + 0.5) / (share * length), n) for n, share in enumerate(shares) for j in range(round(share * length))
        ]
        self.order = [number for _, number in sorted(times)]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.parts[self.order[index]][index]


def prepare(root: Path, names: list[str], out: Path, storage: str) -> dict[str, Any]:
    """Options of the data set, stored in LMDBs by `basicsr prepare`."""
    out.mkdir()
    options = out / 'loading.yml'
    options.write_text(yaml.safe_dump({'name': 'loading', 'datasets': {'train': options_of(root, names)}}))
    command = [sys.executable, '-m', 'promptir_basicsr', 'prepare', '-opt', str(options), '--out', str(out / 'stored')]
    subprocess.run([*command, '--storage', storage], check=True, capture_output=True)
    return yaml.safe_load((out / 'stored' / 'loading.yml').read_text())['datasets']['train']


def single(options: dict[str, Any], name: str, **more: Any) -> AllInOneDataset:
    tasks = [task for task in options['tasks'] if task['name'] == name]
    return AllInOneDataset({**options, 'phase': 'train', 'tasks': tasks, **more})


def bytes_below(*folders: Path) -> int:
    return sum(path.stat().st_blocks * 512 for folder in folders for path in folder.rglob('*') if path.is_file())


def samples_per_second(dataset: Any, seconds: float) -> float:
    count, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        for _ in range(8):
            dataset[count]
            count += 1
    return count / passed


def batches_per_second(loader: DataLoader) -> float:
    """Samples per second of one pass; the workers are started already."""
    start = time.perf_counter()
    samples = sum(len(batch['lq']) for batch in loader)
    return samples / (time.perf_counter() - start)


def private_growth(dataset: Any, samples: int) -> float:
    """MB that a process comes to own while it makes samples (what it maps from files is the system's)."""
    parent, child = os.pipe()
    process = os.fork()
    if process == 0:
        before = anonymous()
        for index in range(samples):
            dataset[index]
        os.write(child, f'{anonymous() - before}'.encode())
        os._exit(0)
    os.close(child)
    with os.fdopen(parent) as answer:
        grown = float(answer.read())
    os.waitpid(process, 0)
    return grown


def anonymous() -> float:
    for line in Path('/proc/self/smaps_rollup').read_text().splitlines():
        if line.startswith('Private_Dirty:'):
            return int(line.split()[1]) / 1000
    raise OSError('this kernel does not tell a process its memory')


def interleaved(measured: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    figures: dict[str, list[float]] = {name: [] for name in measured}
    for _ in range(rounds):
        for name, measure in measured.items():
            figures[name].append(measure())
    return figures


def rows(figures: dict[str, list[float]]) -> Iterator[tuple[str, float, float]]:
    """Name, samples per second, and how many times the reference: medians over rounds."""
    for name, rates in figures.items():
        ratios = [rate / reference for rate, reference in zip(rates, figures['reference'], strict=True)]
        yield name, statistics.median(rates), statistics.median(ratios)


def mix_shares(names: tuple[str, ...]) -> list[float]:
    samples = {corpus[0]: corpus[5] for corpus in CORPORA}
    total = sum(samples[name] for name in names)
    return [samples[name] / total for name in names]


def mixed(figures: dict[str, dict[str, list[float]]], names: tuple[str, ...]) -> dict[str, list[float]]:
    """Rates of a mix from the rates of its tasks: times add up."""
    shares = mix_shares(names)
    return {
        storage: [
            1 / sum(share / figures[name][storage][n] for name, share in zip(names, shares, strict=True))
            for n in range(len(figures[names[0]][storage]))
        ]
        for storage in figures[names[0]]
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog='python -m benchmarks.data_loading')
    parser.add_argument('--images', type=int, default=24, help='images a corpus')
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--seconds', type=float, default=0.25, help='of one measurement')
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    names = [corpus[0] for corpus in CORPORA]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, 'corpora')
        write_corpora(root, arguments.images)
        stored = {storage: prepare(root, names, Path(folder, storage), storage) for storage in STORAGES}
        datasets: dict[str, dict[str, Any]] = {}
        disk: dict[str, dict[str, int]] = {}
        for name in names:
            plain = options_of(root, names)
            datasets[name] = {
                'reference': Reference(root, name),
                'folder': single(plain, name),
                **{f'LMDB, {storage}': single(options, name) for storage, options in stored.items()},
            }
            disk[name] = {
                storage: bytes_below(*{task.root for t in dataset.tasks for task in (t.lq, t.gt)})
                for storage, dataset in datasets[name].items()
                if storage != 'reference'
            }
        lines = tables(datasets, disk, arguments.rounds, arguments.seconds)
    lines += ['', hardware(('torch', 'opencv-python', 'Pillow', 'numpy'))]
    sys.stdout.write('\n'.join(lines) + '\n')


def tables(
    datasets: dict[str, dict[str, Any]], disk: dict[str, dict[str, int]], rounds: int, seconds: float
) -> list[str]:
    figures = {
        name: interleaved(
            {storage: lambda d=dataset: samples_per_second(d, seconds) for storage, dataset in ways.items()}, rounds
        )
        for name, ways in datasets.items()
    }
    lines = [
        'Samples per second of one core.',
        '',
        '| task | storage | samples/s | times | disk, MB | own memory, MB |',
    ]
    lines.append('|:--|:--|--:|--:|--:|--:|')
    for name, width, height, extension, *_ in CORPORA:
        for storage, rate, ratio in rows(figures[name]):
            size = f'{disk[name][storage] / 1e6:.1f}' if storage in disk[name] else ''
            memory = f'{private_growth(datasets[name][storage], 100):.1f}'
            title = f'{name}: {width}x{height} {extension}'
            lines.append(f'| {title} | {storage} | {rate:,.0f} | {ratio:.2f} | {size} | {memory} |')
    for mix, names in MIXES.items():
        for storage, rate, ratio in rows(mixed(figures, names)):
            lines.append(f'| {mix} | {storage} | {rate:,.0f} | {ratio:.2f} | | |')
    return lines + ['', *loader_table(datasets, rounds)]


def loader_table(datasets: dict[str, dict[str, Any]], rounds: int) -> list[str]:
    names = MIXES['mix']
    loaders = {}
    for storage in datasets[names[0]]:
        parts = [datasets[name][storage] for name in names]
        mix = Mix(parts, mix_shares(names), 20 * BATCH)
        loaders[storage] = DataLoader(mix, BATCH, num_workers=1, persistent_workers=True)
        batches_per_second(loaders[storage])
    figures = interleaved(
        {s: lambda loader=loader: batches_per_second(loader) for s, loader in loaders.items()}, rounds
    )
    lines = [f'The mix through a DataLoader with one worker, batches of {BATCH}.', '']
    lines += ['| storage | samples/s | times |', '|:--|--:|--:|']
    return lines + [f'| {storage} | {rate:,.0f} | {ratio:.2f} |' for storage, rate, ratio in rows(figures)]


if __name__ == '__main__':
    main()
