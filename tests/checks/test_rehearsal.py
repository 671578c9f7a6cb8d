"""What passes the check of options survives the first iteration and the first validation: it is rehearsed."""

import json
import logging
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from promptir_basicsr import cli
from promptir_basicsr.checks.check import check_file
from promptir_basicsr.checks.rehearsal import rehearse
from promptir_basicsr.checks.run import check_options
from promptir_basicsr.core.yaml_loader import parse_value
from tests.tiny_training import TINY_TRAINING

# isort: split
from basicsr.utils.logger import initialized_logger
from basicsr.utils.registry import ARCH_REGISTRY, METRIC_REGISTRY

VAL = {
    'name': 'set',
    'type': 'AllInOneDataset',
    'tasks': [{'type': 'denoise', 'clean': 'clean', 'degrade': {'type': 'gaussian_noise', 'sigma': 25}}],
}
METRICS = {'psnr': {'type': 'calculate_paper_psnr'}, 'ssim': {'type': 'calculate_paper_ssim'}}


@pytest.fixture
def options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[..., Path], photographs: Any
) -> dict[str, Any]:
    """Of a training with a validation, on images of the current folder."""
    monkeypatch.chdir(tmp_path)
    for number, photograph in enumerate(photographs):
        write(f'clean/{number}.png', photograph)
    found: dict[str, Any] = parse_value(TINY_TRAINING, 'tiny')
    found['datasets'] |= {'val': json.loads(json.dumps(VAL))}
    found['val'] = {'val_freq': 2, 'save_img': False, 'metrics': json.loads(json.dumps(METRICS))}
    return found


@pytest.fixture
def register() -> Iterator[Callable[..., None]]:
    """register(registry, object): until the test ends."""
    names = []

    def put(registry: Any, thing: Any) -> None:
        registry.register(thing)
        names.append((registry, thing.__name__))

    yield put
    for registry, name in names:
        del registry._obj_map[name]


def problems(options: dict[str, Any], is_train: bool = True) -> list[str]:
    """Of the rehearsal; the check before it finds none."""
    assert check_options(options, is_train) == []
    return [str(each) for each in rehearse(options, is_train)]


def test_right_options_pass_and_leave_no_files(options: dict[str, Any], tmp_path: Path) -> None:
    files = sorted(tmp_path.rglob('*'))
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    given = json.dumps(options)
    assert problems(options) == []
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states
    assert sorted(tmp_path.rglob('*')) == files
    assert json.dumps(options) == given
    assert 'basicsr' not in initialized_logger
    assert not logging.getLogger('basicsr').disabled


def test_a_test_is_rehearsed_without_training(options: dict[str, Any]) -> None:
    measuring = {key: value for key, value in options.items() if key not in ('train', 'logger')}
    measuring['datasets'] = {'test': options['datasets']['val']}
    measuring['val'] = {'metrics': METRICS, 'save_img': False}
    assert problems(measuring, False) == []


def test_an_image_below_the_window_of_a_metric(
    options: dict[str, Any], write: Callable[..., Path], photographs: Any
) -> None:
    write('clean/narrow.png', photographs[0][:6, :20])
    (found,) = problems(options)
    assert found.startswith('val.metrics.ssim: ssim: image of 6x20 pixels, the 7x7 window')
    assert 'narrow.png' in found
    del options['val']['metrics']['ssim']
    assert problems(options) == []


def test_a_metric_that_fails(options: dict[str, Any], register: Callable[..., None]) -> None:
    def calculate_nothing(img: Any, img2: Any) -> float:
        raise KeyError('weights')

    register(METRIC_REGISTRY, calculate_nothing)
    options['val']['metrics'] = {'nothing': {'type': 'calculate_nothing'}}
    (found,) = problems(options)
    assert found.startswith("val.metrics.nothing: 'weights'")


def test_channels_that_differ(options: dict[str, Any]) -> None:
    options['network_g'] |= {'inp_channels': 1, 'out_channels': 1}
    (found, *_) = rehearse(options, True)
    assert found.path == ('network_g',)


class Halves(nn.Module):
    """Half the size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


class WantsItsSize(nn.Module):
    """A network that takes one size only."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(3, size, size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.bias


