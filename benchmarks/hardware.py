"""The line below every table: what it was measured on."""

import os
import platform
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path


def hardware(packages: Iterable[str]) -> str:
    """Processor, cores, and versions of Python and of the packages, by their names on the index."""
    cpu = platform.processor() or platform.machine()
    info = Path('/proc/cpuinfo')
    if info.exists():
        lines = info.read_text(encoding='utf-8').splitlines()
        cpu = next((line.partition(':')[2].strip() for line in lines if line.startswith('model name')), cpu)
    versions = ', '.join(f'{package} {version(package)}' for package in packages)
    return f'{cpu}, {os.cpu_count()} cores; Python {platform.python_version()}, {versions}.'
