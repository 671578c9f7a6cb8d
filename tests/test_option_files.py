"""Every file in options/ runs, on corpora of a few small images in the released folder layout."""

import math
import re
from pathlib import Path

import pytest

import promptir_basicsr  # noqa: F401  (registers)

# isort: split
from promptir_basicsr.cli import main
from promptir_basicsr.core.yaml_loader import load_yaml
from promptir_basicsr.data.protocol import expand_protocol, load_protocol
from promptir_basicsr.data.stages import stages_of
from promptir_basicsr.optim.rates import rate_curve
from promptir_basicsr.options.file import read_options
from tests.option_files import DEMOS, OPTIONS, SHORT, SMALL, SMALL_OF, short, write_released_tree

TRAINING = sorted(path.name for path in OPTIONS.glob('*.yml') if not path.name.startswith('test_'))
TESTS = sorted(path.name for path in OPTIONS.glob('test_*.yml'))
PROTOCOL = [name for name in TRAINING if name not in DEMOS]
FAST = {'promptir_allinone_fast.yml': 'promptir_allinone.yml', 'promptir_5d_fast.yml': 'promptir_5d.yml'}
COUNTED = [name for name in PROTOCOL if name != 'airnet_allinone_released.yml' and name not in FAST]
EPOCHS = {
    'promptir_allinone_released.yml': 120,
    'promptir_5d.yml': 120,
    'promptir_cdd11.yml': 120,
    'promptir_allweather.yml': 120,
    'sensor.yml': 10,
    'airnet_allinone.yml': 21,
}
# Epochs between validations, where they are not 10.
VALIDATION = {'promptir_allweather.yml': 40, 'sensor.yml': 1, 'airnet_allinone.yml': 1}
# Epochs of warm-up, where they are not 15.
WARMUP = {'sensor.yml': 1, 'pip_allinone.yml': 10, 'pip_5d.yml': 10, 'pip_5d_stages.yml': 10, 'pip_nafnet.yml': 0}
WARMUP['airnet_allinone.yml'] = 0


