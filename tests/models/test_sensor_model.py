"""SensorModel on real BasicSR, and its sensor inside a PIPRestormer that PromptModel trains and measures."""

import csv
import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import safetensors.torch
import skimage.data
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

import promptir_basicsr  # noqa: F401  (registers)
from promptir_basicsr import cli

# isort: split
from basicsr.archs import build_network
from basicsr.data import build_dataloader, build_dataset
from basicsr.models import build_model

from promptir_basicsr.checks.run import check_options
from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.evaluation.sensor import Prediction, calibration_error
from tests.models.model_options import run_options

SENSOR = {'type': 'DegradationSensor', 'dim': 4}
PIP = {
    'type': 'PIPRestormer',
    'dim': 8,
    'num_blocks': [1, 1, 1, 1],
    'num_refinement_blocks': 1,
    'heads': [1, 1, 1, 1],
    'prompt_dims': [12, 12, 12],
    'prompt_sizes': [4, 4, 4],
}
VAL = {'val_freq': 2, 'save_img': False}


@pytest.fixture(autouse=True)
def photographs(tmp_path):
    folder = tmp_path / 'photographs'
    folder.mkdir()
    for name, photograph in (('a', skimage.data.chelsea()), ('b', skimage.data.coffee())):
        cv2.imwrite(str(folder / f'{name}.png'), photograph[100:124, 150:179, ::-1])
    return folder


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    gt = torch.rand(4, 3, 16, 16, generator=generator)
    lq = gt * torch.tensor([1, 0.1, 1, 1])[:, None, None, None]
    tasks = ['denoise', 'lowlight', 'denoise', 'denoise']
    return {'lq': lq, 'gt': gt, 'task': tasks, 'degradation': torch.tensor([0, 4, 0, 0])}


def tasks(root):
    clean = str(root / 'photographs')
    return [
        {'name': 'noise', 'type': 'denoise', 'clean': clean, 'degrade': {'type': 'gaussian_noise', 'sigma': 25}},
        {'name': 'strong', 'type': 'denoise', 'clean': clean, 'degrade': {'type': 'gaussian_noise', 'sigma': 50}},
        {'name': 'dark', 'type': 'lowlight', 'clean': clean, 'degrade': {'type': 'low_light', 'exposure': 0.1}},
    ]


def sensor_options(root, **changes):
    opt = run_options(root, model_type='SensorModel', network_g=dict(SENSOR), val=dict(VAL), **changes)
    opt['train'].pop('pixel_opt')
    opt['datasets']['val'] = {'name': 'val', 'type': 'AllInOneDataset', 'phase': 'val', 'tasks': tasks(root)}
    return opt


def pip_options(root, sensor=None, **changes):
    """PIP with a sensor; `sensor` is the file of its weights."""
    opt = run_options(root, network_g={**PIP, 'sensor': dict(SENSOR)}, **changes)
    opt['datasets']['val'] = {'name': 'val', 'type': 'AllInOneDataset', 'phase': 'val', 'tasks': tasks(root)}
    if sensor:
        opt['path']['pretrain_network_sensor'] = str(sensor)
    opt['val']['metrics'] = {'psnr': {'type': 'calculate_paper_psnr'}}
    return opt


@pytest.fixture
def trained(tmp_path, batch):
    """A checkpoint of SensorModel whose averaged weights are others."""
    root = tmp_path / 'sensor_run'
    root.mkdir()
    torch.manual_seed(1)
    model = build_model(sensor_options(root, train__ema_decay=0.5))
    model.feed_data(batch)
    model.optimize_parameters(1)
    model.save(0, 1)
    return root / 'models' / 'net_g_1.pth'


def loader(opt, key='val'):
    return build_dataloader(build_dataset(opt['datasets'][key]), opt['datasets'][key], num_gpu=0)


def told(caplog):
    logging.getLogger('basicsr').propagate = True
    return caplog.at_level(logging.INFO, logger='basicsr')


