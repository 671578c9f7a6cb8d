"""`make demo` keeps its promise. Longer than the ordinary suite allows: `make slow`."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

OPTIONS = Path(__file__).parents[1] / 'options' / 'demo.yml'


@pytest.mark.slow
def test_the_demo_improves_every_degradation_it_has_not_seen(tmp_path):
    command = [sys.executable, '-m', 'promptir_basicsr', 'train', '-opt', str(OPTIONS)]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}  # as in the Makefile
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    with open(tmp_path / 'experiments' / 'demo' / 'metrics.csv', newline='') as file:
        rows = list(csv.DictReader(file))[-6:]
    gains = {row['task']: float(row['psnr']) - float(row['input_psnr']) for row in rows}
    assert list(gains) == ['denoise', 'derain', 'dehaze', 'deblur', 'lowlight', 'average']
    assert min(gains.values()) > 1.5, gains
    likeness = {row['task']: float(row['ssim']) - float(row['input_ssim']) for row in rows}
    assert min(likeness.values()) > 0, likeness