class Normalises(nn.Module):
    """Batch normalisation of one number a channel and image, which needs two images."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.norm(x.mean(dim=(2, 3), keepdim=True))


def test_a_network_that_changes_the_size(options: dict[str, Any], register: Callable[..., None]) -> None:
    register(ARCH_REGISTRY, Halves)
    options['network_g'] = {'type': 'Halves'}
    found = problems(options)
    said = 'the network returns 3 channels of 8x8, the clear images have 3 channels of 16x16.'
    assert found[0] == f'network_g: fails on images of derain: {said}'


def test_a_network_that_wants_the_size_of_the_crops(options: dict[str, Any], register: Callable[..., None]) -> None:
    register(ARCH_REGISTRY, WantsItsSize)
    options['network_g'] = {'type': 'WantsItsSize', 'size': 16}
    options['datasets'].pop('val')
    assert problems(options) == []
    options['datasets']['train']['gt_size'] = 48
    (found,) = problems(options)
    assert found.startswith('network_g: fails on images of derain: RuntimeError: The size of tensor a (48)')
    assert 'test_rehearsal.py, line' in found
    options['network_g']['size'] = 48
    assert problems(options) == []


def test_a_batch_is_as_large_as_that_of_the_training(options: dict[str, Any], register: Callable[..., None]) -> None:
    register(ARCH_REGISTRY, Normalises)
    options['network_g'] = {'type': 'Normalises'}
    assert problems(options) == []
    options['datasets']['train']['batch_size_per_gpu'] = 1
    (found,) = problems(options)
    assert 'Expected more than 1 value per channel' in found


def test_a_network_of_others_may_need_the_gpu_of_another_machine(
    options: dict[str, Any], register: Callable[..., None]
) -> None:
    register(ARCH_REGISTRY, Halves)
    options |= {'network_g': {'type': 'Halves'}, 'num_gpu': 'auto'}
    if not torch.cuda.is_available():
        assert [each.kind for each in rehearse(options, True)] == ['machine', 'machine']


@pytest.mark.parametrize(
    'network',
    [
        {
            'type': 'PIPRestormer',
            'prompt_dims': [12, 12, 12],
            'dim': 8,
            'num_blocks': [1, 1, 1, 1],
            'num_refinement_blocks': 1,
            'heads': [1, 1, 1, 1],
        }
    ],
)
def test_a_data_set_without_labels(network: dict[str, Any], options: dict[str, Any]) -> None:
    options['network_g'] = network
    options['scale'] = 1
    paired = {
        'type': 'PairedImageDataset',
        'name': 'p',
        'dataroot_lq': 'clean',
        'dataroot_gt': 'clean',
        'io_backend': {'type': 'disk'},
    }
    options['datasets']['train'] = {
        **paired,
        'gt_size': 16,
        'batch_size_per_gpu': 2,
        'num_worker_per_gpu': 0,
        'use_hflip': False,
        'use_rot': False,
    }
    (found,) = problems(options)
    assert found.startswith('network_g: fails on images of train')
    assert 'degradation' in found
    del options['scale']
    (found,) = problems(options)
    assert found.startswith("datasets.train: returns no sample: KeyError: 'scale'")


def test_a_data_set_of_others_that_is_empty(options: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / 'empty').mkdir()
    options['scale'] = 1
    options['datasets']['val'] = {
        'type': 'SingleImageDataset',
        'name': 's',
        'dataroot_lq': 'empty',
        'io_backend': {'type': 'disk'},
    }
    (found,) = problems(options)
    assert found == 'datasets.val: has no images. Correct its paths.'


def test_a_training_set_without_clear_images(options: dict[str, Any]) -> None:
    single = {'type': 'SingleImageDataset', 'name': 's', 'dataroot_lq': 'clean', 'io_backend': {'type': 'disk'}}
    options['datasets']['train'] = {**single, 'batch_size_per_gpu': 1, 'num_worker_per_gpu': 0}
    assert problems(options) == ['datasets.train: its samples have no `gt`, which PromptModel needs.']


@pytest.mark.parametrize('verb', ['train', 'test', 'check'])
def test_commands_refuse_before_anything_is_created(
    verb: str, options: dict[str, Any], write: Callable[..., Path], photographs: Any, tmp_path: Path, capsys: Any
) -> None:
    write('clean/narrow.png', photographs[0][:6, :20])
    if verb == 'test':
        options = {key: value for key, value in options.items() if key not in ('train', 'logger')}
        options['datasets'] = {'test': options['datasets']['val']}
    (tmp_path / 'tiny.yml').write_text(yaml.safe_dump(options), encoding='utf-8')
    before = sorted(tmp_path.rglob('*'))
    assert cli.main([verb, '-opt', 'tiny.yml']) == (1 if verb == 'check' else 2)
    assert 'the 7x7 window needs at least 7x7' in ''.join(capsys.readouterr())
    assert sorted(tmp_path.rglob('*')) == before


def test_fast_leaves_the_rehearsal_out(
    options: dict[str, Any], write: Callable[..., Path], photographs: Any, tmp_path: Path
) -> None:
    write('clean/narrow.png', photographs[0][:6, :20])
    (tmp_path / 'tiny.yml').write_text(yaml.safe_dump(options), encoding='utf-8')
    assert not check_file('tiny.yml').right
    assert check_file('tiny.yml', decode=False).right
