"""A training goes on from its last state, on the CPU and wherever it writes. The trainings are real `basicsr train`."""

import copy
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from promptir_basicsr import cli
from promptir_basicsr.checkpoints.folder import atomic_save
from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.host.resume import find_state, load_resume_state

# isort: split
from basicsr.models.base_model import BaseModel

from tests.forked import basicsr
from tests.tiny_training import TINY_TRAINING

OPTIONS = TINY_TRAINING.replace('{type: FixedLR}', '{type: LinearWarmupCosineLR, warmup_iter: 1}\n  ema_decay: 0.9')


def train(folder: Path, *words: str) -> str:
    """Run a training in a folder; what it says."""
    (folder / 'tiny.yml').write_text(OPTIONS, encoding='utf-8')
    process = basicsr('train', '-opt', 'tiny.yml', *words, cwd=folder)
    assert process.returncode == 0, process.stderr
    return process.stdout + process.stderr


def iterations(said: str) -> list[int]:
    """The iterations that a training tells of."""
    return [int(number) for number in re.findall(r'\[epoch: +\d+, iter: +(\d+),', said)]


def files(folder: Path) -> set[str]:
    """Files and empty folders below a folder, logs left out."""
    found = [path for path in folder.rglob('*') if path.suffix != '.log']
    return {path.relative_to(folder).as_posix() for path in found if path.is_file() or not any(path.iterdir())}


def run_files(root: str, *saved: int) -> set[str]:
    names = [f'models/net_g_{name}.pth' for name in (*saved, 'latest')] + [f'training_states/{n}.state' for n in saved]
    return {
        'tiny.yml',
        *(f'{root}/tiny/{name}' for name in (*names, 'tiny.yml', 'options.resolved.yml', 'visualization')),
    }


def weights(folder: Path) -> dict[str, torch.Tensor]:
    saved = torch.load(folder / 'experiments/tiny/models/net_g_latest.pth', weights_only=True)
    return {f'{key}.{name}': value for key in saved.keys() - {'metadata'} for name, value in saved[key].items()}


