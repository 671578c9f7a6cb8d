"""Optimizers by their names, and how weights are shared out among the parts of Muon."""

from typing import Any

import numpy as np
import pytest
import torch

from promptir_basicsr.archs.pip_arch import PIPRestormer
from promptir_basicsr.archs.promptir_arch import PromptIR
from promptir_basicsr.checks.train import check_train
from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.optim.optimizers import build_optimizer, find_optimizer, is_hidden_matrix, option_names

MUON = {'lr': 0.02, 'weight_decay': 0.01, 'adamw_lr': 1e-3, 'adamw_betas': [0.9, 0.99]}
SMALL = {'dim': 16, 'num_blocks': [1, 1, 1, 1], 'num_refinement_blocks': 1}


def orthogonal(matrix: np.ndarray) -> np.ndarray:
    """Five steps of the quintic Newton-Schulz iteration of Muon, in float64."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide / np.linalg.norm(wide)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x if wide is matrix else x.T


def test_muon_orthogonalises_hidden_matrices_and_leaves_the_others_to_adamw() -> None:
    torch.manual_seed(0)
    net = PromptIR(**SMALL)
    before = {name: value.detach().double().numpy().copy() for name, value in net.named_parameters()}
    optimizer = build_optimizer('pytorch_optimizer:Muon', net.parameters(), **MUON)
    for value in net.parameters():
        value.grad = torch.randn_like(value)
    gradients = {name: value.grad.double().numpy().copy() for name, value in net.named_parameters()}
    optimizer.step()
    kinds = {True: 0, False: 0}
    for name, value in net.named_parameters():
        old, gradient, new = before[name], gradients[name], value.detach().double().numpy()
        hidden = value.ndim == 4 and value.shape[0] >= 8 and value.shape[1] >= 8
        kinds[hidden] += 1
        if hidden:
            rows, columns = value.shape[0], value[0].numel()
            step = orthogonal(gradient.reshape(rows, columns)) * max(1, rows / columns) ** 0.5
            expected = old * (1 - 0.02 * 0.01) - 0.02 * step.reshape(old.shape)
            assert np.abs(new - expected).max() < 0.02 * 0.03, name  # bfloat16 inside
        else:
            np.testing.assert_allclose(new, old - 1e-3 * np.sign(gradient), atol=2e-6, err_msg=name)
    assert min(kinds.values()) > 20


@pytest.mark.parametrize('network', [PromptIR, PIPRestormer])
def test_images_heads_depthwise_convolutions_and_prompts_are_not_hidden_matrices(network: Any) -> None:
    net = network(**SMALL)
    hidden = {name for name, value in net.named_parameters() if is_hidden_matrix(value)}
    assert all(value.ndim == 4 for name, value in net.named_parameters() if name in hidden)
    convolutions = {name: module for name, module in net.named_modules() if isinstance(module, torch.nn.Conv2d)}
    for name, module in convolutions.items():
        outside = 3 in (module.in_channels, module.out_channels)
        assert (f'{name}.weight' in hidden) <= (module.groups == 1 and not outside), name
    assert len(hidden) > 20


@pytest.mark.parametrize(
    ('name', 'sentence'),
    [
        ('AdmaW', "unknown optimizer 'AdmaW'. Did you mean 'AdamW'?"),
        ('lr_scheduler', "unknown optimizer 'lr_scheduler'"),
        ('Optimizer', "unknown optimizer 'Optimizer'"),
        (None, "unknown optimizer 'None'"),
        ('pytorch_optimizer:Moun', "unknown optimizer of pytorch_optimizer 'Moun'. Did you mean 'Muon'?"),
        ('pytorch_optimizer:', "unknown optimizer of pytorch_optimizer ''"),
        ('pytorch_optimizer:ScheduleFreeAdamW', 'uses different weights for validation and training'),
    ],
)
def test_what_is_not_an_optimizer(name: object, sentence: str) -> None:
    with pytest.raises(OptionError) as caught:
        find_optimizer(name)
    assert sentence in str(caught.value)


def test_options_of_the_adamw_within_count_as_its_own() -> None:
    names = option_names(find_optimizer('pytorch_optimizer:Muon'))
    assert {'lr', 'momentum', 'weight_decay', 'betas', 'eps', 'adamw_lr'} <= names
    assert not {'params', 'use_muon', 'step'} & names


def said(**options: Any) -> list[str]:
    train = {'total_iter': 9, 'optim_g': options, 'pixel_opt': {'type': 'L1Loss'}}
    return [str(found) for found in check_train(train, ours=True, network=None, sensor=False)]


@pytest.mark.parametrize(
    'options',
    [
        {'type': 'pytorch_optimizer:Muon', **MUON},
        {'type': 'pytorch_optimizer:Muon', **MUON, 'ns_method': 'gram_newton_schulz', 'nesterov': False},
        {'type': 'pytorch_optimizer:SOAP', 'lr': 1e-3},
        {'type': 'pytorch_optimizer:Lion', 'lr': 1e-4},
        {'type': 'AdamW', 'lr': 1e-3, 'betas': [0.9, 0.99]},
        {'type': 'AdamW', 'lr': 1e-3, 'fused': True},
        {'type': 'AdamW', 'lr': 1e-3, 'capturable': True},
        {'type': 'Adafactor', 'lr': 1e-3},
    ],
)
def test_what_trains_convolutions_passes_the_check(options: dict[str, Any]) -> None:
    assert said(**options) == []


@pytest.mark.parametrize(
    ('options', 'sentence'),
    [
        (
            {'type': 'pytorch_optimizer:Muon', 'lr': 0.02, 'adam_lr': 1e-3},
            "train.optim_g: unknown option 'adam_lr'. Did you mean 'adamw_lr'?",
        ),
        (
            {'type': 'pytorch_optimizer:Muon', 'lr': 0.02, 'momentum': 1.5},
            'train.optim_g.momentum: momentum must be in the range [0.0, 1.0)',
        ),
        ({'type': 'Muon', 'lr': 0.02}, 'train.optim_g.type: Muon cannot train convolutions'),
        ({'type': 'Muon', 'lr': 0.02}, 'Use pytorch_optimizer:Muon.'),
        ({'type': 'LBFGS', 'lr': 1}, 'train.optim_g.type: LBFGS cannot train convolutions'),
        ({'type': 'pytorch_optimizer:SAM', 'lr': 1}, 'train.optim_g.base_optimizer: is missing.'),
        ({'type': 'pytorch_optimizer:AdaShift', 'lr': 1}, 'AdaShift cannot train convolutions'),
    ],
)
def test_what_does_not_train_convolutions_is_refused(options: dict[str, Any], sentence: str) -> None:
    assert sentence in '\n'.join(said(**options))