def scalars(writer):
    """What TensorBoard was given."""
    writer.close()
    events = EventAccumulator(writer.log_dir)
    events.Reload()
    return {tag: events.Scalars(tag)[-1].value for tag in events.Tags()['scalars']}


def problems_of(opt, is_train=True):
    """What the check says of options that BasicSR has completed."""
    written = {
        **{key: opt[key] for key in ('name', 'model_type', 'num_gpu', 'datasets', 'network_g', 'train', 'val')},
        'path': {key: value for key, value in opt['path'].items() if key.startswith('pretrain')},
        'logger': {'print_freq': 1, 'save_checkpoint_freq': 1, 'use_tb_logger': False},
    }
    written['datasets'] = {
        key: {name: value for name, value in dataset.items() if name != 'phase'}
        for key, dataset in opt['datasets'].items()
        if is_train or key != 'train'
    }
    if is_train:
        written['datasets']['train'].update(batch_size_per_gpu=1, num_worker_per_gpu=0)
    return [str(problem) for problem in check_options(written, is_train)]


# training a sensor


def test_a_sensor_learns_its_batch(tmp_path, batch):
    torch.manual_seed(0)
    model = build_model(sensor_options(tmp_path, train__optim_g={'type': 'Adam', 'lr': 1e-2}))
    model.feed_data(batch)
    before = {name: p.detach().clone() for name, p in model.net_g.named_parameters()}
    losses = []
    for iteration in range(1, 16):
        model.optimize_parameters(iteration)
        losses.append(model.get_current_log()['l_ce'])
    assert all(not torch.equal(before[name], p) for name, p in model.net_g.named_parameters())
    assert losses[-1] < 0.1 < 0.3 < losses[0]
    model.test()
    assert model.output.argmax(dim=1).tolist() == batch['degradation'].tolist()


def test_the_log_has_the_loss_of_each_task_and_the_accuracy(tmp_path, batch):
    model = build_model(sensor_options(tmp_path, train__optim_g={'type': 'SGD', 'lr': 0.0}, train__label_smoothing=0.2))
    model.feed_data(batch)
    model.optimize_parameters(1)
    log = model.get_current_log()
    with torch.no_grad():
        logs = model.net_g(batch['lq']).log_softmax(dim=1)
    wanted = torch.full((4, 5), 0.2 / 5)
    wanted[range(4), batch['degradation']] += 0.8
    losses = -(wanted * logs).sum(dim=1)
    assert log['l_ce'] == pytest.approx(losses.mean().item(), rel=1e-5)
    assert log['l_ce_denoise'] == pytest.approx(losses[[0, 2, 3]].mean().item(), rel=1e-5)
    assert log['l_ce_lowlight'] == pytest.approx(losses[1].item(), rel=1e-5)
    assert log['accuracy'] == (logs.argmax(dim=1) == batch['degradation']).float().mean().item()


def test_samples_without_a_label_are_refused(tmp_path, batch):
    model = build_model(sensor_options(tmp_path))
    with pytest.raises(ValueError, match='has no labels, its samples have no `degradation`'):
        model.feed_data({'lq': batch['lq'], 'gt': batch['gt']})


