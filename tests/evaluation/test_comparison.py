"""Results side by side: what is refused, what is marked, and the forms of a table."""

import csv
import io
import shutil
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import skimage.data
import yaml

from promptir_basicsr import cli
from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.core.yaml_loader import load_yaml
from promptir_basicsr.data.protocol import load_protocol
from promptir_basicsr.evaluation.comparison import (
    AVERAGE,
    PUBLISHED,
    as_csv,
    as_html,
    as_latex,
    as_markdown,
    compare,
)
from promptir_basicsr.evaluation.record import Results, TaskResult, circumstances, read_results
from tests.tiny_training import TINY_TRAINING

DEFINITIONS = {'psnr': 'PSNR: RGB', 'ssim': 'SSIM: RGB'}


def run(
    name: str, psnr: list[float], ssim: list[float], images: int = 5, made_by: str = 'pairs', **facts: Any
) -> Results:
    tasks = [
        TaskResult('tests', task, images, made_by, {'psnr': one, 'ssim': other})
        for task, one, other in zip(('SOTS', 'Rain100L', 'extra'), psnr, ssim, strict=False)
    ]
    return Results(name, facts, DEFINITIONS, [], tasks)


A = run('a_1', [30.001, 36.0], [0.97, 0.96])
B = run('b&c', [30.004, 37.0], [0.98, 0.95])
C = run('c', [29.0, 38.0], [0.96, 0.94])


def test_best_and_second_best_as_they_are_printed() -> None:
    comparison = compare([A, B, C])
    lines = as_markdown(comparison).splitlines()
    assert lines[0] == '| psnr / ssim | SOTS | Rain100L | average |'
    # 30.001 and 30.004 are both 30.00.
    assert lines[2] == r'| a\_1 | **30.00** / <u>0.9700</u> | 36.00 / **0.9600** | <u>33.00</u> / **0.9650** |'
    assert lines[3].startswith(
        '| b&c | **30.00** / **0.9800** | <u>37.00</u> / <u>0.9500</u> | **33.50** / **0.9650** |'
    )
    assert lines[4] == '| c | <u>29.00</u> / 0.9600 | **38.00** / 0.9400 | **33.50** / <u>0.9500</u> |'


def test_the_average_is_that_of_tasks() -> None:
    comparison = compare([A, B])
    assert comparison.entries[0].values[AVERAGE, 'psnr'] == pytest.approx((30.001 + 36) / 2)


def test_less_is_better_for_some_metrics() -> None:
    results = [replace(each, lower_is_better=['psnr']) for each in (A, C)]
    assert '| c | **29.00** / ' in as_markdown(compare(results))


@pytest.mark.parametrize(
    ('other', 'reason'),
    [
        (
            run('other', [1.0, 2.0], [0.1, 0.2], images=4),
            "not comparable: SOTS has '5 images' in a_1, but '4 images' in other.",
        ),
        (
            run('other', [1.0, 2.0], [0.1, 0.2], made_by='noise'),
            "the images of SOTS are 'pairs' in a_1, but 'noise' in other.",
        ),
        (replace(C, metrics={**DEFINITIONS, 'psnr': 'PSNR: Y'}), "psnr is 'PSNR: RGB' in a_1, but 'PSNR: Y' in c."),
    ],
)
def test_what_is_not_comparable_is_refused_without_anyway(other: Results, reason: str) -> None:
    with pytest.raises(OptionError) as error:
        compare([A, other])
    assert reason in str(error.value)
    assert '--anyway' in str(error.value)
    assert any(reason.removeprefix('not comparable: ') in note for note in compare([A, other], anyway=True).notes)


def test_columns_are_what_all_have() -> None:
    more = run('more', [1.0, 2.0, 3.0], [0.1, 0.2, 0.3])
    assert compare([more, A]).tasks == ['SOTS', 'Rain100L']
    with pytest.raises(OptionError, match=r"--metric: unknown metric of all runs 'psrn'\. Did you mean 'psnr'\?"):
        compare([A], metrics=['psrn'])
    with pytest.raises(OptionError, match='no task in common'):
        compare([A, Results('x', {}, DEFINITIONS, [], [TaskResult('', 'LOL', 1, '', {'psnr': 1.0, 'ssim': 0.1})])])


def test_seeds_become_one_row() -> None:
    values = [30.1, 30.2, 30.6]
    seeds = [run(f's{n}', [value, value], [0.9, 0.9], recipe='same', seed=n) for n, value in enumerate(values)]
    first, other = compare([*seeds, C], seeds=True).entries
    assert first.runs == 3
    assert first.values['SOTS', 'psnr'] == pytest.approx(statistics.fmean(values))
    assert first.spread[AVERAGE, 'psnr'] == pytest.approx(statistics.stdev(values))
    assert (other.runs, other.spread) == (1, {})
    assert '| s0 (3 seeds) | **30.30 ± 0.26** / ' in as_markdown(compare([*seeds, C], seeds=True))
    labelled = [replace(each, remarks=['Labels: true.']) for each in seeds]
    assert compare([*labelled, C], seeds=True).notes == ['s0: Labels: true.']
    assert compare(labelled).notes == [f's{n}: Labels: true.' for n in range(3)]
    again = run('again', [30.0, 30.0], [0.9, 0.9], recipe='same', seed=1)
    with pytest.raises(OptionError, match=r"'s1' and 'again' have the same options and the same seed, 1\. Omit one"):
        compare([*seeds, again], seeds=True)


