"""The line with every table: what it was measured on."""

import os
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import torch


def hardware(packages: Iterable[str], device: torch.device | None = None) -> str:
    """Processor, cores, and versions of Python and of the packages, by their names on the index.

    With a device, for figures of speed: also its name and memory or the number of threads, and the commit.
    """
    cpu = platform.processor() or platform.machine()
    info = Path('/proc/cpuinfo')
    if info.exists():
        lines = info.read_text(encoding='utf-8').splitlines()
        cpu = next((line.partition(':')[2].strip() for line in lines if line.startswith('model name')), cpu)
    place = f'{cpu}, {os.cpu_count()} cores'
    versions = ', '.join(f'{package} {version(package)}' for package in packages)
    if device is None:
        return f'{place}; Python {platform.python_version()}, {versions}.'
    if device.type == 'cuda':
        found = torch.cuda.get_device_properties(device)
        place = f'{found.name}, {found.total_memory / 2**30:.0f} GiB; {place}'
    else:
        place += f', {torch.get_num_threads()} thread{"s" if torch.get_num_threads() > 1 else ""}'
    return f'{place}; Python {platform.python_version()}, {versions}{_commit()}.'


def _commit() -> str:
    """That of the checkout, and whether files differ from it; nothing outside of a checkout."""
    root = Path(__file__).parents[1]
    try:
        told = [
            subprocess.run(['git', *words], cwd=root, check=True, capture_output=True, text=True).stdout.strip()
            for words in (['rev-parse', '--short', 'HEAD'], ['status', '--porcelain', '--untracked-files=no'])
        ]
    except (OSError, subprocess.CalledProcessError):
        return ''
    return f'; commit {told[0]}{" with changes" if told[1] else ""}'
