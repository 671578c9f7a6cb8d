"""All that docs/performance.md says of GPUs, measured on one within a quarter of an hour.

    python -m benchmarks.gpu OUT [--parts tests training ...] [--minutes 13]
    python -m benchmarks.gpu OUT --rehearse

Runs the parts below in this order, each in its own processes with a time limit, and writes OUT/PART.md row by row, so
that what was measured is kept when the time is over. `--rehearse` does the same on a CPU with tiny networks and the
kernels in Triton's interpreter: its figures mean nothing, it finds mistakes before a GPU is paid for.

- tests: the GPU tests of the suite; trainings of a small PromptIR in every number format, layout, compiled and with
  kernels; a training that is stopped and resumed, in fp32 and bf16, must end with the same weights bit by bit.
- training: batches of 32 patches of 128x128, PromptIR and PIP: reference, plain, fast with each kind of activation
  checkpointing, compiled, with Triton kernels; fp32 and bf16.
- roofline: how close these come to what the GPU can do.
- kernels: Triton kernels against torch, operator by operator.
- inference: images of 128 to 2,048 pixels a side, fp32, tf32 and bf16.
- loading: seconds a training iteration waits for data, by the number of workers.
- minutes: five degradations in patches of 128, the same minutes by AdamW as released and by Muon; PSNR by the minute.
"""

import argparse
import csv
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.data_loading import options_of, write_corpora
from benchmarks.hardware import hardware
from benchmarks.profile_step import TASKS
from promptir_basicsr.core.yaml_loader import load_yaml
from tests.test_extending import ROOT, merged

TINY = {'dim': 16, 'num_blocks': [1, 1, 1, 1], 'num_refinement_blocks': 1, 'heads': [1, 2, 4, 8]}
RECIPES: dict[str, dict[str, Any]] = {
    'released': {'optim_g': {'type': 'AdamW', 'lr': 2e-4, 'weight_decay': 0.01}, 'ema_decay': 0},
    'muon': {
        'optim_g': {'type': 'pytorch_optimizer:Muon', 'lr': 0.005, 'adamw_lr': 1e-3, 'weight_decay': 0.01},
        'ema_decay': 0.995,
    },
}


