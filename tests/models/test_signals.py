"""A training that gets a signal finishes its iteration, saves, and ends with status 3. The trainings are real ones."""

import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import pytest
import torch

from promptir_basicsr import cli
from promptir_basicsr.host.trainer import worker_init_fn
from promptir_basicsr.models.signals import StopSignals
from tests.forked import CONTEXT
from tests.models.test_resume import ENVIRONMENT, assert_same_end, options

COMMAND = [str(shutil.which('basicsr', path=os.path.dirname(sys.executable))), 'train', '-opt', 'run.yml']


def endless(folder: Path, **changes: Any) -> dict[str, Any]:
    """Options of a training that ends by a signal only, and saves by nothing else."""
    changes = {'logger__save_checkpoint_freq': 100_000, 'logger__print_freq': 1, 'val__val_freq': 100_000, **changes}
    return options(folder, 'PromptIR', train__total_iter=100_000, train__scheduler={'type': 'FixedLR'}, **changes)


class Training:
    """A training in a process group of its own."""

    def __init__(self, folder: Path, *words: str, command: list[str] = COMMAND) -> None:
        self.log = folder / 'said.txt'
        with open(self.log, 'wb') as file:
            self.process = subprocess.Popen(
                [*command, *words],
                cwd=folder,
                env=ENVIRONMENT,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        return self.log.read_text()

    def wait_for(self, text: str) -> None:
        end = time.monotonic() + 90
        while text not in self.said:
            assert self.process.poll() is None, self.said[-3000:]
            assert time.monotonic() < end, self.said[-3000:]
            time.sleep(0.02)

    def end(self) -> int:
        try:
            return self.process.wait(60)
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()


def saved(folder: Path) -> list[int]:
    return sorted(int(path.stem) for path in (folder / 'experiments/run/training_states').glob('*.state'))


# A stage every two iterations.
STAGES = [{'until': n, 'gt_size': 16 + n % 4 * 4, 'batch_size_per_gpu': 2 + n % 4 // 2} for n in range(2, 60, 2)]


@pytest.mark.parametrize(
    ('name', 'stages'),
    [
        ('SIGINT', []),
        pytest.param('SIGTERM', [*STAGES, {}], marks=pytest.mark.slow),
        pytest.param('SIGTERM', [], marks=pytest.mark.slow),
        pytest.param('SIGUSR1', [], marks=pytest.mark.slow),
    ],
    ids=['SIGINT', 'SIGTERM in stages', 'SIGTERM', 'SIGUSR1'],
)
def test_a_stopped_training_resumes_to_the_same_weights(
    name: str, stages: list[dict[str, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal reaches the workers as well, as Ctrl-C does; the training goes on with another number of them."""
    folder, alone = tmp_path / 'stopped', tmp_path / 'alone'
    staged = {'datasets__train__stages': stages} if stages else {}
    endless(folder, datasets__train__num_worker_per_gpu=2, logger__stop_signals=['SIGUSR1'], **staged)
    training = Training(folder)
    training.wait_for('iter:       3,')
    os.killpg(training.process.pid, signal.Signals[name])
    assert training.end() == 3
    (last,) = saved(folder)
    assert f'{name}: stopping after this iteration is saved' in training.said
    assert f'WARNING: {name}: stopped after iteration {last}. The state is saved.' in training.said
    assert 'Traceback' not in training.said

    total, words = last + 8, ['train', '-opt', 'run.yml', '--auto_resume', '--force_yml']
    words += [
        'datasets:train:num_worker_per_gpu=0',
        f'train:total_iter={total}',
        f'logger:save_checkpoint_freq={total}',
    ]
    words += [f'val:val_freq={total}']
    endless(alone, **staged)
    for each in (folder, alone):
        monkeypatch.chdir(each)
        assert cli.main(words) == 0
    assert_same_end(alone, folder, total)


@pytest.mark.slow
def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    endless(tmp_path)
    training = Training(tmp_path)
    training.wait_for('iter:       2,')
    os.kill(training.process.pid, signal.SIGSTOP)  # so that both arrive in one iteration
    os.kill(training.process.pid, signal.SIGTERM)
    os.kill(training.process.pid, signal.SIGINT)
    os.kill(training.process.pid, signal.SIGCONT)
    assert training.end() in (-signal.SIGTERM, -signal.SIGINT)
    assert saved(tmp_path) == []


@pytest.mark.slow
def test_a_signal_in_a_validation_ends_between_two_images(tmp_path: Path) -> None:
    """Its rows are missing; the training that goes on makes up for it first."""
    opt = endless(tmp_path, val__val_freq=2)
    folder = Path(opt['datasets']['val']['tasks'][0]['clean'])
    for n in range(400):
        shutil.copy(folder / 'coffee.png', folder / f'{n}.png')
    training = Training(tmp_path, '--force_yml', 'datasets:train:tasks:0:copies=1', 'datasets:train:tasks:1:copies=1')
    training.wait_for('iter:       2,')
    time.sleep(0.3)
    training.process.send_signal(signal.SIGTERM)
    assert training.end() == 3
    assert saved(tmp_path) == [2]
    assert not (tmp_path / 'experiments/run/metrics.csv').exists()
    assert 'Validation, iteration' not in training.said


@pytest.mark.slow
@pytest.mark.parametrize('to_all', [True, False], ids=['terminal', 'torchrun'])
def test_several_processes_stop_after_the_same_iteration(
    to_all: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C reaches torchrun and its processes, and torchrun passes it on; a signal to torchrun is passed on."""
    endless(tmp_path, datasets__train__num_worker_per_gpu=1)
    command = [str(Path(sys.executable).with_name('torchrun')), '--nproc_per_node=2', '--master_port=29611']
    training = Training(tmp_path, '--launcher', 'pytorch', command=[*command, '-m', 'promptir_basicsr', *COMMAND[1:]])
    training.wait_for('iter:       3,')
    (os.killpg if to_all else os.kill)(training.process.pid, signal.SIGINT)
    assert training.end() != 0
    (last,) = saved(tmp_path)
    assert f'stopped after iteration {last}. The state is saved.' in training.said
    state = torch.load(tmp_path / f'experiments/run/training_states/{last}.state', weights_only=True)
    assert len(state['processes']) == 2
    assert state['position']['seen'] == last * 4 - state['epoch'] * 12

    # One process goes on alone; the samples that both have seen are behind it.
    words = ['train', '-opt', 'run.yml', '--auto_resume', '--force_yml', f'train:total_iter={last + 2}']
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 0


# the parts


def test_signals_are_what_they_were_afterwards() -> None:
    before = signal.getsignal(signal.SIGUSR1), signal.getsignal(signal.SIGINT)
    signals = StopSignals()
    signals.install(['SIGINT', 'SIGUSR1', 'SIGNOWHERE'])
    assert signals.asked is None
    os.kill(os.getpid(), signal.SIGUSR1)
    assert signals.asked == 'SIGUSR1'
    signals.restore()
    assert (signal.getsignal(signal.SIGUSR1), signal.getsignal(signal.SIGINT)) == before


def test_among_several_processes_the_same_signal_may_come_twice() -> None:
    """Of Ctrl-C, once from the terminal and once from torchrun."""
    signals = StopSignals()
    signals.install(['SIGUSR1'], together=True)
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR1)  # would end this process
    finally:
        signals.restore()
    assert signals.asked == 'SIGUSR1'


def worker() -> int:
    """Start a process as the data loader does; it would never end."""
    ready, told = os.pipe()
    child = os.fork()
    if not child:
        worker_init_fn(0, 1, 0, 0)
        os.write(told, b'.')
        while True:
            time.sleep(1)
    os.read(ready, 1)
    return child


def sent_by_another(child: int, name: str) -> None:
    subprocess.run(['bash', '-c', f'kill -{name} {child}'], check=True)
    time.sleep(0.2)


@pytest.mark.parametrize(('name', 'status'), [('TERM', 0), ('INT', -signal.SIGINT), ('USR1', -signal.SIGUSR1)])
def test_a_worker_outlives_the_first_signal_only(name: str, status: int) -> None:
    child = worker()
    sent_by_another(child, name)
    ended = os.waitpid(child, os.WNOHANG)
    assert ended == (0, 0)
    while ended == (0, 0):  # on a busy machine two signals may arrive as one
        sent_by_another(child, name)
        ended = os.waitpid(child, os.WNOHANG)
    assert os.waitstatus_to_exitcode(ended[1]) == status


def endless_worker(ready: Connection) -> None:
    worker_init_fn(0, 1, 0, 0)
    ready.send('ready')
    time.sleep(600)


@pytest.mark.parametrize('context', [multiprocessing.get_context('fork'), CONTEXT], ids=['fork', 'forkserver'])
def test_a_worker_ends_when_its_parent_terminates_it(context: BaseContext) -> None:
    """A parent that ends with an error waits for it. To the system, the server is the parent of its forks."""
    here, there = context.Pipe()
    process = context.Process(target=endless_worker, args=(there,))
    process.start()
    assert here.recv() == 'ready'
    process.terminate()
    process.join(60)
    assert process.exitcode == 0


def test_signals_are_checked_with_the_options(tmp_path: Path, monkeypatch, capsys) -> None:
    endless(tmp_path, logger__stop_signals=['SIGKILL'])
    monkeypatch.chdir(tmp_path)
    assert cli.main(['train', '-opt', 'run.yml']) == 2
    assert re.search(r'logger\.stop_signals\S*: .*SIGHUP, SIGQUIT, SIGUSR1', capsys.readouterr().err)
