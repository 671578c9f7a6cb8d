"""Metrics of pyiqa: the numbers where it is installed, one sentence where it is not or has no weights."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data

import promptir_basicsr  # noqa: F401  (registers)
from promptir_basicsr import cli
from promptir_basicsr.checks.run import check_metric
from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.evaluation.measuring import measure_image
from promptir_basicsr.metrics.pyiqa_metric import know_metric, lower_is_better

# isort: split
from basicsr.utils.registry import METRIC_REGISTRY

CLEAN = skimage.data.astronaut()[:96, 80:200]
NOISY = np.clip(CLEAN + np.random.default_rng(0).normal(0, 20, CLEAN.shape), 0, 255).astype(np.uint8)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    before = dict(METRIC_REGISTRY._obj_map)
    yield
    METRIC_REGISTRY._obj_map = before


def test_without_pyiqa_the_error_names_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, 'pyiqa', None)
    (problem,) = check_metric(('val', 'metrics', 'lpips'), {'type': 'pyiqa:lpips'})
    assert str(problem).startswith("val.metrics.lpips.type: 'pyiqa:lpips' needs pyiqa (")
    assert str(problem).endswith('pip install pyiqa')
    assert cli.main(['measure', str(tmp_path), '--target', str(tmp_path), '--metrics', 'pyiqa:lpips']) == 2
    assert capsys.readouterr().err.startswith("--metrics: 'pyiqa:lpips' needs pyiqa")


def test_other_names_are_left_alone() -> None:
    before = set(METRIC_REGISTRY.keys())
    for name in ('calculate_paper_psnr', 'pyiqa', 'lpips', None, 3):
        know_metric(name)
    assert set(METRIC_REGISTRY.keys()) == before
    assert not lower_is_better({'type': 'calculate_paper_psnr'})
    assert lower_is_better({'type': 'calculate_niqe', 'better': 'lower'})


def test_numbers_are_those_of_pyiqa_and_work_with_other_metrics(tmp_path: Path) -> None:
    pyiqa = pytest.importorskip('pyiqa')
    import torch

    metrics = {'psnr': {'type': 'calculate_paper_psnr'}, 'theirs': {'type': 'pyiqa:psnr', 'crop_border': 0}}
    metrics['border'] = {'type': 'pyiqa:psnr', 'crop_border': 7}
    metrics['ssim'] = {'type': 'pyiqa:ssim'}
    for name, options in metrics.items():
        assert check_metric(('val', 'metrics', name), options) == []
    x, y = (np.float32(image) / 255 for image in (NOISY, CLEAN))
    found = measure_image(metrics, x, y)
    assert found['theirs'] == pytest.approx(found['psnr'], abs=1e-3)
    expected = pyiqa.create_metric('ssim', device='cpu')(*(torch.from_numpy(i).permute(2, 0, 1)[None] for i in (x, y)))
    assert found['ssim'] == pytest.approx(float(expected), abs=1e-6)
    assert found['border'] != pytest.approx(found['theirs'], abs=1e-3)
    assert not lower_is_better(metrics['theirs'])
    assert METRIC_REGISTRY.get('pyiqa:psnr').definition.startswith('psnr of pyiqa ')

    for folder, image in (('restored', NOISY), ('clean', CLEAN)):
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / 'a.png'), image[..., ::-1])
    arguments = [str(tmp_path / 'restored'), '--target', str(tmp_path / 'clean'), '--metrics', 'psnr', 'pyiqa:psnr']
    assert cli.main(['measure', *arguments, '-o', str(tmp_path / 'results.json')]) == 0
    (task,) = json.loads((tmp_path / 'results.json').read_text())['tasks']
    assert task['values']['pyiqa:psnr'] == pytest.approx(task['values']['psnr'], abs=1e-3)


def test_mistakes_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip('pyiqa')
    with pytest.raises(OptionError, match=r"pyiqa has no metric 'lpisp'\. Did you mean 'lpips'"):
        know_metric('pyiqa:lpisp')
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    for name in ('HTTP_PROXY', 'HTTPS_PROXY', 'http_proxy', 'https_proxy'):
        monkeypatch.setenv(name, 'http://127.0.0.1:9')  # nobody is there
    with pytest.raises(OptionError, match=r"'pyiqa:niqe' cannot be created \(.*copy its cache"):
        know_metric('pyiqa:niqe')
