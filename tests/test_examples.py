"""The notebooks in examples/ are committed without outputs, and their cells run in order on a CPU."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / 'examples').glob('*.ipynb'))
QUICKSTART = next(path for path in NOTEBOOKS if path.name == 'quickstart.ipynb')


def cells(path: Path, kind: str = 'code') -> list[dict[str, Any]]:
    """The cells of a kind."""
    notebook = json.loads(path.read_text(encoding='utf-8'))
    return [cell for cell in notebook['cells'] if cell['cell_type'] == kind]


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_valid_and_without_outputs(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding='utf-8'))
    assert notebook.keys() == {'cells', 'metadata', 'nbformat', 'nbformat_minor'}
    assert (notebook['nbformat'], notebook['nbformat_minor']) == (4, 5)
    assert notebook['metadata'].keys() == {'kernelspec', 'language_info'}
    assert len({cell['id'] for cell in notebook['cells']}) == len(notebook['cells'])
    assert len(cells(path, 'code')) + len(cells(path, 'markdown')) == len(notebook['cells'])
    for cell in cells(path):
        assert cell['execution_count'] is None
        assert cell['outputs'] == []
        compile(''.join(cell['source']), f'{path.name}, cell {cell["id"]}', 'exec')  # no `!` and `%` of IPython


@pytest.mark.slow
def test_the_cells_of_quickstart_run_in_order(tmp_path: Path) -> None:
    code = '\n\n'.join(''.join(cell['source']) for cell in cells(QUICKSTART))
    (tmp_path / 'cells.py').write_text(code, encoding='utf-8')
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    done = subprocess.run(
        [sys.executable, 'cells.py'], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    with open(tmp_path / 'experiments' / 'short' / 'metrics.csv', newline='') as file:
        rows = {row['task']: row for row in csv.DictReader(file)}  # of the last validation
    gains = {task: float(row['psnr']) - float(row['input_psnr']) for task, row in rows.items()}
    assert gains['denoise'] > 5, gains
    assert gains['lowlight'] > 8, gains
    assert sorted(path.name for path in (tmp_path / 'restored').iterdir()) == ['astronaut.png', 'coffee.png']
    dark, restored = map(float, re.findall(r'^average +2 +([\d.]+)', done.stdout, re.M))  # of `basicsr measure`
    assert restored > dark + 8
