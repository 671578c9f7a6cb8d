import subprocess
import sys
from pathlib import Path

import pytest
import torch

from promptir_basicsr.core.files import atomic_save, atomic_write, read_json


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


FULL = """
import os, resource, sys, torch
from promptir_basicsr.core.errors import SaveError
from promptir_basicsr.core.files import atomic_save, atomic_write

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
