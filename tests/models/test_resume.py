"""Trainings that are killed, stopped and continued end with the weights of one that was left alone."""

import json
import os
import re
import resource
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from skimage import data, io

from promptir_basicsr import cli
from tests.forked import called
from tests.models import killed_training

TESTS = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(TESTS.parent)}
NETWORKS = {
    'DropNet': {'type': 'DropNet'},
    'PromptIR': {
        'type': 'PromptIR',
        'dim': 8,
        'num_blocks': [1, 1, 1, 1],
        'num_refinement_blocks': 1,
        'heads': [1, 1, 1, 1],
        'prompt_sizes': [4, 4, 4],
    },
}


def options(folder: Path, network: str = 'DropNet', **changes: Any) -> dict[str, Any]:
    """A run of seconds on crops of photographs, written to `run.yml`: an epoch has 12 images, in batches of 2."""
    photographs = folder / 'photographs'
    photographs.mkdir(parents=True, exist_ok=True)
    for name, image in (('chelsea', data.chelsea()), ('coffee', data.coffee())):
        io.imsave(photographs / f'{name}.png', image[100:132, 200:240])
    noise = {'type': 'denoise', 'clean': str(photographs), 'degrade': {'type': 'gaussian_noise', 'sigma': 25}}
    dark = {'type': 'lowlight', 'clean': str(photographs), 'degrade': {'type': 'low_light', 'exposure': 0.2}}
    training = {'gt_size': 16, 'tasks': [{**noise, 'copies': 3}, {**dark, 'copies': 3}], 'use_hflip': True}
    opt: dict[str, Any] = {
        'name': 'run',
        'model_type': 'PromptModel',
        'num_gpu': 0,
        'manual_seed': 0,
        'datasets': {
            'train': {
                'name': 'train',
                'type': 'AllInOneDataset',
                **training,
                'batch_size_per_gpu': 2,
                'num_worker_per_gpu': 0,
            },
            'val': {'name': 'val', 'type': 'AllInOneDataset', 'tasks': [noise, dark]},
        },
        'network_g': NETWORKS[network],
        'path': {},
        'train': {
            'total_iter': 12,
            'optim_g': {'type': 'AdamW', 'lr': 1e-3},
            'scheduler': {'type': 'LinearWarmupCosineLR', 'warmup_iter': 3},
            'ema_decay': 0.9,
            'grad_clip_norm': 1.0,
            'loss_scaler': {'history': 4, 'limit': 1.05, 'factor': 1.0},
            'pixel_opt': {'type': 'L1Loss'},
        },
        'val': {'val_freq': 4, 'save_img': False, 'metrics': {'psnr': {'type': 'calculate_paper_psnr'}}},
        'logger': {'print_freq': 7, 'save_checkpoint_freq': 2, 'use_tb_logger': False},
    }
    for place, value in changes.items():
        *sections, key = place.split('__')
        section = opt
        for name in sections:
            section = section[name]
        section[key] = value
    (folder / 'run.yml').write_text(yaml.safe_dump(opt), encoding='utf-8')
    return opt


def killed(folder: Path, processes: int = 1, kills: int = 0, share: float = 0, alone: Path = Path()) -> list[str]:
    """Train to the end, over so many kills, each in a share of what was left alone; see `killed_training`."""
    done = called(killed_training.main, processes, kills, share, alone / 'kills.json', cwd=folder, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / 'kills.json').read_text())['struck']


def weights(folder: Path, name: str = 'net_g_latest.pth') -> dict[str, torch.Tensor]:
    saved = torch.load(folder / 'experiments/run/models' / name, weights_only=True)
    sets = {key: parts for key, parts in saved.items() if key != 'metadata'}
    return {f'{key}.{part}': value for key, parts in sets.items() for part, value in parts.items()}


def metadata(folder: Path, name: str) -> dict[str, Any]:
    return torch.load(folder / 'experiments/run/models' / name, weights_only=True)['metadata']


