"""Trainings and tests of two processes, started by torchrun or as Slurm does, which meet over gloo on the CPU."""

import csv
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest
import skimage.data
import torch
import yaml
from torch.nn.parallel import DistributedDataParallel

from promptir_basicsr import cli

# isort: split
from basicsr.archs import build_network
from basicsr.data import build_dataset
from basicsr.utils.logger import initialized_logger

from promptir_basicsr.data.sampler import EpochSampler
from promptir_basicsr.runtime.recompute import set_blocks
from tests.forked import Fork
from tests.models.model_options import NETWORK
from tests.models.step_data import PIP
from tests.tiny_training import written

TORCHRUN = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
MODULE = ['-m', 'promptir_basicsr']
SMALL = {'files': ['0.png', '1.png']}


@pytest.fixture(scope='module')
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five crops of a photograph."""
    folder = tmp_path_factory.mktemp('images')
    for i in range(5):
        crop = skimage.data.chelsea()[60 + 20 * i : 84 + 20 * i, 100 : 129 + 3 * i]
        cv2.imwrite(str(folder / f'{i}.png'), cv2.cvtColor(crop, cv2.COLOR_RGB2BGR))
    return folder


def tasks(images: Path, **more: Any) -> list[dict[str, Any]]:
    noise = {'type': 'gaussian_noise', 'sigma': 25}
    return [
        {'name': 'noise', 'type': 'denoise', 'clean': str(images), 'degrade': noise, **more},
        {'name': 'rain', 'type': 'derain', 'clean': str(images), 'degrade': {'type': 'rain'}, **SMALL, **more},
    ]


def options(images: Path, **changes: Any) -> dict[str, Any]:
    """A training of 14 samples an epoch; changes as `train__total_iter`."""
    opt: dict[str, Any] = {
        'name': 'run',
        'model_type': 'PromptModel',
        'num_gpu': 0,
        'manual_seed': 0,
        'datasets': {
            'train': {
                'name': 'train',
                'type': 'AllInOneDataset',
                'gt_size': 16,
                'use_hflip': True,
                'tasks': tasks(images, copies=2),
                'batch_size_per_gpu': 2,
                'num_worker_per_gpu': 0,
            },
            'val': {'name': 'val', 'type': 'AllInOneDataset', 'tasks': tasks(images)},
        },
        'network_g': dict(PIP),
        'path': {},
        'train': {
            'total_iter': 5,
            'optim_g': {'type': 'AdamW', 'lr': 1e-3},
            'scheduler': {'type': 'FixedLR'},
            'ema_decay': 0.9,
            'pixel_opt': {'type': 'L1Loss'},
            'prompt_opt': {'type': 'PromptDecorrelationLoss'},
        },
        'val': {'val_freq': 2, 'save_img': False, 'metrics': {'psnr': {'type': 'calculate_paper_psnr'}}},
        'logger': {'print_freq': 1, 'save_checkpoint_freq': 2, 'use_tb_logger': False},
        'dist_params': {'backend': 'nccl', 'port': 29500, 'timeout': 120},
    }
    for place, value in changes.items():
        *sections, key = place.split('__')
        section = opt
        for name in sections:
            section = section[name]
        section[key] = value
    return opt


def start(folder: Path, opt: dict[str, Any], command: list[str], *words: str, **environment: str) -> subprocess.Popen:
    """A command of its own process group in a folder; what it says goes to `said.txt` there."""
    folder.mkdir(exist_ok=True)
    (folder / 'run.yml').write_text(yaml.safe_dump(opt, sort_keys=False), encoding='utf-8')
    with open(folder / 'said.txt', 'a', encoding='utf-8') as said:
        return subprocess.Popen(
            [*command, '-opt', 'run.yml', *words],
            cwd=folder,
            env={**os.environ, 'OMP_NUM_THREADS': '1', 'OMP_WAIT_POLICY': 'PASSIVE', **environment},
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def finish(process: subprocess.Popen, folder: Path, timeout: float = 240) -> tuple[int, str]:
    """Status and what was said. Nothing of it goes on running where the test fails."""
    try:
        status = process.wait(timeout)
    finally:
        for pid in running(folder):
            os.kill(pid, signal.SIGKILL)
    return status, (folder / 'said.txt').read_text(encoding='utf-8')


def running(folder: Path) -> list[int]:
    """The processes of a folder: of the command, of torchrun, of loaders."""
    found = []
    for path in Path('/proc').glob('[0-9]*'):
        try:
            inside = os.readlink(path / 'cwd') == str(folder)
            state = (path / 'stat').read_text().rpartition(')')[2].split()[0]
        except OSError:  # it has ended, or is somebody else's
            continue
        if inside and state != 'Z':
            found.append(int(path.name))
    return found


def torchrun(folder: Path, opt: dict[str, Any]) -> str:
    """What two processes say that end well."""
    command = [*TORCHRUN, *MODULE, 'train']
    status, said = finish(start(folder, opt, command, '--launcher', 'pytorch'), folder)
    assert status == 0, said
    return said


def together(verb: str, *runs: tuple[Path, dict[str, Any]]) -> list[tuple[int, str]]:
    """Statuses and words of processes with the environment that torchrun gives them; a folder and options of each."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        shared = {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(free.getsockname()[1])}
    shared |= dict.fromkeys(('WORLD_SIZE', 'LOCAL_WORLD_SIZE'), str(len(runs)))
    words, forks, said = [verb, '-opt', 'run.yml', '--launcher', 'pytorch'], [], []
    for rank, (folder, opt) in enumerate(runs):
        folder.mkdir(exist_ok=True)
        (folder / 'run.yml').write_text(yaml.safe_dump(opt, sort_keys=False), encoding='utf-8')
        environment = {**os.environ, **shared, 'RANK': str(rank), 'LOCAL_RANK': str(rank)}
        said.append(folder / f'said{rank}.txt')
        forks.append(Fork(cli.main, words, cwd=folder, out=said[-1], env=environment))
    return [(fork.wait(), path.read_text(encoding='utf-8')) for fork, path in zip(forks, said, strict=True)]


