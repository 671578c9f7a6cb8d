"""Train while something happens to the training's surroundings, many times over, from a seed.

`python disturbed_training.py FOLDER SEED CASES` makes CASES trainings of 12 iterations in FOLDER/N. During each, at a
random iteration, one of DISTURBANCES happens; then its surroundings are put right and it is resumed, at times with
changed options. It writes FOLDER/found.json: for each case what happened, the statuses, and what was wrong. Each
training is a fork of this process, which has everything imported.
"""

import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from promptir_basicsr import cli
from promptir_basicsr.checkpoints.folder import damage
from promptir_basicsr.core.files import is_unfinished
from promptir_basicsr.evaluation.results import read_best, read_table
from tests.models.killed_training import DropNet  # noqa: F401  (registers)
from tests.models.test_resume import options

TOTAL = 12
CHANGES: list[dict[str, Any]] = [
    {},
    {},
    {'train__optim_g': {'type': 'AdamW', 'lr': 1e-4}},
    {'train__optim_g': {'type': 'SGD', 'lr': 1e-2, 'momentum': 0.9}},
    {'train__scheduler': {'type': 'MultiStepLR', 'milestones': [5, 9], 'gamma': 0.5}},
    {'train__total_iter': 3, 'train__scheduler': {'type': 'FixedLR'}},
    {'train__ema_decay': 0},
    {'datasets__train__batch_size_per_gpu': 3},
    {'network_g': {'type': 'DropNet', 'width': 6}},
]


class Case:
    """One training in a folder and what happens to it."""

    def __init__(self, folder: Path, draw: random.Random) -> None:
        self.folder, self.draw = folder, draw
        self.root = folder / 'experiments/run'
        self.what = draw.choice(sorted(DISTURBANCES))
        self.at = draw.randint(1, TOTAL - 2)
        self.spoilt: set[Path] = set()  # files that this test has damaged
        self.wrong: list[str] = []

    def make(self) -> dict[str, Any]:
        workers = 1 if self.what == 'worker' else self.draw.choice([0, 0, 1])
        self.plain = {
            'logger__print_freq': 1,
            'logger__save_checkpoint_freq': self.draw.choice([2, 5]),
            'datasets__train__num_worker_per_gpu': workers,
            'val__save_img': self.draw.random() < 0.5,
        }
        options(self.folder, 'DropNet', **self.plain)
        first = self.train(lambda pid: DISTURBANCES[self.what](self, pid))
        if self.what in ('limit', 'image gone', 'image cut'):
            options(self.folder, 'DropNet', **self.plain)  # writes the images anew
        change = self.draw.choice(CHANGES)
        options(self.folder, 'DropNet', **{**self.plain, **change})
        second = self.train()
        options(self.folder, 'DropNet', **self.plain)
        third = self.train()
        if second not in (0, 2) or (second == 2 and not change and not self.spoilt):
            self.wrong.append(f'resumed: status {second}')
        if third != 0 and not (third == 2 and (change or self.spoilt)):
            self.wrong.append(f'resumed at last: status {third}')
        return {'what': self.what, 'at': self.at, 'change': list(change), 'statuses': [first, second, third]}

    def train(self, disturb: Callable[[int], None] | None = None) -> int:
        """One part of the training; its status, and a look at what it has left."""
        reading, writing = os.pipe()  # not a file, whose size would be limited as well
        said = bytearray()
        before = {path for path in self.root.rglob('*') if damaged(path)}
        child = os.fork()
        if not child:
            os.close(reading)
            run(self.folder, writing, '--auto_resume')
        os.close(writing)
        reader = threading.Thread(target=read, args=(reading, said))
        reader.start()
        if disturb is not None:
            while f'iter: {self.at:7d},'.encode() not in said:
                if os.waitpid(child, os.WNOHANG) != (0, 0):
                    self.wrong.append(f'ended before it was disturbed: {said.decode(errors="replace")[-500:]}')
                    return 1
                time.sleep(0.002)
            disturb(child)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        reader.join(20)
        text = said.decode(errors='replace')
        if 'Traceback' in text or status == 8:
            self.wrong.append(f'status {status}: {text[-1500:]}')
        for path in self.root.rglob('*'):
            if path not in self.spoilt | before and damaged(path):
                self.wrong.append(f'status {status}: {path.name} is torn')
        if status in (1, 3, 6, 7):
            trained = max(map(int, re.findall(r'iter: +(\d+),', text)), default=0)
            saved = [int(path.stem) for path in self.root.glob('training_states/*.state') if not damaged(path)]
            if max(saved, default=0) < trained:
                self.wrong.append(f'status {status}: trained {trained} iterations, saved {max(saved, default=0)}')
        return status


