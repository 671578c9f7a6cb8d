import ast
import os
import resource
import secrets
import signal
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
import torch

import promptir_basicsr
from promptir_basicsr.checkpoints.folder import atomic_save
from promptir_basicsr.core.errors import SaveError
from promptir_basicsr.core.files import atomic_folder, atomic_write, fitting_name, is_unfinished
from tests.forked import called

PACKAGE = Path(promptir_basicsr.__file__).parent


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    atomic_write('a\r\nb\nü \udcff', tmp_path / 'text')
    assert (tmp_path / 'text').read_bytes() == b'a\r\nb\n\xc3\xbc \\udcff'
    atomic_write(lambda file: file.writelines([b'one', b'two']), tmp_path / 'called')
    assert (tmp_path / 'called').read_bytes() == b'onetwo'
    assert names(tmp_path) == ['called', 'text']


def test_a_path_may_be_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    atomic_write('a', 'name')
    assert names(tmp_path) == ['name']


@pytest.mark.parametrize('error', [OSError('no space left'), KeyboardInterrupt(), ValueError('other'), SystemExit(3)])
def test_a_failure_leaves_what_was_there_and_nothing_else(error: BaseException, tmp_path: Path) -> None:
    (tmp_path / 'target').write_text('before')

    def write(file) -> None:
        file.write(b'half')
        raise error

    raised = SaveError if isinstance(error, OSError) else type(error)
    for name in ('target', 'new'):
        with pytest.raises(raised) as told:
            atomic_write(write, tmp_path / name)
        if raised is SaveError:
            assert str(told.value).startswith(f"'{tmp_path / name}' could not be written: no space left, ")
    assert names(tmp_path) == ['target']
    assert (tmp_path / 'target').read_text() == 'before'


def test_a_file_of_the_users_with_the_ending_tmp_is_kept(tmp_path: Path) -> None:
    (tmp_path / 'notes').write_text('mine')
    (tmp_path / 'net.pth.tmp').symlink_to(tmp_path / 'notes')
    (tmp_path / 'table.tmp').write_text('mine')
    for name in ('net.pth', 'table'):
        atomic_write('new', tmp_path / name)
    assert (tmp_path / 'notes').read_text() == (tmp_path / 'table.tmp').read_text() == 'mine'
    assert (tmp_path / 'net.pth.tmp').is_symlink()


@pytest.mark.parametrize('link', [True, False])
def test_what_has_the_temporary_name_is_neither_followed_nor_removed(
    link: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secrets, 'token_hex', lambda count: 'ab' * count)
    (tmp_path / 'notes').write_text('mine')
    taken = tmp_path / f'.promptir-{"ab" * 8}.part'
    taken.symlink_to(tmp_path / 'notes') if link else taken.write_text('mine')
    with pytest.raises(SaveError, match='File exists'):
        atomic_write('new', tmp_path / 'target')
    assert taken.is_symlink() == link
    assert taken.read_text() == 'mine'
    assert names(tmp_path) == [taken.name, 'notes']


@pytest.mark.parametrize('name', ['a' * 255, 'ü' * 127 + 'a', 'b' * 251 + '.png'])
def test_names_may_be_as_long_as_the_system_allows(name: str, tmp_path: Path) -> None:
    for content in ('first', 'second'):
        atomic_write(content, tmp_path / name)
        assert (tmp_path / name).read_text() == content
    with atomic_folder(tmp_path / 'folder' / name) as folder:
        (folder / 'file').touch()
    assert names(tmp_path / 'folder' / name) == ['file']
    with pytest.raises(SaveError, match='File name too long'):
        atomic_write('new', tmp_path / ('a' * 256))
    assert names(tmp_path) == sorted([name, 'folder'])


