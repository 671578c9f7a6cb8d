"""BasicSR is imported, or the user is told what to type: in real processes, with real broken environments."""

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import types
from collections.abc import Sequence
from pathlib import Path

import pytest

import promptir_basicsr
from promptir_basicsr.core import compat
from promptir_basicsr.core.compat import HostError

# isort: split
import basicsr

ALIAS = 'torchvision.transforms.functional_tensor'
CONSOLE = [str(shutil.which('basicsr', path=os.path.dirname(sys.executable)))]
MODULE = [sys.executable, '-m', 'promptir_basicsr']
INSTALL_BASICSR = 'python -m promptir_basicsr.install_basicsr'

# Put first on the path as `sitecustomize`: Python then finds no module of that name, wherever it is installed.
REFUSING_FINDER = """
import sys


class Refuse:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition('.')[0] == {name!r}:
            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)


sys.meta_path.insert(0, Refuse)
"""


def run(command: Sequence[str], folder: Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command with a folder before everything else on Python's path."""
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get('PYTHONPATH')])])
    environment = {**os.environ, 'PYTHONPATH': path}
    return subprocess.run(command, cwd=cwd or folder, env=environment, capture_output=True, text=True, timeout=120)


def without(name: str, folder: Path) -> Path:
    (folder / 'sitecustomize.py').write_text(REFUSING_FINDER.format(name=name), encoding='utf-8')
    return folder


def told(process: subprocess.CompletedProcess[str]) -> str:
    """What a command says that ends with status 2 and no traceback."""
    assert process.returncode == 2, process.stderr
    assert process.stdout == ''
    assert 'Traceback' not in process.stderr
    return process.stderr


@pytest.mark.parametrize('command', [CONSOLE, MODULE], ids=['basicsr', 'python -m'])
def test_a_command_without_basicsr(command: list[str], tmp_path: Path) -> None:
    said = told(run([*command, 'train', '-opt', 'options.yml'], without('basicsr', tmp_path)))
    assert said.startswith('BasicSR is not installed. Run:\n')
    assert f'  {INSTALL_BASICSR}\n' in said


@pytest.mark.parametrize(
    ('command', 'name', 'package'),
    [(CONSOLE, 'scipy', 'scipy'), (MODULE, 'torch', 'torch'), (CONSOLE, 'cv2', 'opencv-python')],
)
def test_a_command_without_what_basicsr_needs(command: list[str], name: str, package: str, tmp_path: Path) -> None:
    said = told(run([*command, 'train', '-opt', 'x.yml'], without(name, tmp_path)))
    assert said.startswith(f"The module '{name}', which BasicSR needs, is not installed. Run:\n")
    assert said.endswith(f'  python -m pip install {package}\n')


@pytest.fixture
def source_tree(tmp_path: Path) -> Path:
    """BasicSR as a clone of its repository has it before it is set up: without a version file."""
    tree = tmp_path / 'clone'
    unneeded = shutil.ignore_patterns('__pycache__', 'version.py')
    shutil.copytree(os.path.dirname(basicsr.__file__), tree / 'basicsr', ignore=unneeded)
    return tree


def test_a_source_tree_that_was_never_set_up(source_tree: Path) -> None:
    said = told(run([*MODULE, 'train', '-opt', 'options.yml'], source_tree))
    assert said.startswith('This BasicSR is a source tree without its version file')
    assert '  python -m pip install --no-deps --no-build-isolation -e .\n' in said


@pytest.fixture
def unfit_torchvision(tmp_path: Path) -> Path:
    """A torchvision that was built for another torch."""
    (tmp_path / 'torchvision').mkdir()
    (tmp_path / 'torchvision' / '__init__.py').write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')\n", encoding='utf-8'
    )
    return tmp_path


def test_a_torchvision_that_does_not_fit(unfit_torchvision: Path) -> None:
    said = told(run([*CONSOLE, 'train', '-opt', 'options.yml'], unfit_torchvision))
    assert said.startswith('torchvision does not match the installed torch (operator torchvision::nms does not exist).')
    assert '  python -m pip install --force-reinstall torch torchvision\n' in said


CATCH = """
try:
    import promptir_basicsr
except ImportError as error:
    print(type(error).__module__, type(error).__name__)
    print(error)
"""


