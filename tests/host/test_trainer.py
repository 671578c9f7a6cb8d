"""Whatever ends a run: its last complete iteration is saved, one sentence says why, and the status tells which kind."""

import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from promptir_basicsr import cli
from promptir_basicsr.core.registry import register
from promptir_basicsr.host.trainer import QuietLogger
from tests.core.test_locks import held_by_another
from tests.models.test_resume import assert_same_end, log, options, run

# isort: split
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

ENDLESS: dict[str, Any] = {
    'train__total_iter': 100_000,
    'train__scheduler': {'type': 'FixedLR'},
    'logger__save_checkpoint_freq': 100_000,
    'logger__print_freq': 1,
    'val__val_freq': 100_000,
}


def states(folder: Path) -> list[int]:
    return sorted(int(path.stem) for path in (folder / 'experiments/run/training_states').glob('*.state'))


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def once_it_runs(folder: Path, do: Callable[[], None]) -> threading.Thread:
    """Do something when the third iteration of a training in this process is in its log."""

    def wait() -> None:
        end = time.monotonic() + 120
        while time.monotonic() < end:
            logs = list((folder / 'experiments').glob('run/*.log'))
            if logs and 'iter:       3,' in logs[0].read_text():
                return do()
            time.sleep(0.01)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def goes_on_like_one_left_alone(folder: Path, monkeypatch: pytest.MonkeyPatch, last: int, **changes: Any) -> None:
    """Resume a run of ENDLESS for two iterations, and compare with one that was never ended."""
    words = [f'train:total_iter={last + 2}', f'logger:save_checkpoint_freq={last + 2}', f'val:val_freq={last + 2}']
    changes = {**ENDLESS, **changes}
    assert run(folder, monkeypatch, *words, resume=True, **changes) == 0
    other = folder / 'other'
    assert run(other, monkeypatch, *words, **changes) == 0
    assert_same_end(other, folder, last + 2)


# models that know nothing of tasks


def test_a_model_of_basicsr_measures_all_tasks_as_one_which_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {**ENDLESS, 'train__total_iter': 2, 'val__val_freq': 2}
    changes = {**few, 'model_type': 'SRModel', 'train__scheduler': {'type': 'MultiStepLR', 'milestones': [2]}}
    changes['val__metrics'] = {'psnr': {'type': 'calculate_psnr', 'crop_border': 0}}
    assert run(tmp_path, monkeypatch, **changes) == 0
    told = (
        'WARNING: datasets.val: SRModel reports one average over its 2 tasks (denoise, lowlight) and saves images '
        'under their file names, so that tasks with the same clean images overwrite each other. '
        'Use `model_type: PromptModel` for results per task.'
    )
    assert log(tmp_path).count(told) == 1
    written = yaml.safe_load((tmp_path / 'run.yml').read_text())
    del written['train'], written['datasets']['train']
    written['path'] = {'pretrain_network_g': 'experiments/run/models/net_g_latest.pth'}
    (tmp_path / 'test.yml').write_text(yaml.safe_dump(written))
    assert cli.main(['test', '-opt', 'test.yml']) == 0
    (result,) = (tmp_path / 'results/run').glob('*.log')
    assert result.read_text().count(told) == 1
    assert run(tmp_path / 'ours', monkeypatch, **few) == 0
    assert 'one average' not in log(tmp_path / 'ours')


# two runs, one folder


