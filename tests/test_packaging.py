"""What a wheel and a source distribution hold."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NEEDED = ('benchmarks', 'docs', 'options', 'promptir_basicsr', 'requirements', 'tests')
NOTEBOOK = 'examples/quickstart.ipynb'


@pytest.fixture(scope='module')
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both, built from a copy of the source tree."""
    tree = tmp_path_factory.mktemp('tree')
    for name in NEEDED:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns('__pycache__'))
    (tree / 'examples').mkdir()
    for path in (*ROOT.iterdir(), ROOT / NOTEBOOK):
        if path.is_file():
            shutil.copyfile(path, tree / path.relative_to(ROOT))
    (tree / 'examples' / 'photo.png').touch()  # what the notebook writes is not part of the distribution
    folder = tmp_path_factory.mktemp('dist')
    command = [sys.executable, '-m', 'build', '--no-isolation', '--outdir', str(folder), str(tree)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def relative(folder: Path, pattern: str) -> set[str]:
    return {path.relative_to(ROOT).as_posix() for path in folder.rglob(pattern) if '__pycache__' not in path.parts}


def test_the_wheel_has_what_the_package_reads(built: Path) -> None:
    (path,) = built.glob('*.whl')
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        metadata = message_from_bytes(wheel.read(next(name for name in names if name.endswith('/METADATA'))))
        option_files = {
            Path(name).name: wheel.read(name) for name in names if name.startswith('promptir_basicsr/option_files/')
        }
    package = ROOT / 'promptir_basicsr'
    for pattern in ('*.py', '*.yml', '*.css', '*.html', '*.js', 'py.typed'):
        assert relative(package, pattern) <= names
    shipped = [*(ROOT / 'options').glob('*.yml'), ROOT / 'docs' / 'options.schema.json']
    assert option_files == {path.name: path.read_bytes() for path in shipped}
    assert not [name for name in names if name.startswith(('tests/', 'benchmarks/', 'options/'))]
    assert str(metadata['Name']) == 'promptir_basicsr'
    # Where the project's address is unknown, no link of the description leads nowhere.
    text = str(metadata.get_payload())
    assert '](docs/' not in text
    assert '](CHANGELOG.md)' not in text


def test_the_source_distribution_has_what_the_tests_read(built: Path) -> None:
    (path,) = built.glob('*.tar.gz')
    with tarfile.open(path) as archive:
        names = {name.partition('/')[2] for name in archive.getnames()}
    for name in NEEDED:
        assert relative(ROOT / name, '*.*') <= names
    files = ('CHANGELOG.md', 'CONTRIBUTING.md', 'LICENSE', 'Makefile', 'NOTICE', 'README.md', 'mkdocs.yml', 'setup.py')
    assert names.issuperset(files)
    assert {name for name in names if name.startswith('examples/')} == {NOTEBOOK}