def test_validation_measures_whole_images_as_numpy_does(tmp_path):
    opt = sensor_options(tmp_path)
    torch.manual_seed(3)
    model = build_model(opt)
    torch.nn.init.normal_(model.net_g.classifier.weight, std=3)
    val = loader(opt)
    model.validation(val, 2, None, False)

    found = []
    for sample in val.dataset:
        assert sample['lq'].shape == (3, 24, 29)
        with torch.no_grad():
            p = model.net_g(sample['lq'][None])[0].double().softmax(dim=0).numpy()
        found.append((sample['task'], sample['degradation'], p))
    expected = {}
    for task in ('noise', 'strong', 'dark', 'all images'):
        members = [(label, p) for name, label, p in found if task in (name, 'all images')]
        right = np.array([p.argmax() == label for label, p in members], float)
        sure = np.array([p.max() for _, p in members])
        step = np.digitize(sure, np.linspace(0, 1, 16)[1:-1])
        gaps = [abs(right[step == n].mean() - sure[step == n].mean()) * (step == n).mean() for n in set(step)]
        loss = -np.mean([np.log(p[label]) for label, p in members])
        expected[task] = (right.mean(), sure.mean(), loss, sum(gaps))
    expected['average'] = tuple(np.mean([expected[task] for task in ('noise', 'strong', 'dark')], axis=0))

    with open(tmp_path / 'metrics.csv', newline='') as file:
        rows = {row['task']: row for row in csv.DictReader(file)}
    assert list(rows) == ['noise', 'strong', 'dark', 'average', 'all images']
    assert list(rows['noise'])[4:] == ['accuracy', 'confidence', 'cross_entropy', 'calibration_error']
    for task, values in expected.items():
        assert [float(number) for number in list(rows[task].values())[4:]] == pytest.approx(list(values), abs=1e-6)
    assert rows['all images']['images'] == '6'

    text = (tmp_path / 'results.md').read_text()
    counts = {task: [0] * 5 for task in ('noise', 'strong', 'dark')}
    for task, _, p in found:
        counts[task][p.argmax()] += 1
    for task, label in (('noise', 0), ('strong', 0), ('dark', 4)):
        cells = [f'({count})' if number == label else str(count) for number, count in enumerate(counts[task])]
        assert f'| {task} | {" | ".join(cells)} |\n' in text
    assert '| task | denoise | derain | dehaze | deblur | lowlight |' in text
    right = sum(p.argmax() == label for _, label, p in found)
    assert f'{right} of 6 images are classified correctly' in text


def test_calibration_error_by_hand():
    def image(confidence, right):
        return Prediction('task', 0, 0 if right else 1, confidence, 0.0)

    # Steps of a tenth: 0.62 and 0.68 share one, one of the two is right; 1.0 is in the last.
    images = [image(0.62, True), image(0.68, False), image(0.95, True), image(1.0, False)]
    assert calibration_error(images, bins=10) == pytest.approx((abs(1 - 1.3) + abs(1 - 1.95)) / 4)


def test_the_most_accurate_weights_are_kept_and_of_equal_ones_the_surest(tmp_path):
    opt = sensor_options(tmp_path)
    model = build_model(opt)
    val = loader(opt)
    bias = model.net_g.classifier.bias
    torch.nn.init.zeros_(model.net_g.classifier.weight)
    # All lowlight: a third of the tasks; all denoise: two thirds; the same, nearer the truth; all derain: none.
    for iteration, biases in enumerate(
        ([0, 0, 0, 0, 3], [9, 0, 0, 0, 0], [3, 0, 0, 0, 2], [9, 0, 0, 0, 0], [0, 9, 0, 0, 0]), start=1
    ):
        bias.data = torch.tensor(biases, dtype=torch.float32)
        model.validation(val, iteration, None, False)
    best = torch.load(tmp_path / 'models' / 'net_g_best.pth', weights_only=True)
    assert best['params']['classifier.bias'].tolist() == [3, 0, 0, 0, 2]
    known = json.loads((tmp_path / 'models' / 'net_g_best.json').read_text())
    assert known['iter'] == 3
    assert known['value'] == pytest.approx(2 / 3)
    assert 'Best average accuracy: 0.6667 at iteration 3' in (tmp_path / 'results.md').read_text()


def test_tensorboard_gets_each_task_the_average_and_all_images(tmp_path):
    opt = sensor_options(tmp_path)
    writer = SummaryWriter(str(tmp_path / 'tb'))
    build_model(opt).validation(loader(opt), 2, writer, False)
    wanted = {'metrics/val/dark/accuracy', 'metrics/average/confidence', 'metrics/all images/calibration_error'}
    assert wanted <= set(scalars(writer))


