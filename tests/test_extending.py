"""Every example of docs/extending.md runs, on scikit-image's photographs, for a few iterations at tiny sizes."""

import logging
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import pytest
import skimage.data
import torch
import yaml

import promptir_basicsr  # noqa: F401  (registers)

# isort: split
from basicsr.utils import logger as host_logger

from promptir_basicsr import cli
from promptir_basicsr.core.yaml_loader import load_yaml

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / 'docs' / 'extending.md').read_text(encoding='utf-8')
SECTIONS = dict(re.findall(r'^## (.+?)\n(.*?)(?=^## |\Z)', PAGE, re.M | re.S))
TINY: dict[str, Any] = {
    'num_gpu': 0,
    'datasets': {'train': {'gt_size': 16, 'batch_size_per_gpu': 1, 'num_worker_per_gpu': 0}},
    'train': {'total_iter': 2, 'scheduler': {'warmup_iter': 1}},
    'val': {'val_freq': 2, 'pbar': False},
    'logger': {'print_freq': 1, 'save_checkpoint_freq': 2, 'use_tb_logger': False},
}
TINY_PROMPTIR = {'dim': 8, 'heads': [1, 1, 1, 1], 'prompt_sizes': [4, 4, 4]}
TINY_SWINIR = {'img_size': 16, 'embed_dim': 8, 'depths': [1], 'num_heads': [2]}


def blocks(section: str, language: str) -> list[str]:
    """The examples of a section in a language."""
    return re.findall(rf'^```{language}\n(.*?)^```', SECTIONS[section], re.M | re.S)


def merged(options: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """What is shown replaces what was there; a list as a whole."""
    result = dict(options)
    for key, value in changes.items():
        before = result.get(key)
        result[key] = merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return result


def example(section: str, folder: Path) -> dict[str, Any]:
    """The options of a section: its YAML on `options/demo.yml`, made small."""
    (text,) = blocks(section, 'yaml')
    (folder / 'part.yml').write_text(text, encoding='utf-8')
    shown = load_yaml(str(folder / 'part.yml'))
    options = load_yaml(str(ROOT / 'options' / 'demo.yml'))
    if 'type' in shown.get('network_g', {}):
        del options['network_g']
    options = merged(merged(options, shown), TINY)
    tiny = {'SwinIR': TINY_SWINIR, 'net.model:Student': {}}
    options['network_g'] |= tiny.get(options['network_g']['type'], TINY_PROMPTIR)
    for task in options['datasets']['val']['tasks']:
        if task.get('clean') == 'skimage://':
            task['files'] = ['microaneurysms.png']  # the smallest of them
    return options


def train(options: Mapping[str, Any]) -> int:
    """`basicsr train`, with a logger of its own."""
    Path('mine.yml').write_text(yaml.safe_dump(dict(options), sort_keys=False), encoding='utf-8')
    logger = logging.getLogger('basicsr')
    host_logger.initialized_logger.clear()
    try:
        return cli.main(['train', '-opt', 'mine.yml'])
    finally:
        for handler in list(logger.handlers):
            handler.close()
            logger.removeHandler(handler)
        host_logger.initialized_logger.clear()


def log_of(name: str) -> str:
    return next(Path('experiments', name).glob('*.log')).read_text(encoding='utf-8')


def rows_of(name: str) -> list[str]:
    """Names and numbers of images in the table of results."""
    results = Path('experiments', name, 'results.md').read_text(encoding='utf-8')
    return [f'{task} {count}' for task, count in re.findall(r'^\| (\w+) \| (\d+) \|', results, re.M)]


def tasks_in(log: str) -> dict[str, tuple[int, int, str]]:
    """name -> (label, images, made by) of the training set, from the table in the log."""
    table = log.partition('made by')[2].partition('Dataset [AllInOneDataset]')[0]
    lines = re.findall(r'  (\w+) +\w+ +(\d+) +([\d,]+) +[\d,]+ +[\d,]+ +[\d.]+%  (.+)$', table, re.M)
    return {name: (int(label), int(images), made) for name, label, images, made in lines}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['pytest'])
    return tmp_path


