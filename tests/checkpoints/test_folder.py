import os
from pathlib import Path

import pytest
import torch

from promptir_basicsr.checkpoints.folder import damage, remove_older, remove_unfinished, saved_iterations
from promptir_basicsr.core.errors import SaveError
from promptir_basicsr.core.files import atomic_save


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
