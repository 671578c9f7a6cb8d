"""Train as `basicsr train` does, killed at random moments and continued each time until it ends.

Each training is a fork of this process, which has everything imported.
"""

import json
import os
import random
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from promptir_basicsr import cli
from promptir_basicsr.host.trainer import Trainer
from promptir_basicsr.models.prompt_model import PromptModel

# isort: split
from basicsr.utils.registry import ARCH_REGISTRY

PHASES = {'optimize_parameters': 'step', 'save': 'save', 'validation': 'validation'}


@ARCH_REGISTRY.register()
class DropNet(nn.Module):
    """Draws random numbers and has running statistics, so that both have to be restored."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.Dropout2d(0.3), nn.ReLU(), nn.Dropout(0.1)
        )
        self.tail = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.tail(self.body(x))


class Killer:
    """Kills its process at a call of Python's, counted from the first batch on and within a phase.

    Args:
        phase: one of PHASES, or between.
        calls: which call of the phase; 0 for none.
    """

    def __init__(self, phase: str, calls: int) -> None:
        self.phase, self.calls, self.now = phase, calls, 'between'
        self.counts = dict.fromkeys(['between', *PHASES.values()], 0)

    def __call__(self, frame: object, event: str, argument: object) -> None:
        self.counts[self.now] += 1
        if self.now == self.phase and self.counts[self.now] == self.calls:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self, method: str) -> None:
        """Know when training is in the phase of a method."""
        host = getattr(PromptModel, method)

        def known(model: PromptModel, *arguments: Any, **named: Any) -> None:
            before, self.now = self.now, PHASES[method]
            host(model, *arguments, **named)
            self.now = before

        setattr(PromptModel, method, known)


def train(rank: int, processes: int, port: int, killer: Killer, report: int) -> None:
    """In a fork: continue the training; does not return."""
    torch.set_num_threads(1)
    words = ['train', '-opt', 'run.yml', '--auto_resume']
    if processes > 1:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
        os.environ.update(WORLD_SIZE=str(processes), LOCAL_WORLD_SIZE=str(processes))
        words += ['--launcher', 'pytorch']
    for method in PHASES:
        killer.watch(method)
    host = Trainer.before_batch

    def before_batch(self: Trainer) -> None:
        Trainer.before_batch = host
        host(self)
        os.write(report, b'\n')
        sys.setprofile(killer)

    Trainer.before_batch = before_batch  # the first batch is next
    status = 1
    try:
        status = cli.main(words)
        sys.setprofile(None)
        os.write(report, f'{json.dumps(killer.counts)}\n'.encode())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def attempt(processes: int, victim: int, phase: str = '', calls: int = 0, seconds: float = 0) -> tuple[list[int], str]:
    """One training, killed at such a call, or after so many seconds; its processes' statuses, and what it told."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    told, report = os.pipe()
    children = []
    for rank in range(processes):
        child = os.fork()
        if not child:
            train(rank, processes, port, Killer(phase, calls if rank == victim else 0), report)
        children.append(child)
    os.close(report)
    if seconds:
        os.read(told, 1)
        time.sleep(seconds)
        os.kill(children[victim], signal.SIGKILL)
    statuses = {victim: wait(children[victim])}
    for rank, child in enumerate(children):
        if rank != victim:
            if statuses[victim]:
                os.kill(child, signal.SIGKILL)  # as torchrun does
            statuses[rank] = wait(child)
    with open(told) as file:
        said = file.read().strip()
    return list(statuses.values()), said


def wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(processes: int, kills: int, share: float, alone: Path) -> int:
    """Train by the options run.yml in the current folder.

    Writes kills.json: where each kill struck, how many calls of Python's functions each phase of the training took, how
    long all of it. `alone` is such a file of a training that was not killed; kills strike at random in `share` of its
    calls, of each phase in turn, or of its seconds.
    """
    uninterrupted = json.loads(alone.read_text()) if kills else {}
    draw, struck = random.Random(kills), []
    start = time.monotonic()
    while True:
        kill: dict[str, Any] = {}
        moment = [*PHASES.values(), 'any'][len(struck) % 4]
        if len(struck) < kills and moment == 'any':
            kill = {'seconds': draw.uniform(0, share * uninterrupted['seconds'])}
        elif len(struck) < kills:
            kill = {'phase': moment, 'calls': draw.randint(1, round(share * uninterrupted['calls'][moment]))}
        statuses, said = attempt(processes, draw.randrange(processes), **kill)
        if not any(statuses):
            break
        if not kill or -signal.SIGKILL not in statuses:
            return 1
        struck.append(moment)
    seconds = time.monotonic() - start
    Path('kills.json').write_text(
        json.dumps({'struck': struck, 'calls': json.loads(said.splitlines()[0]), 'seconds': seconds})
    )
    return 0
