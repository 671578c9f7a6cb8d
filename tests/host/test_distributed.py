"""Processes find each other, or say why they cannot. How they train is in tests/models/test_distributed.py."""

import datetime
import os
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from promptir_basicsr import cli
from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.host.distributed import common_seed, first_host, new_part, restarted, start_processes

# isort: split
from basicsr.models.base_model import BaseModel
from basicsr.utils.dist_util import get_dist_info

OPTIONS = Path(__file__).parents[2] / 'options' / 'demo.yml'


@pytest.mark.parametrize(
    ('nodes', 'host'),
    [
        ('localhost', 'localhost'),
        ('a,b', 'a'),
        ('node[07-09,12],login', 'node07'),
        ('node[3,5]', 'node3'),
        ('rack[1-2]-node[010-019]-ib,x[1-2]', 'rack1-node010-ib'),
    ],
)
def test_the_first_host_of_slurms_lists(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


@pytest.mark.parametrize('launcher', ['pytorch', 'slurm'])
def test_a_launcher_that_did_not_launch(
    launcher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith('SLURM_') or name in ('RANK', 'WORLD_SIZE'):
            monkeypatch.delenv(name)
    assert cli.main(['train', '-opt', str(OPTIONS), '--launcher', launcher]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    command, variable = {'pytorch': ('torchrun', 'RANK'), 'slurm': ('srun', 'SLURM_PROCID')}[launcher]
    assert line.startswith(f'--launcher {launcher}: this process was not started by {command}, {variable} is not in ')
    assert f'Run: {command} --n' in line
    assert os.listdir() == []


def test_torchrun_without_the_launcher_would_train_several_times_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TORCHELASTIC_RUN_ID', 'none')
    monkeypatch.setenv('WORLD_SIZE', '2')
    assert cli.main(['train', '-opt', str(OPTIONS)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('--launcher: missing. torchrun has started 2 processes')
    assert line.endswith('Add `--launcher pytorch`.')
    assert os.listdir() == []


def test_what_torchrun_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv('TORCHELASTIC_RESTART_COUNT', raising=False)
    assert not restarted()
    monkeypatch.setenv('TORCHELASTIC_RESTART_COUNT', '0')
    assert not restarted()
    monkeypatch.setenv('TORCHELASTIC_RESTART_COUNT', '2')
    assert restarted()


def test_after_a_restart_nobody_reads_what_those_before_have_written() -> None:
    store = torch.distributed.TCPStore('localhost', 0, is_master=True, wait_for_workers=False)
    clients = [torch.distributed.TCPStore('localhost', store.port) for _ in range(3)]
    for _ in range(4):
        with ThreadPoolExecutor(3) as pool:
            patience = datetime.timedelta(seconds=30)
            tasks = [pool.submit(new_part, client, rank, 3, patience) for rank, client in enumerate(clients)]
            parts = [task.result() for task in tasks]
        assert not any(part.check(['address']) for part in parts)
        parts[1].set('address', 'of 1')
        assert [part.get('address') for part in parts] == [b'of 1'] * 3
    with pytest.raises(OptionError, match=r'timeout: waited 0\.2 s for process 1, 2\.'):
        new_part(store, 0, 3, datetime.timedelta(seconds=0.2))


@pytest.mark.parametrize('backend', [None, 'nccl', 'cpu:gloo,cuda:nccl'])
def test_a_single_process_of_slurm_on_the_cpu(backend: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the options ask for NCCL, as those for GPUs do."""
    assert torch.multiprocessing.get_start_method()  # which settles it for the tests that follow
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
    for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT'):
        monkeypatch.setenv(name, 'another')
    for name, value in (
        ('PROCID', '0'),
        ('NTASKS', '1'),
        ('LOCALID', '0'),
        ('NODELIST', 'elsewhere[1-2]'),
        ('STEP_NODELIST', 'localhost'),
    ):
        monkeypatch.setenv(f'SLURM_{name}', value)
    start_processes('slurm', 0, {'backend': backend, 'port': port, 'timeout': 20})
    try:
        assert torch.distributed.get_backend() == 'gloo'
        assert get_dist_info() == (0, 1)
        assert 1 <= common_seed() <= 10000
        start_processes('slurm', 0)  # of the same program: they have met
        model = BaseModel({'num_gpu': 0, 'is_train': True, 'dist': True})
        net = model.model_to_device(torch.nn.Linear(1, 1))
        assert isinstance(net, torch.nn.parallel.DistributedDataParallel)
        assert not net.find_unused_parameters
    finally:
        torch.distributed.destroy_process_group()
    assert 'another' not in (os.environ['MASTER_ADDR'], os.environ['MASTER_PORT'], os.environ['RANK'])


@pytest.mark.parametrize(
    ('wrong', 'said'),
    [
        ('backend=ncl', "dist_params.backend: unknown backend 'ncl'. Did you mean 'nccl'?"),
        ('port=0', 'dist_params.port: 0 is not a port from 1 to 65535.'),
        ('timeout=0', 'dist_params.timeout: 0 is not a number above 0.'),
    ],
)
def test_wrong_options(
    wrong: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'own.yml').write_text(OPTIONS.read_text(encoding='utf-8') + '\ndist_params: {}\n', encoding='utf-8')
    monkeypatch.setattr(sys, 'argv', [])
    assert cli.main(['train', '-opt', 'own.yml', '--force_yml', f'dist_params:{wrong}']) == 2
    assert said in capsys.readouterr().err