def test_a_test_measures_a_trained_sensor(tmp_path, trained):
    opt = sensor_options(tmp_path)
    opt = {**opt, 'is_train': False, 'path': {**opt['path'], 'pretrain_network_g': str(trained)}}
    build_model(opt).validation(loader(opt), 'test', None, False)
    assert f'Weights: `{trained}`' in (tmp_path / 'results.md').read_text()


# inside PIP


def test_pip_takes_the_averaged_weights_of_a_sensor_and_never_trains_them(tmp_path, trained, batch, caplog):
    saved = torch.load(trained, weights_only=True)
    assert not torch.equal(saved['params']['classifier.bias'], saved['params_ema']['classifier.bias'])
    with told(caplog):
        model = build_model(pip_options(tmp_path, trained, train__ema_decay=0.3))
    messages = [record.message for record in caplog.records]
    assert f'Sensor: DegradationSensor, weights of {trained}; not trained here.' in messages
    assert any(message.startswith('Not trained: ') for message in messages)
    assert not any('will not be optimized' in message for message in messages)
    count = sum(len(group['params']) for group in model.optimizer_g.param_groups)
    assert count == sum(not name.startswith('sensor.') for name, _ in model.net_g.named_parameters())
    for iteration in (1, 2):
        model.feed_data(batch)
        model.optimize_parameters(iteration)
    for net in (model.net_g, model.net_g_ema):
        assert all(torch.equal(value, saved['params_ema'][name]) for name, value in net.sensor.state_dict().items())
        assert not net.sensor.training

    # One file holds both, and needs no other.
    model.save(0, 2)
    opt = pip_options(tmp_path, path__pretrain_network_g=str(tmp_path / 'models' / 'net_g_2.pth'))
    with told(caplog):
        again = build_model({**opt, 'is_train': False})
    assert f'weights of {opt["path"]["pretrain_network_g"]}' in caplog.text
    assert torch.equal(again.net_g.sensor.classifier.bias, saved['params_ema']['classifier.bias'])
    assert torch.equal(again.net_g.output.weight, model.net_g.output.weight)
    # And its sensor can be taken out of it.
    other = build_model(pip_options(tmp_path, tmp_path / 'models' / 'net_g_2.pth'))
    assert torch.equal(other.net_g.sensor.classifier.bias, saved['params_ema']['classifier.bias'])


@pytest.mark.parametrize('wrapper', ['module.', '_orig_mod.', 'net._orig_mod.module.'])
@pytest.mark.parametrize('layout', ['params_ema', 'safetensors', 'state_dict'])
def test_a_sensor_is_read_from_every_layout_and_wrapper(wrapper, layout, tmp_path, trained):
    saved = torch.load(trained, weights_only=True)['params_ema']
    named = {f'{wrapper}{name}': value for name, value in saved.items()}
    file = tmp_path / f'sensor.{layout}'
    safetensors.torch.save_file(named, file) if layout == 'safetensors' else torch.save({layout: named}, file)
    opt = pip_options(tmp_path, file)
    assert problems_of(opt) == []
    model = build_model(opt)
    assert all(torch.equal(value, saved[name]) for name, value in model.net_g.sensor.state_dict().items())
    # And from the whole network, of which it is a part.
    whole = {f'{wrapper}{name}': value for name, value in model.net_g.state_dict().items()}
    torch.save({'params': whole}, tmp_path / 'whole.pth')
    for key in ('pretrain_network_sensor', 'pretrain_network_g'):
        opt['path'] = {**pip_options(tmp_path, trained)['path'], 'pretrain_network_sensor': None}
        opt['path'][key] = str(tmp_path / 'whole.pth')
        assert problems_of(opt) == []
        found = build_model(opt).net_g.sensor.state_dict()
        assert all(torch.equal(value, saved[name]) for name, value in found.items())


