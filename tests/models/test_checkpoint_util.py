import pytest
import torch

from promptir_basicsr.models.checkpoint_util import atomic_save, atomic_write, read_json


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