class Machine:
    """What parts run on, and until when.

    Args:
        rehearse: on a CPU, with tiny networks.
        seconds: of all parts together.
    """

    def __init__(self, rehearse: bool, seconds: float) -> None:
        self.rehearse, self.end = rehearse, time.monotonic() + seconds
        self.device = 'cpu' if rehearse else 'cuda'

    def run(self, *words: str, limit: float, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
        """A Python module in a process of its own; ends with status 124 where it takes longer than the limit."""
        limit *= 4 if self.rehearse else 1  # a CPU may be busy, and Triton's interpreter is slow
        limit = max(min(limit, self.end - time.monotonic()), 1)
        environment = {**os.environ, 'PYTHONPATH': str(ROOT), **({'TRITON_INTERPRET': '1'} if self.rehearse else {})}
        command = [sys.executable, '-m', *words]
        with tempfile.TemporaryFile('w+') as out:
            try:
                status = subprocess.run(
                    command, cwd=folder, env=environment, stdout=out, stderr=subprocess.STDOUT, timeout=limit
                ).returncode
            except subprocess.TimeoutExpired:
                status = 124
            out.seek(0)
            return subprocess.CompletedProcess(command, status, out.read(), '')

    def table(self, module: str, *words: str, limit: float) -> Iterator[str]:
        """The Markdown that another benchmark writes."""
        given = [*words, *(['--tiny', '--device', 'cpu'] if self.rehearse else [])]
        done = self.run(f'benchmarks.{module}', *given, limit=limit)
        lines = done.stdout.splitlines()
        yield from lines if done.returncode else [line for line in lines if line.startswith(('|', '`')) or not line]
        yield f'(status {done.returncode})' if done.returncode else ''

    def train(
        self, folder: Path, options: dict[str, Any], *words: str, limit: float
    ) -> subprocess.CompletedProcess[str]:
        """`basicsr train`."""
        file = folder / f'{options["name"]}.yml'
        file.write_text(yaml.safe_dump(options, sort_keys=False), encoding='utf-8')
        return self.run('promptir_basicsr', 'train', '-opt', str(file), *words, limit=limit, folder=folder)


def training_options(machine: Machine, name: str, changes: dict[str, Any]) -> dict[str, Any]:
    """options/demo.yml on this device."""
    demo = load_yaml(str(ROOT / 'options' / 'demo.yml'))
    return merged(demo, {'name': name, 'num_gpu': 0 if machine.rehearse else 1, **changes})


def tests(machine: Machine) -> Iterator[str]:
    """Tests, number formats, exact resume."""
    done = machine.run('pytest', '-q', 'tests/archs/fast/test_kernels.py', '-p', 'no:cacheprovider', limit=150)
    yield f'- tests of the kernels: {done.stdout.strip().splitlines()[-1]}'
    formats: dict[str, dict[str, Any]] = {
        'fp32': {},
        'tf32': {'precision': 'tf32'},
        'bf16': {'precision': 'bf16'},
        'fp16': {'precision': 'fp16'},
        'channels_last': {'channels_last': True},
        'compiled': {'compile': True},
        'triton': {'kernels': 'triton'},
    }
    if machine.rehearse:
        formats = {'fp32': {}, 'bf16': {'precision': 'bf16'}, 'channels_last': {'channels_last': True}}
    with tempfile.TemporaryDirectory() as folder:
        short = {
            'network_g': TINY,
            'train': {'total_iter': 12, 'scheduler': {'warmup_iter': 2}},
            'val': {'val_freq': 12, 'save_img': False, 'pbar': False},
            'logger': {'save_checkpoint_freq': 6, 'print_freq': 1, 'use_tb_logger': False},
        }
        for name, options in formats.items():
            chosen = training_options(machine, name, {**short, **options})
            done = machine.train(Path(folder), chosen, limit=120)
            losses = re.findall(r'l_pix: (\S+)', done.stdout)
            yield f'- {name}: status {done.returncode}, l_pix {losses[0]} to {losses[-1]}' if losses else done.stdout
        for name in ('fp32', 'bf16'):
            root = Path(folder, 'experiments', name)
            expected = digest(root / 'models' / 'net_g_latest.pth')
            for path in [*root.glob('training_states/12.state'), *root.glob('models/net_g_12.pth')]:
                path.unlink()
            chosen = training_options(machine, name, {**short, **formats[name]})
            done = machine.train(Path(folder), chosen, '--auto_resume', limit=120)
            same = digest(root / 'models' / 'net_g_latest.pth') == expected
            resumed = 'Resuming training from' in done.stdout
            words = 'the same weights' if same and resumed else f'OTHER WEIGHTS (resumed: {resumed})'
            yield f'- {name}, resumed at iteration 6: status {done.returncode}, {words}'


def digest(path: Path) -> str:
    """SHA-256 of the weights in a file."""
    found = hashlib.sha256()
    for name, value in sorted(torch.load(path, map_location='cpu', weights_only=True)['params'].items()):
        found.update(name.encode() + value.contiguous().numpy().tobytes())
    return found.hexdigest()


def training(machine: Machine) -> Iterator[str]:
    groups = [['plain', 'fast+none', 'fast+gate', 'fast+block', 'fast+gate+channels_last'], ['fast+gate+compiled']]
    groups += [] if machine.rehearse else [['fast+gate+kernels']]
    sizes = ['--sizes', '128', '--batches', '32']
    sizes = ['--sizes', '32', '--batches', '1', '--no-memory'] if machine.rehearse else sizes
    for network in ('promptir', 'pip'):
        for precision in ('fp32', 'bf16'):
            for variants in groups:  # the rows of a process come together, and what a limit cuts off is lost
                words = ['--networks', network, '--precisions', precision, '--modes', 'training', *sizes]
                yield from machine.table('speed', *words, '--rounds', '2', '--variants', *variants, limit=60)


def roofline(machine: Machine) -> Iterator[str]:
    words = ['--precisions', 'bf16', '--variants', 'fast+gate']
    words += ['--batches', '1', '--sizes', '32'] if machine.rehearse else ['--batches', '32']
    yield from machine.table('roofline', '--networks', 'promptir', *words, limit=60)


def kernels(machine: Machine) -> Iterator[str]:
    if machine.rehearse:
        yield machine.run('benchmarks.kernels', '--side', '8', '--batch', '1', limit=120).stdout
    else:
        yield machine.run('benchmarks.kernels', limit=90).stdout


def inference(machine: Machine) -> Iterator[str]:
    for size in ('32', '64') if machine.rehearse else ('128', '256', '512', '1024', '2048'):
        words = ['--networks', 'promptir', '--modes', 'inference', '--batches', '1', '--sizes', size]
        words += ['--no-memory'] if machine.rehearse else []
        precisions = ['fp32', 'bf16'] if machine.rehearse else ['fp32', 'tf32', 'bf16']
        yield from machine.table('speed', *words, '--variants', 'fast', '--precisions', *precisions, limit=40)


def loading(machine: Machine) -> Iterator[str]:
    yield '| workers | seconds an iteration | of them waiting for data |'
    yield '|--:|--:|--:|'
    batch, size = (2, 32) if machine.rehearse else (32, 128)
    with tempfile.TemporaryDirectory() as folder:
        write_corpora(Path(folder, 'data'), 2 if machine.rehearse else 24, TASKS)
        for workers in (1, 2) if machine.rehearse else (1, 2, 4, 8, 16):
            data = {**options_of(Path(folder, 'data'), list(TASKS)), 'gt_size': size, 'persistent_workers': True}
            loader = {'batch_size_per_gpu': batch, 'num_worker_per_gpu': workers, 'pin_memory': not machine.rehearse}
            options = merged(
                load_yaml(str(ROOT / 'options' / 'promptir_allinone.yml')),
                {
                    'name': f'loading_{workers}',
                    'num_gpu': 0 if machine.rehearse else 1,
                    'precision': 'bf16',
                    'train': {'total_iter': 24},
                    'logger': {'print_freq': 8, 'use_tb_logger': False},
                    **({'network_g': TINY} if machine.rehearse else {}),
                },
            )
            del options['datasets'], options['val'], options['dist_params']
            done = machine.train(Path(folder), {**options, 'datasets': {'train': {**data, **loader}}}, limit=60)
            times = re.findall(r'time \(data\): ([\d.]+) \(([\d.]+)\)', done.stdout)
            yield f'| {workers} | {" | ".join(times[-1])} |' if times else done.stdout


def minutes(machine: Machine) -> Iterator[str]:
    length, batch, size = (12, 1, 32) if machine.rehearse else (150, 8, 128)
    changes = {
        'network_g': TINY if machine.rehearse else {'dim': 48},
        'datasets': {'train': {'gt_size': size, 'batch_size_per_gpu': batch, 'num_worker_per_gpu': 4}},
        **({} if machine.rehearse else {'precision': 'bf16'}),
    }
    with tempfile.TemporaryDirectory() as folder:
        trial = merged(changes, {'train': {'total_iter': 30}, 'val': {'val_freq': 1000}, 'logger': {'print_freq': 10}})
        done = machine.train(Path(folder), training_options(machine, 'trial', trial), limit=120)
        seconds = float(re.findall(r'time \(data\): ([\d.]+)', done.stdout)[-1])
        total = max(int(length / seconds), 4)
        yield f'{seconds:.3f} s an iteration in the trial: {total:,} iterations a recipe.'
        for name, recipe in RECIPES.items():
            run = merged(changes, {'val': {'val_freq': max(total // 4, 1), 'save_img': False, 'pbar': False}})
            options = training_options(machine, name, run)
            schedule = {**options['train']['scheduler'], 'warmup_iter': max(total // 40, 1)}
            options['train'] = {**options['train'], **recipe, 'total_iter': total, 'scheduler': schedule}
            begun = time.monotonic()
            machine.train(Path(folder), options, limit=2 * length + 60)
            spent = time.monotonic() - begun
            with open(Path(folder, 'experiments', name, 'metrics.csv'), encoding='utf-8', newline='') as file:
                rows = [row for row in csv.DictReader(file) if row['task'] == 'average']
            found = ', '.join(f'{float(row["psnr"]):.2f} at {int(row["iter"]):,}' for row in rows)
            yield f'- {name}, {spent:.0f} s with validations: {found}; input {float(rows[0]["input_psnr"]):.2f}'


PARTS: tuple[Callable[[Machine], Iterator[str]], ...] = (
    tests,
    training,
    roofline,
    kernels,
    inference,
    loading,
    minutes,
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', type=Path, metavar='OUT')
    names = [part.__name__ for part in PARTS]
    parser.add_argument('--parts', nargs='+', choices=names, default=names)
    parser.add_argument('--minutes', type=float, default=13.0, help='of all parts together')
    parser.add_argument('--rehearse', action='store_true')
    given = parser.parse_args()
    if not given.rehearse and not torch.cuda.is_available():
        parser.error('there is no GPU; --rehearse runs on a CPU')
    machine = Machine(given.rehearse, 60 * given.minutes * (4 if given.rehearse else 1))
    given.out.mkdir(parents=True, exist_ok=True)
    line = hardware(('torch', 'triton'), torch.device(machine.device))
    for part in PARTS:
        if part.__name__ not in given.parts:
            continue
        begun = time.monotonic()
        with open(given.out / f'{part.__name__}.md', 'w', encoding='utf-8') as file:
            file.write(f'{line}\n\n')
            try:
                for text in part(machine):
                    file.write(f'{text}\n')
                    file.flush()
            except Exception:  # the other parts have their time
                file.write(traceback.format_exc())
        sys.stderr.write(f'{part.__name__}: {time.monotonic() - begun:.0f} s\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
