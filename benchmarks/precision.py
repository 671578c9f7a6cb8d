"""What training in half precision changes: the demo in several precisions, as a Markdown table.

    python -m benchmarks.precision [fp32 bf16]

Runs `basicsr train -opt options/demo.yml` once a precision in a temporary folder; a few minutes each.
Validation is in fp32.
"""

import csv
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.hardware import hardware

ROOT = Path(__file__).parents[1]


def trained(precision: str, folder: str, *options: str) -> dict[str, float]:
    """PSNR of each task, and their average, after the last iteration."""
    forced = [f'precision={precision}', f'path:experiments_root={folder}', f'name={precision}', *options]
    command = [sys.executable, '-m', 'promptir_basicsr', 'train', '-opt', 'options/demo.yml', '--force_yml', *forced]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f'{" ".join(command)} ended with status {done.returncode}:\n{done.stderr}')
    with open(next(Path(folder).rglob(f'{precision}/metrics.csv')), newline='', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    last = max(int(row['iter']) for row in rows)
    return {row['task']: float(row['psnr']) for row in rows if int(row['iter']) == last}


def main(argv: list[str]) -> None:
    precisions = argv or ['fp32', 'bf16']
    with tempfile.TemporaryDirectory() as folder:
        found = {precision: trained(precision, folder) for precision in precisions}
    tasks = list(next(iter(found.values())))
    lines = [f'| PSNR | {" | ".join(tasks)} |', f'|:--|{"--:|" * len(tasks)}']
    for precision, values in found.items():
        lines.append(f'| {precision} | {" | ".join(f"{values[task]:.2f}" for task in tasks)} |')
    sys.stdout.write('\n'.join([*lines, '', hardware(('torch',))]) + '\n')


if __name__ == '__main__':
    main(sys.argv[1:])
