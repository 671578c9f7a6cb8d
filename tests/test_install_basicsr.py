"""BasicSR is installed without its setup.py: from the package index, from a file, never from another file."""

import hashlib
import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path

import pytest

from promptir_basicsr import install_basicsr

SCRIPT = Path(install_basicsr.__file__)


@pytest.fixture(scope='module')
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter whose environment has nothing but pip."""
    folder = tmp_path_factory.mktemp('environment')
    venv.create(folder, with_pip=True)
    return str(folder / ('Scripts' if os.name == 'nt' else 'bin') / 'python')


@pytest.fixture(autouse=True)
def no_other_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new environment finds nothing of this one's."""
    monkeypatch.delenv('PYTHONPATH', raising=False)


def source_distribution(folder: Path) -> Path:
    """A small one of the same form, whose setup.py must not run."""
    root = folder / f'basicsr-{install_basicsr.VERSION}'
    (root / 'basicsr' / 'metrics').mkdir(parents=True)
    (root / 'basicsr' / '__init__.py').write_text('answer = 42\n', encoding='utf-8')
    (root / 'basicsr' / 'metrics' / 'numbers.npz').write_bytes(bytes(range(256)))
    (root / 'setup.py').write_text("raise SystemExit('setup.py was run')\n", encoding='utf-8')
    (root / 'LICENSE.txt').write_text('terms\n', encoding='utf-8')
    (root / 'PKG-INFO').write_text(
        f'Metadata-Version: 2.1\nName: basicsr\nVersion: {install_basicsr.VERSION}\nSummary: small\n', encoding='utf-8'
    )
    path = folder / f'{root.name}.tar.gz'
    with tarfile.open(path, 'w:gz') as archive:
        archive.add(root, root.name)
    return path


def run(python: str, script: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    # No index: neither the test nor pip may depend on a network.
    environment = {**os.environ, 'PIP_NO_INDEX': '1', 'PIP_FIND_LINKS': ''}
    command = [python, str(script), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_a_given_source_distribution(python: str, tmp_path: Path) -> None:
    path = source_distribution(tmp_path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    script = tmp_path / 'install.py'  # the same program, which expects this file
    script.write_text(SCRIPT.read_text(encoding='utf-8').replace(install_basicsr.SHA256, digest), encoding='utf-8')
    process = run(python, script, path)
    assert process.returncode == 0, process.stderr
    program = (
        'import basicsr, importlib.metadata as m, pathlib; print(basicsr.answer, m.version("basicsr"), '
        'pathlib.Path(basicsr.__file__).with_name("metrics").joinpath("numbers.npz").read_bytes() == bytes(range(256)))'
    )
    found = subprocess.run([python, '-c', program], capture_output=True, text=True, cwd=tmp_path)
    assert found.stdout == f'42 {install_basicsr.VERSION} True\n', found.stderr
    check = subprocess.run([python, '-m', 'pip', 'check'], capture_output=True, text=True)
    assert check.returncode == 0, check.stdout
    again = run(python, script, path)
    assert again.returncode == 0
    assert again.stdout.startswith('BasicSR is already installed in ')
    removed = subprocess.run([python, '-m', 'pip', 'uninstall', '-y', 'basicsr'], capture_output=True, text=True)
    assert removed.returncode == 0, removed.stderr
    assert subprocess.run([python, '-c', 'import basicsr'], capture_output=True, cwd=tmp_path).returncode == 1


def test_another_file_is_refused(python: str, tmp_path: Path) -> None:
    path = source_distribution(tmp_path)
    process = run(python, SCRIPT, path)
    assert process.returncode == 2
    assert process.stderr.startswith(f'{path}: SHA-256 is {hashlib.sha256(path.read_bytes()).hexdigest()}, expected ')
    missing = run(python, SCRIPT, tmp_path / 'no.tar.gz')
    assert missing.returncode == 2
    assert missing.stderr == f'{tmp_path / "no.tar.gz"}: cannot be read (No such file or directory).\n'


def test_without_an_index_the_file_is_asked_for(python: str) -> None:
    process = run(python, SCRIPT)
    assert process.returncode == 1
    assert process.stderr.endswith(
        'Without access to a package index, pass the source distribution:\n'
        f'  {install_basicsr.COMMAND} basicsr-{install_basicsr.VERSION}.tar.gz\n'
    )


def test_the_installed_basicsr_is_whole() -> None:
    """Each file that the environment's record lists is there, with its content."""
    folder = Path(sysconfig.get_paths()['purelib'])
    records = list(folder.glob(f'basicsr-{install_basicsr.VERSION}.dist-info/RECORD'))
    if not records:
        pytest.skip('BasicSR is installed in another way')
    lines = [line.split(',') for line in records[0].read_text(encoding='utf-8').splitlines()]
    sources = [
        path for path, *_ in lines if path.startswith('basicsr/') and path.endswith(('.py', '.npz', '.cu', '.cpp'))
    ]
    assert len(sources) == 98
    for path, digest, _ in lines:
        if digest:
            assert f'sha256={install_basicsr._digest((folder / path).read_bytes())}' == digest, path


def test_the_command_runs_where_basicsr_is_missing(tmp_path: Path) -> None:
    """As `python -m`, although importing the package needs BasicSR."""
    (tmp_path / 'sitecustomize.py').write_text('import sys\nsys.modules["basicsr"] = None\n', encoding='utf-8')
    environment = {**os.environ, 'PYTHONPATH': str(tmp_path)}
    command = [sys.executable, '-m', 'promptir_basicsr.install_basicsr', '--help']
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert process.returncode == 0, process.stderr
    assert 'basicsr-1.4.2.tar.gz' in process.stdout