@pytest.mark.parametrize('as_module', [False, True], ids=['script', 'python -m'])
def test_a_program_of_the_user_gets_an_exception(as_module: bool, tmp_path: Path) -> None:
    """Whether it is run as a script or as the module of a package that imports ours."""
    folder = without('torch', tmp_path)
    package = tmp_path / 'users_own'
    package.mkdir()
    (package / '__init__.py').write_text(CATCH, encoding='utf-8')
    (package / '__main__.py').write_text('', encoding='utf-8')
    command = [sys.executable, '-m', 'users_own'] if as_module else [sys.executable, str(package / '__init__.py')]
    process = run(command, folder)
    assert process.returncode == 0, process.stderr
    kind, *message = process.stdout.splitlines()
    assert kind == 'promptir_basicsr.core.compat HostError'
    assert message[0] == "The module 'torch', which BasicSR needs, is not installed. Run:"
    assert process.stderr == ''


def test_an_import_without_basicsr_is_an_error_with_the_line_to_type(tmp_path: Path) -> None:
    process = run([sys.executable, '-c', 'import promptir_basicsr'], without('basicsr', tmp_path))
    assert process.returncode == 1
    assert 'promptir_basicsr.core.compat.HostError: BasicSR is not installed. Run:' in process.stderr
    assert INSTALL_BASICSR in process.stderr


def test_an_error_of_another_kind_is_not_explained_away(tmp_path: Path) -> None:
    (tmp_path / 'torchvision').mkdir()
    (tmp_path / 'torchvision' / '__init__.py').write_text("raise RuntimeError('disk full')\n", encoding='utf-8')
    process = run([sys.executable, '-c', 'import promptir_basicsr'], tmp_path)
    assert process.returncode == 1
    assert 'disk full' in process.stderr.splitlines()[-1]
    assert 'force-reinstall' not in process.stderr


# the module that torchvision dropped


def test_the_name_that_basicsr_imports_is_there() -> None:
    module = importlib.import_module(ALIAS)
    functional = importlib.import_module('torchvision.transforms.functional')
    assert module.rgb_to_grayscale is functional.rgb_to_grayscale


def test_a_missing_module_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, ALIAS)
    if importlib.util.find_spec(ALIAS) is not None:
        pytest.skip('this torchvision has the module')
    compat.import_host()
    assert sys.modules[ALIAS] is importlib.import_module('torchvision.transforms.functional')


def test_a_module_that_is_loaded_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = types.ModuleType(ALIAS)
    monkeypatch.setitem(sys.modules, ALIAS, loaded)
    compat.import_host()
    assert sys.modules[ALIAS] is loaded


def test_a_module_that_torchvision_has_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'functional_tensor.py').write_text('its_own = True\n', encoding='utf-8')
    monkeypatch.delitem(sys.modules, ALIAS)
    monkeypatch.setattr(importlib.import_module('torchvision.transforms'), '__path__', [str(tmp_path)])
    compat.import_host()
    assert ALIAS not in sys.modules
    assert importlib.import_module(ALIAS).its_own


@pytest.mark.parametrize(('name', 'successor'), compat._MOVED.items())
def test_successors_have_what_basicsr_imports(name: str, successor: str) -> None:
    """Of each module that BasicSR imports from and that a library has dropped or will drop."""
    imported = set()
    for path in Path(basicsr.__file__).parent.rglob('*.py'):
        imported.update(re.findall(rf'^from {re.escape(name)} import (.+)$', path.read_text(encoding='utf-8'), re.M))
    if not imported and list(Path(basicsr.__file__).parents[1].glob('basicsr_fixed-*')):
        pytest.skip("BasicSR's master does not import it")
    assert imported
    for names in imported:
        assert all(hasattr(importlib.import_module(successor), part.strip()) for part in names.split(',')), names


# who is asked


@pytest.mark.parametrize(
    ('orig_argv', 'expected'),
    [
        (['python', '/somewhere/bin/basicsr', 'train'], True),
        (['python.exe', 'C:\\env\\Scripts\\basicsr.exe', 'train'], True),
        (['python', '-m', 'promptir_basicsr', 'train'], True),
        (['python', '-X', 'dev', '-u', '-m', 'promptir_basicsr.cli', 'train'], True),
        (['python', '-m', 'promptir_basicsr.install_basicsr'], True),
        (['python', '-m', 'promptir_basicsr.options'], False),
        (['python', '-m', 'users_own', '-m', 'promptir_basicsr'], False),
        (['python', '-c', 'import promptir_basicsr'], False),
        (['python', 'basicsr.py'], False),
        (['python', 'train.py', 'basicsr'], False),
        (['python', '-m'], False),
        (['python'], False),
        ([], False),
    ],
)
def test_commands_are_distinguished_from_programs(orig_argv: list[str], expected: bool) -> None:
    assert promptir_basicsr._is_command(orig_argv) is expected


def test_it_is_an_import_error() -> None:
    assert issubclass(HostError, ImportError)
