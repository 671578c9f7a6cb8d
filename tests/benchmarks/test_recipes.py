"""The tables of benchmarks/recipes.py, on results whose answers are known."""

import csv
import math
from pathlib import Path

import pytest

from benchmarks.recipes import HEAD, Study


def row(recipe: str, budget: int, seed: int, psnr: float) -> dict[str, str]:
    values = ['promptir', recipe, 16, budget, 0.02, seed, budget, 'report', 'average', 19, psnr, 0.8, 20.0]
    return dict(zip(HEAD, map(str, values), strict=True))


def write(study: Path, rows: list[dict[str, str]]) -> None:
    with open(study / 'recipes.csv', 'w', newline='') as file:
        writer = csv.DictWriter(file, HEAD)
        writer.writeheader()
        writer.writerows(rows)


def test_patches_relative_to_the_released_recipe_are_those_of_its_final_psnr():
    # Seed 0 grows by 1 dB a factor of ten, half a decibel ahead; seed 1 is better at 100 already; seed 2 is never.
    rows = [row('released', budget, seed, 20 + math.log10(budget)) for budget in (100, 1000) for seed in (0, 1, 2)]
    rows += [row('muon', budget, 0, 20.5 + math.log10(budget)) for budget in (100, 1000)]
    rows += [row('muon', budget, 1, 25) for budget in (100, 1000)]
    rows += [row('muon', budget, 2, 21) for budget in (100, 1000)]
    found = Study.ratios(rows)
    assert found[('promptir', 'muon', 16, 1000)] == pytest.approx([10**-0.5, 0.1])
    assert found[('promptir', 'muon', 16, 100)] == [1, 1]
    assert {recipe for _, recipe, _, _ in found} == {'muon'}


def test_a_recipe_without_a_part_is_compared_with_the_whole_seed_by_seed(tmp_path):
    rows = [row('muon', 1000, 0, 24.0), row('muon', 1000, 1, 25.0), row('muon_without_ema', 1000, 1, 24.5)]
    rows += [row('muon_without_ema', 1000, 0, 23.9), row('muon_without_ema', 500, 0, 20.0), row('adamw', 1000, 0, 20.0)]
    write(tmp_path, rows)
    lines = list(Study(tmp_path, None, 1).tables())
    assert [line for line in lines if 'muon_without_ema | 16 | 1000 | -' in line] == [
        '| promptir | muon_without_ema | 16 | 1000 | -0.30 | -0.50 to -0.10 |'
    ]
    assert '| promptir | adamw | 16 | 1000 | -4.00 | -4.00 to -4.00 |' in lines


def test_the_table_has_means_and_ranges_over_seeds(tmp_path):
    rows = [row('muon', 1000, seed, psnr) for seed, psnr in enumerate((24.0, 24.2, 24.7))]
    write(tmp_path, rows)
    lines = list(Study(tmp_path, None, 1).tables())
    assert lines[2] == '| promptir | muon | 16 | 1000 | 0.02 | 3 | 24.30 | 24.00 to 24.70 |'
    assert lines[3] == '| input | | | | | | 20.00 | |'
