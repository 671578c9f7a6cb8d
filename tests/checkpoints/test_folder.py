import os
from pathlib import Path

import pytest
import torch

from promptir_basicsr.checkpoints.folder import (
    atomic_save,
    damage,
    remove_older,
    remove_unfinished,
    saved_iterations,
)
from promptir_basicsr.core.errors import SaveError


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
    with pytest.raises(SaveError, match=r'was written, but cannot be read back: .* All older files are kept'):
        remove_older(models, states, newest=8, keep=1)
    assert len(os.listdir(models)) == len(os.listdir(states)) == 3


class Refuses:
    def __reduce__(self):
        raise OSError('no space left')


def test_a_failed_save_is_an_error_and_leaves_the_file_before_it(tmp_path: Path) -> None:
    path = tmp_path / 'net.pth'
    atomic_save({'iter': 1}, path)
    before = path.read_bytes()
    with pytest.raises(SaveError, match='no space left'):
        atomic_save({'iter': 2, 'bad': Refuses()}, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ['net.pth']


def test_the_bytes_of_a_checkpoint_are_those_of_torch(tmp_path: Path) -> None:
    content = {'params': {'weight': torch.arange(3)}, 'iter': 3}
    atomic_save(content, tmp_path / 'net.pth')
    with open(tmp_path / 'plain.pth', 'wb') as file:
        torch.save(content, file)
    assert (tmp_path / 'net.pth').read_bytes() == (tmp_path / 'plain.pth').read_bytes()


def test_unfinished_files_are_removed_and_no_others(tmp_path: Path) -> None:
    unfinished = [f'.promptir-{number:016x}.part' for number in (1, 2)]
    others = ['a.pth', 'a.pth.tmp', 'b.part', '.promptir-.part', '.promptir-1.part.old', 'tmp']
    for name in unfinished + others:
        (tmp_path / name).touch()
    (tmp_path / '.promptir-3.part').mkdir()
    (tmp_path / '.promptir-4.part').symlink_to(tmp_path / 'a.pth')
    removed = remove_unfinished([str(tmp_path), str(tmp_path / 'nowhere')])
    assert removed == [str(tmp_path / name) for name in unfinished]
    assert sorted(os.listdir(tmp_path)) == sorted([*others, '.promptir-3.part', '.promptir-4.part'])