@pytest.fixture
def released_tree(tmp_path, monkeypatch):
    """`data/` as the released programs have it; the current folder is the one above."""
    write_released_tree(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(verb, name, *changes):
    return main([verb, '-opt', str(OPTIONS / name), '--force_yml', *changes])


def read(name):
    """An option file as it reads, with the tasks of its protocols."""
    options = read_options(str(OPTIONS / name))
    for key, dataset in options['datasets'].items():
        options['datasets'][key] = expand_protocol({**dataset, 'phase': key}, f'datasets.{key}')
    return options


def log_of(folder):
    return next(folder.glob('*.log')).read_text()


@pytest.mark.parametrize('name', TRAINING)
def test_it_trains_two_iterations_and_validates(released_tree, name):
    assert run('train', name, *short(name)) == 0
    folder = released_tree / 'experiments' / name.removesuffix('.yml')
    options = read(name)
    results = (folder / 'results.md').read_text()
    for task in options['datasets']['val']['tasks']:
        assert f'{task["name"]} |' in results
    assert '| average |' in results
    assert (folder / 'models' / 'net_g_latest.pth').exists()
    log = log_of(folder)
    assert 'iter:       2' in log
    for task in options['datasets']['train']['tasks']:
        drawn = '[0-9.]+' if 'sampling' in options['datasets']['train'] else task['copies']
        assert re.search(rf'^.* {task["name"]} .* {drawn} ', log, re.M)


@pytest.mark.parametrize(
    ('name', 'rows'),
    [
        (
            'test_promptir_allinone.yml',
            {'SOTS': 1, 'Rain100L': 2, 'CBSD68_15': 2, 'CBSD68_25': 2, 'CBSD68_50': 2},
        ),
        ('test_promptir_5d.yml', {'SOTS': 1, 'Rain100L': 2, 'CBSD68_25': 2, 'GoPro': 1, 'LOL': 1}),
        ('test_pip_5d.yml', {'SOTS': 1, 'Rain100L': 2, 'CBSD68_25': 2, 'GoPro': 1, 'LOL': 1}),
        (
            'test_airnet_allinone.yml',
            {'SOTS': 1, 'Rain100L': 2, 'CBSD68_15': 2, 'CBSD68_25': 2, 'CBSD68_50': 2},
        ),
    ],
)
def test_the_test_file_writes_one_table_with_every_test_set_and_the_average(released_tree, name, rows):
    train_name = name.removeprefix('test_')
    small = [change for change in SMALL_OF.get(train_name, SMALL) if change.startswith('network_g')]
    assert run('train', train_name, *short(train_name), *small) == 0
    assert run('test', name, *small) == 0
    folder = released_tree / 'results' / name.removesuffix('.yml')
    found = re.findall(r'^\| (\w+) \| (\d+) \|', (folder / 'results.md').read_text(), re.M)
    number = sum(rows.values())
    assert found == [*((row, str(images)) for row, images in rows.items()), ('average', str(number))]
    assert len(list(folder.rglob('visualization/test_sets/*/*_restored.png'))) == number
    trained = released_tree / 'experiments' / train_name.removesuffix('.yml') / 'metrics.csv'
    # The same weights, the same noise: training's validation and the test agree in every digit.
    assert [line.split(',')[1:] for line in trained.read_text().splitlines()] == [
        line.split(',')[1:] for line in (folder / 'metrics.csv').read_text().splitlines()
    ]


@pytest.mark.parametrize('name', COUNTED)
def test_the_numbers_of_a_protocol_fit_together(name):
    options = read(name)
    train = options['datasets']['train']
    samples = sum(task['expected_images'] * task['copies'] for task in train['tasks'])
    epoch = math.ceil(samples / train['batch_size_per_gpu'])
    if name != 'pip_5d_stages.yml':
        assert options['train']['total_iter'] == EPOCHS.get(name, 200) * epoch
    assert options['logger']['save_checkpoint_freq'] == epoch
    assert options['val']['val_freq'] == VALIDATION.get(name, 10) * epoch
    text = (OPTIONS / name).read_text()
    warmup = WARMUP.get(name, 15) * epoch
    assert f'warmup_iter: {warmup}' in text if warmup else 'warmup_iter' not in text
    assert f'{epoch:,} iterations' in text
    assert f'{samples:,}' in text
    if name.startswith('promptir_allinone'):
        assert (samples, epoch) == (142_431, 4_451)


@pytest.mark.parametrize('name', PROTOCOL)
def test_the_shares_in_the_head_of_a_file_are_those_of_its_tasks(name):
    """Lines such as `#   rain   200 pairs x 120 copies   24,000   16.9 %`."""
    tasks = read(name)['datasets']['train']['tasks']
    samples = [task['expected_images'] * task['copies'] for task in tasks]
    noise = sum(n for task, n in zip(tasks, samples, strict=True) if task['type'] == 'denoise')
    expected = {f'{n:,}': f'{n / sum(samples):.1%}' for n in (*samples, noise)}
    lines = re.findall(r'^#   .* ([\d,]+)(?: samples)? +([\d.]+) %$', (OPTIONS / name).read_text(), re.M)
    for count, share in lines:
        assert expected[count] == f'{share}%'
    several = 'promptir_allinone.yml promptir_allinone_released.yml promptir_5d.yml promptir_allweather.yml'.split()
    several += ['pip_allinone.yml', 'pip_5d.yml']
    assert len(lines) == (len({task['type'] for task in tasks}) if name in several else 0)


@pytest.mark.parametrize('name', [*PROTOCOL, *TESTS])
def test_training_and_test_files_refer_to_one_protocol(name):
    datasets = read_options(str(OPTIONS / name))['datasets'].values()
    (protocol,) = {dataset['protocol'] for dataset in datasets}
    assert load_protocol(protocol).test is not None
    assert all('tasks' not in dataset for dataset in datasets)
    if name in TESTS:
        trained = load_yaml(str(OPTIONS / name.removeprefix('test_')))
        assert trained['datasets']['val']['protocol'] == protocol
        assert load_yaml(str(OPTIONS / name))['network_g'] == trained['network_g']


@pytest.mark.parametrize('name', FAST)
def test_the_fast_recipe_has_half_of_the_iterations_and_the_same_data_and_network(name):
    fast, plain = read(name), read(FAST[name])
    assert fast['train']['total_iter'] == plain['train']['total_iter'] / 2
    assert fast['train']['pixel_opt'] == plain['train']['pixel_opt']
    assert fast['name'] == name.removesuffix('.yml')
    assert [fast.pop('train'), fast.pop('name')] != [plain.pop('train'), plain.pop('name')]
    assert fast == plain


def test_the_stages_of_pip_are_those_of_the_paper():
    """150 epochs of crops of 128 at the released program's batch, 50 of 200 at 16; all else as in pip_5d.yml."""
    options, plain = read('pip_5d_stages.yml'), read('pip_5d.yml')
    samples = sum(task['expected_images'] * task['copies'] for task in options['datasets']['train']['tasks'])
    first, second = stages_of(options['datasets']['train'])
    epochs = [math.ceil(samples / stage.batch) for stage in (first, second)]
    assert [(stage.gt_size, stage.batch) for stage in (first, second)] == [(128, 48), (200, 16)]
    assert first.until == 150 * epochs[0]
    assert options['train'].pop('total_iter') == first.until + 50 * epochs[1]
    text = (OPTIONS / 'pip_5d_stages.yml').read_text()
    assert f'{epochs[1]:,}\n# iterations' in text
    warmup, total = options['train']['scheduler']['warmup_iter'], first.until + 50 * epochs[1]
    rate = options['train']['optim_g']['lr'] * (1 + math.cos(math.pi * (first.until - warmup) / (total - warmup))) / 2
    assert f'is at {rate:.1e}'.replace('e-0', 'e-') in text
    del plain['train']['total_iter'], options['datasets']['train']['stages']
    assert {**options, 'name': 'pip_5d'} == plain


def test_the_schedule_of_airnet_is_that_of_the_released_program():
    """By epoch e of 400 iterations: 1e-3 * 0.1^floor(e / 60) up to 100, then halves every 125, one epoch late."""
    options = read('airnet_allinone_released.yml')
    train = options['train']
    curve = {point.iteration: point.rate for point in rate_curve(train)}
    assert train['total_iter'] == 1000 * 400
    assert train['encoder_iter'] == 100 * 400
    turns = {61: 1e-4, **{226 + 125 * n: 1e-4 * 0.5 ** (n + 1) for n in range(7)}}
    for epoch, rate in turns.items():
        assert curve[400 * epoch + 1] == pytest.approx(rate)
    assert (curve[1], curve[400_000]) == (1e-3, pytest.approx(7.8e-7, rel=2e-3))
    assert len(train['scheduler']['milestones']) == 7


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


def test_tasks_of_a_protocol_change_on_the_command_line(released_tree, capsys):
    changes = ['datasets:train:tasks:derain:copies=7', 'datasets:train:tasks:dehaze=~', 'datasets:val:tasks:SOTS=~']
    assert run('train', 'promptir_allinone.yml', *SHORT, *SMALL, *changes) == 0
    log = log_of(released_tree / 'experiments' / 'promptir_allinone')
    assert re.search(r' derain +derain +1 +2 +7 +14 ', log)
    assert re.search(r' dehaze +dehaze ', log) is None
    assert 'SOTS' not in (released_tree / 'experiments' / 'promptir_allinone' / 'results.md').read_text()
    assert run('train', 'promptir_allinone.yml', 'datasets:train:tasks:derian:copies=7') == 2
    assert "datasets.train.tasks: unknown task 'derian'. Did you mean 'derain'?" in capsys.readouterr().err
    assert run('train', 'promptir_allinone.yml', 'datasets:train:protocol=3D') == 2
    assert "datasets.train.protocol: unknown protocol '3D'. Did you mean '3d'?" in capsys.readouterr().err


def test_a_run_prints_the_paths_of_its_results_in_its_last_lines(released_tree):
    assert run('train', 'demo.yml', *short('demo.yml')) == 0
    folder = released_tree / 'experiments' / 'demo'
    for line, name in zip(
        log_of(folder).splitlines()[-3:], ('results.md', 'metrics.csv', 'contact_sheet.png'), strict=True
    ):
        assert line.endswith(str(folder / name))
        assert (folder / name).exists()