def assert_same_end(one: Path, other: Path, last: int, went_back: bool = False) -> None:
    """Weights, averages, statistics, moments, the table and what the weights tell of themselves, bit by bit.

    Args:
        went_back: the best weights were there before, and the state knows it.
    """
    untold = {'best'} if went_back else set()
    for name in ('net_g_latest.pth', 'net_g_best.pth', f'net_g_{last}.pth'):
        first, second = weights(one, name), weights(other, name)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[part], second[part]) for part in first), name
        told, other_told = metadata(one, name), metadata(other, name)
        for key in told.keys() - untold:
            assert told[key] == other_told[key], (name, key)
    for name in ('metrics.csv', 'models/net_g_best.json'):
        texts = [(folder / 'experiments/run' / name).read_text() for folder in (one, other)]
        assert texts[0] == texts[1]
    path = f'experiments/run/training_states/{last}.state'
    first, second = (torch.load(folder / path, weights_only=True) for folder in (one, other))
    for key in first.keys() - untold:
        assert same(first[key], second[key]), key
    assert not list(other.rglob('.*.part'))


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def test_killed_in_a_step_a_save_and_a_validation_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    alone, over = tmp_path / 'alone', tmp_path / 'killed'
    for folder in (alone, over):
        options(folder)
    killed(alone)
    assert killed(over, 1, 3, 0.4, alone) == ['step', 'save', 'validation']
    assert_same_end(alone, over, 12)


@pytest.mark.slow
@pytest.mark.parametrize('processes', [1, 2])
@pytest.mark.parametrize('network', NETWORKS)
def test_killed_at_20_random_moments_training_ends_with_the_same_weights(
    network: str, processes: int, tmp_path: Path
) -> None:
    alone, over = tmp_path / 'alone', tmp_path / 'killed'
    for folder in (alone, over):
        options(folder, network, train__total_iter=40)
    killed(alone, processes)
    assert killed(over, processes, 20, 0.06, alone) == ['step', 'save', 'validation', 'any'] * 5
    assert_same_end(alone, over, 40)


# in this process


@pytest.fixture(scope='module')
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of 12 iterations that was left alone."""
    folder = tmp_path_factory.mktemp('alone')
    with pytest.MonkeyPatch.context() as patch:
        run(folder, patch)
    return folder


def run(folder: Path, patch: pytest.MonkeyPatch, *changes: str, resume: bool = False, **written: Any) -> int:
    """Train in a folder; the status."""
    options(folder, 'PromptIR', **written)
    patch.chdir(folder)
    words = ['--auto_resume'] * resume + ['--force_yml', *changes] * bool(changes)
    return cli.main(['train', '-opt', 'run.yml', *words])


def log(folder: Path) -> str:
    """Of the last training; BasicSR names logs by the second."""
    logs = sorted((folder / 'experiments/run').glob('*.log'), key=lambda path: path.stat().st_mtime)
    return logs[-1].read_text()


def test_a_state_holds_what_weights_only_allows(alone: Path) -> None:
    state = torch.load(alone / 'experiments/run/training_states/8.state', weights_only=True)
    assert state['position'] == {'seen': 4, 'samples': 12, 'seed': 0}
    assert set(state['processes'][0]['sums']) == {'l_pix', 'l_pix_denoise', 'l_pix_lowlight', 'grad_norm', 'loss_scale'}
    assert state['best']['iter'] == 4
    assert state['validations'].splitlines()[-1].startswith('4,,average,4,')


def test_the_epoch_continues_with_the_same_batches(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the middle of the second epoch, with workers; the table of a folder that is lost comes with the state."""
    shutil.copytree(alone / 'experiments', tmp_path / 'experiments')
    root = tmp_path / 'experiments/run'
    for name in ('training_states/10.state', 'training_states/12.state', 'metrics.csv'):
        (root / name).unlink()
    assert run(tmp_path, monkeypatch, 'datasets:train:num_worker_per_gpu=2', resume=True) == 0
    assert_same_end(alone, tmp_path, 12, went_back=True)
    said = log(tmp_path)
    assert f'--auto_resume: {root}/training_states/8.state is the newest of 4.' in said
    assert 'The table has no validation of iteration 8. Validating now.' in said
    assert 'Resuming training from epoch: 1, iter: 8.' in said
    assert 'Not exact' not in said