def test_new_files_have_the_permissions_of_the_umask_replaced_ones_keep_theirs(tmp_path: Path, umask: None) -> None:
    for content in ('first', 'second'):
        atomic_write(content, tmp_path / 'new')
        assert mode(tmp_path / 'new') == 0o640
    (tmp_path / 'theirs').touch()
    for permissions in (0o600, 0o664, 0o444):
        (tmp_path / 'theirs').chmod(permissions)
        atomic_write(f'{permissions}', tmp_path / 'theirs')
        assert mode(tmp_path / 'theirs') == permissions
    with atomic_folder(tmp_path / 'folder'):
        pass
    assert mode(tmp_path / 'folder') == 0o750


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / 'theirs').write_text('mine')
    for target, name in (('theirs', 'link'), ('nowhere', 'dangling')):
        (tmp_path / name).symlink_to(tmp_path / target)
        atomic_write('new', tmp_path / name)
        assert not (tmp_path / name).is_symlink()
    assert (tmp_path / 'theirs').read_text() == 'mine'
    assert names(tmp_path) == ['dangling', 'link', 'theirs']


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='POSIX')
def test_what_is_not_a_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / 'folder').mkdir()
    os.mkfifo(tmp_path / 'pipe')
    for name in ('folder', 'pipe'):
        with pytest.raises(SaveError, match=f"{name}' could not be written: It is not a regular file"):
            atomic_write('new', tmp_path / name)
    with pytest.raises(SaveError, match='No such file or directory'):
        atomic_write('new', tmp_path / 'nowhere' / 'new')
    assert names(tmp_path) == ['folder', 'pipe']


def test_many_may_write_the_same_file(tmp_path: Path) -> None:
    contents = [letter * 100_000 for letter in 'abcd']
    threads = [threading.Thread(target=atomic_write, args=(text, tmp_path / 'target')) for text in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / 'target').read_text() in contents
    assert names(tmp_path) == ['target']


def test_a_folder_is_replaced_or_left(tmp_path: Path) -> None:
    for content in ('first', 'second'):
        with atomic_folder(tmp_path / 'folder') as folder:
            (folder / content).touch()
        assert names(tmp_path / 'folder') == [content]
    with pytest.raises(FileNotFoundError), atomic_folder(tmp_path / 'folder') as folder:
        (folder / 'nowhere' / 'third').touch()
    assert names(tmp_path) == ['folder']
    assert names(tmp_path / 'folder') == ['second']


def killed_as_it_writes() -> None:
    def write(file: IO[bytes]) -> None:
        file.write(b'half' * 100_000)
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    atomic_write(write, 'target')


def test_a_kill_leaves_nothing_but_a_file_of_the_pattern(tmp_path: Path) -> None:
    (tmp_path / 'target').write_text('before')
    assert called(killed_as_it_writes, cwd=tmp_path).returncode == -signal.SIGKILL
    left, target = names(tmp_path)
    assert is_unfinished(left)
    assert target == 'target'
    assert (tmp_path / 'target').read_text() == 'before'


def test_only_names_of_the_pattern_are_unfinished_files() -> None:
    assert is_unfinished('.promptir-0123456789abcdef.part')
    for name in ('.promptir-.part', 'x.promptir-12.part', '.promptir-12.part.old', '.promptir-a.b.part', 'net.pth.tmp'):
        assert not is_unfinished(name)


def writes_too_much() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    tensors = {'weight': torch.zeros(50_000)}
    for write, content, name in ((atomic_save, tensors, 'net.pth'), (atomic_write, 'x' * 200_000, 'a.csv')):
        try:
            write(content, name)
        except SaveError as error:
            sys.stdout.write(f'{error}\n')


def test_a_file_that_does_not_fit_is_reported_with_its_size(tmp_path: Path) -> None:
    """By a system call that fails."""
    for name in ('net.pth', 'a.csv'):
        (tmp_path / name).write_text('before')
    said = called(writes_too_much, cwd=tmp_path).stdout.splitlines()
    for line, name in zip(said, ('net.pth', 'a.csv'), strict=True):
        assert line.startswith(f"'{name}' could not be written: File too large. It needs 0.2 MB, ")
        assert line.endswith('see `ulimit -f`. Existing files are unchanged.')
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {'net.pth': 'before', 'a.csv': 'before'}


# every other place that may write

