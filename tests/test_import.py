"""Importing the package registers, and does nothing else."""

import subprocess
import sys
from importlib.metadata import entry_points, version

import pytest

import promptir_basicsr
from promptir_basicsr.cli import PLUGIN_GROUP

# isort: split
from basicsr.utils.registry import (
    ARCH_REGISTRY,
    DATASET_REGISTRY,
    LOSS_REGISTRY,
    METRIC_REGISTRY,
    MODEL_REGISTRY,
    Registry,
)

REGISTRIES = {
    'archs': (ARCH_REGISTRY, '_arch'),
    'data': (DATASET_REGISTRY, '_dataset'),
    'losses': (LOSS_REGISTRY, '_loss'),
    'metrics': (METRIC_REGISTRY, '_metric'),
    'models': (MODEL_REGISTRY, '_model'),
}


def python(program: str) -> None:
    """Run a program that must succeed and say nothing."""
    process = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    assert process.stdout == ''
    assert process.stderr == ''


def ours(registry: Registry) -> dict[str, str]:
    """Names in a registry that come from this package, and their modules."""
    return {name: obj.__module__ for name, obj in registry if obj.__module__.startswith('promptir_basicsr.')}


def test_an_import_prints_nothing_makes_no_logger_and_draws_no_number() -> None:
    python("""
import logging, os, random, sys
import numpy as np
import torch


def state():
    kind, keys, *rest = np.random.get_state()
    return random.getstate(), kind, keys.tolist(), rest, torch.get_rng_state().tolist()


def settings():
    switches = torch.get_num_threads(), torch.get_default_dtype(), torch.backends.cudnn.benchmark
    return switches, torch.is_grad_enabled(), os.getcwd(), sys.argv, logging.getLogger().level


before = state(), settings()
import promptir_basicsr
assert (state(), settings()) == before
import promptir_basicsr
from basicsr.utils.logger import initialized_logger
assert initialized_logger == {}
handlers = {name for name in logging.Logger.manager.loggerDict if logging.getLogger(name).handlers}
assert not {name for name in handlers if name.split('.')[0] in ('basicsr', 'promptir_basicsr')}, handlers
assert logging.getLogger().handlers == []

import basicsr.test
import basicsr.train
from promptir_basicsr.host import options
assert basicsr.train.parse_options is basicsr.test.parse_options is options.parse_options
""")


def test_an_import_leaves_out_what_hardly_a_run_uses() -> None:
    python("""
import sys
import promptir_basicsr
assert not {'torch._dynamo', 'torch._inductor', 'scipy.stats', 'skimage', 'matplotlib'} & sys.modules.keys()

import torch, torchvision, basicsr.data.degradations, scipy.stats
assert basicsr.data.degradations.multivariate_normal.pdf(0.0, 0, 1) == scipy.stats.multivariate_normal.pdf(0.0, 0, 1)
boxes = torch.tensor([[0, 0, 0, 8.0, 8.0]])
assert torchvision.ops.roi_align(torch.ones(1, 3, 16, 16), boxes, 4).eq(1).all()
assert sys.modules['scipy.stats'].__file__
import torch._dynamo.utils
assert torch._dynamo.utils.__file__
""")


def test_loading_again_is_harmless() -> None:
    """The package, then each of its modules; registries hold the newest classes, patches are not stacked."""
    python("""
import importlib, sys
import promptir_basicsr
from basicsr.models.base_model import BaseModel
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY

registries = ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY
names = [sorted(registry.keys()) for registry in registries]
importlib.reload(promptir_basicsr)
for name in [name for name in sys.modules if name.startswith('promptir_basicsr.')]:
    importlib.reload(sys.modules[name])
importlib.reload(promptir_basicsr)
assert [sorted(registry.keys()) for registry in registries] == names
for registry in registries:
    for name, obj in registry:
        if obj.__module__.startswith('promptir_basicsr'):
            assert obj is getattr(sys.modules[obj.__module__], name), name
for method in (BaseModel.get_optimizer, BaseModel.setup_schedulers):
    assert not hasattr(method.__wrapped__, '__wrapped__')
import basicsr.train
assert basicsr.train.parse_options is sys.modules['promptir_basicsr.host.options'].parse_options
assert basicsr.train.train_pipeline is sys.modules['promptir_basicsr.host.trainer'].train_pipeline
""")


def test_what_is_registered() -> None:
    assert 'PromptIR' in ours(ARCH_REGISTRY)
    assert 'AllInOneDataset' in ours(DATASET_REGISTRY)
    assert {'PromptDecorrelationLoss', 'FrequencyLoss', 'SmoothL1Loss'} == ours(LOSS_REGISTRY).keys()
    assert 'PromptModel' in ours(MODEL_REGISTRY)
    assert {'calculate_paper_psnr', 'calculate_paper_ssim'} <= ours(METRIC_REGISTRY).keys()


@pytest.mark.parametrize('folder', REGISTRIES)
def test_registered_classes_are_in_the_folders_that_basicsr_uses(folder: str) -> None:
    registry, suffix = REGISTRIES[folder]
    for name, module in ours(registry).items():
        assert module.startswith(f'promptir_basicsr.{folder}.'), name
        assert module.endswith(suffix), name


def test_the_entry_point_of_the_plugin() -> None:
    (plugin,) = [plugin for plugin in entry_points(group=PLUGIN_GROUP) if plugin.name == 'promptir_basicsr']
    assert PLUGIN_GROUP == 'basicsr.plugins'
    assert plugin.load() is promptir_basicsr


def test_the_version() -> None:
    assert promptir_basicsr.__version__ == version('promptir_basicsr')