@pytest.mark.parametrize('resume', [True, False], ids=['auto_resume', 'anew'])
def test_a_second_training_of_the_same_name_is_refused(
    resume: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / 'experiments' / 'run'
    (folder / 'training_states').mkdir(parents=True)
    (folder / 'metrics.csv').write_text('the first run writes here')
    options(tmp_path)
    before = content(tmp_path / 'experiments')
    with held_by_another(folder) as process:
        assert run(tmp_path, monkeypatch, resume=resume) == 2
        after = content(tmp_path / 'experiments')
        assert {name: after[name] for name in before} == before
        assert after.keys() - before.keys() == {'.run.lock'}
    assert re.search(rf"name: another run writes to '\S+/run' \(process {process.pid} on ", capsys.readouterr().err)


def test_a_second_test_with_the_same_results_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opt = options(tmp_path, 'PromptIR')
    opt.pop('train'), opt.pop('logger'), opt['datasets'].pop('train')
    (tmp_path / 'test.yml').write_text(yaml.safe_dump(opt))
    monkeypatch.chdir(tmp_path)
    with held_by_another(tmp_path / 'results' / 'run'):
        assert cli.main(['test', '-opt', 'test.yml']) == 2
    assert 'another run writes to' in capsys.readouterr().err
    assert not (tmp_path / 'results' / 'run').exists()
    assert cli.main(['test', '-opt', 'test.yml']) == 0


def test_two_runs_of_one_process_have_a_log_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {'train__scheduler': {'type': 'FixedLR'}}
    for name in ('first', 'second'):
        assert run(tmp_path, monkeypatch, f'name={name}', 'train:total_iter=1', **changes) == 0
    for name, other in (('first', 'second'), ('second', 'first')):
        (path,) = (tmp_path / 'experiments' / name).glob('*.log')
        said = path.read_text()
        assert 'End of training.' in said
        assert f'experiments/{other}' not in said
    assert not list((tmp_path / 'experiments').glob('.*'))


# what ends a run


def test_a_killed_worker_costs_the_iteration_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill() -> None:
        children = Path(f'/proc/self/task/{os.getpid()}/children').read_text().split()
        workers = [pid for pid in children if b'forkserver' not in Path(f'/proc/{pid}/cmdline').read_bytes()]
        os.kill(int(workers[-1]), signal.SIGKILL)

    killer = once_it_runs(tmp_path, kill)
    assert run(tmp_path, monkeypatch, **ENDLESS, datasets__train__num_worker_per_gpu=1) == 6
    killer.join()
    said = log(tmp_path)
    assert 'ERROR: A worker process of the data loader ' in said
    assert re.search('was killed by signal Killed|ended without an error message', said)
    assert 'num_worker_per_gpu' in said.splitlines()[-1]
    assert 'Traceback' not in said
    (last,) = states(tmp_path)
    goes_on_like_one_left_alone(tmp_path, monkeypatch, last)


@register(ARCH_REGISTRY)
class BrokenNet(nn.Module):
    """Fails in the fourth forward pass of a training, after it has changed its statistics and drawn numbers."""

    failure: Exception | None = None

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.2))
        self.tail = nn.Conv2d(4, 3, 3, padding=1)
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x + self.tail(self.body(x))
        self.calls += self.training
        if self.calls == 4 and BrokenNet.failure is not None:
            raise BrokenNet.failure
        return y


