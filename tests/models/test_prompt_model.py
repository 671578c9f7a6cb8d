"""PromptModel on real BasicSR: one step, the log, EMA, any size, validation and its files, checkpoints."""

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import nn

import promptir_basicsr  # noqa: F401  (registers)

# isort: split
from basicsr.data import build_dataloader, build_dataset
from basicsr.models import build_model
from basicsr.utils.registry import ARCH_REGISTRY

from promptir_basicsr.core.registry import register
from promptir_basicsr.evaluation.record import read_results
from promptir_basicsr.models.metadata import operations_of
from tests.models.model_options import run_options


@register(ARCH_REGISTRY)
class LabelNet(nn.Module):
    """Adds its label to the image; size multiple 4; a buffer counts the calls."""

    size_multiple = 4
    takes_degradation = True
    scale = 1

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))
        self.register_buffer('calls', torch.zeros(1))

    def forward(self, x, degradation=None):
        assert x.shape[-2] % 4 == 0
        assert x.shape[-1] % 4 == 0
        self.calls += 1
        return self.gain * x + degradation[:, None, None, None] / 100


@register(ARCH_REGISTRY)
class OneConvolution(nn.Conv2d):
    def __init__(self):
        super().__init__(3, 5, 3, padding=1)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    gt = torch.rand(4, 3, 16, 16, generator=generator)
    return {
        'lq': (gt + 0.1 * torch.randn(gt.shape, generator=generator)).clamp(0, 1),
        'gt': gt,
        'task': ['denoise', 'lowlight', 'denoise', 'denoise'],
        'degradation': torch.tensor([0, 4, 0, 0]),
    }


def loader(opt, key='val'):
    dataset = build_dataset(opt['datasets'][key])
    return build_dataloader(dataset, opt['datasets'][key], num_gpu=0)


def small(opt, side=24):
    """Small validation images: files of the size on disk."""
    folder = Path(opt['path']['experiments_root']) / 'photographs'
    folder.mkdir(exist_ok=True)
    import cv2
    from skimage import data

    for name, photograph in (('a', data.chelsea()), ('b', data.coffee())):
        cut = photograph[100 : 100 + side, 150 : 150 + side + 5]
        cv2.imwrite(str(folder / f'{name}.png'), cv2.cvtColor(cut, cv2.COLOR_RGB2BGR))
    tasks = [
        {
            'name': 'denoise',
            'type': 'denoise',
            'clean': str(folder),
            'degrade': {'type': 'gaussian_noise', 'sigma': 25},
        },
        {'name': 'strong', 'type': 'denoise', 'clean': str(folder), 'degrade': {'type': 'gaussian_noise', 'sigma': 50}},
    ]
    opt['datasets']['val'] = {'name': 'val', 'type': 'AllInOneDataset', 'phase': 'val', 'tasks': tasks}
    return opt


def test_a_step_lowers_the_loss_on_its_batch_and_moves_every_parameter(tmp_path, batch):
    torch.manual_seed(0)
    model = build_model(run_options(tmp_path))
    before = {name: p.detach().clone() for name, p in model.net_g.named_parameters()}
    model.feed_data(batch)
    model.optimize_parameters(1)
    first = model.get_current_log()['l_pix']
    assert all(not torch.equal(before[name], p) for name, p in model.net_g.named_parameters())
    for iteration in range(2, 8):
        model.optimize_parameters(iteration)
        last = model.get_current_log()['l_pix']
    assert last < first


def test_the_log_has_each_tasks_own_loss_averaged_since_the_last_call(tmp_path, batch):
    model = build_model(run_options(tmp_path, train__optim_g={'type': 'SGD', 'lr': 0.0}))
    model.feed_data(batch)
    model.optimize_parameters(1)
    other = {**batch, 'task': ['rain'] * 4, 'gt': 1 - batch['gt']}
    model.feed_data(other)
    model.optimize_parameters(2)
    log = model.get_current_log()
    with torch.no_grad():
        restored = model.net_g(batch['lq'])
    error = (restored - batch['gt']).abs().mean(dim=(1, 2, 3))
    flipped = (restored - other['gt']).abs().mean().item()
    assert log['l_pix_denoise'] == pytest.approx(error[[0, 2, 3]].mean().item(), rel=1e-5)
    assert log['l_pix_lowlight'] == pytest.approx(error[1].item(), rel=1e-5)
    assert log['l_pix_rain'] == pytest.approx(flipped, rel=1e-5)
    assert log['l_pix'] == pytest.approx((error.mean().item() + flipped) / 2, rel=1e-5)
    assert next(iter(log)) == 'l_pix'
    assert model.get_current_log() == {}