STAGES: dict[str, Any] = {
    'datasets__train__stages': [{'until': 4}, {'until': 7, 'gt_size': 24, 'batch_size_per_gpu': 3}, {'gt_size': 8}],
    'logger__save_checkpoint_freq': 1,
}


@pytest.fixture(scope='module')
def staged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that was left alone: 4 iterations of its 6, 3 of 4 in larger crops, then 5 with an epoch's end."""
    folder = tmp_path_factory.mktemp('staged')
    with pytest.MonkeyPatch.context() as patch:
        assert run(folder, patch, train__total_iter=14, **STAGES) == 0
    return folder


@pytest.mark.parametrize(
    ('at', 'workers'),
    [(2, 0), (4, 2), (5, 2), *(pytest.param(*each, marks=pytest.mark.slow) for each in ((2, 2), (4, 0), (5, 0)))],
)
def test_a_training_in_stages_resumes_to_the_same_weights(
    at: int, workers: int, staged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From within the first stage, from its end, and from within the second."""
    loading = {'datasets__train__num_worker_per_gpu': workers}
    assert resumed(staged, tmp_path, monkeypatch, at=at, train__total_iter=14, **STAGES, **loading) == 0
    assert_same_end(staged, tmp_path, 14, went_back=True)
    begun = [int(number) for number in re.findall(r'Stage (\d) of 3', log(tmp_path))]
    assert begun == ([1, 2, 3] if at < 4 else [2, 3])


@pytest.mark.slow
@pytest.mark.parametrize('processes', [1, 2])
def test_a_training_in_stages_is_killed_and_ends_with_the_same_weights(processes: int, tmp_path: Path) -> None:
    """With workers that live on from stage to stage."""
    alone, over = tmp_path / 'alone', tmp_path / 'killed'
    loading = {'datasets__train__num_worker_per_gpu': 2, 'datasets__train__persistent_workers': True}
    for folder in (alone, over):
        options(folder, train__total_iter=14, **STAGES, **loading)
    killed(alone, processes)
    assert killed(over, processes, 3, 0.25, alone) == ['step', 'save', 'validation']
    assert_same_end(alone, over, 14)


def test_stages_added_when_resuming_count_from_the_start(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a training without any, as if they had been there from the start: iteration 8 is the end of the first."""
    stages = {'datasets__train__stages': [{'until': 8}, {'gt_size': 24, 'batch_size_per_gpu': 4}]}
    assert resumed(alone, tmp_path, monkeypatch, at=8, **stages) == 0
    assert run(tmp_path / 'other', monkeypatch, logger__print_freq=1, **stages) == 0
    assert_same_end(tmp_path / 'other', tmp_path, 12, went_back=True)


def test_a_truncated_state_costs_the_iterations_after_the_previous_one(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(alone / 'experiments', tmp_path / 'experiments')
    newest = tmp_path / 'experiments/run/training_states/12.state'
    newest.write_bytes(newest.read_bytes()[:-1000])
    assert run(tmp_path, monkeypatch, resume=True) == 0
    assert_same_end(alone, tmp_path, 12, went_back=True)
    assert 'WARNING: --auto_resume: iteration 12 is not complete' in log(tmp_path)
    assert 'Resuming training from epoch: 1, iter: 10.' in log(tmp_path)


def test_a_state_of_an_older_version_resumes_and_reports_what_is_not_exact(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(alone / 'experiments', tmp_path / 'experiments')
    path = tmp_path / 'experiments/run/training_states/12.state'
    state = torch.load(path, weights_only=True)
    old = {key: state[key] for key in ('epoch', 'iter', 'optimizers', 'schedulers', 'loss_scaler')}
    torch.save(old, path)
    assert run(tmp_path, monkeypatch, 'train:total_iter=14', resume=True) == 0
    said = log(tmp_path)
    assert 'The state has no position in its epoch; the epoch restarts.' in said
    assert 'Not exact: the state is of an older version; random numbers and the means of the log restart.' in said


def test_another_training_set_restarts_its_epoch(alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(alone / 'experiments', tmp_path / 'experiments')
    changes = ('datasets:train:dataset_enlarge_ratio=2', 'train:total_iter=14')
    assert run(tmp_path, monkeypatch, *changes, resume=True) == 0
    assert 'The samples of an epoch changed from 12 to 24; the epoch restarts.' in log(tmp_path)


def test_the_last_checkpoints_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(tmp_path, monkeypatch, logger__keep_last=2, train__total_iter=8) == 0
    root = tmp_path / 'experiments/run'
    assert sorted(path.name for path in (root / 'training_states').iterdir()) == ['6.state', '8.state']
    kept = {'net_g_6.pth', 'net_g_8.pth', 'net_g_best.pth', 'net_g_best.json', 'net_g_latest.pth'}
    assert {path.name for path in (root / 'models').iterdir()} == kept
    assert 'Removed the checkpoints of 4; the last 2 are kept.' in log(tmp_path)


def test_a_deleted_image_does_not_cost_the_iterations_before(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless: dict[str, Any] = {
        'train__total_iter': 100_000,
        'train__scheduler': {'type': 'FixedLR'},
        'logger__save_checkpoint_freq': 100_000,
        'logger__print_freq': 1,
        'val__val_freq': 100_000,
    }

    def delete() -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            logs = list((tmp_path / 'experiments').glob('run/*.log'))
            if logs and 'iter:       3,' in logs[0].read_text():
                break
            time.sleep(0.01)
        (tmp_path / 'photographs/coffee.png').unlink()

    deleter = threading.Thread(target=delete)
    deleter.start()
    assert run(tmp_path, monkeypatch, **endless) == 1
    deleter.join()
    said = log(tmp_path)
    (last,) = (int(path.stem) for path in (tmp_path / 'experiments/run/training_states').iterdir())
    assert f'iter: {last:7,d}, ' in said
    assert f'iter: {last + 1:7,d}, ' not in said
    assert "ERROR: task '" in said
    assert f'{tmp_path}/photographs/coffee.png' in said
    # The image is put back.
    changes = [f'train:total_iter={last + 5}', f'logger:save_checkpoint_freq={last + 5}', f'val:val_freq={last + 5}']
    assert run(tmp_path, monkeypatch, *changes, resume=True, **endless) == 0
    other = tmp_path / 'other'
    assert run(other, monkeypatch, *changes, **endless) == 0
    assert_same_end(other, tmp_path, last + 5)


def test_whoever_goes_back_keeps_the_table_under_another_name(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(alone / 'experiments', tmp_path / 'experiments')
    root = tmp_path / 'experiments/run'
    before = (root / 'metrics.csv').read_text()
    assert run(tmp_path, monkeypatch, f'path:resume_state={root}/training_states/6.state', 'train:total_iter=7') == 0
    assert (root / 'metrics.csv.old').read_text() == before
    iterations = [line.partition(',')[0] for line in (root / 'metrics.csv').read_text().splitlines()]
    assert iterations == ['iter', '4', '4', '4', '7', '7', '7']


# a disk that is full


def trained_with_small_files() -> int:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100 * 1024, 100 * 1024))
    return cli.main(['train', '-opt', 'run.yml', '--auto_resume'])


def test_a_failed_save_is_an_error_that_leaves_all_files_whole(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit of the size of a file stands for the disk's."""
    shutil.copytree(alone / 'experiments', tmp_path / 'experiments')
    root = tmp_path / 'experiments/run'
    for name in ('training_states/10.state', 'training_states/12.state', 'models/net_g_10.pth', 'models/net_g_12.pth'):
        (root / name).unlink()
    before = {path: path.read_bytes() for path in root.rglob('*') if path.suffix in ('.pth', '.state')}
    options(tmp_path, 'PromptIR')
    done = called(trained_with_small_files, cwd=tmp_path)
    assert done.returncode == 4, done.stderr[-3000:]
    (line,) = (line for line in done.stderr.splitlines() if ' ERROR: ' in line)
    assert f"'{root}/models/net_g_10.pth' could not be written: File too large. It needs " in line
    assert ' MB are free there; the system limits the size of files, see `ulimit -f`. ' in line
    assert line.endswith('Existing files are unchanged. Free some disk space; --auto_resume continues a training.')
    assert 'Traceback' not in done.stderr
    after = {path: path.read_bytes() for path in root.rglob('*') if path.suffix in ('.pth', '.state', '.part')}
    assert {path: after[path] for path in before} == before
    assert set(after) == set(before)
    # There is room again.
    assert run(tmp_path, monkeypatch, resume=True) == 0
    assert_same_end(alone, tmp_path, 12, went_back=True)


# changed options

RESTARTS = {'type': 'CosineAnnealingRestartLR', 'periods': [6, 6], 'restart_weights': [1, 0.5]}


def rates(folder: Path) -> dict[int, float]:
    """Iteration -> learning rate, from the log of the last training."""
    found = re.findall(r'iter: +([\d,]+), lr:\(([\d.e+-]+),', log(folder))
    return {int(iteration): float(rate) for iteration, rate in found}


def resumed(alone: Path, folder: Path, patch: pytest.MonkeyPatch, *changes: str, at: int = 8, **written: Any) -> int:
    """Go on from iteration `at` of the training that was left alone."""
    shutil.copytree(alone / 'experiments', folder / 'experiments')
    for path in (folder / 'experiments/run').rglob('*.state'):
        if int(path.stem) > at:
            path.unlink()
    return run(folder, patch, *changes, resume=True, **{'logger__print_freq': 1, **written})


@pytest.mark.parametrize(
    ('changes', 'lines'),
    [
        ({'train__optim_g': {'type': 'AdamW', 'lr': 1e-4}}, ['optim_g.lr 0.001 -> 0.0001']),
        ({'train__scheduler': {'type': 'MultiStepLR', 'milestones': [5, 10], 'gamma': 0.1}}, None),
        ({'train__scheduler': RESTARTS, 'train__warmup_iter': 4}, None),
        ({'train__total_iter': 16}, ['total_iter 12 -> 16']),
    ],
    ids=['rate', 'milestones', 'warm-up', 'length'],
)
def test_changed_rates_are_those_of_a_run_that_had_them_from_the_start(
    changes: dict[str, Any], lines: list[str] | None, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resumed(alone, tmp_path, monkeypatch, **changes) == 0
    found, said = rates(tmp_path), log(tmp_path)
    told = re.findall(r'Changed from iteration 9 on: (.*)\.$', said, re.M)
    assert told == lines if lines else told
    assert run(tmp_path / 'other', monkeypatch, logger__print_freq=1, **changes) == 0
    expected = rates(tmp_path / 'other')
    assert found == {iteration: rate for iteration, rate in expected.items() if iteration > 8}


def test_changed_arguments_of_the_optimizer_count(alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = {'type': 'AdamW', 'lr': 1e-3, 'betas': [0.5, 0.9], 'weight_decay': 0.2}
    assert resumed(alone, tmp_path, monkeypatch, train__optim_g=optimizer) == 0
    (group,) = torch.load(tmp_path / 'experiments/run/training_states/12.state', weights_only=True)['optimizers'][0][
        'param_groups'
    ]
    assert (list(group['betas']), group['weight_decay']) == ([0.5, 0.9], 0.2)
    assert 'Changed from iteration 9 on: optim_g.betas unset -> [0.5, 0.9].' in log(tmp_path)


@pytest.mark.parametrize(
    ('kind', 'options'),
    [('Muon', {'lr': 0.02, 'adamw_lr': 1e-3}), pytest.param('SOAP', {'lr': 1e-3}, marks=pytest.mark.slow)],
)
def test_trainings_with_third_party_optimizers_resume_to_the_same_weights(
    kind: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizer = {'type': f'pytorch_optimizer:{kind}', **options}
    alone, over = tmp_path / 'alone', tmp_path / 'over'
    assert run(alone, monkeypatch, train__optim_g=optimizer) == 0
    assert resumed(alone, over, monkeypatch, train__optim_g=optimizer, logger__print_freq=7) == 0
    assert_same_end(alone, over, 12, went_back=True)
    split = re.search(r'Learning rates of Muon: .* parameters at 0.02; .* parameters at 0.001\.', log(alone))
    assert bool(split) == (kind == 'Muon')


@pytest.mark.parametrize(
    ('changes', 'sentence'),
    [
        ({'train__optim_g': {'type': 'SGD', 'lr': 0.1, 'momentum': 0.9}}, 'SGD cannot resume from a state of AdamW'),
        (
            {'train__total_iter': 6, 'train__scheduler': {'type': 'FixedLR'}},
            '6 is less than 8, the iteration of the state.',
        ),
    ],
    ids=['optimizer', 'length'],
)
@pytest.mark.parametrize('older', [False, True], ids=['state', 'older state'])
def test_what_cannot_be_resumed_is_refused(
    changes: dict[str, Any],
    sentence: str,
    older: bool,
    alone: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = tmp_path / 'source'
    shutil.copytree(alone / 'experiments', source / 'experiments')
    if older:
        path = source / 'experiments/run/training_states/8.state'
        state = torch.load(path, weights_only=True)
        torch.save({key: state[key] for key in ('epoch', 'iter', 'optimizers', 'schedulers')}, path)
        sentence = sentence.replace('AdamW', 'another optimizer')
    assert resumed(source, tmp_path, monkeypatch, **changes) == 2
    assert sentence in capsys.readouterr().err


def test_a_state_goes_with_its_own_weights(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(alone / 'experiments', tmp_path / 'experiments')
    models = tmp_path / 'experiments/run/models'
    shutil.copy(models / 'net_g_4.pth', models / 'net_g_12.pth')
    state = f'path:resume_state={tmp_path}/experiments/run/training_states/12.state'
    assert run(tmp_path, monkeypatch, state, 'train:total_iter=14') == 2
    assert 'was saved with other weights than those in' in capsys.readouterr().err
    assert run(tmp_path, monkeypatch, resume=True) == 0
    assert 'iteration 12 is not complete (the state was saved with other weights' in log(tmp_path)
    assert_same_end(alone, tmp_path, 12, went_back=True)


@pytest.mark.parametrize(
    ('name', 'change'),
    [
        ('metrics.csv', lambda content: content.decode().encode('utf-16')),
        ('metrics.csv', lambda content: content.replace(b',', b';')),
        ('metrics.csv', lambda content: content.replace(b',2,', b',2x,', 1)),
        ('metrics.csv', lambda content: b'\xef\xbb\xbf' + content),
        ('models/net_g_best.json', lambda content: b''),
        ('models/net_g_best.json', lambda content: content[:-3]),
        ('models/net_g_best.json', lambda content: b'[1, 2]'),
    ],
    ids=['utf-16', 'semicolons', 'numbers', 'mark', 'empty', 'cut', 'other'],
)
def test_results_that_another_program_has_changed_come_from_the_state(
    name: str, change: Any, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / 'source'
    shutil.copytree(alone / 'experiments', source / 'experiments')
    path = source / 'experiments/run' / name
    changed = change(path.read_bytes())
    path.write_bytes(changed)
    assert resumed(source, tmp_path, monkeypatch, at=10, logger__print_freq=7) == 0
    assert_same_end(alone, tmp_path, 12, went_back=True)
    assert re.search(r'WARNING: .*(changed by another program|is damaged)', log(tmp_path))
    if name == 'metrics.csv':
        assert (tmp_path / 'experiments/run/metrics.csv.old').read_bytes() == changed
