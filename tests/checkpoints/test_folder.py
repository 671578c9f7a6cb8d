import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from promptir_basicsr.models.checkpoint_util import (
    SaveError,
    atomic_save,
    atomic_write,
    damage,
    read_json,
    remove_older,
    remove_unfinished,
    saved_iterations,
)


class Refuses:
    def __reduce__(self):
        raise OSError('no space left')


def test_what_is_saved_is_read_back(tmp_path):
    path = str(tmp_path / 'net.pth')
    atomic_save({'params': {'weight': torch.arange(3)}}, path)
    assert torch.load(path, weights_only=True)['params']['weight'].tolist() == [0, 1, 2]
    atomic_write('{"iter": 3}', str(tmp_path / 'best.json'))
    assert read_json(str(tmp_path / 'best.json')) == {'iter': 3}
    assert read_json(str(tmp_path / 'none.json')) is None


def test_a_failed_save_is_an_error_and_leaves_the_file_before_it(tmp_path):
    path = tmp_path / 'net.pth'
    atomic_save({'iter': 1}, str(path))
    before = path.read_bytes()
    with pytest.raises(OSError, match='no space left'):
        atomic_save({'iter': 2, 'bad': Refuses()}, str(path))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ['net.pth']


def test_every_byte_of_a_tensor_is_guarded(tmp_path: Path) -> None:
    path = tmp_path / 'net.pth'
    atomic_save({'params': {'weight': torch.arange(1000.0)}}, str(path))
    assert damage(str(path)) == ''
    content = path.read_bytes()
    start = content.index(torch.arange(3.0).numpy().tobytes())
    for place in (start, start + 1999, start + 3999):
        changed = bytearray(content)
        changed[place] ^= 16
        path.write_bytes(changed)
        torch.load(path, weights_only=True)  # which does not notice
        assert damage(str(path)) == 'archive/data/0 in it has changed'
    for length in (0, 1, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        assert damage(str(path))
    assert damage(str(tmp_path / 'none.pth')) == 'it does not exist'
    assert damage(str(tmp_path))


def test_iterations_are_those_of_whole_names(tmp_path: Path) -> None:
    for name in ('net_g_2.pth', 'net_g_10.pth', 'net_g_best.pth', 'net_g_.pth', 'net_g_4.pth.tmp', 'net_d_3.pth'):
        (tmp_path / name).touch()
    assert saved_iterations(str(tmp_path), 'net_g_', '.pth') == [10, 2]
    assert saved_iterations(str(tmp_path / 'nowhere'), '', '.state') == []


def checkpoints(folder: Path, *iterations: int) -> tuple[str, str]:
    models, states = folder / 'models', folder / 'states'
    for each in (models, states):
        each.mkdir(exist_ok=True)
    for n in iterations:
        atomic_save({'params': {'weight': torch.arange(10.0)}}, str(models / f'net_g_{n}.pth'))
        atomic_save({'iter': n}, str(states / f'{n}.state'))
    return str(models), str(states)


def test_older_checkpoints_are_removed_in_pairs(tmp_path: Path) -> None:
    models, states = checkpoints(tmp_path, 2, 4, 6, 8, 10)
    for name in ('net_g_best.pth', 'net_g_latest.pth'):
        (tmp_path / 'models' / name).touch()
    (tmp_path / 'states/4.state').unlink()
    # 10 was saved before the training went back to 6 and came to 8 again.
    assert remove_older(models, states, newest=8, keep=2) == [2, 4]
    assert saved_iterations(states, '', '.state') == saved_iterations(models, 'net_g_', '.pth') == [10, 8, 6]
    assert len(os.listdir(models)) == 5
    assert remove_older(models, states, newest=8, keep=2) == []


@pytest.mark.parametrize('name', ['models/net_g_8.pth', 'states/8.state'])
def test_nothing_is_removed_for_a_checkpoint_that_is_torn(name: str, tmp_path: Path) -> None:
    models, states = checkpoints(tmp_path, 2, 4, 8)
    torn = tmp_path / name
    torn.write_bytes(torn.read_bytes()[:-100])
    with pytest.raises(SaveError, match=r'was written, but cannot be read back: .* Older files are all kept'):
        remove_older(models, states, newest=8, keep=1)
    assert len(os.listdir(models)) == len(os.listdir(states)) == 3


def test_unfinished_files_are_removed(tmp_path: Path) -> None:
    for name in ('a.pth.tmp', 'a.pth', 'b.state.tmp', 'tmp'):
        (tmp_path / name).touch()
    assert remove_unfinished([str(tmp_path), str(tmp_path / 'nowhere')]) == ['a.pth.tmp', 'b.state.tmp']
    assert sorted(os.listdir(tmp_path)) == ['a.pth', 'tmp']


FULL = """
import os, resource, sys, torch
from promptir_basicsr.models.checkpoint_util import SaveError, atomic_save, atomic_write

resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
tensors = {'weight': torch.zeros(50_000)}
for write, content, name in ((atomic_save, tensors, 'net.pth'), (atomic_write, 'x' * 200_000, 'a.csv')):
    try:
        write(content, name)
    except SaveError as error:
        sys.stdout.write(f'{error}\\n')
"""


def test_a_file_that_does_not_fit_is_told_with_its_size(tmp_path: Path) -> None:
    """By a system call that fails."""
    for name in ('net.pth', 'a.csv'):
        (tmp_path / name).write_text('before')
    said = subprocess.check_output([sys.executable, '-c', FULL], cwd=tmp_path, text=True).splitlines()
    for line, name in zip(said, ('net.pth', 'a.csv'), strict=True):
        assert line.startswith(f"'{name}' could not be written: File too large. It needs 0.2 MB, ")
        assert line.endswith('see `ulimit -f`. All files that were there before are whole.')
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {'net.pth': 'before', 'a.csv': 'before'}
