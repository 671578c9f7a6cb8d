"""`basicsr check`: what is told of real folders, real damage and real leaks; and that nothing is written."""

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
import pytest
import skimage.data
import torch
import yaml
from rich.console import Console

import promptir_basicsr
from promptir_basicsr import cli
from promptir_basicsr.checks.check import check_file
from promptir_basicsr.checks.report import ERROR, Finding, Report
from promptir_basicsr.commands.check import print_report
from promptir_basicsr.core.problems import Kind
from promptir_basicsr.data.sources import FolderSource
from tests.forked import basicsr

# isort: split
from basicsr.utils.lmdb_util import make_lmdb_from_imgs

DOCS = Path(__file__).parents[2] / 'docs' / 'check.md'
OPTIONS = {
    'name': 'tiny',
    'model_type': 'PromptModel',
    'num_gpu': 0,
    'datasets': {
        'train': {
            'name': 'two_tasks',
            'type': 'AllInOneDataset',
            'gt_size': 32,
            'tasks': [
                {
                    'name': 'denoise_25',
                    'type': 'denoise',
                    'clean': 'Denoise',
                    'degrade': {'type': 'gaussian_noise', 'sigma': 25},
                    'copies': 3,
                },
                {'type': 'derain', 'root': 'Derain', 'pairing': 'rain100l_train', 'copies': 4},
            ],
            'batch_size_per_gpu': 2,
            'num_worker_per_gpu': 0,
        },
        'val': {
            'name': 'tests',
            'type': 'AllInOneDataset',
            'tasks': [{'name': 'Rain100L', 'type': 'derain', 'root': 'test', 'pairing': 'rain100l_test'}],
        },
    },
    'network_g': {
        'type': 'PromptIR',
        'dim': 8,
        'num_blocks': [1, 1, 1, 1],
        'num_refinement_blocks': 1,
        'heads': [1, 1, 1, 1],
        'prompt_sizes': [4, 4, 4],
    },
    'path': {},
    'train': {
        'total_iter': 40,
        'optim_g': {'type': 'AdamW', 'lr': 1e-3},
        'scheduler': {'type': 'LinearWarmupCosineLR', 'warmup_iter': 8},
        'pixel_opt': {'type': 'L1Loss'},
    },
    'val': {'val_freq': 20, 'save_img': False, 'metrics': {'psnr': {'type': 'calculate_paper_psnr'}}},
    'logger': {'print_freq': 1, 'save_checkpoint_freq': 20, 'use_tb_logger': False},
}
DENOISE, DERAIN = 'datasets.train.tasks[0] (denoise_25)', 'datasets.train.tasks[1] (derain)'
PHOTOGRAPHS = (skimage.data.chelsea, skimage.data.astronaut, skimage.data.coffee, skimage.data.rocket)