def test_the_gradient_is_clipped_to_the_norm_and_the_norm_is_logged(tmp_path, batch):
    torch.manual_seed(0)
    model = build_model(run_options(tmp_path, train__grad_clip_norm=1e-3))
    model.feed_data(batch)
    model.optimize_parameters(1)
    norm = torch.sqrt(sum((p.grad**2).sum() for p in model.net_g.parameters())).item()
    assert norm == pytest.approx(1e-3, rel=1e-3)
    assert model.get_current_log()['grad_norm'] > 1e-3


def test_ema_follows_the_formula_and_takes_buffers_along(tmp_path, batch):
    model = build_model(run_options(tmp_path, network_g={'type': 'LabelNet'}, train__ema_decay=0.9))
    gains, expected = [], 1.0
    for iteration in (1, 2, 3):
        model.feed_data(batch)
        model.optimize_parameters(iteration)
        gains.append(model.net_g.gain.item())
        expected = 0.9 * expected + 0.1 * gains[-1]
    assert len(set(gains)) == 3
    assert model.net_g_ema.gain.item() == pytest.approx(expected, rel=1e-6)
    assert model.net_g_ema.calls.item() == model.net_g.calls.item() == 3


def test_validation_uses_the_averaged_weights_by_default(tmp_path, batch):
    for use_ema in (True, False):
        opt = run_options(tmp_path, network_g={'type': 'LabelNet'}, train__ema_decay=0.9, val__use_ema=use_ema)
        model = build_model(opt)
        nn.init.constant_(model.net_g_ema.gain, 2.0)
        model.feed_data(batch)
        model.test()
        expected = (2 if use_ema else 1) * batch['lq'] + batch['degradation'][:, None, None, None] / 100
        assert torch.allclose(model.output, expected)
        assert model.net_g.training


@pytest.mark.parametrize('size', [(1, 1), (7, 30), (16, 16), (33, 18)])
def test_images_of_any_size_are_restored_at_their_size(tmp_path, size):
    model = build_model(run_options(tmp_path))
    model.feed_data({'lq': torch.rand(1, 3, *size), 'lq_path': ['x.png']})
    model.test()
    assert model.output.shape == (1, 3, *size)


def test_an_image_that_needs_no_padding_is_restored_exactly_as_by_the_network(tmp_path):
    model = build_model(run_options(tmp_path))
    image = torch.rand(1, 3, 16, 24)
    model.feed_data({'lq': image})
    model.test()
    with torch.no_grad():
        assert torch.equal(model.output, model.net_g(image))


def test_labels_go_to_networks_that_take_them(tmp_path, batch):
    model = build_model(run_options(tmp_path, network_g={'type': 'LabelNet'}))
    model.feed_data(batch)
    model.test()
    assert torch.allclose(model.output - batch['lq'], batch['degradation'][:, None, None, None] / 100 + 0 * batch['lq'])


def test_a_validation_reports_every_task_their_average_and_the_input_as_scikit_image_measures_them(tmp_path):
    opt = small(run_options(tmp_path, val__contact_sheet=True))
    model = build_model(opt)
    val = loader(opt)
    model.validation(val, 2, None, True)
    with open(tmp_path / 'metrics.csv', newline='') as file:
        rows = {row['task']: row for row in csv.DictReader(file)}
    assert list(rows) == ['denoise', 'strong', 'average']

    expected = {}
    for sample in val.dataset:
        with torch.no_grad():
            model.feed_data({key: sample[key][None] for key in ('lq', 'gt')})
            model.test()
        lq, gt, restored = (x.numpy().transpose(1, 2, 0) for x in (sample['lq'], sample['gt'], model.output[0]))
        restored = restored.clip(0, 1).astype(np.float64)
        gt = gt.astype(np.float64)
        expected.setdefault(sample['task'], []).append(
            (
                peak_signal_noise_ratio(gt, restored, data_range=1),
                structural_similarity(gt, restored, data_range=1, channel_axis=-1),
                peak_signal_noise_ratio(gt, lq.astype(np.float64), data_range=1),
            )
        )
    for task, values in expected.items():
        psnr, ssim, input_psnr = np.mean(values, axis=0)
        assert float(rows[task]['psnr']) == pytest.approx(psnr, abs=1e-6)
        assert float(rows[task]['ssim']) == pytest.approx(ssim, abs=1e-6)
        assert float(rows[task]['input_psnr']) == pytest.approx(input_psnr, abs=1e-6)
    both = (float(rows['denoise']['psnr']) + float(rows['strong']['psnr'])) / 2
    assert float(rows['average']['psnr']) == pytest.approx(both, abs=1e-9)

    text = (tmp_path / 'results.md').read_text()
    assert '| denoise | 2 |' in text
    assert '| average | 4 |' in text
    assert 'not rounded' in text
    assert (tmp_path / 'contact_sheet.png').exists()
    assert len(list((tmp_path / 'visualization').rglob('*.png'))) == 4


