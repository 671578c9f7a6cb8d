"""Install BasicSR 1.4.2 from its source distribution, without running its setup.py.

That setup.py fails on Python 3.13 and later, builds only in an environment with torch, and requires packages that
BasicSR does not import. A wheel needs none of this: BasicSR is pure Python, so the wheel is the folder `basicsr` and
its metadata. pip (or uv, if pip is missing) finds, downloads and verifies the source distribution with the user's own
index and proxy settings, and calls the functions below instead of setuptools'.

    python -m promptir_basicsr.install_basicsr             # from the package index
    python -m promptir_basicsr.install_basicsr FILE.tar.gz  # offline, from the source distribution
"""

import argparse
import base64
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

VERSION = '1.4.2'
SHA256 = 'b89b595a87ef964cda9913b4d99380ddb6554c965577c0c10cb7b78e31301e87'  # of basicsr-1.4.2.tar.gz
COMMAND = 'python -m promptir_basicsr.install_basicsr'
_INFO = f'basicsr-{VERSION}.dist-info'
_WHEEL = 'Wheel-Version: 1.0\nGenerator: promptir_basicsr\nRoot-Is-Purelib: true\nTag: py3-none-any\n'


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        Exit status: 0 if BasicSR is installed (also if it already was), 2 if the file is not the source distribution
        or no installer is available, otherwise the installer's own status.
    """
    parser = argparse.ArgumentParser(
        prog=COMMAND, description=f'Install BasicSR {VERSION} without running its setup.py.'
    )
    parser.add_argument('file', nargs='?', type=Path, help=f'basicsr-{VERSION}.tar.gz. Default: download it')
    given = parser.parse_args(arguments).file
    found = importlib.util.find_spec('basicsr')
    if found is not None and found.origin is not None:
        sys.stdout.write(f'BasicSR is already installed in {os.path.dirname(found.origin)}.\n')
        return 0
    problem = _problem(given) if given else None
    installer = _installer()
    if installer is None:
        problem = 'Neither pip nor uv is available. Install one of them: python -m ensurepip'
    if problem or installer is None:
        sys.stderr.write(f'{problem}\n')
        return 2
    requirement = given.resolve().as_uri() if given else f'basicsr=={VERSION}'
    with tempfile.TemporaryDirectory() as folder:
        # The build backend of a source distribution without pyproject.toml is `setuptools.build_meta:__legacy__`.
        backend = Path(folder, 'setuptools')
        backend.mkdir()
        (backend / '__init__.py').touch()
        shutil.copyfile(__file__, backend / 'build_meta.py')
        requirements = Path(folder, 'requirements.txt')
        requirements.write_text(f'{requirement} --hash=sha256:{SHA256}\n', encoding='utf-8')
        environment = {**os.environ, 'PYTHONPATH': folder}
        command = [*installer, '--no-deps', '--no-build-isolation', '--require-hashes', '-r', str(requirements)]
        status = subprocess.run(command, env=environment, check=False).returncode
    if status:
        sys.stderr.write(
            f'BasicSR {VERSION} was not installed. Without access to a package index, pass the source distribution:\n'
            f'  {COMMAND} basicsr-{VERSION}.tar.gz\n'
        )
    return status


def _problem(file: Path) -> str | None:
    """Why a file is not the source distribution; None if it is."""
    try:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        return f'{file}: cannot be read ({error.strerror}).'
    if digest != SHA256:
        return (
            f'{file}: SHA-256 is {digest}, expected {SHA256}.\n'
            f'The file is damaged or is not basicsr-{VERSION}.tar.gz as published. Download it again.'
        )
    return None


def _installer() -> list[str] | None:
    if importlib.util.find_spec('pip') is not None:
        # Legacy builds and wheels of earlier builds in the cache would bypass the functions below.
        return [sys.executable, '-m', 'pip', 'install', '--quiet', '--use-pep517', '--no-cache-dir']
    uv = shutil.which('uv')
    return [uv, 'pip', 'install', '--quiet', '--no-cache', '--python', sys.executable] if uv else None


# The build backend (PEP 517); the current folder is the unpacked source distribution.


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    return []


def prepare_metadata_for_build_wheel(metadata_directory: str, config_settings: Any = None) -> str:
    folder = Path(metadata_directory, _INFO)
    folder.mkdir()
    shutil.copyfile('PKG-INFO', folder / 'METADATA')
    (folder / 'WHEEL').write_text(_WHEEL, encoding='utf-8')
    return _INFO


def build_wheel(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    name = f'basicsr-{VERSION}-py3-none-any.whl'
    files = {path.as_posix(): path.read_bytes() for path in sorted(Path('basicsr').rglob('*')) if path.is_file()}
    files[f'{_INFO}/METADATA'] = Path('PKG-INFO').read_bytes()
    files[f'{_INFO}/LICENSE.txt'] = Path('LICENSE.txt').read_bytes()
    files[f'{_INFO}/WHEEL'] = _WHEEL.encode()
    record = ''.join(f'{path},sha256={_digest(content)},{len(content)}\n' for path, content in files.items())
    files[f'{_INFO}/RECORD'] = f'{record}{_INFO}/RECORD,,\n'.encode()
    with zipfile.ZipFile(Path(wheel_directory, name), 'w', zipfile.ZIP_DEFLATED) as wheel:
        for path, content in files.items():
            wheel.writestr(path, content)
    return name


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b'=').decode()


__legacy__ = sys.modules[__name__]

if __name__ == '__main__':
    sys.exit(main())