def photograph(number: int) -> np.ndarray:
    """Areas of photographs, (64, 80, 3) BGR; no two of them show the same."""
    image, area = PHOTOGRAPHS[number % 4](), number // 4
    return np.ascontiguousarray(image[100 + 64 * (area // 2) :, 100 + 80 * (area % 2) :][:64, :80, ::-1])


def write(name: str, image: np.ndarray, *parameters: int) -> bytes:
    """An image file below the current folder."""
    content = cv2.imencode(Path(name).suffix, image, parameters)[1].tobytes()
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(content)
    return content


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: four clean images, three rainy pairs, a test set of two pairs, and tiny.yml."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['pytest'])
    for number in range(4):
        write(f'Denoise/{number}.jpg', photograph(number))
    for number in range(3):
        write(f'Derain/gt/norain-{number}.png', photograph(4 + number))
        write(f'Derain/rainy/rain-{number}.png', 255 - photograph(4 + number))
    for number in range(2):
        write(f'test/target/{number}.png', photograph(8 + number))
        write(f'test/input/{number}.png', 255 - photograph(8 + number))
    options()
    return tmp_path


def options(change: Callable[[dict[str, Any]], object] | None = None) -> None:
    """Write tiny.yml."""
    written = json.loads(json.dumps(OPTIONS))
    if change:
        change(written)
    Path('tiny.yml').write_text(yaml.safe_dump(written, allow_unicode=True), encoding='utf-8')


def task(written: dict[str, Any], number: int, **keys: Any) -> None:
    written['datasets']['train']['tasks'][number].update(keys)


def found(report: Report, kind: str) -> Finding:
    (finding,) = [finding for finding in report.findings if finding.kind == kind]
    return finding


def everything(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob('*') if path.name != 'log'
    }


def text(report: Report, width: int, terminal: bool = False) -> list[str]:
    with open('log', 'w', encoding='utf-8') as file:
        print_report(report, Console(file=file, width=width, force_terminal=terminal, no_color=True, markup=False))
    return re.sub('\x1b\\[[0-9;]*m', '', Path('log').read_text(encoding='utf-8')).splitlines()


# a training that is right


def test_a_right_training_as_a_program_sees_it(tree: Path) -> None:
    before = everything(tree)
    process = basicsr('check', '-opt', 'tiny.yml', '--json', '--workers', '2')
    assert (process.returncode, process.stderr) == (0, '')
    report = json.loads(process.stdout)
    assert (report['schema'], report['right'], report['training'], report['decoded']) == (1, True, True, True)
    assert report['findings'] == []
    assert report['duplicates'] == []
    train, val = report['datasets']
    assert [(row['name'], row['images'], row['samples'], row['draws']) for row in train['tasks']] == [
        ('denoise_25', 4, 12, 3),
        ('derain', 3, 12, 4),
    ]
    assert [row['share'] for row in train['tasks']] == [0.5, 0.5]
    assert [row['made_by'] for row in train['tasks']] == ['gaussian_noise(sigma=25, floor)', 'pairs']
    assert [(row['name'], row['images'], row['samples']) for row in val['tasks']] == [('Rain100L', 2, 2)]
    assert report['epoch'] == {
        'samples': 24, 'batch': 2, 'iterations': 12, 'total_iter': 40, 'epochs': 40 / 12, 'total_samples': 80,
        'processes': 1, 'stages': [],
    }  # fmt: skip
    rates = {point['iteration']: (point['rate'], point['event']) for point in report['learning_rate']}
    assert rates[1] == (pytest.approx(1e-3 / 8), '')
    assert rates[8] == (pytest.approx(1e-3), 'end of warm-up')
    assert rates[40] == (pytest.approx(0), 'last')
    assert everything(tree) == before


def test_a_right_training_as_people_see_it(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = everything(tree)
    assert cli.main(['check', '-opt', 'tiny.yml', '--workers', '1']) == 0
    said = capsys.readouterr()
    assert said.err == ''
    assert re.search(r'^ derain +3 +- +4 +12 +50.0% +right *$', said.out, re.M)
    assert "datasets.train 'two_tasks': 24 samples per epoch\n" in said.out
    assert 'An epoch: 24 samples, 12 iterations at batch 2. The run: 40 iterations, 3.3 epochs, 80 samples.' in said.out
    assert re.search(r'^ +8 +0.001 +end of warm-up *$', said.out, re.M)
    assert said.out.endswith('\nCheck passed: ready for training.\n')
    assert everything(tree) == before


def test_several_processes_share_an_epoch(tree: Path) -> None:
    epoch = check_file('tiny.yml', processes=3).epoch
    assert epoch is not None
    assert (epoch.samples, epoch.batch, epoch.iterations, epoch.total_samples) == (24, 6, 4, 240)
    report = check_file('tiny.yml', ['datasets:train:batch_size_per_gpu=5'], processes=5)
    assert report.epoch is not None
    assert (report.epoch.samples, report.epoch.batch, report.epoch.iterations) == (25, 25, 1)
    assert 'training would end after' not in str(report.findings)
    report = check_file('tiny.yml', ['datasets:train:batch_size_per_gpu=5'], processes=6)
    assert report.epoch is None  # not one whole batch
    assert 'training would end after 0 of 40 iterations' in found(report, 'options').message


def test_stages_have_a_line_each(tree: Path) -> None:
    """The smallest image has sides of 48: crops of the second stage alone are larger."""
    change = ['datasets:train:stages=[{until: 10}, {until: 30, gt_size: 56, batch_size_per_gpu: 5}, {}]']
    report = check_file('tiny.yml', change, processes=2)
    assert report.epoch is not None
    stages = [(stage.until, stage.gt_size, stage.batch, stage.iterations) for stage in report.epoch.stages]
    assert [(until, batch, iterations) for until, _, batch, iterations in stages] == [
        (10, 4, 6),
        (30, 10, 2),
        (40, 4, 6),
    ]
    assert (report.epoch.epochs, report.epoch.total_samples) == (pytest.approx(10 / 6 + 10 + 10 / 6), 280)
    lines = text(report, 200)
    assert 'An epoch: 24 samples. The run: 40 iterations, 13.3 epochs, 280 samples.' in lines
    (line,) = (line for line in lines if 'Stage 2' in line)
    assert line.strip() == (
        'Stage 2, to iteration 30: crops of 56, 2 iterations an epoch at batch 10 of 2 processes, 10.0 epochs.'
    )
    assert json.loads(json.dumps(report.as_json()))['epoch']['stages'][1]['batch'] == 10


def test_stages_after_a_shortened_training_are_a_note(tree: Path) -> None:
    stages = 'datasets:train:stages=[{until: 10}, {until: 30}, {}]'
    report = check_file('tiny.yml', [stages, 'train:total_iter=20'])
    short = [finding for finding in report.findings if finding.kind == 'short']
    assert [finding.severity for finding in short] == ['note'] * len(short)
    assert any('stages[2]: would start after iteration 30, but total_iter is 20.' in each.message for each in short)
    assert report.epoch is not None
    assert [stage.until for stage in report.epoch.stages] == [10, 20]


def test_shares_are_those_of_the_sampler(tree: Path) -> None:
    sampling = ['datasets:train:sampling={fixed_shares: true, epoch_size: 100}', 'datasets:train:batch_size_per_gpu=4']
    weights = ['datasets:train:tasks:0:weight=3', 'datasets:train:tasks:1:weight=1']
    report = check_file('tiny.yml', [*sampling, *weights])
    rows = [(row.samples, row.share, row.in_batch) for row in report.datasets[0].tasks]
    assert rows == [(75, 0.75, 3), (25, 0.25, 1)]
    assert any(line.split()[-2:] == ['3', 'right'] for line in text(report, 80) if 'denoise_25' in line)


# damaged and missing images


def damage() -> None:
    """One of each: cut off, empty, text, pairs that differ in size; and what is no damage, a misleading extension."""
    whole = write('Denoise/cut.jpg', photograph(12))
    Path('Denoise/cut.jpg').write_bytes(whole[: len(whole) // 2])
    Path('Denoise/empty.png').touch()
    Path('Denoise/words.png').write_text('an error page of the server\n')
    write('Denoise/fine.png', photograph(13))
    os.rename('Denoise/fine.png', 'Denoise/fine.jpg')
    write('Derain/rainy/rain-1.png', photograph(5)[:, :-8])


@pytest.mark.parametrize('workers', [0, 2])
def test_damaged_images_are_named(workers: int, tree: Path) -> None:
    damage()
    report = check_file('tiny.yml', workers=workers)
    assert not report.right
    assert {finding.kind for finding in report.findings} == {'unreadable', 'different_size'}
    unreadable, differing = found(report, 'unreadable'), found(report, 'different_size')
    assert unreadable.where == DENOISE
    cut = Path('Denoise/cut.jpg').stat().st_size
    assert unreadable.items == [
        ('Denoise/cut.jpg', f'not a readable image ({cut:,} bytes)'),
        ('Denoise/empty.png', 'not a readable image (empty file)'),
        ('Denoise/words.png', 'not a readable image (28 bytes)'),
    ]
    assert unreadable.message == (
        f'{DENOISE}: 3 of 8 images cannot be read. Replace the files, or remove them from the list.'
    )
    assert differing.items == [('Derain/rainy/rain-1.png', '72x64, clear 80x64')]
    assert differing.message.startswith(f'{DERAIN}: 1 of 3 pairs differ in size.')


def test_clear_images_with_a_border(tree: Path) -> None:
    """The sizes compared are those that pairs have without it."""
    for number in range(3):
        write(f'Derain/rainy/rain-{number}.png', 255 - photograph(4 + number)[1:-1, 1:-1])
    assert found(check_file('tiny.yml'), 'different_size').items[0][1] == '78x62, clear 80x64'
    options(lambda written: task(written, 1, crop_border_gt=1))
    assert check_file('tiny.yml').findings == check_file('tiny.yml', decode=False).findings == []
    options(lambda written: task(written, 1, crop_border_gt=2))
    assert found(check_file('tiny.yml'), 'different_size').items[0][1] == '78x62, clear 76x60'


def test_fast_reads_the_beginnings(tree: Path) -> None:
    damage()
    write('Denoise/plain.bmp', photograph(14))
    write('Denoise/plain.tif', photograph(15))
    report = check_file('tiny.yml', decode=False)
    assert [name for name, _ in found(report, 'unreadable').items] == ['Denoise/empty.png', 'Denoise/words.png']
    assert found(report, 'different_size').items == [('Derain/rainy/rain-1.png', '72x64, clear 80x64')]
    assert report.duplicates is None


def test_fast_reports_what_it_did_not_check(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(['check', '-opt', 'tiny.yml', '--fast', '--workers', '0']) == 0
    assert capsys.readouterr().out.endswith('Check passed: ready for training (--fast: images were not decoded).\n')


def test_missing_images_are_named_with_the_sentences_of_train(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path('list.txt').write_text('\n'.join(f'{number}.jpg' for number in range(30)))
    options(lambda written: [task(written, 0, list='list.txt'), task(written, 1, copis=2)])
    os.remove('test/target/1.png')
    report = check_file('tiny.yml')
    missing, orphans, mistake = found(report, 'missing'), found(report, 'orphans'), found(report, 'options')
    assert missing.items == [(f'{number}.jpg', f'line {number + 1}') for number in range(4, 30)]
    assert orphans.items == [('input/1.png', 'needs target/1.png')]
    assert (missing.where, mistake.where) == (DENOISE, DERAIN)
    assert orphans.where == 'datasets.val.tasks[0] (Rain100L)'
    assert cli.main(['train', '-opt', 'tiny.yml']) == 2
    said = capsys.readouterr().err.splitlines()
    assert said == [finding.message for finding in report.findings if finding.severity == 'error']
    assert len(said) == 3
    rows = {row.name: (row.images, row.samples) for dataset in report.datasets for row in dataset.tasks}
    assert rows == {'denoise_25': (4, 12), 'derain': (0, 0), 'Rain100L': (1, 1)}  # what is left is counted
    lines = text(report, 80)
    start = lines.index(f'  {missing.message}')
    assert lines[start + 1 : start + 13] == [
        *(f'      {f"{number}.jpg":6}  line {number + 1}' for number in range(4, 14)),
        '      and 16 more',
        f'  {mistake.message}',
    ]
    assert lines[-1] == 'Check failed: 3 errors to fix before training.'


def test_items_in_a_message_are_not_repeated_below_it(tree: Path) -> None:
    Path('list.txt').write_text('0.jpg\n8.jpg\n1.jpg\n9.jpg\n')
    options(lambda written: task(written, 0, list='list.txt'))
    report = check_file('tiny.yml')
    assert found(report, 'missing').items == [('8.jpg', 'line 2'), ('9.jpg', 'line 4')]
    assert [line for line in text(report, 400) if '8.jpg' in line] == [f'  {found(report, "missing").message}']


def test_images_of_several_tasks_are_read_once(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(written: dict[str, Any]) -> None:
        tasks = written['datasets']['train']['tasks']
        tasks.append({**tasks[0], 'name': 'denoise_50', 'degrade': {'type': 'gaussian_noise', 'sigma': 50}})
        tasks.append({'type': 'dehaze', 'root': 'haze', 'pairing': 'reside_ots'})
        tasks.append({**tasks[0], 'name': 'of_clear', 'clean': str(Path('haze/original').resolve())})

    options(change)
    write('haze/original/0001.png', photograph(12))
    for air in (0.8, 0.85, 0.9):
        write(f'haze/synthetic/part1/0001_{air}_0.04.png', photograph(12))
    Path('Denoise/empty.png').touch()
    opened: list[str] = []
    original = FolderSource.open

    def noted(self: FolderSource, name: str) -> Any:
        opened.append(os.path.realpath(self.where(name)))
        return original(self, name)

    monkeypatch.setattr(FolderSource, 'open', noted)
    report = check_file('tiny.yml')
    files = [path for path in tree.rglob('*.*') if path.suffix in ('.png', '.jpg')]
    assert sorted(opened) == sorted(str(path.resolve()) for path in files)
    unreadable = [finding for finding in report.findings if finding.kind == 'unreadable']
    assert [finding.where for finding in unreadable] == [DENOISE, 'datasets.train.tasks[2] (denoise_50)']
    lines = text(report, 80)
    assert sum('Denoise/empty.png' in line for line in lines) == 1  # named once for both tasks
    assert sum('1 of 5 images cannot be read' in line for line in lines) == 2


# counts


def test_another_count_than_the_protocols_is_an_error_unless_allowed(tree: Path) -> None:
    options(lambda written: task(written, 0, expected_images=5144))
    report = check_file('tiny.yml')
    count = found(report, 'count')
    assert (count.severity, count.where) == ('error', DENOISE)
    assert count.message.startswith(f'{DENOISE}: has 4 images, the protocol has 5,144.')
    assert not report.right
    report = check_file('tiny.yml', allow_counts=True)
    assert found(report, 'count').severity == 'note'
    assert report.right
    row = report.datasets[0].tasks[0]
    assert (row.images, row.expected_images) == (4, 5144)


def test_a_known_count_is_called_by_its_name(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = {'4': 'BSD400 missing: this is the WED-only variant'}
    options(lambda written: task(written, 0, expected_images=5144))
    text = (
        Path('tiny.yml')
        .read_text()
        .replace('expected_images: 5144', "expected_images: 5144\n      known_counts: {4: '" + known['4'] + "'}")
    )
    Path('tiny.yml').write_text(text)
    assert cli.main(['check', '-opt', 'tiny.yml', '--workers', '0']) == 1
    said = capsys.readouterr().out
    assert f'{DENOISE}: BSD400 missing: 4 of 5,144, this is the WED-only variant.' in said
    assert said.endswith('Check failed: 1 error to fix before training.\n')
    assert cli.main(['check', '-opt', 'tiny.yml', '--workers', '0', '--allow-counts']) == 0


def test_a_protocol_by_name(tree: Path) -> None:
    """WED alone, as several groups trained without noticing, is said by name."""
    os.makedirs('Train')
    content = write('Train/Denoise/00001.bmp', photograph(0)[:4, :4])
    for number in range(2, 4745):
        Path(f'Train/Denoise/{number:05}.bmp').write_bytes(content)
    names = [f'{number:05}.bmp' for number in range(1, 4745)] + [f'a{number}.jpg' for number in range(400)]
    os.makedirs('data_dir/noisy')
    Path('data_dir/noisy/denoise.txt').write_text('\n'.join(names))

    def change(written: dict[str, Any]) -> None:
        train = written['datasets']['train']
        written['datasets'] = {'train': {**train, 'protocol': '3d', 'dataroot': '.', 'gt_size': 128}}
        train = written['datasets']['train']
        train['tasks'] = {'denoise_25': None, 'denoise_50': None, 'derain': None, 'dehaze': None}

    options(change)
    report = check_file('tiny.yml', decode=False)
    (row,) = report.datasets[0].tasks
    assert (row.name, row.images, row.expected_images) == ('denoise_15', 4744, 5144)
    assert len(found(report, 'missing').items) == 400
    known = 'denoise_15): BSD400 missing: 4,744 of 5,144, this is the WED-only variant.'
    assert known in found(report, 'count').message
    assert len(found(report, 'smaller_than_patch').items) == 4744


# notes


def test_pairs_of_two_scenes_are_a_note(tree: Path) -> None:
    """The published LOL has three such pairs; training and test sets are looked at."""
    write('Derain/gt/norain-1.png', photograph(12))
    write('test/target/0.png', photograph(13))
    first, second = (finding for finding in check_file('tiny.yml').findings if finding.kind == 'unlike')
    assert (first.severity, first.where, second.where) == ('note', DERAIN, 'datasets.val.tasks[0] (Rain100L)')
    assert first.items == [('Derain/rainy/rain-1.png', 'clear Derain/gt/norain-1.png')]
    assert second.items == [('test/input/0.png', 'clear test/target/0.png')]
    assert first.message == (
        f'{DERAIN}: 1 of 3 pairs are not alike. Compare the images: they may show different scenes.'
    )
    assert check_file('tiny.yml').right
    assert check_file('tiny.yml', decode=False).findings == []

    def test_alone(written: dict[str, Any]) -> None:
        del written['datasets']['train'], written['train']

    options(test_alone)
    assert found(check_file('tiny.yml'), 'unlike').items == second.items


def test_small_images_are_a_note(tree: Path) -> None:
    write('Denoise/small.png', photograph(12)[:40, :47])
    write('Denoise/enough.png', photograph(13)[:32, :32])
    assert check_file('tiny.yml').findings == []
    report = check_file('tiny.yml', ['datasets:train:gt_size=40', 'datasets:train:crop_multiple=16'])
    small = found(report, 'smaller_than_patch')
    assert (small.severity, small.where) == ('note', DENOISE)
    assert small.items == [('Denoise/enough.png', '32x32'), ('Denoise/small.png', '47x40')]
    assert '2 of 6 images are smaller than the 40 pixel crop; they are padded by reflection.' in small.message
    assert report.right


def test_extra_files_are_a_note(tree: Path) -> None:
    write('Derain/README.png', photograph(12))
    write('test/target/9.png', photograph(13))
    write('apart/lq/1.png', photograph(14))
    write('apart/lq/thumb_1.jpeg', photograph(14))
    write('apart/gt/1.png', photograph(14))

    def change(written: dict[str, Any]) -> None:
        task(written, 0, files=['0.jpg', '2.jpg'])
        pairing = {'lq': '{id}.png', 'gt': '{id}.png'}
        apart = {'type': 'dehaze', 'lq': 'apart/lq', 'gt': 'apart/gt', 'pairing': pairing}
        written['datasets']['train']['tasks'].append(apart)

    options(change)
    report = check_file('tiny.yml')
    extra = {finding.message: finding.items for finding in report.findings}
    assert all(finding.kind == 'extra' for finding in report.findings)
    assert extra == {
        '2 of 4 images in Denoise are not used by any task.': [('1.jpg', ''), ('3.jpg', '')],
        '1 of 7 images in Derain are not used by any task.': [('README.png', '')],
        '1 of 2 images in apart/lq are not used by any task.': [('thumb_1.jpeg', 'does not fit the pairing rule')],
        '1 of 5 images in test are not used by any task.': [('target/9.png', '')],
    }
    assert report.right


def test_a_model_that_measures_all_tasks_as_one_is_a_note(tree: Path) -> None:
    def change(written: dict[str, Any], **model: str) -> None:
        second = {'type': 'denoise', 'clean': 'test/target', 'degrade': {'type': 'jpeg', 'quality': 40}}
        written['datasets']['val']['tasks'].append(second)
        written.update(model)

    options(lambda written: change(written, model_type='SwinIRModel'))
    note = found(check_file('tiny.yml'), 'averaged')
    assert (note.severity, note.where) == ('note', 'datasets.val')
    assert note.message.startswith('datasets.val: SwinIRModel reports one average over its 2 tasks (Rain100L, denoise)')
    options(change)
    assert check_file('tiny.yml').findings == []
    options(lambda written: written.update(model_type='SRModel'))
    assert 'averaged' not in {finding.kind for finding in check_file('tiny.yml').findings}


def test_files_that_another_task_or_set_uses_are_not_extra(tree: Path) -> None:
    def change(written: dict[str, Any]) -> None:
        task(written, 0, files=['0.jpg', '2.jpg'])
        clean = {'type': 'denoise', 'clean': './Denoise/../Denoise', 'degrade': {'type': 'jpeg', 'quality': 40}}
        written['datasets']['val']['tasks'].append({**clean, 'files': ['1.jpg', '3.jpg']})
        inner = {**clean, 'clean': 'Derain/gt', 'files': ['norain-0.png']}
        written['datasets']['val']['tasks'].append({**inner, 'name': 'inner'})

    options(change)
    assert {finding.kind for finding in check_file('tiny.yml').findings} == {'duplicates'}


def test_what_only_this_machine_lacks_is_a_note(tree: Path) -> None:
    number = torch.cuda.device_count() + 1
    report = check_file('tiny.yml', [f'num_gpu={number}'])
    machine = found(report, 'machine')
    assert machine.severity == 'note'
    assert machine.message.startswith(f'This machine: num_gpu: {number} requested, but this machine has ')
    assert report.right
    assert report.epoch is not None
    assert report.epoch.batch == 2 * number


@pytest.mark.skipif(torch.cuda.is_available(), reason='this machine lacks nothing')
def test_prefetching_to_a_gpu_may_be_right_elsewhere(tree: Path) -> None:
    prefetch = ['datasets:train:prefetch_mode=cuda', 'datasets:train:pin_memory=true']
    assert [finding.kind for finding in check_file('tiny.yml', prefetch).findings] == ['machine']
    assert [finding.kind for finding in check_file('tiny.yml', prefetch[:1]).findings] == ['options']


def test_data_sets_of_others_are_named_not_checked(tree: Path) -> None:
    foreign = {'name': 'own', 'type': 'PairedImageDataset', 'dataroot_gt': 'nowhere', 'dataroot_lq': 'nowhere'}
    options(lambda written: written['datasets'].update(val_2={**foreign, 'io_backend': {'type': 'disk'}}))
    (error,) = check_file('tiny.yml').of(ERROR)
    assert error.message.startswith('tiny.yml:28: datasets.val_2: cannot be built: ')
    foreign |= {'dataroot_gt': 'test/target', 'dataroot_lq': 'test/input', 'io_backend': {'type': 'disk'}}
    options(lambda written: written.update(scale=1) or written['datasets'].update(val_2=foreign))
    report = check_file('tiny.yml')
    note = found(report, 'not_checked')
    assert note.message == 'datasets.val_2: PairedImageDataset is not an AllInOneDataset; its images are not checked.'
    assert [(dataset.where, dataset.checked) for dataset in report.datasets] == [
        ('datasets.train', True), ('datasets.val', True), ('datasets.val_2', False)
    ]  # fmt: skip
    assert report.right


# duplicates


def leak() -> None:
    """Two of three test images are among the clean images, saved anew, and one of them twice."""
    write('test/target/2.png', photograph(10))
    write('test/input/2.png', photograph(10))
    write('Denoise/a1.jpg', photograph(8), cv2.IMWRITE_JPEG_QUALITY, 85)
    write('Denoise/a2.jpg', photograph(10), cv2.IMWRITE_JPEG_QUALITY, 75)
    write('Denoise/a3.bmp', photograph(10))


def test_the_leak_of_the_published_protocol_is_reported_by_name(tree: Path) -> None:
    leak()

    def change(written: dict[str, Any]) -> None:
        tasks = written['datasets']['train']['tasks']
        tasks.insert(1, {**tasks[0], 'name': 'denoise_50', 'degrade': {'type': 'gaussian_noise', 'sigma': 50}})

    options(change)
    report = check_file('tiny.yml')
    assert report.right
    assert report.duplicates is not None
    pairs = [
        (f'test/target/{test}.png', f'Denoise/{training}')
        for test, training in ((0, 'a1.jpg'), (2, 'a2.jpg'), (2, 'a3.bmp'))
    ]
    assert [(same.training_task, same.test_dataset, same.test_task) for same in report.duplicates] == [
        ('denoise_25', 'datasets.val', 'Rain100L'), ('denoise_50', 'datasets.val', 'Rain100L')
    ]  # fmt: skip
    assert all((same.test_images, same.pairs) == (3, pairs) for same in report.duplicates)
    note = found(report, 'duplicates')
    assert note.items == pairs
    assert note.message == (
        'datasets.val: 2 of the 3 clear images of Rain100L are training images of denoise_25, denoise_50. The '
        'published protocol has such a leak: BSD400 holds the clear images of 75 of the 100 test pairs of Rain100L; '
        'published numbers include it.'
    )


def test_the_published_leak_among_neighbouring_areas(tree: Path) -> None:
    """75 of 100 test images are among 150 clean ones, all of them areas of two photographs."""
    shutil.rmtree('test')
    shutil.rmtree('Denoise')
    images = [image[..., ::-1] for image in (skimage.data.astronaut(), skimage.data.coffee())]
    areas = [
        image[top : top + 40, left : left + 40]
        for image in images
        for top in range(0, image.shape[0] - 39, 40)
        for left in range(0, image.shape[1] - 39, 40)
    ]
    areas = [area for area in areas if area.mean(axis=2).std() > 20][:175]
    assert len(areas) == 175
    for number, area in enumerate(areas):
        if number < 100:
            write(f'test/target/{number:03}.png', area)
            write(f'test/input/{number:03}.png', 255 - area)
        if number >= 25:
            write(f'Denoise/a{number:03}.jpg', area, cv2.IMWRITE_JPEG_QUALITY, 95)
    note = found(check_file('tiny.yml'), 'duplicates')
    assert note.items == [(f'test/target/{number:03}.png', f'Denoise/a{number:03}.jpg') for number in range(25, 100)]
    assert note.message == (
        'datasets.val: 75 of the 100 clear images of Rain100L are training images of denoise_25. This is the leak of '
        'the published protocol: BSD400 holds the clear images of 75 of the 100 test pairs of Rain100L; published '
        'numbers include it.'
    )


def test_other_shared_images_are_reported_without_that_name(tree: Path) -> None:
    shutil.copy('test/target/1.png', 'Derain/gt/norain-1.png')
    note = found(check_file('tiny.yml'), 'duplicates')
    assert note.message == 'datasets.val: 1 of the 2 clear images of Rain100L are training images of derain.'


def test_the_same_file_in_training_and_test_is_a_duplicate_even_where_it_is_flat(tree: Path) -> None:
    write('Denoise/flat.png', np.full((64, 80, 3), 7, np.uint8))
    write('Derain/gt/norain-0.png', np.full((64, 80, 3), 7, np.uint8))

    def change(written: dict[str, Any]) -> None:
        test = {'name': 'clean', 'type': 'denoise', 'clean': 'Denoise', 'files': ['flat.png']}
        written['datasets']['val']['tasks'].append({**test, 'degrade': {'type': 'gaussian_noise', 'sigma': 25}})

    options(change)
    shared = ('Denoise/flat.png', 'Denoise/flat.png')
    assert found(check_file('tiny.yml'), 'duplicates').items == [shared]


# other files and storages


def test_an_option_file_of_a_test(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def change(written: dict[str, Any]) -> None:
        written['datasets'] = {'test': written['datasets']['val']}
        for key in ('train', 'logger'):
            del written[key]
        del written['val']['val_freq']

    options(change)
    report = check_file('tiny.yml')
    assert (report.training, report.epoch, report.learning_rate, report.duplicates) == (False, None, None, None)
    assert [dataset.where for dataset in report.datasets] == ['datasets.test']
    assert cli.main(['check', '-opt', 'tiny.yml', '--workers', '0']) == 0
    assert capsys.readouterr().out.endswith('\nCheck passed: ready for testing.\n')
    Path('test/input/0.png').write_bytes(b'')
    assert cli.main(['check', '-opt', 'tiny.yml', '--workers', '0']) == 1
    assert capsys.readouterr().out.endswith('\nCheck failed: 1 error to fix before testing.\n')


def test_databases_are_checked_like_folders(tree: Path) -> None:
    names = [f'{number}.png' for number in range(4)]
    for name in names:
        write(f'again/{name}', photograph(int(name[0])))
    write('again/3.png', photograph(8))
    make_lmdb_from_imgs('again', 'clean.lmdb', names, [name[:-4] for name in names])
    options(lambda written: task(written, 0, clean='clean.lmdb', expected_images=5))
    for decode in (True, False):
        report = check_file('tiny.yml', decode=decode)
        assert found(report, 'count').message.startswith(f'{DENOISE}: has 4 images, the protocol has 5.')
        assert {finding.kind for finding in report.findings} == {'count', *(['duplicates'] if decode else [])}


@pytest.mark.parametrize(
    ('content', 'said'),
    [
        (None, "the option file 'wrong.yml' does not exist. Paths are relative to the current folder.\n"),
        ('name: [', 'wrong.yml: line 1, column 8: '),
        ('- 1', 'wrong.yml: contains list, must be options `key: value`.\n'),
    ],
)
@pytest.mark.parametrize('words', [[], ['--json']])
def test_a_file_that_cannot_be_read(
    content: str | None, said: str, words: list[str], tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        Path('wrong.yml').write_text(content)
    assert cli.main(['check', '-opt', 'wrong.yml', *words]) == 2
    told = capsys.readouterr()
    assert told.out == ''
    assert told.err.startswith(said)


@pytest.mark.parametrize(
    'content',
    ['{}', 'datasets: 7', 'datasets: {train: 7}', 'datasets: {train: {type: AllInOneDataset, tasks: 5}}', 'train: 3',
     'datasets: {train: {type: AllInOneDataset, protocol: 4d}}', 'datasets: {7: {}}',
     'datasets: {train: {type: AllInOneDataset, tasks: [1, {type: derain, expected_images: many}]}}'],
)  # fmt: skip
def test_files_without_options_are_reported_without_a_crash(
    content: str, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path('tiny.yml').write_text(content)
    assert cli.main(['check', '-opt', 'tiny.yml', '--json']) == 1
    report = json.loads(capsys.readouterr().out)
    assert not report['right']
    assert {finding['kind'] for finding in report['findings']} == {'options'}
    assert cli.main(['check', '-opt', 'tiny.yml']) == 1
    assert 'name: is missing.' in capsys.readouterr().out


def test_wrong_arguments(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ['-opt', 'tiny.yml', '--workers', '-1'], ['-opt', 'tiny.yml', '--processes', '0']):
        with pytest.raises(SystemExit) as ended:
            cli.main(['check', *words])
        assert ended.value.code == 2
        assert capsys.readouterr().err.startswith('usage: basicsr check [-h] -opt FILE')


# how it reads


@pytest.mark.parametrize('width', [80, 120])
def test_lines_fit_a_terminal(width: int, tree: Path) -> None:
    damage()
    leak()
    os.remove('Derain/gt/norain-0.png')
    report = check_file('tiny.yml')
    assert [line for line in text(report, width, terminal=True) if len(line.rstrip()) > width] == []
    piped = text(report, width)
    assert all(f'  {finding.message}' in piped for finding in report.findings)  # a line each: to be searched


def test_names_of_any_kind_can_be_reported(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ('[red]', 'größe', os.fsdecode(b'\xff')):
        Path(f'Denoise/{name}.png').touch()
    assert cli.main(['check', '-opt', 'tiny.yml', '--json', '--workers', '0']) == 1
    (finding,) = json.loads(capsys.readouterr().out)['findings']
    assert sorted(item['name'] for item in finding['items']) == sorted(
        f'Denoise/{name}.png' for name in ('[red]', 'größe', '\udcff')
    )
    assert cli.main(['check', '-opt', 'tiny.yml', '--workers', '0']) == 1
    said = capsys.readouterr().out
    assert all(f'Denoise/{name}.png' in said for name in ('[red]', 'größe', r'\udcff'))


def test_the_page_knows_every_key_and_kind(tree: Path) -> None:
    leak()
    page = DOCS.read_text(encoding='utf-8')

    def keys(value: Any) -> set[str]:
        if isinstance(value, list):
            return set().union(*map(keys, value))
        return set(value) | set().union(*map(keys, value.values())) if isinstance(value, dict) else set()

    told = keys(check_file('tiny.yml').as_json())
    assert {'duplicates', 'test_images', 'iteration'} <= told
    assert [key for key in sorted(told) if f'`{key}`' not in page] == []
    package = Path(promptir_basicsr.__file__).parent
    source = ''.join((package / name).read_text() for name in ('checks/check.py', 'checks/data.py'))
    kinds = set(re.findall(r"(?:ERROR|NOTE|severity),\s+'(\w+)'", source))
    kinds |= {'count', *get_args(Kind)}
    assert {'missing', 'orphans', 'unreadable', 'different_size', 'smaller_than_patch', 'extra'} <= kinds
    assert [kind for kind in sorted(kinds) if f'| `{kind}` |' not in page] == []


def test_a_prepared_copy_is_as_right_as_its_source(tree: Path) -> None:
    """Databases of pixels: images are counted and leaks are found as in the folders."""
    leak()
    command = ['prepare', '-opt', 'tiny.yml', '--out', 'out', '--storage', 'raw', '--workers', '1']
    assert cli.main(command) == 0
    (before,), (after,) = (check_file(path).findings for path in ('tiny.yml', 'out/tiny.yml'))
    assert after.message == before.message
    assert [os.path.basename(name) for pair in after.items for name in pair] == [
        os.path.basename(name) for pair in before.items for name in pair
    ]
    (denoise, derain) = check_file('out/tiny.yml', decode=False).datasets[0].tasks
    assert (denoise.images, denoise.samples, denoise.draws) == (7, 7 * 3, 3)
    assert (derain.images, derain.samples, derain.draws) == (3, 3 * 4, 4)
