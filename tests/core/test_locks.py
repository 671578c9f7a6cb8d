"""A folder is one process's until it lets go or ends; what a crash leaves behind stops nobody."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from promptir_basicsr.core.locks import FolderLock, LockedError
from tests.forked import CONTEXT, called


def hold(folder: str, held: Connection) -> None:
    lock = FolderLock(folder)
    held.send('held')
    held.poll(None)
    lock.release()


@contextmanager
def held_by_another(folder: Path) -> Iterator[BaseProcess]:
    """Another process that holds the lock of a folder until the end of the block."""
    here, there = CONTEXT.Pipe()
    process = CONTEXT.Process(target=hold, args=(str(folder), there))
    process.start()
    assert here.recv() == 'held'
    yield process
    process.kill()
    process.join()


def test_another_process_is_named(tmp_path: Path) -> None:
    with held_by_another(tmp_path / 'run') as process:
        with pytest.raises(LockedError, match=rf'^process {process.pid} on \S+, since 20\d\d-'):
            FolderLock(str(tmp_path / 'run'))
        FolderLock(str(tmp_path / 'other')).release()
    assert not (tmp_path / 'run').exists()


def test_a_crash_leaves_no_lock(tmp_path: Path) -> None:
    with held_by_another(tmp_path / 'run') as process:
        process.kill()
        process.join()
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
    assert 'LockedError' in called(FolderLock, str(folder)).stderr
    lock.release()


@pytest.mark.parametrize('name', ['a' * 255, 'ü' * 127, 'with\nline'])
def test_any_name_of_a_folder_has_a_lock(tmp_path: Path, name: str) -> None:
    FolderLock(str(tmp_path / name)).release()