def test_pictures_of_validations_and_tasks_never_overwrite_each_other(tmp_path):
    opt = small(run_options(tmp_path))
    model = build_model(opt)
    for iteration in (2, 4):
        model.validation(loader(opt), iteration, None, True)
    names = sorted(
        str(path.relative_to(tmp_path / 'visualization')) for path in tmp_path.rglob('visualization/**/*.png')
    )
    assert names == sorted(f'val/{t}/{n}_{i}.png' for t in ('denoise', 'strong') for n in 'ab' for i in (2, 4))


def test_the_validation_that_basicsr_repeats_after_the_training_is_not_run_again(tmp_path, host_log):
    opt = small(run_options(tmp_path))
    model = build_model(opt)
    val = loader(opt)
    model.validation(val, 4, None, False)
    model.save(epoch=-1, current_iter=-1)
    model.validation(val, 5, None, False)
    assert len((tmp_path / 'metrics.csv').read_text().splitlines()) == 4
    assert [record.message for record in host_log.records][-1].endswith('metrics.csv')


def test_a_last_validation_off_the_period_is_run_under_the_true_iteration(tmp_path):
    opt = small(run_options(tmp_path))
    model = build_model(opt)
    val = loader(opt)
    model.validation(val, 2, None, False)
    model.save(epoch=-1, current_iter=-1)
    model.validation(val, 5, None, False)
    assert [line.split(',')[0] for line in (tmp_path / 'metrics.csv').read_text().splitlines()[1::3]] == ['2', '4']


def test_the_best_average_keeps_its_weights_and_a_resumed_run_knows_it(tmp_path):
    opt = small(run_options(tmp_path, network_g={'type': 'LabelNet'}))
    model = build_model(opt)
    val = loader(opt)
    for iteration, gain in ((1, 0.5), (2, 1.0), (3, 0.3)):
        nn.init.constant_(model.net_g.gain, gain)
        model.validation(val, iteration, None, False)
    best = torch.load(tmp_path / 'models' / 'net_g_best.pth', weights_only=True)
    assert best['params']['gain'].item() == 1.0
    assert json.loads((tmp_path / 'models' / 'net_g_best.json').read_text())['iter'] == 2
    assert 'at iteration 2' in (tmp_path / 'results.md').read_text()

    opt['path']['resume_state'] = 'x'
    resumed = build_model(opt)
    nn.init.constant_(resumed.net_g.gain, 0.6)
    resumed.validation(val, 4, None, False)
    assert torch.load(tmp_path / 'models' / 'net_g_best.pth', weights_only=True)['params']['gain'].item() == 1.0


def test_several_data_sets_make_one_table(tmp_path):
    opt = small(run_options(tmp_path))
    opt['datasets']['val_2'] = {**opt['datasets']['val'], 'name': 'second'}
    model = build_model(opt)
    model.validation(loader(opt), 2, None, False)
    assert not (tmp_path / 'metrics.csv').exists()
    model.validation(loader(opt, 'val_2'), 2, None, False)
    rows = (tmp_path / 'metrics.csv').read_text().splitlines()
    assert len(rows) == 1 + 4 + 1
    assert 'second: strong' in (tmp_path / 'results.md').read_text()


def test_the_table_marks_numbers_that_are_not_comparable(tmp_path):
    opt = small(run_options(tmp_path))
    opt['datasets']['val']['tasks'][0]['expected_images'] = 500
    build_model(opt).validation(loader(opt), 2, None, False)
    text = (tmp_path / 'results.md').read_text()
    assert re.search(r"^- task '\w+' has \d+ images, the protocol has 500: results will not be comparable", text, re.M)