def test_weights_without_a_sensor_and_a_sensor_of_its_own(tmp_path, trained):
    opt = pip_options(tmp_path, trained)
    released = tmp_path / 'released.pth'
    bare = {**opt['network_g'], 'sensor': None}
    plain = build_model({**opt, 'network_g': bare, 'is_train': False, 'path': {}}).net_g
    torch.save(plain.released_state_dict(), released)
    opt['path']['pretrain_network_g'] = str(released)
    model = build_model({**opt, 'is_train': False})
    assert torch.equal(model.net_g.output.weight, plain.output.weight)
    saved = torch.load(trained, weights_only=True)['params_ema']
    assert torch.equal(model.net_g.sensor.classifier.weight, saved['classifier.weight'])
    assert problems_of(opt) == []
    # Nowhere.
    del opt['path']['pretrain_network_sensor']
    with pytest.raises(OptionError, match='pretrain_network_sensor: is missing') as error:
        build_model({**opt, 'is_train': False})
    assert f"'{released}' has none. Set a checkpoint of SensorModel" in str(error.value)
    assert problems_of(opt) == problems_of(opt, is_train=False) == error.value.lines


def test_a_validation_may_pass_the_same_mixture_for_every_image(tmp_path, trained, caplog):
    opt = pip_options(tmp_path, trained, val__labels={'derain': 3, 2: 1})
    model = build_model(opt)
    val = loader(opt)
    with told(caplog):
        model.validation(val, 2, None, False)
    psnr = {}
    for sample in val.dataset:
        model.feed_data({'lq': sample['lq'][None]})
        model.batch = replace(model.batch, degradation=torch.tensor([[0, 0.75, 0.25, 0, 0]]))
        model.test()
        error = (model.output[0].clamp(0, 1) - sample['gt']).double().square().mean()
        psnr.setdefault(sample['task'], []).append(-10 * torch.log10(error).item())
    with open(tmp_path / 'metrics.csv', newline='') as file:
        rows = {row['task']: float(row['psnr']) for row in csv.DictReader(file)}
    assert [rows[task] for task in psnr] == pytest.approx([np.mean(values) for values in psnr.values()], abs=1e-4)
    assert "- Labels: {'derain': 3, 2: 1} for every image.\n" in (tmp_path / 'results.md').read_text()


@pytest.mark.parametrize(('labels', 'hard'), [(True, False), ('sensor', False), ('sensor', True)])
def test_validation_uses_true_labels_or_the_sensors_and_logs_it(tmp_path, trained, caplog, labels, hard):
    opt = pip_options(tmp_path, trained, val__labels=labels)
    opt['network_g']['hard_sensor'] = hard
    model = build_model(opt)
    net, val = model.net_g.eval(), loader(opt)
    writer = SummaryWriter(str(tmp_path / 'tb'))
    with told(caplog):
        model.validation(val, 2, writer, False)

    sure, right, psnr = {}, {}, {}
    for sample in val.dataset:
        with torch.no_grad():
            p = net.sensor.probabilities(sample['lq'][None])[0]
        weights = p if labels == 'sensor' else sample['degradation']
        model.feed_data({'lq': sample['lq'][None], 'degradation': torch.as_tensor([0])})
        degradation = p.argmax()[None] if hard else weights[None] if labels == 'sensor' else [weights]
        model.batch = replace(model.batch, degradation=degradation)
        model.test()
        error = (model.output[0].clamp(0, 1) - sample['gt']).double().square().mean()
        psnr.setdefault(sample['task'], []).append(-10 * torch.log10(error).item())
        sure.setdefault(sample['task'], []).append(p.max().item())
        right.setdefault(sample['task'], []).append(p.argmax().item() == sample['degradation'])
    written = scalars(writer)
    with open(tmp_path / 'metrics.csv', newline='') as file:
        rows = {row['task']: float(row['psnr']) for row in csv.DictReader(file)}
    assert [rows[task] for task in psnr] == pytest.approx([np.mean(values) for values in psnr.values()], abs=1e-4)

    text, messages = (tmp_path / 'results.md').read_text(), [record.message for record in caplog.records]
    if labels is True:
        assert '- Labels: true labels of the data.\n' in text
        assert 'Labels: true labels of the data.' in messages
        assert 'mean confidence' not in text
        assert not any('sensor' in tag for tag in written)
    else:
        kind = 'the most likely one of each image' if hard else 'probabilities'
        assert f'- Labels: predicted by the sensor, {kind}.\n' in text
        for task, values in sure.items():
            line = f'{task}: {sum(right[task])} of 2 recognised, mean confidence {np.mean(values):.4f}'
            assert line in messages
            assert f'- {line}\n' in text
            assert written[f'metrics/val/{task}/sensor_confidence'] == pytest.approx(np.mean(values), abs=1e-6)