@pytest.mark.parametrize(
    ('failure', 'status', 'sentence'),
    [
        (TypeError('something\nof several lines'), 8, 'TypeError: something ended the training. The traceback is in '),
        (RuntimeError('[enforce fail] DefaultCPUAllocator: not enough memory'), 7, 'The machine does not have enough'),
        (MemoryError(), 7, 'Lower gt_size or batch_size_per_gpu'),
        (OSError(28, 'No space left on device', '/somewhere/file'), 4, "'/somewhere/file' could not be written"),
        (AssertionError(), 8, 'AssertionError ended the training.'),
    ],
    ids=['unknown', 'allocator', 'memory', 'disk', 'silent'],
)
def test_an_error_in_a_step_costs_the_iteration_alone(
    failure: Exception, status: int, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {'network_g': {'type': 'BrokenNet'}, 'datasets__train__use_hflip': False}
    monkeypatch.setattr(BrokenNet, 'failure', failure)
    assert run(tmp_path, monkeypatch, **ENDLESS, **changes) == status
    said = [line for line in log(tmp_path).splitlines() if ' ERROR: ' in line]
    assert sentence in said[-1]
    assert ('Traceback' in log(tmp_path)) == (status == 8)
    assert states(tmp_path) == [3]
    monkeypatch.setattr(BrokenNet, 'failure', None)
    goes_on_like_one_left_alone(tmp_path, monkeypatch, 3, **changes)


def test_an_error_in_a_validation_names_what_is_for_validations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError('DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes')

    monkeypatch.setattr('promptir_basicsr.models.prompt_model.restore_images', fail)
    changes = {**ENDLESS, 'val__val_freq': 2}
    assert run(tmp_path, monkeypatch, **changes) == 7
    assert 'memory for the validation. Set `val: {tile: auto}`' in log(tmp_path)
    assert states(tmp_path) == [2]


# what does not


class FullDisk:
    """A TensorBoard logger on a disk that is full from some call on."""

    def __init__(self, room: int) -> None:
        self.room, self.closed = room, False

    def add_scalar(self, *_: Any) -> None:
        self.room -= 1
        if self.room < 0:
            raise OSError(28, 'No space left on device')

    def close(self) -> None:
        self.closed = True


def test_a_tensorboard_that_fails_is_one_warning(host_log: pytest.LogCaptureFixture) -> None:
    disk = FullDisk(2)
    quiet = QuietLogger(disk)
    for number in range(5):
        quiet.add_scalar('loss', number, number)
    quiet.close()
    assert disk.room == -1
    assert disk.closed
    assert [record.message for record in host_log.records] == [
        'TensorBoard logging stopped: [Errno 28] No space left on device'
    ]


def test_pictures_that_fail_are_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('promptir_basicsr.evaluation.validation.save_picture', fail)
    assert run(tmp_path, monkeypatch, val__save_img=True) == 0
    assert log(tmp_path).count('Writing images of validations stopped: [Errno 28] No space left') == 1


# words


def test_the_remaining_time_is_never_negative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(tmp_path, monkeypatch, logger__print_freq=1) == 0
    times = re.findall(r'\[eta: (.*?), time', log(tmp_path))
    assert len(times) == 12
    assert times[-1] == '0:00:00'
    assert not any('-' in each for each in times)


def test_several_validation_sets_give_no_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opt = options(tmp_path, 'PromptIR')
    opt['datasets']['val_2'] = {**opt['datasets']['val'], 'name': 'second'}
    (tmp_path / 'run.yml').write_text(yaml.safe_dump(opt))
    monkeypatch.chdir(tmp_path)
    assert cli.main(['train', '-opt', 'run.yml']) == 0
    assert 'Multiple validation datasets' not in log(tmp_path)


def test_the_copied_option_file_is_of_the_options_that_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(tmp_path, monkeypatch, 'train:total_iter=4', 'logger:save_checkpoint_freq=4') == 0
    copied = yaml.safe_load((tmp_path / 'experiments/run/run.yml').read_text())
    assert copied == {**options(tmp_path / 'again', 'PromptIR'), **copied}
    assert copied['train']['total_iter'] == copied['logger']['save_checkpoint_freq'] == 4
    shutil.copy(tmp_path / 'experiments/run/run.yml', tmp_path / 'copy.yml')
    assert cli.main(['check', '-opt', 'copy.yml', '--fast']) == 0


WANDB = """
calls = []

class util:
    pass

def init(**options):
    import json
    with open('wandb.json', 'w') as file:
        json.dump({key: options[key] for key in ('id', 'resume', 'project', 'sync_tensorboard')}, file)
"""


def test_todays_wandb_is_given_the_id_that_basicsr_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for its package, whose `util.generate_id` is gone."""
    (tmp_path / 'wandb.py').write_text(WANDB)
    monkeypatch.syspath_prepend(tmp_path)
    changes = {'logger__wandb': {'project': 'mine'}, 'logger__use_tb_logger': True, 'train__total_iter': 1}
    assert run(tmp_path, monkeypatch, **changes, train__scheduler={'type': 'FixedLR'}) == 0
    told = json.loads((tmp_path / 'wandb.json').read_text())
    assert re.fullmatch('[0-9a-f]{8}', told.pop('id'))
    assert told == {'resume': 'never', 'project': 'mine', 'sync_tensorboard': True}
