"""`basicsr test` saves results as deep as their inputs, and measures them as before; grey images stay grey."""

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from promptir_basicsr import cli
from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.evaluation.validation import Report
from promptir_basicsr.metrics import psnr, ssim
from tests.explain.explain_data import PROMPTIR, options_of
from tests.tiny_training import TINY_TRAINING


@pytest.mark.parametrize('depth', [8, 16])
def test_results_keep_the_depth_of_their_inputs(
    depth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write, photographs
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['pytest'])
    clear = photographs[0][:32, :32].astype(f'uint{depth}') * (257 if depth == 16 else 1)
    write('gt/a.png', clear)
    write('lq/a.png', clear // 2)
    options = {**options_of(PROMPTIR), 'num_gpu': 0}
    task = {'name': 'own', 'type': 'lowlight', 'lq': str(tmp_path / 'lq'), 'gt': str(tmp_path / 'gt')}
    options['datasets']['val']['tasks'] = [task]
    options['val'] = {
        'save_img': True,
        'metrics': {'psnr': {'type': 'calculate_psnr', 'crop_border': 0, 'test_y_channel': False}},
    }
    Path('run.yml').write_text(yaml.safe_dump(options, sort_keys=False))
    assert cli.main(['test', '-opt', 'run.yml']) == 0
    (path,) = [path for path in tmp_path.glob('results/**/a_*.png') if path.parent.name != 'comparison']
    result = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert result.dtype == clear.dtype
    assert depth == 8 or (result % 257 != 0).any()
    (rows,) = tmp_path.glob('results/*/metrics.csv')
    # BasicSR's metric sees what it has always seen: images rounded to 8 bits.
    rounded = [np.rint(image / np.iinfo(image.dtype).max * 255) for image in (result[..., ::-1], clear)]
    expected = 10 * np.log10(255**2 / np.mean((rounded[0] - rounded[1]) ** 2))
    (row,) = [line for line in rows.read_text().splitlines() if 'own' in line]
    assert any(abs(float(field) - expected) < 2e-3 for field in row.split(',') if field[:1].isdigit())


METRICS = {
    'psnr': {'type': 'calculate_paper_psnr'},
    'ssim': {'type': 'calculate_paper_ssim'},
    'psnr_8': {'type': 'calculate_psnr', 'crop_border': 0},
    'ssim_8': {'type': 'calculate_ssim', 'crop_border': 0, 'test_y_channel': True},
}


def report_of(metrics: dict) -> Report:
    return Report({'is_train': False, 'path': {}, 'val': {'metrics': metrics}})


def test_metrics_of_grey_images_are_those_of_their_plane(photographs) -> None:
    gt = photographs[0][..., :1].astype(np.float32) / 255
    x = np.clip(gt + np.random.default_rng(0).normal(0, 0.1, gt.shape), 0, 1)
    found = report_of(METRICS).measure(x, gt)
    assert found['psnr'] == psnr(x, gt)
    assert found['ssim'] == ssim(x, gt)
    rounded = [np.rint(image[..., 0] * 255) for image in (x, gt)]
    assert found['psnr_8'] == pytest.approx(10 * np.log10(255**2 / np.mean((rounded[0] - rounded[1]) ** 2)))
    expected = ssim(*(image / 255 for image in rounded), window='gaussian')
    assert found['ssim_8'] == pytest.approx(expected, abs=2e-3)  # BasicSR's covariances are of the population


def test_a_colour_metric_reports_grey_images(photographs) -> None:
    report = report_of({'niqe': {'type': 'calculate_niqe', 'crop_border': 0, 'convert_to': 'gray'}})
    colours = np.tile(photographs[0].astype(np.float32) / 255, (3, 3, 1))
    assert report.measure(colours, colours)['niqe'] > 0
    with pytest.raises(OptionError, match=r'val.metrics.niqe: calculate_niqe failed on a grey image \(.*channels: 1'):
        report.measure(colours[..., :1], colours[..., :1])


@pytest.mark.parametrize('kind', [np.uint8, np.uint16])
def test_a_training_on_grey_images_from_data_to_restored_pictures(
    kind, tmp_path: Path, monkeypatch, photographs
) -> None:
    """Infrared and medical data: 16-bit files, a network of one channel, tables and pictures in grey."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['pytest'])
    Path('clean').mkdir()
    image = photographs[0][:40, :48, 1].astype(kind) * (257 if kind == np.uint16 else 1)
    cv2.imwrite('clean/a.png', image)
    cv2.imwrite('colour.png', photographs[0][:40, :48])

    options = yaml.safe_load(TINY_TRAINING)
    task = {'name': 'bsd', 'type': 'denoise', 'clean': 'clean', 'channels': 1}
    task['degrade'] = {'type': 'gaussian_noise', 'sigma': 25, 'quantize': 'float'}
    options['datasets']['train']['tasks'] = [{**task, 'copies': 8}]
    options['datasets']['val'] = {'name': 'tests', 'type': 'AllInOneDataset', 'tasks': [task]}
    options['network_g'] |= {'inp_channels': 1, 'out_channels': 1}
    options['train']['total_iter'] = 2
    options['val'] = {'val_freq': 2, 'save_img': True, 'contact_sheet': True, 'metrics': METRICS}
    Path('run.yml').write_text(yaml.safe_dump(options, sort_keys=False))
    assert cli.main(['train', '-opt', 'run.yml']) == 0
    run = tmp_path / 'experiments' / 'tiny'
    table = (run / 'results.md').read_text()
    assert '- psnr: PSNR: grey, float, not rounded, data range 1' in table
    assert 'RGB' not in table
    comparison = cv2.imread(str(run / 'visualization/tests/bsd/a_2.png'), cv2.IMREAD_UNCHANGED)
    assert comparison.shape == (40, 3 * 48 + 2 * 4)
    assert cv2.imread(str(run / 'contact_sheet.png'), cv2.IMREAD_UNCHANGED).ndim == 3

    options['datasets'] = {'test': options['datasets']['val']}
    options['path']['pretrain_network_g'] = weights = str(run / 'models' / 'net_g_latest.pth')
    options['val'].pop('val_freq')
    measuring = {key: value for key, value in options.items() if key not in ('train', 'logger')}
    Path('test.yml').write_text(yaml.safe_dump(measuring, sort_keys=False))
    assert cli.main(['test', '-opt', 'test.yml']) == 0
    saved = cv2.imread('results/tiny/visualization/tests/bsd/a_restored.png', cv2.IMREAD_UNCHANGED)
    assert (saved.shape, saved.dtype) == ((40, 48), kind)
    assert kind == np.uint8 or (saved % 257 != 0).any()

    assert cli.main(['restore', 'clean/a.png', 'colour.png', '-o', 'out', '--weights', weights, '--device', 'cpu']) == 0
    grey, colour = (cv2.imread(f'out/{name}.png', cv2.IMREAD_UNCHANGED) for name in ('a', 'colour'))
    assert (grey.shape, grey.dtype, colour.shape, colour.dtype) == ((40, 48), kind, (40, 48), np.uint8)