@pytest.fixture(scope='module')
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a training ended after 2 of 4 iterations. It was to resume, but there was nothing yet."""
    folder = tmp_path_factory.mktemp('stopped')
    said = train(folder, '--auto_resume', '--force_yml', 'train:total_iter=2')
    assert f'no training state in {folder}/experiments/tiny/training_states; starting from scratch' in said
    assert iterations(said) == [1, 2]
    assert files(folder) == run_files('experiments', 2)
    return folder


def test_both_ways_to_resume_reach_the_end(stopped: Path, tmp_path: Path) -> None:
    automatic = shutil.copytree(stopped, tmp_path / 'automatic')
    said = train(automatic, '--auto_resume')
    assert 'starting from scratch' not in said
    assert iterations(said) == [3, 4]
    assert 'Resuming training from epoch: 0, iter: 2.' in said
    assert f'Loading PromptIR model from {automatic}/experiments/tiny/models/net_g_2.pth' in said
    assert files(automatic) == run_files('experiments', 2, 4)
    copied = (automatic / 'experiments/tiny/tiny.yml').read_text(encoding='utf-8')
    assert '\n# basicsr train -opt tiny.yml --auto_resume\n' in copied
    assert copied.endswith(OPTIONS)

    named = shutil.copytree(stopped, tmp_path / 'named')
    said = train(named, '--force_yml', 'path:resume_state=experiments/tiny/training_states/2.state')
    assert iterations(said) == [3, 4]
    assert 'Resuming training from epoch: 0, iter: 2.' in said
    assert files(named) == run_files('experiments', 2, 4)

    before, first, second = weights(stopped), weights(automatic), weights(named)
    assert {name.partition('.')[0] for name in first} == {'params', 'params_ema'}
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], before[name]) for name in first)


def test_auto_resume_looks_where_the_run_writes(stopped: Path, tmp_path: Path) -> None:
    shutil.copytree(stopped / 'experiments', tmp_path / 'disk')
    said = train(tmp_path, '--auto_resume', '--force_yml', 'path:experiments_root=disk')
    assert iterations(said) == [3, 4]
    assert files(tmp_path) == run_files('disk', 2, 4)


# what is read


def saved_run(folder: Path, scheduler: dict[str, Any]) -> tuple[dict[str, Any], BaseModel]:
    """Options, and a model whose state BasicSR has written as iteration 3."""
    paths = {'models': str(folder / 'models'), 'training_states': str(folder / 'training_states')}
    opt = {
        'num_gpu': 0,
        'is_train': True,
        'auto_resume': False,
        'network_g': {},
        'path': paths,
        'train': {'total_iter': 10, 'scheduler': scheduler},
    }
    for path in paths.values():
        os.makedirs(path)
    model = new_model(opt)
    for iteration in (1, 2, 3):
        model.update_learning_rate(iteration)
        model.optimizers[0].param_groups[0]['params'][0].grad = torch.ones(2)
        model.optimizers[0].step()
    model.save_training_state(epoch=1, current_iter=3)
    torch.save({'params': {}}, folder / 'models' / 'net_g_3.pth')
    return opt, model


def new_model(opt: dict[str, Any]) -> BaseModel:
    model = BaseModel(copy.deepcopy(opt))
    model.optimizers.append(model.get_optimizer('AdamW', [torch.zeros(2)], 1e-3))
    model.setup_schedulers()
    return model


@pytest.mark.parametrize(
    'scheduler',
    [
        {'type': 'FixedLR'},
        {'type': 'LinearWarmupCosineLR', 'warmup_iter': 5},
        {'type': 'MultiStepLR', 'milestones': [2, 4], 'gamma': 0.5},
        {'type': 'CosineAnnealingRestartLR', 'periods': [5, 5], 'restart_weights': [1, 0.5]},
    ],
    ids=lambda scheduler: scheduler['type'],
)
def test_what_basicsr_saves_is_restored(scheduler: dict[str, Any], tmp_path: Path) -> None:
    opt, model = saved_run(tmp_path, scheduler)
    opt['path']['resume_state'] = str(tmp_path / 'training_states' / '3.state')
    state, _ = load_resume_state(opt)
    assert (state['epoch'], state['iter']) == (1, 3)
    resumed = new_model(opt)
    resumed.resume_training(state)
    for iteration in (4, 5, 6):
        for each in (model, resumed):
            each.update_learning_rate(iteration)
        assert resumed.get_current_learning_rate() == model.get_current_learning_rate()
    moments = [each.optimizers[0].state_dict()['state'][0]['exp_avg'] for each in (model, resumed)]
    assert torch.equal(*moments)


def test_the_weights_of_the_iteration_are_the_ones_to_load(tmp_path: Path) -> None:
    opt, _ = saved_run(tmp_path, {'type': 'FixedLR'})
    opt['path'].update(resume_state=str(tmp_path / 'training_states' / '3.state'), param_key_g='params_ema')
    opt['path']['pretrain_network_g'] = 'released.pth'
    load_resume_state(opt)
    assert opt['path']['pretrain_network_g'] == str(tmp_path / 'models' / 'net_g_3.pth')
    assert opt['path']['param_key_g'] == 'params'


def test_a_fresh_start(tmp_path: Path) -> None:
    for paths in ({}, {'resume_state': None}):
        assert load_resume_state({'auto_resume': False, 'path': paths}) == (None, [])


def checkpoints(folder: Path, *iterations: int) -> dict[str, Any]:
    """Options of a run, with weights and a state of each iteration."""
    paths = {name: str(folder / name) for name in ('models', 'training_states')}
    for path in paths.values():
        os.makedirs(path, exist_ok=True)
    for n in iterations:
        atomic_save({'params': {'weight': torch.full((100,), float(n))}}, f'{paths["models"]}/net_g_{n}.pth')
        moments = torch.full((100,), float(n))
        state = {'epoch': 0, 'iter': n, 'optimizers': [{'state': {0: moments}}], 'schedulers': []}
        atomic_save(state, f'{paths["training_states"]}/{n}.state')
    return {'auto_resume': True, 'network_g': {}, 'path': paths}


def change(path: Path, bit: bool = False) -> None:
    """Cut a file in half, or change one of its bits where its tensors are."""
    content = bytearray(path.read_bytes())
    if bit:
        content[len(content) // 2] ^= 1
    path.write_bytes(content if bit else content[: len(content) // 2])


def test_auto_resume_takes_the_newest_state(tmp_path: Path) -> None:
    """The newest is the highest number."""
    opt = checkpoints(tmp_path, 9, 10, 2)
    for name in ('best.state', '20.pth', '-5.state'):
        (tmp_path / 'training_states' / name).touch()
    state, _ = load_resume_state(opt)
    assert state is not None
    assert state['iter'] == 10
    assert opt['path']['resume_state'] == str(tmp_path / 'training_states' / '10.state')
    assert find_state(opt)[1] == [f'--auto_resume: {tmp_path}/training_states/10.state is the newest of 3.']


@pytest.mark.parametrize('bit', [False, True], ids=['cut', 'bit'])
@pytest.mark.parametrize('file', ['training_states/{}.state', 'models/net_g_{}.pth'], ids=['state', 'weights'])
def test_a_truncated_state_is_reported_and_the_previous_one_is_used(file: str, bit: bool, tmp_path: Path) -> None:
    opt = checkpoints(tmp_path, 2, 4, 6, 8)
    change(tmp_path / file.format(8), bit)
    (tmp_path / 'models' / 'net_g_6.pth').unlink()
    before = {path: path.read_bytes() for path in tmp_path.rglob('*.*')}
    found, lines = find_state(opt)
    assert found == str(tmp_path / 'training_states' / '4.state')
    assert lines[0].startswith(f"--auto_resume: iteration 8 is not complete ('{tmp_path / file.format(8)}': ")
    assert lines[1].startswith('--auto_resume: iteration 6 is not complete (')
    assert "net_g_6.pth': it does not exist" in lines[1]
    assert lines[2] == f'--auto_resume: {found} is the newest complete one of 4.'
    assert {path: path.read_bytes() for path in tmp_path.rglob('*.*')} == before


def test_states_that_are_all_damaged_are_an_error(tmp_path: Path) -> None:
    opt = checkpoints(tmp_path, 2, 4)
    for n in (2, 4):
        change(tmp_path / 'training_states' / f'{n}.state')
    with pytest.raises(OptionError) as error:
        load_resume_state(opt)
    first, *others = error.value.lines
    none = f"--auto_resume: none of the 2 training states in '{tmp_path}/training_states' is complete."
    assert first.startswith(none)
    assert 'start from scratch without --auto_resume' in first
    assert [line.partition(':')[0] for line in others] == ['iteration 4', 'iteration 2']


def test_what_a_kill_left_unfinished_is_removed(tmp_path: Path) -> None:
    opt = checkpoints(tmp_path, 2)
    opt['path']['visualization'] = str(tmp_path / 'visualization')
    (tmp_path / 'visualization/set/task').mkdir(parents=True)
    for folder in ('models', 'training_states', '.', 'visualization/set/task'):
        for name in ('.promptir-0123456789abcdef.part', 'mine.tmp', 'mine.part'):
            (tmp_path / folder / name).write_bytes(b'half')
    _, lines = find_state(opt)
    first = f'{tmp_path}/models/.promptir-0123456789abcdef.part'
    said = f'--auto_resume: removed unfinished files of a killed run: {first}, '
    assert lines[0].startswith(said)
    assert lines[0].endswith(' and 1 more.')
    assert sum(path.name.startswith('.promptir') for path in tmp_path.rglob('*')) == 0
    assert len(list(tmp_path.rglob('mine.*'))) == 8


@pytest.mark.parametrize('there', [True, False])
def test_without_a_state_training_starts_as_configured(there: bool, tmp_path: Path) -> None:
    folder = tmp_path / 'training_states'
    if there:
        folder.mkdir()
    opt = {'path': {'training_states': str(folder)}}
    assert find_state(opt) == (None, [f'--auto_resume: no training state in {folder}; starting from scratch.'])
    opt['path']['resume_state'] = 'other.state'
    assert find_state(opt)[1] == [f"--auto_resume: no training state in {folder}; resuming from 'other.state'."]


# files that are something else


class Touch:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ('touch pwned',)


def write(path: Path, content: Any) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)


@pytest.mark.parametrize(
    ('content', 'said'),
    [
        ({'params': {}}, 'is not a training state. Use a file of `training_states`.'),
        ([1, 2], 'is not a training state'),
        (b'', 'is empty.'),
        (b'PK\x03\x04 torn', 'is cut off'),
        (b'words', 'contains no training state: it is text, not a file of PyTorch.'),
        (b'version https://git-lfs.github.com/spec/v1', 'is a git LFS pointer'),
        (b'<!doctype html>', 'is a web page'),
        (b'\x80\x02]q\x00.', 'it is a pickle, but not of torch.save'),
        (
            {'epoch': 0, 'iter': 3, 'optimizers': [Touch()], 'schedulers': []},
            'is not a training state of BasicSR: it contains ',
        ),
        ({'epoch': 0, 'iter': 99, 'optimizers': [], 'schedulers': []}, "net_g_99.pth', which do not exist."),
    ],
    ids=['weights', 'list', 'empty', 'torn', 'text', 'lfs', 'page', 'pickle', 'code', 'no weights'],
)
def test_a_file_that_is_not_a_state_of_the_run_is_refused(
    content: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With status 2, a line, and nothing created."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', [])
    Path('tiny.yml').write_text(OPTIONS, encoding='utf-8')
    write(Path('some.state'), content)
    assert cli.main(['train', '-opt', 'tiny.yml', '--force_yml', 'path:resume_state=some.state']) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("path.resume_state: 'some.state' ")
    assert said in line
    assert sorted(os.listdir()) == ['some.state', 'tiny.yml']


def test_a_state_without_weights_is_accepted_where_they_are_not_needed(tmp_path: Path) -> None:
    opt, _ = saved_run(tmp_path, {'type': 'FixedLR'})
    (tmp_path / 'models' / 'net_g_3.pth').unlink()
    opt['path']['resume_state'] = str(tmp_path / 'training_states' / '3.state')
    with pytest.raises(OptionError, match='which do not exist'):
        load_resume_state(copy.deepcopy(opt))
    opt['path']['ignore_resume_networks'] = ['network_g']
    assert load_resume_state(opt)[0] is not None