def write(folder: Path, names: list[str]) -> None:
    """Small crops of photographs, all different."""
    photographs = [skimage.data.chelsea(), skimage.data.coffee()]
    for number, name in enumerate(names):
        path = folder / 'mine' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), photographs[number % 2][10 * number : 10 * number + 40, 150:198, ::-1])


def test_every_example_in_yaml_is_run_here() -> None:
    assert {name: len(blocks(name, 'yaml')) for name in SECTIONS if blocks(name, 'yaml')} == dict.fromkeys(
        (
            'Own pairs',
            'A new degradation in YAML',
            'A new degradation in Python',
            'More prompts or labels from a checkpoint',
            'Another network',
            'A class of another repository',
        ),
        1,
    )
    assert len(re.findall('^```yaml', PAGE, re.M)) == 6


def test_links_within_the_page_lead_to_its_headings() -> None:
    anchors = {re.sub(r'[^\w -]', '', name).lower().replace(' ', '-') for name in SECTIONS}
    assert set(re.findall(r'\]\(#([^)]+)\)', PAGE)) <= anchors


def test_own_pairs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = [f'{number:04}' for number in range(1, 9)]
    write(folder, [f'street/{side}/{number}.png' for side in ('hazy', 'clear') for number in numbers])
    (folder / 'mine/street/train.txt').write_text(''.join(f'{number}.png\n' for number in numbers[:6]))
    write(folder, [name for n in '123' for name in (f'garden/rainy/{n}_rainy.jpg', f'garden/clean/{n}.png')])
    write(folder, ['garden_test/rainy/7_rainy.jpg', 'garden_test/clean/7.png'])
    write(folder, [f'window/{scene}/{name}.png' for scene in 'ab' for name in ('clear', 'drops_1', 'drops_2')])
    options = example('Own pairs', folder)
    assert train(options) == 0
    assert tasks_in(log_of('mine')) == {'street': (2, 6, 'pairs'), 'garden': (1, 3, 'pairs'), 'window': (1, 4, 'pairs')}
    assert rows_of('mine') == ['street 2', 'garden 1', 'average 3']

    (folder / 'mine/garden/clean/2.png').unlink()  # as the page says
    capsys.readouterr()
    assert train(options) == 2
    assert 'rainy/2_rainy.jpg -> clean/2' in capsys.readouterr().err


def test_a_new_degradation_in_yaml(folder: Path) -> None:
    assert train(example('A new degradation in YAML', folder)) == 0
    assert tasks_in(log_of('snowy_evening')) == {'snowy_evening': (5, 5, 'haze + snow + low_light + jpeg')}
    assert rows_of('snowy_evening') == ['snowy_evening 1', 'average 1']


