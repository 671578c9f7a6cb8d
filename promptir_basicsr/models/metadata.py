"""Facts about a run, for the metadata of its weights and for `results.json`."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from promptir_basicsr.archs.airnet_arch import OPERATIONS
from promptir_basicsr.archs.elsewhere import without_folder
from promptir_basicsr.archs.layers.formulation import set_formulation
from promptir_basicsr.archs.traits import traits_of
from promptir_basicsr.checkpoints.reading import FORMAT, plain
from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.core.registry import build
from promptir_basicsr.core.version import __version__
from promptir_basicsr.data.protocol import expand_protocol

_SIDE = 256
_OF_NO_EFFECT = frozenset(
    'seed name num_worker_per_gpu prefetch_mode num_prefetch_queue pin_memory persistent_workers'.split()
)
"""Options of a training set that a recipe does not depend on."""


def training_metadata(
    opt: Mapping[str, Any],
    net: nn.Module,
    iteration: int,
    epoch: int | None,
    metrics: Mapping[str, Any] | None,
    best: Mapping[str, Any] | None,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Metadata of a checkpoint as mappings, lists, numbers and strings, which every reader of weights accepts.

    Args:
        opt: the options of the run.
        net: the network, without wrappers.
        iteration: of the weights.
        epoch: of the iteration, from 0.
        metrics: of the last validation, from `measured` or `last_measured`.
        best: metric, value and iter of the best average so far.
        facts: facts about the run, of which seed and recipe are kept.
    """
    training = (opt.get('datasets') or {}).get('train') or {}
    tasks = _tasks(training)
    types = list(dict.fromkeys(str(task['type']) for task in tasks if 'type' in task))
    known = {
        'name': opt.get('name'),
        'iteration': iteration,
        'epoch': epoch,
        'seed': facts.get('seed'),
        'recipe': facts.get('recipe'),
        'protocol': training.get('protocol'),
        'tasks': [str(task.get('name') or task.get('type')) for task in tasks],
        'degradations': traits_of(net).degradations or types,
        'metrics': metrics,
        'best': best,
    }
    told = {key: value for key, value in known.items() if value is not None and value != []}
    return plain({'format': FORMAT, 'package': __version__, 'network_g': without_folder(opt['network_g']), **told})


def run_facts(
    opt: Mapping[str, Any], net: nn.Module, device: torch.device, origin: Mapping[str, Any]
) -> dict[str, Any]:
    """Facts about a run that its results depend on, for `results.json`.

    `recipe` is the same for runs that differ only in seed, name, and where their data are and how they are loaded, and
    for tests of their weights with the same options. The seed of a test is that of the training.

    Args:
        opt: the options of the run.
        net: the network, without wrappers.
        device: of the network.
        origin: metadata of the file from which the network's weights are.
    """
    sets = opt.get('datasets') or {}
    train = sets.get('train') or {}
    measured = [options for key, options in sets.items() if key != 'train']
    facts = {
        'network': type(net).__name__,
        'parameters': sum(parameter.numel() for parameter in net.parameters()),
        'network_g': plain(without_folder(opt['network_g'])),
        'protocol': train.get('protocol')
        or next((each['protocol'] for each in measured if each.get('protocol')), None),
        'seed': opt.get('manual_seed') if opt['is_train'] else origin.get('seed', opt.get('manual_seed')),
        'weights': None if opt['is_train'] else opt['path'].get('pretrain_network_g'),
        'device': torch.cuda.get_device_name(device) if device.type == 'cuda' else 'CPU',
    }
    numbers = {key: opt.get(key) for key in ('precision', 'formulation')}
    if opt['is_train']:
        data = {key: value for key, value in train.items() if key not in _OF_NO_EFFECT}
        facts['total_iter'] = opt['train']['total_iter']
        numbers |= {key: opt.get(key) for key in ('activation_checkpointing', 'world_size')}
        facts['recipe'] = _hashed([opt['network_g'], opt['train'], data, numbers])
    elif 'recipe' in origin:
        facts['recipe'] = _hashed([origin['recipe'], opt['network_g'], opt.get('val'), measured, numbers])
    return {key: value for key, value in facts.items() if value is not None}


def _hashed(options: Any) -> str:
    return hashlib.sha256(json.dumps(_placeless(options), sort_keys=True, default=str).encode()).hexdigest()[:16]


def _placeless(options: Any) -> Any:
    """Options in which paths are the names of their files and folders."""
    if isinstance(options, Mapping):
        return {key: _placeless(value) for key, value in options.items()}
    if isinstance(options, list | tuple):
        return [_placeless(value) for value in options]
    return os.path.basename(options.rstrip('/')) if isinstance(options, str) else options


def operations_of(network: Mapping[str, Any]) -> float | None:
    """Operations of a network for an image of 256 x 256, in 10^9, counting convolutions and matrix products; a
    multiplication and an addition are two.

    Args:
        network: `type` and arguments.

    Returns:
        The number; None for a network that cannot run on the meta device.
    """
    return _operations(json.dumps(network, sort_keys=True, default=str))


@cache
def _operations(network: str) -> float | None:
    try:
        net = build(ARCH_REGISTRY, json.loads(network), 'meta').eval()
        set_formulation(net, 'plain')  # as papers count; the fast formulation saves a few products
        traits = traits_of(net)
        told = [torch.zeros(1, dtype=torch.long, device='meta')] if traits.takes_degradation else []
        with FlopCounterMode(display=False, custom_mapping=OPERATIONS) as counter, torch.no_grad():
            net(torch.zeros(1, traits.image_channels, _SIDE, _SIDE, device='meta'), *told)
    except Exception:  # third-party networks may not support the meta device
        return None
    return counter.get_total_flops() / 1e9


def _tasks(training: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Options of the tasks of the training set, including those of a protocol."""
    try:
        tasks = expand_protocol({**training, 'phase': 'train'}, 'datasets.train').get('tasks')
    except OptionError:  # a dataset of another type, whose options have another meaning
        return []
    listed = tasks if isinstance(tasks, Sequence) and not isinstance(tasks, str) else ()
    return [task for task in listed if isinstance(task, Mapping)]