def test_published_rows() -> None:
    comparison = compare([A], published='3d')
    assert [entry.name for entry in comparison.entries] == ['AirNet', 'PromptIR', 'PIP, second hand', 'a_1']
    assert 'PromptIR: PromptIR, NeurIPS 2023.' in comparison.notes
    assert '| AirNet | 27.94 / 0.9620 | 34.90 / ' in as_markdown(comparison)
    with pytest.raises(OptionError, match="unknown protocol with published numbers '5d'"):
        compare([A], published='5d')


def test_published_tasks_are_those_of_the_protocols() -> None:
    for name, content in load_yaml(str(PUBLISHED)).items():
        part = load_protocol(name).test
        assert part is not None
        assert {task['name'] for task in part.options['tasks']} == set(content['tasks'])
        for row in content['rows']:
            assert len(row['psnr']) == len(row['ssim']) == len(content['tasks'])


def test_published_averages_are_those_of_the_docs() -> None:
    docs = (Path(__file__).parents[2] / 'docs/fidelity.md').read_text(encoding='utf-8')
    for content in load_yaml(str(PUBLISHED)).values():
        for row in content['rows']:
            cells = [f'{p:.2f} / {f"{s:.3f}"[1:]}' for p, s in zip(row['psnr'], row['ssim'], strict=True)]
            assert f'| {row["name"]} | {" | ".join(cells)} | {np.mean(row["psnr"]):.2f}' in docs


def test_csv_holds_all_digits_and_facts() -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(compare([replace(A, facts={'seed': 7}), B])))))
    assert rows[0] == {
        'row': 'a_1', 'runs': '1', 'task': 'SOTS', 'metric': 'psnr', 'value': '30.001', 'deviation': '', 'seed': '7'
    }  # fmt: skip


def test_html_escapes_names() -> None:
    page = as_html(compare([replace(A, name='<script>'), B]))
    assert '<script>' not in page
    assert '&lt;script&gt;' in page


def test_latex() -> None:
    table = as_latex(compare([A, B, C], published='3d'))
    assert r'a\_1 & ' in table
    assert r'b\&c & ' in table
    assert r'\textbf{38.29}' in table


