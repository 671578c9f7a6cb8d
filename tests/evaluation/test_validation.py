"""`basicsr test` saves results as deep as their inputs, and measures them as before."""

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from promptir_basicsr import cli
from tests.explain.explain_data import PROMPTIR, options_of


@pytest.mark.parametrize('depth', [8, 16])
def test_results_keep_the_depth_of_their_inputs(
    depth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write, photographs
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['pytest'])
    clear = photographs[0][:32, :32].astype(f'uint{depth}') * (257 if depth == 16 else 1)
    write('gt/a.png', clear)
    write('lq/a.png', clear // 2)
    options = {**options_of(PROMPTIR), 'num_gpu': 0}
    task = {'name': 'own', 'type': 'lowlight', 'lq': str(tmp_path / 'lq'), 'gt': str(tmp_path / 'gt')}
    options['datasets']['val']['tasks'] = [task]
    options['val'] = {
        'save_img': True,
        'metrics': {'psnr': {'type': 'calculate_psnr', 'crop_border': 0, 'test_y_channel': False}},
    }
    Path('run.yml').write_text(yaml.safe_dump(options, sort_keys=False))
    assert cli.main(['test', '-opt', 'run.yml']) == 0
    (path,) = [path for path in tmp_path.glob('results/**/a_*.png') if path.parent.name != 'comparison']
    result = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert result.dtype == clear.dtype
    assert depth == 8 or (result % 257 != 0).any()
    (rows,) = tmp_path.glob('results/*/metrics.csv')
    # BasicSR's metric sees what it has always seen: images rounded to 8 bits.
    rounded = [np.rint(image / np.iinfo(image.dtype).max * 255) for image in (result[..., ::-1], clear)]
    expected = 10 * np.log10(255**2 / np.mean((rounded[0] - rounded[1]) ** 2))
    (row,) = [line for line in rows.read_text().splitlines() if 'own' in line]
    assert any(abs(float(field) - expected) < 2e-3 for field in row.split(',') if field[:1].isdigit())
