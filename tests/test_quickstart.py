"""The commands of docs/quickstart.md work as typed, in a folder with nothing but the repository's option files."""

import csv
import os
import runpy
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import torch

from promptir_basicsr.archs import PromptIR
from promptir_basicsr.core.yaml_loader import load_yaml
from tests.pages import ROOT, blocks, run, shown_commands, text_of

PAGE = text_of('docs/quickstart.md')
COMMANDS = shown_commands('docs/quickstart.md')
INSTALL = 3  # commands of the section Install, which `make test` has run in its own way
DEMO, CHECK, TRAIN = 'basicsr train -opt options/demo.yml', 'basicsr check -opt mine.yml', 'basicsr train -opt mine.yml'


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The current folder, with option files and what the page says to save."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['pytest'])
    (tmp_path / 'options').symlink_to(ROOT / 'options')
    for language, name in (('python', 'pictures.py'), ('yaml', 'mine.yml')):
        assert f'Save this as `{name}`' in PAGE
        (text,) = [text for shown, text in blocks('docs/quickstart.md') if shown == language]
        (tmp_path / name).write_text(text, encoding='utf-8')
    return tmp_path


def test_the_page_has_these_commands():
    assert [command.text for command in COMMANDS[INSTALL - 2 : INSTALL]] == [
        'python -m pip install -e .',
        'python -m promptir_basicsr.install_basicsr',
    ]
    assert 'type `python pictures.py`' in PAGE
    assert [' '.join(command.words).split(' -o ')[0] for command in COMMANDS[INSTALL:]] == [
        DEMO,
        'basicsr restore photos',
        CHECK,
        TRAIN,
        'basicsr restore mine/val/old',
    ]


def test_the_commands_in_seconds(folder, capsys):
    runpy.run_path('pictures.py')
    assert sorted(path.name for path in (folder / 'photos').iterdir()) == [
        'dark.png',
        'haze.png',
        'noise.png',
        'rain.png',
    ]
    # what the demo leaves, of a smaller network
    network = {**load_yaml('options/demo.yml')['network_g'], 'dim': 8}
    del network['type']
    weights = PromptIR(**network).state_dict()
    models = folder / 'experiments' / 'demo' / 'models'
    models.mkdir(parents=True)
    torch.save({'params': weights, 'params_ema': weights}, models / 'net_g_best.pth')

    _, restore, check, train, restore_mine = COMMANDS[INSTALL:]
    assert models.relative_to(folder).as_posix() in restore.text
    assert run(restore) == 0
    for path in (folder / 'photos').iterdir():
        assert cv2.imread(str(folder / 'restored' / path.name)).shape == cv2.imread(str(path)).shape

    assert run(check, '--force_yml', 'network_g:dim=8') == 0, capsys.readouterr().out
    tiny = ['network_g:dim=8', 'train:total_iter=2', 'train:scheduler:warmup_iter=1', 'val:val_freq=2']
    assert run(train, '--force_yml', *tiny, 'datasets:train:gt_size=16', 'datasets:train:num_worker_per_gpu=0') == 0
    assert (folder / 'experiments' / 'mine' / 'results.md').exists()
    assert run(restore_mine) == 0
    assert [path.name for path in (folder / 'restored' / 'mine').iterdir()] == ['coffee.png']


@pytest.mark.slow
def test_the_commands_as_typed(folder):
    """As a newcomer would: both trainings to their ends, and restored pictures that are better."""
    environment = {**os.environ, 'PATH': f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'}
    script = '\n'.join(['set -e', 'python pictures.py', *(command.text for command in COMMANDS[INSTALL:])])
    done = subprocess.run(['bash', '-c', script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    with open(folder / 'experiments' / 'mine' / 'metrics.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    gain = max(float(row['psnr']) - float(row['input_psnr']) for row in rows)
    assert gain > 7, rows  # the page says 8 dB
    clear = cv2.imread(str(folder / 'mine' / 'val' / 'clear' / 'coffee.png'))
    old, restored = (
        cv2.PSNR(cv2.imread(str(folder / path / 'coffee.png')), clear) for path in ('mine/val/old', 'restored/mine')
    )
    assert restored > old + 7