def test_tensorboard_gets_numbers_pictures_rates_and_prompts(tmp_path, batch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    opt = small(run_options(tmp_path, val__contact_sheet=True))
    writer = SummaryWriter(str(tmp_path / 'tb'))
    model = build_model(opt)
    model.run.tb_logger = writer
    model.validation(loader(opt), 2, writer, False)
    model.feed_data(batch)
    model.optimize_parameters(3)
    model.get_current_log()
    writer.close()
    events = EventAccumulator(str(tmp_path / 'tb'))
    events.Reload()

    def value(tag: str) -> float:
        (event,) = events.Scalars(tag)
        return event.value

    tags = events.Tags()['scalars']
    assert {'metrics/val/denoise/psnr', 'metrics/val/strong/ssim', 'metrics/average/psnr'} <= set(tags)
    assert value('metrics/val/denoise/input_psnr') == pytest.approx(model.report.inputs['val', 'denoise']['psnr'])
    assert value('learning_rate') == pytest.approx(opt['train']['optim_g']['lr'])
    (sheet,) = events.Images('contact_sheet')
    found = np.asarray(Image.open(io.BytesIO(sheet.encoded_image_string)))
    np.testing.assert_array_equal(found, np.asarray(Image.open(tmp_path / 'contact_sheet.png')))
    prompts = [tag for tag in tags if tag.startswith('prompts/val/denoise/')]
    assert len(prompts) == 3 * 5
    for level in (1, 2, 3):
        assert sum(value(tag) for tag in prompts if f'/level{level}/' in tag) == pytest.approx(1, abs=1e-5)


def test_checkpoints_are_read_back_by_basicsr(tmp_path, batch):
    opt = run_options(tmp_path, train__ema_decay=0.5)
    model = build_model(opt)
    model.feed_data(batch)
    model.optimize_parameters(1)
    model.save(0, 1)
    opt['path'].update(pretrain_network_g=str(tmp_path / 'models' / 'net_g_1.pth'), param_key_g='params_ema')
    again = build_model({**opt, 'is_train': False})
    model.feed_data(batch)
    model.test()
    again.feed_data(batch)
    again.test()
    assert torch.equal(model.output, again.output)
    state = torch.load(tmp_path / 'training_states' / '1.state', weights_only=True)
    assert state['iter'] == 1
    assert len(state['optimizers'][0]['state']) == len(list(model.net_g.parameters()))


@pytest.mark.parametrize(
    'network',
    [
        {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1, 'upscale': 1},
        {
            'type': 'SwinIR',
            'img_size': 16,
            'window_size': 8,
            'embed_dim': 8,
            'depths': [1],
            'num_heads': [2],
            'upscale': 1,
            'upsampler': '',
        },
    ],
    ids=lambda network: network['type'],
)
def test_basicsrs_own_networks_train_and_validate(tmp_path, batch, network):
    opt = small(run_options(tmp_path, network_g=network))
    model = build_model(opt)
    model.feed_data(batch)
    model.optimize_parameters(1)
    assert model.get_current_log()['l_pix'] > 0
    model.validation(loader(opt), 2, None, False)
    assert '| average | 4 |' in (tmp_path / 'results.md').read_text()


def test_a_plain_basicsr_data_set_can_be_validated(tmp_path):
    opt = small(run_options(tmp_path))
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
    build_model(opt).validation(loader(opt), 2, None, True)
    assert '| pairs | 2 |' in (tmp_path / 'results.md').read_text()


def test_operations_are_counted_for_256_pixels(tmp_path):
    assert operations_of({'type': 'OneConvolution'}) == pytest.approx(2 * 9 * 3 * 5 * 256**2 / 1e9)
    assert operations_of({'type': 'PromptIR'}) == pytest.approx(345.4, abs=0.1)  # docs/backbones.md
    # 6,285,440 multiplications a pixel of the restorer and 38,784 of the encoder's first block.
    assert operations_of({'type': 'AirNet'}) == pytest.approx(2 * (6_285_440 + 38_784) * 256**2 / 1e9)
    assert operations_of({'type': 'Nobody'}) is None
    opt = small(run_options(tmp_path))
    build_model(opt).validation(loader(opt), 2, None, False)
    facts = read_results(tmp_path).facts
    assert facts['gigaops_256'] == round(operations_of(opt['network_g']), 2) > 0
