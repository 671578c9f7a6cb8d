"""`basicsr check`, `basicsr prepare` and the start of a training set at the size of RESIDE's OTS, as a Markdown table.

    python -m benchmarks.prepare_scale [1000 10000 72135]

Trees like OTS's (35 hazy images a scene, one clear) are made of tiny photographs in a temporary folder, checked with
every image decoded, prepared, and opened by AllInOneDataset from the database and from the folder. The memory of a
worker is its private memory (USS) after 64 samples; of a spawned one, less that of a worker without data, which is what
importing the package takes.
"""

import argparse
import itertools
import logging
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import skimage.data
import yaml
from torch.utils.data import DataLoader, Dataset

from benchmarks.hardware import hardware
from promptir_basicsr.checks.check import check_file
from promptir_basicsr.data import AllInOneDataset
from promptir_basicsr.data.lmdb.plan import plan_preparation
from promptir_basicsr.data.lmdb.prepare import prepare_databases

COUNTS = (1000, 10000, 72135)
SIZE = 40  # pixels of a side
HAZES = list(itertools.product((0.8, 0.85, 0.9, 0.95, 1), (0.04, 0.06, 0.08, 0.1, 0.12, 0.16, 0.2)))


def make_tree(folder: Path, count: int) -> None:
    """`count` hazy images, the clear ones of their scenes, and the list of the hazy ones."""
    photograph = skimage.data.astronaut()
    contents = []
    for place in range(35):
        cut = photograph[10 * place : 10 * place + SIZE, 10 * place : 10 * place + SIZE]
        contents.append(cv2.imencode('.jpg', cut)[1].tobytes())
    names = []
    for number in range(count):
        scene, (a, beta) = number // 35, HAZES[number % 35]
        names.append(f'synthetic/part{scene % 4 + 1}/{scene:04}_{a}_{beta}.jpg')
        path = folder / names[-1]
        if number % 35 == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            (folder / 'original').mkdir(exist_ok=True)
            (folder / f'original/{scene:04}.jpg').write_bytes(contents[0])
        path.write_bytes(contents[number % 35])
    (folder / 'hazy.txt').write_text('\n'.join(names), encoding='utf-8')


def options_of(folder: Path) -> dict[str, Any]:
    task = {'type': 'dehaze', 'root': '.', 'pairing': 'reside_ots', 'list': 'hazy.txt'}
    return {'name': 'ots', 'type': 'AllInOneDataset', 'dataroot': str(folder), 'gt_size': 32, 'tasks': [task]}


class PrivateMemory(Dataset):
    """Reads samples and gives the private memory of the process that did, in MB."""

    def __init__(self, dataset: AllInOneDataset | None) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> float:
        if self.dataset is not None:
            self.dataset[0, index * (len(self.dataset) // 64)]
        lines = Path('/proc/self/smaps_rollup').read_text(encoding='ascii').splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith('Private_')) / 1000


def worker_memory(dataset: AllInOneDataset | None, start: str) -> float:
    """MB that a worker has for itself after 64 samples."""
    loader = DataLoader(PrivateMemory(dataset), batch_size=64, num_workers=1, multiprocessing_context=start)
    return next(iter(loader)).max().item()


def started(options: dict[str, Any]) -> tuple[AllInOneDataset, float]:
    """The data set, and the shortest of three times that it took, in seconds."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        dataset = AllInOneDataset({**options, 'phase': 'train'})
        seconds.append(time.perf_counter() - start)
    return dataset, min(seconds)


def row(count: int, empty: float) -> str:
    with tempfile.TemporaryDirectory() as folder:
        tree, out = Path(folder) / 'tree', Path(folder) / 'out'
        make_tree(tree, count)
        options = {'datasets': {'train': options_of(tree)}}
        start = time.perf_counter()
        preparation = plan_preparation(options, out, 'ots', 'benchmark')
        (database,) = prepare_databases(preparation, os.cpu_count() or 1)
        seconds = time.perf_counter() - start
        file = Path(folder, 'ots.yml')
        file.write_text(yaml.safe_dump({'train': {}, **options}))
        start = time.perf_counter()
        report = check_file(str(file), progress=False)
        checked = time.perf_counter() - start
        assert [task.images for dataset in report.datasets for task in dataset.tasks] == [count]
        cells = [
            f'{count:,}',
            f'{checked:.2f} s',
            f'{seconds:.1f} s',
            f'{database.images / seconds:,.0f}',
            f'{database.bytes / 1e6:.0f} MB',
        ]
        for given in (preparation.options['datasets']['train'], options['datasets']['train']):
            dataset, seconds = started(given)
            cells += [f'{seconds:.2f} s', f'{worker_memory(dataset, "fork"):.0f} MB']
            cells.append(f'{worker_memory(dataset, "spawn") - empty:.0f} MB')
    return f'| {" | ".join(cells)} |'


if __name__ == '__main__':
    parser = argparse.ArgumentParser(prog='python -m benchmarks.prepare_scale')
    parser.add_argument('counts', nargs='*', type=int, default=list(COUNTS), metavar='N', help='hazy images of a tree')
    counts = parser.parse_args().counts
    logging.getLogger('basicsr').setLevel(logging.ERROR)
    empty = worker_memory(None, 'spawn')
    head = 'hazy images | check | prepare | images/s | database'
    head += ''.join(f' | {what}: start | forked worker | spawned worker' for what in ('database', 'folder'))
    lines = [f'| {head} |', '|' + '--:|' * (head.count('|') + 1)]
    lines += [row(count, empty) for count in counts]
    lines += ['', f'A spawned worker has {empty:.0f} MB before it has a data set. {hardware(("torch", "lmdb"))}']
    sys.stdout.write('\n'.join(lines) + '\n')