def test_images_without_a_label_are_left_to_the_sensor(tmp_path, trained, caplog):
    opt = pip_options(tmp_path, trained)
    folder = str(tmp_path / 'photographs')
    opt['datasets']['val'] = {
        'name': 'pairs',
        'type': 'PairedImageDataset',
        'phase': 'val',
        'scale': 1,
        'dataroot_gt': folder,
        'dataroot_lq': folder,
        'io_backend': {'type': 'disk'},
    }
    build_model(opt).validation(loader(opt), 2, None, False)
    text = (tmp_path / 'results.md').read_text()
    assert '- Labels: predicted by the sensor, probabilities.\n- pairs: mean confidence 0.' in text


# options


def test_right_options_have_no_problems(tmp_path, trained):
    assert problems_of(sensor_options(tmp_path)) == []
    assert problems_of(sensor_options(tmp_path, train__label_smoothing=0.1, train__ema_decay=0.9)) == []
    assert problems_of(pip_options(tmp_path, trained, val__labels='sensor')) == []
    assert problems_of(pip_options(tmp_path, trained), is_train=False) == []


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'train__label_smoothing': 1}, 'train.label_smoothing: 1 is not a number from 0 to below 1.'),
        ({'train__pixel_opt': {'type': 'L1Loss'}}, "train: unknown option 'pixel_opt'."),
        ({'val__metrics': {}}, "val: unknown option 'metrics'."),
        ({'network_g': {**SENSOR, 'num_degradations': 3}}, 'labels of dark 4; the network has labels 0 to 2.'),
        (
            {'network_g': dict(PIP)},
            "'PIPRestormer' is not a sensor, but `model_type: SensorModel` trains sensors. Allowed: Degr",
        ),
        (
            {'model_type': 'PromptModel'},
            "network_g.type: 'DegradationSensor' classifies degradations and does not restore",
        ),
    ],
)
def test_wrong_options_of_a_sensors_training(tmp_path, changes, message):
    opt = sensor_options(tmp_path)
    for place, value in changes.items():
        *sections, key = place.split('__')
        (opt[sections[0]] if sections else opt)[key] = value
    assert any(message in problem for problem in problems_of(opt))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'val__labels': False}, 'val.labels: False; allowed: true (labels of the data), sensor, or'),
        ({'val__labels': 'sensors'}, "val.labels: 'sensors'; allowed"),
        ({'val__labels': {'derian': 1}}, "val.labels: unknown degradation 'derian'"),
        ({'val__labels': {'derain': -1}}, 'val.labels'),
        ({'network_g__sensor': {**SENSOR, 'dim': 8}}, 'they differ in stem.0.weight (4, 6, 3, 3) -> (8, 6, 3, 3)'),
        ({'network_g__sensor': {**SENSOR, 'dmi': 8}}, "network_g: PIPRestormer: sensor: unknown option 'dmi'."),
        ({'network_g__sensor': None}, 'path.pretrain_network_sensor: network_g has no sensor. Set `sensor'),
        ({'network_g__sensor': None, 'val__labels': 'sensor'}, 'val.labels: network_g has no sensor.'),
        ({'path__pretrain_network_sensor': 'nowhere.pth'}, "pretrain_network_sensor: the file 'nowhere.pth' does not"),
        (
            {'path__pretrain_network_sensor': __file__},
            f"path.pretrain_network_sensor: '{__file__}' contains no weights: ",
        ),
    ],
)
def test_wrong_options_of_a_network_with_a_sensor(tmp_path, trained, changes, message):
    opt = pip_options(tmp_path, trained)
    for place, value in changes.items():
        section, key = place.split('__')
        opt[section][key] = value
    assert any(message in problem for problem in problems_of(opt))


