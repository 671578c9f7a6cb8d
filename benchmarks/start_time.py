"""CPU seconds that commands and imports take before they do anything: python -m benchmarks.start_time [ROUNDS].

Rounds are interleaved; the minimum is what the command costs, the median what a machine with other work on it shows.
"""

import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

BASICSR = str(Path(sys.executable).with_name('basicsr'))
# The paper's network on the five tasks of training and validation of options/demo.yml.
REHEARSAL = """
import promptir_basicsr
from promptir_basicsr.checks.rehearsal import rehearse
from promptir_basicsr.options.file import find_option_file, read_option_file
options, _ = read_option_file(find_option_file('demo.yml'))
assert rehearse({**options, 'network_g': {'type': 'PromptIR'}}, is_train=True) == []
"""
COMMANDS = {
    'basicsr --help': [BASICSR, '--help'],
    'basicsr --version': [BASICSR, '--version'],
    'basicsr restore --help': [BASICSR, 'restore', '--help'],
    'basicsr retore': [BASICSR, 'retore'],
    'import torch': [sys.executable, '-c', 'import torch'],
    'import torchvision': [sys.executable, '-c', 'import torchvision'],
    'import promptir_basicsr': [sys.executable, '-c', 'import promptir_basicsr'],
    'the same, and a rehearsal of PromptIR': [sys.executable, '-c', REHEARSAL],
}


def cpu_seconds(command: list[str]) -> float:
    """Of a process and what it starts, user and system."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env={**os.environ, 'OMP_NUM_THREADS': '1'}, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, command in COMMANDS.items():
            seconds[name].append(cpu_seconds(command))
    print('| command | CPU s, minimum | median |\n|:--|--:|--:|')
    for name, found in seconds.items():
        print(f'| `{name}` | {min(found):.2f} | {statistics.median(found):.2f} |')


if __name__ == '__main__':
    main()