@pytest.mark.slow
def test_latex_compiles(tmp_path: Path) -> None:
    table = as_latex(compare([A, B, replace(C, name=r'50% $x_1$ #{a}~^\&')], published='3d'))
    document = rf'\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{table}\end{{document}}'
    (tmp_path / 'table.tex').write_text(document, encoding='utf-8')
    tex, find = shutil.which('pdflatex'), shutil.which('kpsewhich')
    if not tex or not find or subprocess.run([find, 'booktabs.sty'], capture_output=True).returncode:
        pytest.skip('no TeX with booktabs')
    done = subprocess.run([tex, '-halt-on-error', 'table.tex'], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    results = replace(
        A, tasks=[replace(A.tasks[0], values={'psnr': float('inf')}, inputs={'psnr': 1.5})], remarks=['x']
    )
    results.write(tmp_path / 'results.json')
    assert read_results(tmp_path) == read_results(tmp_path / 'results.json') == results


@pytest.mark.parametrize(
    'content',
    [
        '',
        '[]',
        '{}',
        'null',
        '{"schema": "1"}',
        '{"schema": 1, "tasks": 3}',
        '[' * 5000,
        '{"schema": 1, "tasks": []}',
        '\xff',
    ],
)
def test_what_holds_no_results(content: str, tmp_path: Path) -> None:
    (tmp_path / 'results.json').write_text(content, encoding='latin-1')
    with pytest.raises(OptionError, match=r"results\.json' has no results of this package"):
        read_results(tmp_path)


def test_missing_results(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match='the run has no validation yet'):
        read_results(tmp_path)
    with pytest.raises(OptionError, match='No such file'):
        read_results(tmp_path / 'nothing.json')
    (tmp_path / 'results.json').write_text('{"schema": 2}')
    with pytest.raises(OptionError, match='results of format 2; this release supports up to 1'):
        read_results(tmp_path)


def test_results_name_the_commit_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = []
    for name in ('one', 'two'):
        (folder := tmp_path / name).mkdir()
        monkeypatch.chdir(folder)
        assert 'commit' not in circumstances()
        git = ['git', '-c', 'user.name=a', '-c', 'user.email=a@b', '-c', 'commit.gpgsign=false']
        for command in (['init', '-q'], ['commit', '-q', '--allow-empty', '-m', name]):
            subprocess.run([*git, *command], check=True)
        (folder / 'below').mkdir()
        monkeypatch.chdir(folder / 'below')
        head = subprocess.run(['git', 'rev-parse', 'HEAD'], capture_output=True, text=True, check=True).stdout
        named.append(circumstances()['commit'])
        assert named[-1] == head[:12]
    assert len(set(named)) == 2


def test_sizes_of_networks_come_before_the_numbers() -> None:
    sized = replace(B, facts={**B.facts, 'parameters': 35_592_000, 'gigaops_256': 345.42})
    comparison = compare([A, sized])
    known = [
        line.split(' | ')[:3] for line in as_markdown(comparison).splitlines() if line.startswith(('| psnr', '| b'))
    ]
    assert known == [['| psnr / ssim', 'params (M)', 'Gops'], ['| b&c', '35.6', '345']]
    assert as_latex(comparison).count('params (M) & Gops &') == 1
    assert 'Gops' not in as_markdown(compare([A, B]))


THEIRS = """
from torch import nn

class Plain(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, 3, 3, padding=1))
    def forward(self, x):
        return x + self.body(x)
"""
PIP = {'type': 'PIPRestormer', 'dim': 8, 'num_blocks': [1] * 4, 'num_refinement_blocks': 1, 'heads': [1] * 4}


@pytest.mark.slow
def test_trainings_images_of_others_and_published_rows_in_one_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """PromptIR, PIP and a class of another folder; the restored images of one of them, measured as those of others."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', list(sys.path))
    (tmp_path / 'theirs').mkdir()
    (tmp_path / 'theirs' / 'plain_network.py').write_text(THEIRS)
    (tmp_path / 'clean').mkdir()
    for name, image in (('a', skimage.data.coffee()), ('b', skimage.data.chelsea())):
        cv2.imwrite(str(tmp_path / 'clean' / f'{name}.png'), image[:96, :120, ::-1])
    clean = {'clean': 'clean', 'degrade': {'type': 'rain'}, 'type': 'derain'}
    tasks = [{**clean, 'name': 'Rain100L'}, {**clean, 'name': 'SOTS', 'type': 'dehaze', 'degrade': {'type': 'haze'}}]
    sets = {'val': {'name': 'set', 'type': 'AllInOneDataset', 'tasks': tasks}}
    metrics = {'psnr': {'type': 'calculate_paper_psnr'}, 'ssim': {'type': 'calculate_paper_ssim'}}
    networks = {
        'promptir': None,
        'pip': {**PIP, 'prompt_sizes': [4] * 3},
        'plain': {'type': 'plain_network:Plain', 'path': 'theirs', 'width': 8},
    }
    for name, network in networks.items():
        options = yaml.safe_load(TINY_TRAINING)
        options |= {'name': name, 'network_g': network or options['network_g']}
        options['datasets'] |= sets
        options['val'] = {'val_freq': 4, 'save_img': False, 'metrics': metrics}
        Path('a.yml').write_text(yaml.safe_dump(options))
        assert cli.main(['train', '-opt', 'a.yml']) == 0
    options['datasets'] = {'test': sets['val']}
    options['path'] = {'pretrain_network_g': 'experiments/plain/models/net_g_latest.pth'}
    del options['train']
    Path('a.yml').write_text(
        yaml.safe_dump({**options, 'name': 'saved', 'val': {'metrics': metrics, 'save_img': True}})
    )
    assert cli.main(['test', '-opt', 'a.yml']) == 0
    for task in ('Rain100L', 'SOTS'):
        restored = f'results/saved/visualization/set/{task}'
        pairing = ['--pairing', '{id}_restored.{ext}', '{id}.{ext}']
        assert cli.main(['measure', restored, '--target', 'clean', *pairing, '-o', f'{task}.json', '--name', task]) == 0
    rain = read_results('Rain100L.json').tasks[0]
    (own,) = [task for task in read_results('experiments/plain').tasks if task.task == 'Rain100L']
    assert rain.values['psnr'] == pytest.approx(own.values['psnr'], abs=0.02)
    theirs = replace(read_results('Rain100L.json'), name='theirs', tasks=[replace(rain, task='Rain100L')])
    theirs.write('theirs.json')

    capsys.readouterr()
    runs = [f'experiments/{name}' for name in networks]
    assert cli.main(['compare', *runs, 'theirs.json', '--published', '3d']) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0] == '| psnr / ssim | params (M) | Gops | Rain100L |'
    names = [line.split(' | ')[0].removeprefix('| ') for line in table[2:9]]
    assert names == ['AirNet', 'PromptIR', 'PIP, second hand', 'promptir', 'pip', 'plain', 'theirs']
    assert cli.main(['compare', *runs, '--published', '3d', '--latex', '-o', 'table.tex']) == 0
    assert Path('table.tex').read_text().count('\\\\') == 7