ALLOWED = {
    ('core/files.py', 'open'): 'the writer',
    ('core/files.py', 'os.open'): 'the writer',
    ('core/files.py', 'os.replace'): 'the writer',
    ('core/files.py', 'tempfile.TemporaryDirectory'): 'the writer of folders',
    ('checkpoints/folder.py', 'torch.save'): 'into the stream of the writer',
    ('explain/figures.py', 'print_figure'): 'into the stream of the writer',
    ('core/locks.py', 'os.open'): 'a lock, whose content is a name',
    ('models/prompt_model.py', 'save'): "BasicSR's, which saves by save_network and save_training_state",
    ('checks/train.py', 'torch.save'): 'into memory',
    ('explain/page/embed.py', 'save'): 'into memory',
    ('pictures/encode.py', 'save'): 'into memory',
    ('pictures/tiff.py', 'imwrite'): 'into memory',
    ('export/graphs.py', 'save'): 'into memory',
    ('checkpoints/checkpoint.py', 'safetensors.torch.save'): 'into memory',
    ('data/lmdb/writer.py', 'lmdb.open'): 'the files of an LMDB are written by LMDB, in NAME.lmdb.part',
    ('data/lmdb/writer.py', 'os.truncate'): "LMDB's data.mdb, made as long as LMDB takes it to be",
    ('data/lmdb/writer.py', 'os.rename'): 'a folder with a complete LMDB gets its name',
    ('data/lmdb/writer.py', 'open'): 'a lock file, empty',
    ('data/lmdb/prepare.py', 'tempfile.TemporaryFile'): 'a file without a name, to see whether the folder takes files',
    ('host/options.py', 'tempfile.TemporaryDirectory'): 'for the options that BasicSR parses; removed at once',
    ('commands/demo.py', 'tempfile.mkdtemp'): 'the folder of a page, removed when it ends',
    ('demo/app.py', 'tempfile.mkdtemp'): 'a folder of an upload, in the folder of the page',
    ('install_basicsr.py', 'tempfile.TemporaryDirectory'): 'runs before the package can be imported',
    ('install_basicsr.py', 'write_text'): 'runs before the package can be imported',
    ('install_basicsr.py', 'touch'): 'runs before the package can be imported',
    ('install_basicsr.py', 'shutil.copyfile'): 'runs before the package can be imported',
}
"""(module, call) -> why it does not go through `core.files`."""

CALLS = {
    *('write_text', 'write_bytes', 'imwrite', 'savefig', 'print_figure', 'save', 'save_file', 'savez', 'tofile'),
    *('to_csv', 'touch', 'mkstemp', 'mkdtemp', 'symlink_to', 'hardlink_to', 'extractall', 'imsave', 'save_image'),
    *('FileHandler', 'SummaryWriter', 'NamedTemporaryFile', 'TemporaryFile', 'TemporaryDirectory', 'urlretrieve'),
}
MODULES = {
    'os': {'replace', 'rename', 'renames', 'link', 'symlink', 'truncate', 'mkfifo', 'mknod', 'open', 'fdopen'},
    'shutil': {'copy', 'copy2', 'copyfile', 'copyfileobj', 'copytree', 'move', 'make_archive', 'unpack_archive'},
    'lmdb': {'open'},
}


def writing_calls(module: ast.Module) -> Iterator[str]:
    """Calls that may create or change a file."""
    for node in ast.walk(module):
        if not isinstance(node, ast.Call):
            continue
        called, text = ast.unparse(node.func), ast.unparse(node)
        room, _, name = called.rpartition('.')
        if name in CALLS or name in MODULES.get(room, ()):
            reads = ('os.O_RDONLY', 'os.devnull') if room == 'os' else ('readonly=True',)
            if not any(word in text for word in reads):
                yield called if room in ('os', 'shutil', 'lmdb', 'tempfile', 'torch', 'safetensors.torch') else name
        elif name == 'open' and (not room or room in ('io', 'gzip', 'zipfile', 'codecs')):
            modes = [*node.args[1:2], *(each.value for each in node.keywords if each.arg == 'mode')]
            if any(not isinstance(each, ast.Constant) or set(str(each.value)) & set('wax+') for each in modes):
                yield 'open'


def test_every_file_is_written_by_core_files() -> None:
    found = {
        (path.relative_to(PACKAGE).as_posix(), call)
        for path in PACKAGE.rglob('*.py')
        for call in writing_calls(ast.parse(path.read_text(encoding='utf-8')))
    }
    assert found == ALLOWED.keys()


@pytest.mark.parametrize('stem', ['a', 'n' * 249, 'n' * 250, 'n' * 300, 'ä' * 200, '漢' * 90, '\udcff' * 260])
def test_a_long_name_is_cut_to_what_file_systems_allow(stem: str, tmp_path: Path) -> None:
    name = fitting_name(stem, '_2.png')
    (tmp_path / name).write_bytes(b'')
    assert name.endswith('_2.png')
    if len(os.fsencode(stem)) <= 249:
        assert name == f'{stem}_2.png'
    else:
        assert fitting_name(stem + 'x', '_2.png') != name
