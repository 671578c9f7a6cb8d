"""Check that the options of precision, memory and speed fit each other."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from basicsr.utils.registry import ARCH_REGISTRY

from promptir_basicsr.archs.fast.kernels import kernel_problems
from promptir_basicsr.core.problems import Keys, Problem, place, problem
from promptir_basicsr.core.registry import build
from promptir_basicsr.data.stages import by_stage
from promptir_basicsr.options.data import AllInOneTrainingOptions
from promptir_basicsr.runtime.precision import device_problems
from promptir_basicsr.runtime.recompute import set_blocks


def check_speed(
    options: Mapping[str, Any], is_train: bool, processes: int, network: Mapping[str, Any] | None
) -> list[Problem]:
    """Problems of all these options of a file.

    Args:
        options: the file's content, without invalid options.
        is_train: for a training; a test has no step.
        processes: number of processes that share an iteration.
        network: `network_g`, if it is valid.
    """
    gpus = options.get('num_gpu')
    problems: list[Problem] = []
    if is_train:
        problems += check_device('precision', options.get('precision'), gpus)
        problems += check_compile(options.get('compile'), gpus, processes)
        dataset = AllInOneTrainingOptions.sound(options.get('datasets', {}).get('train', {}))[0]
        problems += check_accumulate(options.get('train', {}), by_stage(dataset, 'batch_size_per_gpu'))
    problems += check_device(('val', 'precision'), options.get('val', {}).get('precision'), gpus)
    problems += _of_machine(kernel_problems('kernels', options.get('kernels'), _device(gpus)), gpus)
    if network is not None:
        keys = ('formulation', 'activation_checkpointing', 'kernels')
        problems += check_blocks(network, *(options.get(key) for key in keys))
    return problems


def check_device(where: str | Keys, precision: str | None, gpus: object) -> list[Problem]:
    """Check that the device supports a precision; `gpus` is `num_gpu`."""
    return [] if precision is None else _of_machine(device_problems(where, precision, _device(gpus)), gpus)


def _device(gpus: object) -> torch.device:
    return torch.device('cpu' if gpus == 0 or not torch.cuda.is_available() else 'cuda')


def _of_machine(problems: list[Problem], gpus: object) -> list[Problem]:
    # Another machine may have other GPUs.
    return problems if gpus == 0 else [replace(each, kind='machine') for each in problems]


def check_compile(how: object, gpus: object, processes: int) -> list[Problem]:
    """Check that a compiled network runs on one GPU per process; `gpus` is `num_gpu`."""
    number = torch.cuda.device_count() if gpus == 'auto' else gpus
    if not how or processes > 1 or not isinstance(number, int) or number < 2:
        return []
    advice = 'Start one process per GPU (torchrun ... --launcher pytorch), or set `num_gpu: 1`.'
    return [problem('compile', f'not supported for {number} GPUs of one process. {advice}')]


def check_accumulate(train: Mapping[str, Any], sizes: Mapping[Keys, int]) -> list[Problem]:
    """Check gradient accumulation: equal micro-batches, and losses that are means.

    Args:
        sizes: batch sizes, by their places in the training set.
    """
    where, count = ('train', 'accumulate'), train.get('accumulate')
    if not count or count == 1:
        return []
    problems: list[Problem] = []
    common = math.gcd(*sizes.values())
    if wrong_sizes := [(path, size) for path, size in sizes.items() if size % count]:
        allowed = ', '.join(str(number) for number in range(1, common + 1) if common % number == 0)
        path, batch = wrong_sizes[0]
        message = f'{count} does not divide {place(("datasets", "train", *path))}, {batch}, into equal parts.'
        problems.append(problem(where, f'{message} Allowed: {allowed}.'))
    for key in ('pixel_opt', 'frequency_opt', 'perceptual_opt'):
        loss = train.get(key)
        if loss and (loss.get('reduction') == 'sum' or loss.get('criterion') == 'fro'):
            wrong = 'reduction' if loss.get('reduction') == 'sum' else 'criterion'
            message = (
                f"'{loss[wrong]}' is not a mean over images, which `train.accumulate` needs. "
                'Use one that is, or remove accumulate.'
            )
            problems.append(problem(('train', key, wrong), message))
    return problems


def check_blocks(network: Mapping[str, Any], formulation: Any, checkpointing: Any, kernels: Any) -> list[Problem]:
    """Check that a network has the requested blocks. It is built on the meta device, if that is possible."""
    if formulation is None and checkpointing in (None, 'none') and kernels is None:
        return []
    try:
        net = build(ARCH_REGISTRY, network, 'meta')
    except Exception:  # not every constructor supports meta tensors; the model checks again
        return []
    return set_blocks(net, formulation, checkpointing, kernels)
