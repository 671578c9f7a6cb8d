"""What a demo reaches on photographs that are not its own: mean over seeds, as a Markdown table.

    python -m benchmarks.demo OUT --photographs DIR [--opt options/demo.yml] [--seeds 0 1 2] [--first N] [--last N]
                              [--force_yml KEY=VALUE ...] [--threads 2] [--picture FILE]

Trains the option file once a seed in OUT and measures the last weights on the photographs in DIR, degraded as in the
file's validation. `--first` and `--last` take some of the photographs by name, so that others can decide. OUT keeps the
trainings: what is finished is not repeated. `--picture` draws what the first seed makes of the demo's own photographs.
"""

import argparse
import csv
import os
import resource
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import cv2
import numpy as np
import yaml

from benchmarks.hardware import hardware
from promptir_basicsr.core.arrays import to_bytes
from promptir_basicsr.data.allinone_dataset import AllInOneDataset
from promptir_basicsr.evaluation.sheets import thumbnail
from promptir_basicsr.inference.restorer import Restorer
from promptir_basicsr.options.file import read_options


def run(folder: Path, threads: int, *words: str) -> None:
    environment = {**os.environ, 'OMP_NUM_THREADS': str(threads)}
    with open(folder / 'log.txt', 'a', encoding='utf-8') as log:
        command = [sys.executable, '-m', 'promptir_basicsr', *words]
        subprocess.run(command, cwd=folder, env=environment, check=True, stdout=log, stderr=log)


def measured(folder: Path, opt: Path, seed: int, photographs: list[Path], threads: int, force: list[str]) -> Any:
    """Rows of metrics.csv of a demo's last weights on the photographs, and CPU seconds of its training."""
    options = read_options(str(opt))
    name = f'{options["name"]}_{seed}'
    weights = folder / 'experiments' / name / 'models' / 'net_g_latest.pth'
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    if not weights.exists():
        words = [f'name={name}', f'manual_seed={seed}', 'val:save_img=false', *force]
        run(folder, threads, 'train', '-opt', str(opt), '--force_yml', *words)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    val = options['datasets']['val']
    files = [path.name for path in photographs]
    tasks = [{**task, 'clean': str(photographs[0].parent), 'files': files} for task in val['tasks']]
    test = {
        'name': name,
        'model_type': options['model_type'],
        'num_gpu': 0,
        'datasets': {'test': {**val, 'name': 'photographs', 'tasks': tasks}},
        'network_g': options['network_g'],
        'path': {'pretrain_network_g': str(weights), 'param_key_g': 'params_ema'},
        'val': {'save_img': False, 'pbar': False, 'metrics': options['val']['metrics']},
    }
    file = folder / f'{name}_test.yml'
    file.write_text(yaml.safe_dump(test, sort_keys=False), encoding='utf-8')
    network = [each for each in force if each.startswith('network_g')]
    run(folder, threads, 'test', '-opt', file.name, *(['--force_yml', *network] if network else []))
    with open(folder / 'results' / name / 'metrics.csv', encoding='utf-8', newline='') as text:
        return [*csv.DictReader(text)], after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def draw(folder: Path, options: dict[str, Any], seed: int, path: Path) -> None:
    """The degraded photographs of a demo's validation above the restored ones, in turn."""
    dataset = AllInOneDataset({**options['datasets']['val'], 'phase': 'val'})
    restorer = Restorer.from_pretrained(folder / f'experiments/{options["name"]}_{seed}/models/net_g_latest.pth')
    columns, start = [], 0
    for number, task in enumerate(dataset.tasks):
        degraded = dataset[start + number % len(task)]['lq'].numpy().transpose(1, 2, 0)
        shown = [thumbnail(image, 256) for image in (degraded, restorer.restore(degraded))]
        columns.append(np.concatenate([shown[0], np.ones((6, *shown[0].shape[1:])), shown[1]]))
        start += len(task)
    gap = np.ones((len(columns[0]), 6, 3))
    whole = np.concatenate([part for column in columns for part in (gap, column)][1:], axis=1)
    cv2.imwrite(str(path), to_bytes(whole)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 82])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', type=Path, metavar='OUT')
    parser.add_argument('--photographs', type=Path, required=True, metavar='DIR')
    parser.add_argument('--first', type=int)
    parser.add_argument('--last', type=int)
    parser.add_argument('--opt', type=Path, default=Path('options/demo.yml'))
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--picture', type=Path)
    parser.add_argument('--threads', type=int, default=os.cpu_count() or 1)
    parser.add_argument('--force_yml', nargs='+', default=[])
    args = parser.parse_args()
    photographs = sorted(path.resolve() for path in args.photographs.iterdir())
    photographs = photographs[: args.first][-args.last if args.last else None :]
    args.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[dict[str, str]]] = {}
    for seed in args.seeds:
        rows, seconds = measured(args.out, args.opt.resolve(), seed, photographs, args.threads, args.force_yml)
        sys.stderr.write(f'seed {seed}: {seconds:.0f} s of CPU for the training\n')
        for row in rows:
            found.setdefault(row['task'], []).append(row)
    if args.picture:
        draw(args.out, read_options(str(args.opt)), args.seeds[0], args.picture)
    sys.stdout.write(f'{len(photographs)} photographs, {len(args.seeds)} seeds.\n\n')
    sys.stdout.write('| task | input PSNR | PSNR | gain, least of the seeds | input SSIM | SSIM |\n')
    sys.stdout.write('|:--|--:|--:|--:|--:|--:|\n')
    for task, rows in found.items():
        psnr, ssim = ([float(row[name]) for row in rows] for name in ('psnr', 'ssim'))
        before, alike = (float(rows[0][f'input_{name}']) for name in ('psnr', 'ssim'))
        cells = f'{before:.2f} | {mean(psnr):.2f} | {mean(psnr) - before:+.2f}, {min(psnr) - before:+.2f}'
        sys.stdout.write(f'| {task} | {cells} | {alike:.3f} | {mean(ssim):.3f} |\n')
    sys.stdout.write(f'\n{hardware(["torch", "pytorch_optimizer"])}\n')


if __name__ == '__main__':
    main()