def alone(folder: Path, opt: dict[str, Any], monkeypatch: pytest.MonkeyPatch, verb: str = 'train') -> None:
    """The same in this process."""
    folder.mkdir()
    monkeypatch.chdir(folder)
    Path('run.yml').write_text(yaml.safe_dump(opt, sort_keys=False), encoding='utf-8')
    initialized_logger.clear()
    assert cli.main([verb, '-opt', 'run.yml']) == 0


def curve(run: Path) -> list[dict[str, float]]:
    """The losses of each iteration, from the log of a run."""
    (log,) = run.glob('train_*.log')
    lines = [line for line in log.read_text(encoding='utf-8').splitlines() if ' iter: ' in line and 'l_pix:' in line]
    return [
        {name: float(value) for name, value in re.findall(r'(l_\w+): (\S+)', line.rpartition(']')[2])} for line in lines
    ]


def table(run: Path) -> list[dict[str, str]]:
    with open(run / 'metrics.csv', newline='', encoding='utf-8') as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope='module')
def trained(images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A training of two processes, each batch in two parts; and what it said."""
    folder = tmp_path_factory.mktemp('trained')
    return folder, torchrun(folder, options(images, train__accumulate=2))


def test_two_processes_train_as_one_with_the_double_batch(
    trained: tuple[Path, str], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five iterations of the same images, over the end of an epoch. Sums have another order, nothing else."""
    alone(tmp_path / 'one', options(images, datasets__train__batch_size_per_gpu=4), monkeypatch)
    two, one = (folder / 'experiments' / 'run' for folder in (trained[0], tmp_path / 'one'))
    assert len(curve(one)) == 5
    for of_two, of_one in zip(curve(two), curve(one), strict=True):
        assert of_two == pytest.approx(of_one, rel=2e-4)  # the log has five digits
        assert {'l_pix', 'l_prompt'} < set(of_one)
    assert set(written(two)) == set(written(one))
    for row, expected in zip(table(two), table(one), strict=True):
        assert {**row, 'psnr': ''} == {**expected, 'psnr': ''}  # inputs and counts are the same to the last digit
        assert float(row['psnr']) == pytest.approx(float(expected['psnr']), abs=1e-3)
    weights = [torch.load(run / 'models' / 'net_g_latest.pth', weights_only=True) for run in (two, one)]
    for key in ('params', 'params_ema'):
        for name, value in weights[1][key].items():
            # Adam's steps are of 1e-3 whatever the gradient, so that noise in a gradient near 0 can cost some of one.
            difference = (weights[0][key][name] - value).abs()
            assert difference.max() < 1e-3
            assert difference.mean() < 2e-5


@pytest.mark.parametrize('ratio', [1, 4])
def test_a_batch_of_all_processes_has_the_samples_of_one_with_the_larger_batch(ratio: int, images: Path) -> None:
    """Where the number of processes divides the epoch, as 2 does 14 samples."""
    dataset = build_dataset({**options(images)['datasets']['train'], 'phase': 'train', 'seed': 5})
    one, *two = [EpochSampler(dataset, *place, ratio) for place in ((1, 0), (2, 0), (2, 1))]
    for epoch in (0, 3):
        for sampler in (one, *two):
            sampler.set_epoch(epoch)
        whole, halves = one.order(), [sampler.order() for sampler in two]
        assert len(whole) == 14 * ratio
        for number in range(len(whole) // 4):
            of_two = torch.cat([half[2 * number : 2 * number + 2] for half in halves])
            assert sorted(of_two.tolist()) == sorted(whole[4 * number : 4 * number + 4].tolist())


def test_only_the_first_process_prints(trained: tuple[Path, str]) -> None:
    folder, said = trained
    assert len(list((folder / 'experiments' / 'run').glob('*.log'))) == 1
    assert sorted(path.name for path in (folder / 'experiments').iterdir()) == ['run']
    for once in (
        'iter:       1,',
        'Validation, iteration 2',
        'Network: PIPRestormer',
        'Model [PromptModel] is created',
    ):
        assert said.count(once) == 1
    assert 'Warning' not in said
    best = json.loads((folder / 'experiments/run/models/net_g_best.json').read_text(encoding='utf-8'))
    averages = {
        row['iter']: float(row['psnr']) for row in table(folder / 'experiments/run') if row['task'] == 'average'
    }
    assert list(averages) == ['2', '4', '5']
    assert best['value'] == max(averages.values()) == averages[str(best['iter'])]


def test_two_processes_measure_what_one_measures(
    trained: tuple[Path, str], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`basicsr test`: every file to the last bit; seven images, and one for two processes."""
    weights = trained[0] / 'experiments' / 'run' / 'models' / 'net_g_latest.pth'
    single = [{**tasks(images)[1], 'files': ['3.png']}]
    opt = options(
        images,
        datasets={
            'test': {'name': 'seven', 'type': 'AllInOneDataset', 'tasks': tasks(images)},
            'test_2': {'name': 'one', 'type': 'AllInOneDataset', 'tasks': single},
        },
        path={'pretrain_network_g': str(weights), 'param_key_g': 'params_ema'},
        val__save_img=True,
        val__comparisons=1,
        val__contact_sheet=True,
        val__metrics__ssim={'type': 'calculate_paper_ssim'},
    )
    alone(tmp_path / 'one', opt, monkeypatch, 'test')
    ended = together('test', (tmp_path / 'two', opt), (tmp_path / 'two', opt))
    assert [status for status, _ in ended] == [0, 0], ended
    two, one = (written(tmp_path / folder / 'results' / 'run') for folder in ('two', 'one'))
    assert two == one
    assert len([name for name in one if name.endswith('_restored.png')]) == 8 + 3  # and a comparison a task
    assert [row['images'] for row in table(tmp_path / 'two' / 'results' / 'run')] == ['5', '2', '1', '8']


@pytest.mark.parametrize('recompute', ['none', 'gate', 'block'])
@pytest.mark.parametrize('network', [NETWORK, PIP, {**NETWORK, 'type': 'PIPNAFNet'}], ids=lambda net: net['type'])
def test_no_parameter_is_unused(network: dict[str, Any], recompute: str, tmp_path: Path) -> None:
    """DistributedDataParallel refuses the second pass if one is, without `find_unused_parameters`."""
    if network['type'] == 'PIPNAFNet':
        network = {'type': 'PIPNAFNet', 'width': 4, 'enc_blk_nums': [1] * 4, 'dec_blk_nums': [1] * 4}
    net = build_network(dict(network))
    assert set_blocks(net, None, recompute) == []
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        parallel = DistributedDataParallel(net)
        label = (torch.tensor([0, 3]),) if getattr(net, 'takes_degradation', False) else ()
        for _ in range(3):
            parallel(torch.rand(2, 3, 16, 16), *label).square().mean().backward()
    finally:
        torch.distributed.destroy_process_group()
    assert all(parameter.grad is not None for parameter in net.parameters() if parameter.requires_grad)


# longer ones


def slurm(folder: Path, opt: dict[str, Any], *words: str) -> list[subprocess.Popen]:
    """Two processes with the environment that srun gives them, and nobody who watches them."""
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
    opt['dist_params']['port'] = port
    given = {'SLURM_NTASKS': '2', 'SLURM_NODELIST': 'localhost'}
    command = [sys.executable, *MODULE, 'train']
    return [
        start(folder, opt, command, *words, '--launcher', 'slurm', SLURM_PROCID=rank, SLURM_LOCALID=rank, **given)
        for rank in ('0', '1')
    ]


@pytest.mark.slow
def test_slurm_trains_as_torchrun_does(trained: tuple[Path, str], images: Path, tmp_path: Path) -> None:
    folder = tmp_path / 'slurm'
    first, second = slurm(folder, options(images, train__accumulate=2))
    try:
        assert first.wait(240) == second.wait(240) == 0, (folder / 'said.txt').read_text(encoding='utf-8')
    finally:
        finish(first, folder, 1)
    expected = written(trained[0] / 'experiments' / 'run')
    found = written(folder / 'experiments' / 'run')
    assert {
        name: content for name, content in found.items() if name.endswith('.csv') or name.endswith('latest.pth')
    } == {name: content for name, content in expected.items() if name.endswith('.csv') or name.endswith('latest.pth')}


def test_processes_with_other_options_end_at_once(images: Path, tmp_path: Path) -> None:
    """On machines that see different files, for example; they would wait for each other until the time limit."""
    runs = [(tmp_path / str(decay), options(images, train__ema_decay=decay)) for decay in (0.8, 0.9)]
    for (folder, _), (status, said) in zip(runs, together('train', *runs), strict=True):
        assert status == 2, said
        assert '-opt: the options of process 1 on ' in said
        assert not (folder / 'experiments').exists()


def until(folder: Path, text: str, process: subprocess.Popen, timeout: float = 180) -> str:
    """Wait for what a command says."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        said = (folder / 'said.txt').read_text(encoding='utf-8')
        if text in said:
            return said
        assert process.poll() is None, said
        time.sleep(0.1)
    raise AssertionError(f'{text} was not said: {said}')


def rank_of(pid: int) -> str | None:
    """The rank of a process that torchrun has started; None of others."""
    words = Path(f'/proc/{pid}/environ').read_bytes().decode().split('\0')
    return next((word[5:] for word in words if word.startswith('RANK=')), None)


def workers(folder: Path) -> Iterator[tuple[int, str]]:
    for pid in running(folder):
        rank = rank_of(pid)
        # Processes of a loader have the same environment, and another parent.
        if rank is not None and 'promptir_basicsr' in Path(f'/proc/{pid}/cmdline').read_text():
            yield pid, rank


def kill(folder: Path, rank: str) -> None:
    (pid,) = [pid for pid, found in workers(folder) if found == rank]
    os.kill(pid, signal.SIGKILL)


def endless(images: Path, **changes: Any) -> dict[str, Any]:
    """A training that a test ends, if nothing else is said."""
    return options(images, datasets__train__dataset_enlarge_ratio=100, **{'train__total_iter': 100_000, **changes})


@pytest.mark.slow
@pytest.mark.parametrize('rank', ['0', '1'])
def test_a_killed_process_ends_the_others_within_a_minute(rank: str, images: Path, tmp_path: Path) -> None:
    """Loaders included."""
    folder = tmp_path / 'killed'
    opt = endless(images, datasets__train__num_worker_per_gpu=1)
    process = start(folder, opt, [*TORCHRUN, *MODULE, 'train'], '--launcher', 'pytorch')
    try:
        until(folder, 'Validation, iteration 4', process)
        assert len(running(folder)) >= 5  # torchrun, two processes, two loaders
        killed = time.monotonic()
        kill(folder, rank)
        status = process.wait(60)
        while running(folder) and time.monotonic() < killed + 60:
            time.sleep(0.2)
        assert running(folder) == []
        assert time.monotonic() < killed + 60
    finally:
        _, said = finish(process, folder, 1)
    assert status == 1
    assert re.search(r'exitcode *: -9', said)


@pytest.mark.slow
def test_a_killed_process_ends_the_other_where_nobody_watches(images: Path, tmp_path: Path) -> None:
    """gloo tells it that the connection is gone. NCCL waits for `dist_params.timeout`, or srun's --kill-on-bad-exit."""
    folder = tmp_path / 'killed'
    first, second = slurm(folder, endless(images))
    try:
        until(folder, 'Validation, iteration 4', first)
        second.kill()
        killed = time.monotonic()
        assert first.wait(60) == 9
        assert time.monotonic() - killed < 20
    finally:
        _, said = finish(first, folder, 1)
    assert f'Process 1 (pid {second.pid}) of this training has ended' in said
    assert 'Traceback' not in said


@pytest.mark.slow
def test_an_image_damaged_in_a_validation_ends_all_with_its_name(images: Path, tmp_path: Path) -> None:
    """In the log, though it was another process that read it; without torchrun's help."""
    folder = tmp_path / 'damaged'
    copies = tmp_path / 'copies'
    copies.mkdir()
    for path in images.iterdir():
        (copies / path.name).write_bytes(path.read_bytes())
    (copies / '3.png').write_bytes((images / '3.png').read_bytes()[:300])  # of the second process
    opt = options(images)
    opt['datasets']['val']['tasks'] = tasks(copies)
    first, second = slurm(folder, opt)
    try:
        assert (first.wait(120), second.wait(120)) == (1, 1)
    finally:
        _, said = finish(first, folder, 1)
    message = '3.png: not a readable image (300 bytes).'
    assert 'Traceback' not in said
    (log,) = (folder / 'experiments' / 'run').glob('*.log')
    assert f"process 1: task 'noise': {copies}/{message}" in log.read_text(encoding='utf-8')


@pytest.mark.slow
def test_torchrun_starts_a_failed_training_again_where_it_was(images: Path, tmp_path: Path) -> None:
    """With `--max-restarts` alone: what is started again resumes."""
    folder = tmp_path / 'elastic'
    opt = endless(images, train__total_iter=60, val__val_freq=60, logger__save_checkpoint_freq=10)
    command = [*TORCHRUN, '--max-restarts=1', *MODULE, 'train']
    process = start(folder, opt, command, '--launcher', 'pytorch')
    try:
        until(folder, 'iter:      25,', process)
        kill(folder, '1')
        assert process.wait(240) == 0
    finally:
        _, said = finish(process, folder, 1)
    resumed = int(re.findall(r'Resuming training from epoch: \d+, iter: (\d+)', said)[-1])
    assert resumed >= 20
    assert resumed % 10 == 0
    again = [int(number) for number in re.findall(r'iter: +(\d+),', said.rpartition('Resuming training')[2])]
    assert again == [resumed, *range(resumed + 1, 61)] or again == [*range(resumed + 1, 61)]
    assert sorted(path.name for path in (folder / 'experiments').iterdir()) == ['run']
    assert table(folder / 'experiments' / 'run')[-1]['iter'] == '60'
