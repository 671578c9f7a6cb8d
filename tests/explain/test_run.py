"""`basicsr explain`: what it says of networks whose prompts are known, and that its files say what the network does."""

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
import pytest
import torch
import yaml
from skimage.metrics import peak_signal_noise_ratio
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import LeaveOneOut, cross_val_score
from torch import nn

from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.core.files import atomic_folder
from promptir_basicsr.explain.chapters import weights_section
from promptir_basicsr.explain.experiments import investigate, untrained_network
from promptir_basicsr.explain.figures import embedding_figure, in_digits, save_both, style, words
from promptir_basicsr.explain.prompted import PromptedNet, observe
from promptir_basicsr.explain.run import Settings, _load, explain
from promptir_basicsr.explain.writer import Study, Writer
from tests.explain.explain_data import PIP, PROMPTIR, TASKS, options_of, samples_of

SMALL = Settings(images=2, size=16, untrained=2, permutations=39, device='cpu')


def written(folder: Path, network: dict[str, Any], net: nn.Module, **changes: Any) -> list[str]:
    """Options and weights as files; their places as arguments of `explain`."""
    folder.mkdir(exist_ok=True)
    (folder / 'tiny.yml').write_text(yaml.safe_dump({**options_of(network), **changes}, sort_keys=False))
    torch.save({'params': net.state_dict()}, folder / 'tiny.pth')
    return [str(folder / 'tiny.yml'), str(folder / 'tiny.pth')]


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


PROGRAM = (
    'import sys; from promptir_basicsr.cli import main; status = main(); '
    "sys.exit(status or ('matplotlib.pyplot' in sys.modules and 9))"
)