def read(pipe: int, said: bytearray) -> None:
    """What a training says, until it and its workers have ended."""
    with open(pipe, 'rb', buffering=0) as file:
        while part := file.read(65536):
            said += part


def damaged(path: Path) -> bool:
    """Whether a file of a run is not whole."""
    if not path.is_file() or is_unfinished(path.name):
        return False
    if path.suffix in ('.pth', '.state'):
        return bool(damage(str(path)))
    if path.name == 'metrics.csv':
        return not read_table(str(path))
    if path.name == 'net_g_best.json':
        return read_best(str(path)) is None
    return path.suffix == '.png' and not path.read_bytes().endswith(b'IEND\xaeB`\x82')


def run(folder: Path, output: int, *arguments: str) -> None:
    """In a fork: train, with arguments beside the option file; does not return."""
    os.setpgid(0, 0)
    torch.set_num_threads(1)
    os.dup2(output, 1), os.dup2(output, 2)
    sys.stdout = sys.stderr = sys.__stderr__ = open(2, 'w', buffering=1, closefd=False)  # noqa: SIM115
    os.chdir(folder)
    status = 99
    try:
        status = cli.main(['train', '-opt', 'run.yml', *arguments])
    except SystemExit as error:
        status = int(error.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


# what happens


def to_all(case: Case, pid: int) -> None:
    os.killpg(pid, case.draw.choice([signal.SIGTERM, signal.SIGINT]))


def to_one(case: Case, pid: int) -> None:
    os.kill(pid, case.draw.choice([signal.SIGTERM, signal.SIGINT]))


def killed(case: Case, pid: int) -> None:
    os.killpg(pid, signal.SIGKILL)


def worker(case: Case, pid: int) -> None:
    for child in Path(f'/proc/{pid}/task/{pid}/children').read_text().split():
        os.kill(int(child), signal.SIGKILL)


def limited(case: Case, pid: int) -> None:
    """No file may be longer than so many bytes: the next checkpoint, table or picture fails."""
    most = case.draw.choice([0, 100, 1000, 5000])
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))


def of_the_run(case: Case) -> list[Path]:
    return sorted(path for path in case.root.rglob('*') if path.is_file() and path.suffix != '.log')


def cut(case: Case, pid: int) -> None:
    """A file of the run loses its end, or all of it."""
    for path in case.draw.sample(of_the_run(case), 1):
        content = path.read_bytes()
        path.write_bytes(content[: case.draw.randint(0, len(content))])
        case.spoilt.add(path)


def changed(case: Case, pid: int) -> None:
    """Some bytes of a file of the run change."""
    for path in case.draw.sample(of_the_run(case), 1):
        content = bytearray(path.read_bytes())
        for _ in range(5):
            if content:
                content[case.draw.randrange(len(content))] = case.draw.randrange(256)
        path.write_bytes(content)
        case.spoilt.add(path)


def gone(case: Case, pid: int) -> None:
    for path in case.draw.sample(of_the_run(case), 1):
        path.unlink()
        case.spoilt.add(path)


def folder_gone(case: Case, pid: int) -> None:
    folder = case.root / case.draw.choice(['visualization', 'models', 'training_states'])
    case.spoilt.update(folder.rglob('*'))
    shutil.rmtree(folder, ignore_errors=True)


def image_gone(case: Case, pid: int) -> None:
    (case.folder / 'photographs' / case.draw.choice(['chelsea.png', 'coffee.png'])).unlink()


def image_cut(case: Case, pid: int) -> None:
    path = case.folder / 'photographs' / case.draw.choice(['chelsea.png', 'coffee.png'])
    path.write_bytes(path.read_bytes()[: case.draw.randint(0, 2000)])


DISTURBANCES: dict[str, Callable[[Case, int], None]] = {
    'signal to all': to_all,
    'signal': to_one,
    'killed': killed,
    'worker': worker,
    'limit': limited,
    'file cut': cut,
    'file changed': changed,
    'file gone': gone,
    'folder gone': folder_gone,
    'image gone': image_gone,
    'image cut': image_cut,
}


def main() -> int:
    folder, seed, cases = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    found = []
    for number in range(cases):
        case = Case(folder / str(number), random.Random(f'{seed} {number}'))
        found.append({'case': number, **case.make(), 'wrong': case.wrong})
        if not case.wrong:
            shutil.rmtree(case.folder)
    (folder / 'found.json').write_text(json.dumps(found, indent=1))
    print(Counter((each['what'], each['statuses'][0]) for each in found))
    for each in found:
        if each['wrong']:
            print(json.dumps(each, indent=1))
    return 0


if __name__ == '__main__':
    sys.exit(main())