def test_a_new_degradation_in_python(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed with pip, in a process of its own."""
    section = 'A new degradation in Python'
    plugin = folder / 'plugin'
    plugin.mkdir()
    (plugin / 'my_degradations.py').write_text(*blocks(section, 'python'), encoding='utf-8')
    (plugin / 'pyproject.toml').write_text(*blocks(section, 'toml'), encoding='utf-8')
    options = example(section, folder)
    options['datasets']['train']['num_worker_per_gpu'] = 1
    (folder / 'mine.yml').write_text(yaml.safe_dump(options, sort_keys=False), encoding='utf-8')

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            'OMP_NUM_THREADS': '1',
            'PYTHONPATH': os.pathsep.join([str(folder / 'site'), str(ROOT)]),
        }
        return subprocess.run(
            [sys.executable, '-m', *command], env=environment, capture_output=True, text=True, timeout=120
        )

    install = ('pip', 'install', '--quiet', '--no-deps', '--no-build-isolation', '--no-index', '--target', 'site')
    installed = run(*install, str(plugin))
    assert installed.returncode == 0, installed.stderr
    done = run('promptir_basicsr', 'train', '-opt', 'mine.yml')
    assert done.returncode == 0, done.stderr[-2000:]
    assert tasks_in(log_of('dead_pixels')) == {'repair': (5, 5, 'dead_pixels + gaussian_noise')}
    assert rows_of('dead_pixels') == ['repair 1', 'average 1']


def test_the_degradation_in_python_works_as_described(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    from promptir_basicsr.degradations.spec import DEGRADATIONS, Degrade

    (code,) = blocks('A new degradation in Python', 'python')
    try:
        exec(compile(code, 'my_degradations', 'exec'), {'__name__': 'my_degradations'})
        image = np.full((200, 100, 3), 0.4, np.float32)
        degraded = Degrade({'type': 'dead_pixels', 'share': 0.1})(image, np.random.default_rng(0))
    finally:
        DEGRADATIONS.pop('dead_pixels')
    assert degraded.dtype == np.float32
    dead = (degraded != image).all(2)
    assert set(np.unique(degraded[dead])) == {0, 1}
    assert (degraded == image).all(2)[~dead].all()
    assert abs(dead.mean() - 0.1) < 0.01  # 4.7 standard deviations
    assert (image == np.float32(0.4)).all()


def test_more_prompts_from_a_checkpoint(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = example('More prompts or labels from a checkpoint', folder)
    first = merged(load_yaml(str(ROOT / 'options' / 'demo.yml')), TINY)
    first['network_g'] |= TINY_PROMPTIR
    del first['datasets']['val']
    assert first['name'] == 'demo'
    assert train(first) == 0
    assert train(options) == 0
    log = log_of('demo_and_snow')
    assert log.count(': 5 prompts loaded, the others are new') == 2 * 9  # of the network and its average
    labels = {name: label for name, (label, _, _) in tasks_in(log).items()}
    assert labels == {'desnow': 5, 'denoise': 0, 'derain': 1, 'dehaze': 2, 'deblur': 3, 'lowlight': 4}
    assert rows_of('demo_and_snow')[-1] == 'average 6'
    weights = torch.load('experiments/demo_and_snow/models/net_g_latest.pth', weights_only=True)
    assert weights['params']['prompt1.prompt_param'].shape[1] == 6

    old = load_yaml(str(ROOT / 'options' / 'demo.yml'))['datasets']
    shown = options['datasets']
    for phase in ('train', 'val'):  # the five of before are those of the demo
        degrade = {task['name']: task['degrade'] for task in shown[phase]['tasks']}
        assert {name: degrade[name] for name in labels if name != 'desnow'} == {
            task['name']: task['degrade'] for task in old[phase]['tasks']
        }


def test_the_class_that_grows_is_shown_as_it_is() -> None:
    from promptir_basicsr.archs.layers.prompts import PromptGenBlock

    (code,) = blocks('More prompts or labels from a checkpoint', 'python')
    names: dict[str, Any] = {'nn': torch.nn}
    exec(code, names)
    assert names['PromptGenBlock'].growable_axes == PromptGenBlock.growable_axes


def test_another_network(folder: Path) -> None:
    assert train(example('Another network', folder)) == 0
    assert 'Network: SwinIR' in log_of('demo_swinir')
    assert rows_of('demo_swinir')[-1] == 'average 5'


def test_a_class_of_another_repository(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (text,) = blocks('A class of another repository', 'python')
    path = folder / text.partition('\n')[0].removeprefix('# ')
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding='utf-8')
    monkeypatch.setattr(sys, 'path', list(sys.path))
    assert train(example('A class of another repository', folder)) == 0
    assert 'Network: Student' in log_of('demo_student')
    assert rows_of('demo_student')[-1] == 'average 5'