@pytest.fixture(scope='module')
def blind(tmp_path_factory) -> dict[str, Any]:
    """The command on a PromptIR that has not been trained; it must not draw in the global state of matplotlib."""
    folder = tmp_path_factory.mktemp('blind')
    net = untrained_network(PROMPTIR, 123)
    files, out = written(folder, PROMPTIR, net), folder / 'deep' / 'out'
    arguments = ['-opt', files[0], '--weights', files[1], '--out', str(out), '--device', 'cpu']
    for name in ('images', 'size', 'untrained', 'permutations'):
        arguments += [f'--{name}', str(getattr(SMALL, name))]
    # A user's own settings of matplotlib make no other figures.
    (folder / 'matplotlibrc').write_text('font.size: 20\nsvg.fonttype: none\nsavefig.bbox: tight\n')
    environment = {**os.environ, 'OMP_NUM_THREADS': str(torch.get_num_threads()), 'MPLBACKEND': 'svg'}
    done = subprocess.run(
        [sys.executable, '-c', PROGRAM, 'explain', *arguments],
        cwd=folder, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return {'files': files, 'net': net, 'out': out, 'said': done.stdout}


@pytest.fixture(scope='module')
def told(tmp_path_factory) -> dict[str, Any]:
    """A report of a PIP with a sensor."""
    folder = tmp_path_factory.mktemp('told')
    net = untrained_network(PIP, 3)
    files = written(folder, PIP, net)
    report, out = explain(*files, folder / 'out', SMALL)
    return {'net': net, 'report': report, 'out': out}


# The files


def test_the_command_reports_what_it_found_and_where(blind):
    assert 'The weights depend on the task no more than by chance.' in blind['said']
    assert blind['said'].rstrip().endswith(str(blind['out'] / 'report.html'))
    assert os.listdir(blind['out'].parent) == ['out']
    expected = {'report.html', 'report.json', 'prompt_weights.csv', 'ablation.png', 'ablation.svg'}
    assert expected <= {*os.listdir(blind['out'])}


@pytest.mark.slow
def test_the_function_writes_the_same_bytes_as_the_command(blind, tmp_path):
    explain(*blind['files'], tmp_path / 'again', SMALL)
    files = sorted(os.listdir(blind['out']))
    assert sorted(os.listdir(tmp_path / 'again')) == files
    assert [
        name for name in files if (blind['out'] / name).read_bytes() != (tmp_path / 'again' / name).read_bytes()
    ] == []


def test_the_same_figure_gives_the_same_bytes(tmp_path):
    rng, written_files = np.random.default_rng(0), []
    points = rng.normal(size=(9, 2))
    for _ in range(2):
        with style():
            drawn = embedding_figure({'a': (points, 'x', 'y')}, np.repeat([0, 1, 2], 3), TASKS)
            written_files.append([path.read_bytes() for path in save_both(drawn, tmp_path, 'map')])
    assert written_files[0] == written_files[1]


def test_tables_hold_what_the_network_does(blind):
    net, samples = blind['net'], samples_of(options_of(PROMPTIR))
    found = {
        (row['level'], row['task'], row['image'], int(row['prompt'])): float(row['weight'])
        for row in rows_of(blind['out'] / 'prompt_weights.csv')
    }
    assert len(found) == 6 * 3 * 3
    weights = {}
    for sample in samples:
        with torch.no_grad():
            for level, row in net.prompt_weights(sample.lq[None]).items():
                weights.setdefault(level, []).append(row[0].double().numpy())
                for k, weight in enumerate(weights[level][-1]):
                    assert found[level, sample.task, sample.name, k + 1] == weight
    for row in rows_of(blind['out'] / 'mean_weights.csv'):
        task = TASKS.index(row['task'])
        mean = np.mean(weights[row['level']][2 * task : 2 * task + 2], axis=0)[int(row['prompt']) - 1]
        assert float(row['weight']) == pytest.approx(mean, abs=1e-12)


def test_the_ablation_is_what_another_bias_does(blind):
    """The same is reached without touching the program: no weights on the features, and one large bias."""
    found = {(row['level'], row['weights'], row['task']): row for row in rows_of(blind['out'] / 'ablation.csv')}
    samples = samples_of(options_of(PROMPTIR))
    net: Any = untrained_network(PROMPTIR, 0)
    for level, prompt in (('level1', 2), ('level3', 1)):
        net.load_state_dict(blind['net'].state_dict())
        layer = getattr(net, f'prompt{level[-1]}').linear_layer
        layer.weight.data.zero_()
        layer.bias.data = 1000 * torch.eye(3)[prompt - 1]
        values: dict[str, list[float]] = {}
        for sample in samples:
            with torch.no_grad():
                restored = net(sample.lq[None])[0].clamp(0, 1)
            values.setdefault(sample.task, []).append(
                peak_signal_noise_ratio(sample.gt.numpy(), restored.numpy(), data_range=1)
            )
        for task, each in values.items():
            row = found[level, f'only {prompt}', task]
            assert float(row['psnr']) == pytest.approx(np.mean(each), abs=1e-4)
            assert row['images'] == '2'


def test_labels_and_sensor_are_those_of_the_network(told):
    net, samples = told['net'], samples_of(options_of(PIP))
    found = {(row['task'], row['told']): float(row['psnr']) for row in rows_of(told['out'] / 'labels.csv')}
    for task in TASKS:
        mine = [sample for sample in samples if sample.task == task]
        for label, name in ((0, 'denoise'), (3, 'deblur'), ([1.0] * 5, 'equal mixture'), (None, 'the sensor')):
            given = torch.tensor(label) if isinstance(label, list) else label
            with torch.no_grad():
                restored = [net(sample.lq[None], given)[0].clamp(0, 1).numpy() for sample in mine]
            values = [
                peak_signal_noise_ratio(sample.gt.numpy(), image, data_range=1)
                for sample, image in zip(mine, restored, strict=True)
            ]
            assert found[task, name] == pytest.approx(np.mean(values), abs=1e-4)
    sensed = rows_of(told['out'] / 'sensed.csv')
    for sample, row in zip(samples, sensed, strict=True):
        with torch.no_grad():
            said = net.sense(sample.lq[None])[0].double().numpy()
        assert [float(row[name]) for name in net.degradations] == said.tolist()
        assert row['sensed'] == net.degradations[said.argmax()]
    confusion = rows_of(told['out'] / 'confusion.csv')
    assert sum(int(row[name]) for row in confusion for name in net.degradations) == 6


def test_the_json_holds_every_table_and_the_page_every_section(blind, told):
    for each in (blind, told):
        content = json.loads((each['out'] / 'report.json').read_text())
        files = {*os.listdir(each['out'])}
        tables = {name for name in files if name.endswith('.csv')}
        assert set(content['tables']) == tables
        for name in tables:
            rows = rows_of(each['out'] / name)
            assert [list(row) for row in rows] == [content['tables'][name]['columns']] * len(rows)
        page = (each['out'] / 'report.html').read_text()
        for section in content['sections']:
            assert section['title'] in page
            assert {each[kind] for each in section['figures'] for kind in ('png', 'svg')} <= files
    comparisons = told['report'].sections[0].comparisons
    assert [comparison.title.split(':')[0] for comparison in comparisons] == ['Noise', 'Haze', 'Low light']
    assert comparisons[0].before.shape == comparisons[0].after.shape == comparisons[0].target.shape == (16, 16, 3)


def test_figures_are_pictures_for_a_paper(blind, told):
    for path in [*blind['out'].glob('*.png'), *told['out'].glob('*.png')]:
        image = cv2.imread(str(path))
        assert 300 <= image.shape[1] <= 7.0 * 150 + 1
        assert image.std() > 5
        svg = path.with_suffix('.svg').read_text()
        assert '<svg' in svg
        assert 'dc:date' not in svg
    assert matplotlib.rcParams['svg.hashsalt'] is None  # nobody else's figures have changed


def test_an_untrained_network_is_no_more_than_chance(blind, told):
    found = rows_of(blind['out'] / 'information.csv')
    assert found[-1]['level'] == 'all levels'
    scores = [*found, *rows_of(blind['out'] / 'answers.csv'), *rows_of(blind['out'] / 'separation.csv')]
    scores += [*rows_of(told['out'] / 'label_scores.csv'), *rows_of(told['out'] / 'sensor_score.csv')]
    assert 'learned' not in {row['found'] for row in scores}
    content = json.loads((blind['out'] / 'report.json').read_text())
    texts = {section['title']: section['text'] for section in content['sections']}
    text = texts['Which prompt responds to which degradation']
    assert text.startswith('The weights depend on the task no more than by chance.')
    assert 'No single prompt responds to a task clearly more than by chance.' in text
    # Six images of three tasks can be grouped in 15 ways.
    assert 'no p is below 0.07' in texts['Restored images']


def test_a_prompt_that_answers_a_task_is_named(tmp_path):
    """Prompt 2 is given to dark images and prompt 3 to noisy ones: the layer is fitted to the features at level 3."""
    options, tasks, ids = options_of(PROMPTIR, ['denoise', 'lowlight']), ['denoise', 'lowlight'], np.repeat([0, 1], 5)
    for task in options['datasets']['val']['tasks']:
        task['files'] = ['astronaut.png', 'coffee.png', 'chelsea.png', 'rocket.jpg', 'camera.png']
    samples = samples_of(options, 5)
    prompted, *others = (PromptedNet(untrained_network(PROMPTIR, seed)) for seed in (0, 1, 2))
    features = observe(prompted, samples).features['level3'][:, :64]
    fitted = np.linalg.lstsq(np.column_stack([features, np.ones(10)]), np.where(ids == 1, 4.0, -4.0), rcond=None)[0]
    layer: Any = prompted.levels['level3'].linear_layer
    layer.weight.data = torch.tensor(np.array([0 * fitted[:-1], fitted[:-1], -fitted[:-1]])).float()
    layer.bias.data = torch.tensor([-9.0, fitted[-1], -fitted[-1]]).float()

    found, *untrained = (investigate(each, samples, ids, tasks, detailed=False) for each in (prompted, *others))
    study = Study(prompted, samples, tasks, ids, found, untrained, 0, 99)
    with style():
        section = weights_section(study, Writer(tmp_path))
    assert section.text.startswith('The weights separate the tasks more than in any untrained network.')
    assert 'Level 3: prompt 2 responds to Low light (100%), prompt 3 responds to Noise (100%).' in section.text
    assert 'By chance a task has 50% of a prompt.' in section.text
    rows = [row for row in rows_of(tmp_path / 'answers.csv') if row['level'] == 'level3']
    assert [(row['task'], row['found']) for row in rows[1:]] == [('lowlight', 'learned'), ('denoise', 'learned')]
    (level,) = [row for row in rows_of(tmp_path / 'information.csv') if row['level'] == 'level3']
    assert float(level['value']) == pytest.approx(1, abs=0.01)
    assert float(level['value']) == pytest.approx(sum(float(row['value']) for row in rows))
    assert level['images'] == '10'


def test_the_encoder_of_airnet_is_probed_for_tasks_and_photographs(tmp_path):
    network = {'type': 'AirNet', 'dim': 4, 'num_groups': 1, 'num_blocks': 1, 'queue_length': 8}
    net = untrained_network(network, 0)
    report, out = explain(*written(tmp_path, network, net), tmp_path / 'out', replace(SMALL, untrained=1))
    assert report.title == 'What the encoder of tiny.pth has learned'
    assert [section.title for section in report.sections] == ['Restored images', 'Embeddings']
    assert {'probes.png', 'separation.csv', 'pca.svg', 'report.html'} <= {*os.listdir(out)}
    rows = rows_of(out / 'separation.csv')
    assert [row['embedding'] for row in rows] == ['Encodings, vector'] * 4 + ['Encodings, map'] * 4
    samples = samples_of(options_of(network))
    with torch.no_grad():
        encoder = net.encoder.encoder_q
        found = [encoder(sample.lq[None]) for sample in samples]
    vectors = np.array([each.feature[0].double().numpy() for each in found])
    maps = [each.map[0].double() for each in found]
    moments = np.array([[*each.mean(dim=(1, 2)), *each.std(dim=(1, 2), correction=0)] for each in maps])
    photographs, tasks = np.tile([0, 1], 3), np.repeat([0, 1, 2], 2)
    for x, four in ((vectors, rows[:4]), (moments, rows[4:])):
        x = (x - x.mean(axis=0)) / x.std(axis=0)
        probe = RidgeClassifier(alpha=float((x * x).sum(axis=1).mean()))
        for row, ids in ((four[2], tasks), (four[3], photographs)):
            expected = cross_val_score(probe, x, ids, cv=LeaveOneOut()).mean()
            assert float(row['value']) == pytest.approx(expected)
        assert four[3]['score'] == 'linear probe accuracy, photograph'


# Mistakes


def fails(*arguments: Any, **changes: Any) -> str:
    with pytest.raises(OptionError) as error:
        explain(*arguments, **changes)
    return str(error.value)


def test_networks_without_prompts_are_refused_with_a_list_of_those_with_prompts(tmp_path):
    for network in ({**PROMPTIR, 'prompts': False}, {'type': 'DegradationSensor', 'dim': 4, 'num_blocks': 0}):
        files = written(tmp_path, network, untrained_network(network, 0))
        message = fails(*files, tmp_path / 'out', SMALL)
        assert 'Networks to explain: AirNet, PIPNAFNet, PIPRestormer, PromptIR, PromptedNetwork' in message
        assert not (tmp_path / 'out').exists()


def test_what_is_missing_is_reported(tmp_path, blind):
    options, weights = blind['files']
    assert "'no.yml' does not exist" in fails('no.yml', weights)
    assert '--weights: missing' in fails(options, None, tmp_path / 'out')
    assert 'no.pth' in fails(options, 'no.pth', tmp_path / 'out')
    one = tmp_path / 'one.yml'
    one.write_text(yaml.safe_dump(options_of(PROMPTIR, ['derain'])))
    assert 'one task, derain' in fails(str(one), weights, tmp_path / 'out', SMALL)
    none = tmp_path / 'none.yml'
    none.write_text(yaml.safe_dump({**options_of(PROMPTIR), 'datasets': {}}))
    assert 'datasets: no AllInOneDataset' in fails(str(none), weights, tmp_path / 'out', SMALL)
    typo = ['datasets:val:tasks:0:typpe=denoise']
    assert "unknown option 'typpe'. Did you mean 'type'?" in fails(options, weights, tmp_path / 'out', SMALL, typo)
    assert sorted(os.listdir(tmp_path)) == ['none.yml', 'one.yml']


def test_labels_that_the_network_does_not_know(tmp_path):
    network = {**PIP, 'num_degradations': 2}
    files = written(tmp_path, network, untrained_network(network, 0))
    message = fails(*files, tmp_path / 'out', SMALL)
    assert "the task 'dehaze' has the label 2, but the network has labels 0 to 1" in message


def test_settings_are_checked_together():
    with pytest.raises(OptionError) as error:
        Settings(images=0, size=1, untrained=-1, device='nothing')
    assert [line.split(':')[0] for line in error.value.lines] == ['--images', '--size', '--untrained', '--device']


@pytest.mark.parametrize(('module', 'name'), [('matplotlib', 'matplotlib'), ('sklearn', 'scikit-learn')])
def test_the_extra_is_named_where_it_is_not_installed(monkeypatch, module, name):
    monkeypatch.setitem(sys.modules, module, None)  # as Python itself notes what is not there
    assert fails('no.yml') == f"basicsr explain needs {name}: pip install 'promptir_basicsr[explain]'"


def test_nothing_is_replaced_by_default_and_unrelated_files_never(tmp_path, blind):
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'thesis.txt').write_text('years')
    assert 'is not empty' in fails(*blind['files'], tmp_path / 'mine', SMALL)
    assert 'was not written by this command' in fails(*blind['files'], tmp_path / 'mine', SMALL, overwrite=True)
    assert 'is a file' in fails(*blind['files'], tmp_path / 'mine' / 'thesis.txt', SMALL, overwrite=True)
    assert 'is not empty' in fails(*blind['files'], blind['out'], SMALL)