def test_a_run_is_resumed_without_the_sensors_own_file(tmp_path, trained, monkeypatch):
    """Train PIP with a sensor, lose the sensor's own file, go on from the state."""
    opt = pip_options(tmp_path, trained, val__labels='sensor')
    opt['datasets']['train'].update(batch_size_per_gpu=1, num_worker_per_gpu=0)
    opt['datasets']['train'].pop('phase'), opt['datasets']['val'].pop('phase')
    opt['val']['save_img'], opt['train']['total_iter'] = False, 2
    kept = ('name', 'model_type', 'scale', 'num_gpu', 'manual_seed', 'datasets', 'network_g', 'train', 'val')
    options = {key: opt[key] for key in kept}
    options['path'] = {'pretrain_network_sensor': str(trained)}
    options['logger'] = {'print_freq': 1, 'save_checkpoint_freq': 2, 'use_tb_logger': False}
    (tmp_path / 'pip.yml').write_text(json.dumps(options))

    monkeypatch.chdir(tmp_path)
    assert cli.main(['train', '-opt', 'pip.yml']) == 0
    run = tmp_path / 'experiments' / 'run'
    first = torch.load(run / 'models' / 'net_g_2.pth', weights_only=True)['params']
    saved = torch.load(trained, weights_only=True)['params_ema']
    assert torch.equal(first['sensor.classifier.bias'], saved['classifier.bias'])
    state = f'path:resume_state={run / "training_states" / "2.state"}'
    changes = [state, 'train:total_iter=4', 'path:pretrain_network_sensor=~']
    assert cli.main(['train', '-opt', 'pip.yml', '--force_yml', *changes]) == 0
    last = torch.load(run / 'models' / 'net_g_4.pth', weights_only=True)['params']
    assert torch.equal(last['sensor.classifier.bias'], saved['classifier.bias'])
    assert not torch.equal(last['output.weight'], first['output.weight'])


@pytest.mark.slow
def test_the_demos_sensor_recognises_what_it_has_not_seen(tmp_path):
    """60 images: 12 photographs and pictures that are not in the training set, with five degradations each."""
    options = Path(__file__).parents[2] / 'options' / 'sensor_demo.yml'
    command = [sys.executable, '-m', 'promptir_basicsr', 'train', '-opt', str(options)]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    with open(tmp_path / 'experiments' / 'sensor_demo' / 'metrics.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    unseen = [float(row['accuracy']) for row in rows if row['dataset'] == 'unseen']
    assert len(unseen) == 5
    assert sum(unseen) / 5 > 0.9
    overall = rows[-1]
    assert (overall['task'], overall['images']) == ('all images', '60')
    assert float(overall['accuracy']) > 0.85


def test_a_sensor_of_grey_images_learns_and_is_measured(tmp_path):
    opt = sensor_options(tmp_path)
    opt['network_g']['inp_channels'] = 1
    for task in opt['datasets']['val']['tasks']:
        task['channels'] = 1
    model = build_model(opt)
    model.feed_data(next(iter(loader(opt))))
    model.optimize_parameters(1)
    model.validation(loader(opt), 2, None, save_img=False)
    assert [row.images for row in model.report.rows] == [2, 2, 2]


def test_the_sensor_of_a_network_of_one_channel_has_one():
    grey = {**PIP, 'inp_channels': 1, 'out_channels': 1}
    net = build_network({**grey, 'sensor': SENSOR})
    assert net.sensor.inp_channels == 1
    assert net(torch.rand(2, 1, 16, 16)).shape == (2, 1, 16, 16)
    with pytest.raises(OptionError, match='inp_channels is 3, of the network 1'):
        build_network({**grey, 'sensor': {**SENSOR, 'inp_channels': 3}})
