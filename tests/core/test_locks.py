"""A folder is one process's until it lets go or ends; what a crash leaves behind stops nobody."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from promptir_basicsr.core.locks import FolderLock, LockedError

HOLD = """
import sys
from promptir_basicsr.core.locks import FolderLock
lock = FolderLock(sys.argv[1])
print('held', flush=True)
sys.stdin.read()
"""


@contextmanager
def held_by_another(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of a folder until the end of the block."""
    with subprocess.Popen(
        [sys.executable, '-c', HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == 'held\n'
        yield process
        process.kill()


def test_another_process_is_named(tmp_path: Path) -> None:
    with held_by_another(tmp_path / 'run') as process:
        with pytest.raises(LockedError, match=rf'^process {process.pid} on \S+, since 20\d\d-'):
            FolderLock(str(tmp_path / 'run'))
        FolderLock(str(tmp_path / 'other')).release()
    assert not (tmp_path / 'run').exists()


def test_a_crash_leaves_no_lock(tmp_path: Path) -> None:
    with held_by_another(tmp_path / 'run') as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        FolderLock(str(tmp_path / 'run')).release()
    assert list(tmp_path.iterdir()) == []


def test_the_same_process_is_another_run(tmp_path: Path) -> None:
    lock = FolderLock(str(tmp_path / 'run'))
    with pytest.raises(LockedError, match=f'^process {os.getpid()} on '):
        FolderLock(f'{tmp_path}/./run')
    lock.release()
    lock.release()
    FolderLock(str(tmp_path / 'run')).release()


def test_the_lock_outlives_a_renamed_folder_and_children_that_end(tmp_path: Path) -> None:
    folder = tmp_path / 'run'
    folder.mkdir()
    lock = FolderLock(str(folder))
    folder.rename(tmp_path / 'archived')
    child = os.fork()
    if not child:
        os._exit(0)  # closes its copies of all files
    os.waitpid(child, 0)
    code = 'import sys; from promptir_basicsr.core.locks import FolderLock; FolderLock(sys.argv[1])'
    done = subprocess.run([sys.executable, '-c', code, str(folder)], capture_output=True, text=True)
    assert 'LockedError' in done.stderr
    lock.release()


@pytest.mark.parametrize('name', ['a' * 255, 'ü' * 127, 'with\nline'])
def test_any_name_of_a_folder_has_a_lock(tmp_path: Path, name: str) -> None:
    FolderLock(str(tmp_path / name)).release()
