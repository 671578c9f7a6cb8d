"""The table of tiles is what it says."""

import math
from pathlib import Path

import cv2
import pytest
import torch

from benchmarks.tiling import difference_row, main, seam_mask
from promptir_basicsr.inference.tiles import Grid, Line


def test_steps_at_seams_and_elsewhere() -> None:
    """A difference with one step in the middle of the overlap, and a smaller one far from it."""
    grid = Grid.over(32, 96, 64, 32)
    assert (len(grid), grid.columns.middles) == (2, (48.0,))
    difference = torch.zeros(1, 3, 32, 96)
    difference[..., 48:] = 4 / 255
    difference[..., 10:12] = 1 / 255
    psnr, largest, *steps = (float(cell) for cell in difference_row(difference, grid))
    assert psnr == pytest.approx(-10 * math.log10((48 * 16 + 2) / 96 / 255**2), abs=0.06)
    assert (largest, steps[0], steps[1]) == (4, 4, 1)
    at_seam = seam_mask(Line.over(96, 64, 32))
    assert at_seam.nonzero().flatten().tolist() == list(range(39, 56))
    assert steps[2] == pytest.approx(4 / 17, abs=1e-4)


@pytest.mark.slow
def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(['--tiny', '--tasks', 'denoise', '--tiles', '96', '--picture', str(tmp_path / 'tiles.jpg')])
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines[2:] if line.startswith('|')]
    assert [row[3] for row in rows] == 2 * ['tile', 'reduced', 'tiles', 'tiles, 2 passes', 'whole']
    for network in (rows[:5], rows[5:]):
        plain, _, tiles, _, whole = (float(row[4]) for row in network)
        assert plain + 15 < tiles < whole + 3
    assert cv2.imread(str(tmp_path / 'tiles.jpg')).shape == (200, 3 * 232, 3)