def test_a_folder_is_complete_or_what_it_was(tmp_path):
    folder = tmp_path / 'deep' / 'out'
    with pytest.raises(FileNotFoundError), atomic_folder(folder) as unfinished:
        (unfinished / 'missing' / 'report.json').write_text('half')
    assert os.listdir(folder.parent) == []
    for content in ('first', 'second'):
        with atomic_folder(folder) as unfinished:
            (unfinished / 'report.json').write_text(content)
        assert (folder / 'report.json').read_text() == content
    with pytest.raises(FileNotFoundError), atomic_folder(folder) as unfinished:
        (unfinished / 'missing' / 'report.json').write_text('third')
    assert os.listdir(folder.parent) == ['out']
    assert (folder / 'report.json').read_text() == 'second'


def test_a_sensor_of_its_own_file(tmp_path):
    whole: Any = untrained_network(PIP, 5)
    bare = {name: value for name, value in whole.state_dict().items() if not name.startswith('sensor.')}
    torch.save({'params': whole.sensor.state_dict()}, tmp_path / 'sensor.pth')
    files = written(tmp_path, PIP, whole, path={'pretrain_network_sensor': str(tmp_path / 'sensor.pth')})
    torch.save({'params': bare}, files[1])
    net, network, _ = _load(yaml.safe_load(Path(files[0]).read_text()), files[1])
    assert network['sensor'] == PIP['sensor']
    assert {name: value.tolist() for name, value in net.state_dict().items()} == {
        name: value.tolist() for name, value in whole.state_dict().items()
    }


