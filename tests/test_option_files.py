"""Every file in options/ runs, on corpora of a few small images in the released folder layout."""

import logging
import math
import re
from pathlib import Path

import cv2
import pytest
import skimage.data
import yaml

import promptir_basicsr  # noqa: F401  (registers)

# isort: split
from basicsr.utils import logger as host_logger

from promptir_basicsr.cli import main

OPTIONS = Path(__file__).parents[1] / 'options'
TRAINING = sorted(path.name for path in OPTIONS.glob('*.yml') if not path.name.startswith('test_'))
PROTOCOL = [name for name in TRAINING if name != 'demo.yml']
SHORT = [
    'datasets:train:gt_size=32',
    'datasets:train:batch_size_per_gpu=1',
    'datasets:train:num_worker_per_gpu=0',
    'train:total_iter=2',
    'val:val_freq=2',
    'val:pbar=false',
    'logger:print_freq=1',
]

DEMO = ['train:scheduler:warmup_iter=1', *(f'datasets:val:tasks:{n}:files=[microaneurysms.png]' for n in range(5))]


@pytest.fixture
def released_tree(tmp_path, monkeypatch):
    """`data/` as the released program has it; the current folder is the one above."""
    photographs = [skimage.data.chelsea(), skimage.data.coffee()]

    def write(name, number):
        path = tmp_path / 'data' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), photographs[number % 2][100:148, 150:206, ::-1])

    def write_list(name, entries):
        path = tmp_path / 'data' / 'data_dir' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('\n'.join(entries) + '\n')

    clean = ['12074.jpg', 'a247012.jpg']
    for number, name in enumerate(clean):
        write(f'Train/Denoise/{name}', number)
        write(f'test/denoise/bsd68/{name}', number)
    write_list('noisy/denoise.txt', clean)
    for number in (1, 2):
        write(f'Train/Derain/rainy/rain-{number}.png', number)
        write(f'Train/Derain/gt/norain-{number}.png', number)
        write(f'test/derain/Rain100L/input/{number}.png', number)
        write(f'test/derain/Rain100L/target/{number}.png', number)
    write_list('rainy/rainTrain.txt', ['rainy/rain-1.png', 'rainy/rain-2.png'])
    hazy = ['synthetic/part1/0025_0.8_0.04.jpg', 'synthetic/part1/0025_1_0.2.jpg', 'synthetic/part2/0062_0.9_0.1.jpg']
    for name in hazy:
        write(f'Train/Dehaze/{name}', 0)
    for scene in ('0025', '0062'):
        write(f'Train/Dehaze/original/{scene}.jpg', 0)
    write('test/dehaze/input/0001_0.8_0.2.jpg', 0)
    write('test/dehaze/target/0001.png', 0)
    write_list('hazy/hazy_outside.txt', hazy)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def fresh_logger():
    """BasicSR sets its logger up once a process; each run here is a command of its own."""

    def reset():
        host_logger.initialized_logger.clear()
        logger = logging.getLogger('basicsr')
        for handler in list(logger.handlers):
            handler.close()
            logger.removeHandler(handler)

    reset()
    yield
    reset()


def run(verb, name, *changes):
    return main([verb, '-opt', str(OPTIONS / name), '--force_yml', *changes])


def log_of(folder):
    return next(folder.glob('*.log')).read_text()


@pytest.mark.parametrize('name', TRAINING)
def test_it_trains_two_iterations_and_validates(released_tree, name):
    assert run('train', name, *SHORT, *(DEMO if name == 'demo.yml' else [])) == 0
    folder = released_tree / 'experiments' / name.removesuffix('.yml')
    options = yaml.safe_load((OPTIONS / name).read_text())
    results = (folder / 'results.md').read_text()
    for task in options['datasets']['val']['tasks']:
        assert f'| {task["name"]} |' in results
    assert '| average |' in results
    assert (folder / 'models' / 'net_g_latest.pth').exists()
    log = log_of(folder)
    assert 'iter:       2' in log
    for task in options['datasets']['train']['tasks']:
        assert re.search(rf'{task["name"]} .* {task["copies"]} ', log)


def test_the_test_file_writes_one_table_with_every_test_set_and_the_average(released_tree):
    assert run('train', 'promptir_allinone.yml', *SHORT, 'network_g:dim=8', 'network_g:heads=[1,1,1,1]') == 0
    assert run('test', 'test_promptir_allinone.yml', 'network_g:dim=8', 'network_g:heads=[1,1,1,1]') == 0
    folder = released_tree / 'results' / 'test_promptir_allinone'
    rows = re.findall(r'^\| (\w+) \| (\d+) \|', (folder / 'results.md').read_text(), re.M)
    assert rows == [
        ('SOTS', '1'),
        ('Rain100L', '2'),
        ('CBSD68_15', '2'),
        ('CBSD68_25', '2'),
        ('CBSD68_50', '2'),
        ('average', '9'),
    ]
    assert len(list(folder.rglob('visualization/test_sets/*/*_restored.png'))) == 9
    trained = released_tree / 'experiments' / 'promptir_allinone' / 'metrics.csv'
    # The same weights, the same noise: training's validation and the test agree in every digit.
    assert [line.split(',')[1:] for line in trained.read_text().splitlines()] == [
        line.split(',')[1:] for line in (folder / 'metrics.csv').read_text().splitlines()
    ]


@pytest.mark.parametrize('name', PROTOCOL)
def test_the_numbers_of_a_protocol_fit_together(name):
    options = yaml.safe_load((OPTIONS / name).read_text())
    train = options['datasets']['train']
    samples = sum(task['expected_images'] * task['copies'] for task in train['tasks'])
    epoch = math.ceil(samples / train['batch_size_per_gpu'])
    epochs = 120 if 'released' in name else 200
    assert options['train']['total_iter'] == epochs * epoch
    assert options['logger']['save_checkpoint_freq'] == epoch
    assert options['val']['val_freq'] == 10 * epoch
    text = (OPTIONS / name).read_text()
    assert f'warmup_iter: {15 * epoch}' in text
    if 'allinone' in name:
        assert (samples, epoch) == (142_431, 4_451)
        assert '142,431' in text


def test_a_missing_folder_stops_the_run_before_anything_is_created(released_tree, capsys):
    (released_tree / 'data' / 'Train' / 'Dehaze').rename(released_tree / 'elsewhere')
    before = sorted(released_tree.rglob('*'))
    assert run('train', 'promptir_allinone.yml', *SHORT) == 2
    message = capsys.readouterr().err
    assert 'datasets.train.tasks[4] (dehaze).root' in message
    assert str(Path('data/Train/Dehaze')) in message
    assert '72,135 images' in message
    assert 'synthetic/{part}/{id}_{a}_{beta}.{ext}' in message
    assert sorted(released_tree.rglob('*')) == before


def test_a_run_tells_where_its_results_are_in_its_last_lines(released_tree):
    assert run('train', 'demo.yml', *SHORT, *DEMO) == 0
    folder = released_tree / 'experiments' / 'demo'
    for line, name in zip(
        log_of(folder).splitlines()[-3:], ('results.md', 'metrics.csv', 'contact_sheet.png'), strict=True
    ):
        assert line.endswith(str(folder / name))
        assert (folder / name).exists()