# Words


def test_tasks_in_human_words():
    found = [words(name) for name in ('denoise', 'denoise_25', 'lowlight', 'level3', 'haze_rain', 'all levels')]
    assert found == ['Noise', 'Noise 25', 'Low light', 'Level 3', 'haze rain', 'All levels']
    assert [in_digits(value, '.2f') for value in (-1.5, -0.001, 0.0, 2.0)] == [
        '\N{MINUS SIGN}1.50',
        '0.00',
        '0.00',
        '2.00',
    ]


@pytest.mark.slow
def test_a_network_of_one_channel(tmp_path: Path) -> None:
    network = {**PROMPTIR, 'inp_channels': 1, 'out_channels': 1}
    files = written(tmp_path, network, untrained_network(network, 1))
    settings = replace(SMALL, untrained=1, permutations=19)
    with pytest.raises(OptionError, match=r'the task .* has `channels: 3`, but the network expects 1'):
        explain(*files, tmp_path / 'out', settings)
    options = yaml.safe_load(Path(files[0]).read_text())
    for task in options['datasets']['val']['tasks']:
        task['channels'] = 1
    Path(files[0]).write_text(yaml.safe_dump(options, sort_keys=False))
    report, folder = explain(*files, tmp_path / 'out', settings)
    (shown, *_) = (comparison for section in report.sections for comparison in section.comparisons)
    assert shown.before.shape == (16, 16, 3)
    assert (shown.before == shown.before[..., :1]).all()
    assert 'grey floats' in (folder / 'report.html').read_text()
