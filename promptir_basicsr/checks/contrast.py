"""Check that the options of contrastive training fit each other: network, samples, queue, stages."""

from collections.abc import Mapping
from typing import Any

import torch
from basicsr.utils.registry import ARCH_REGISTRY

from promptir_basicsr.archs.traits import Contrastive, names_of, traits_of
from promptir_basicsr.core.problems import Keys, Problem, place, problem
from promptir_basicsr.core.registry import build, find_registered
from promptir_basicsr.data.stages import by_stage
from promptir_basicsr.options.data import AllInOneTrainingOptions


def check_contrast(options: Mapping[str, Any], processes: int, network: Mapping[str, Any] | None) -> list[Problem]:
    """Problems that are specific to a training with ContrastiveModel.

    Args:
        options: the file's content, without invalid options.
        processes: number of processes that share an iteration and their keys.
        network: `network_g`, if it is valid.
    """
    train, dataset = options.get('train', {}), options.get('datasets', {}).get('train', {})
    problems = [*_check_stages(train), *_check_gpus(options.get('num_gpu'), processes)]
    if dataset.get('type') == 'AllInOneDataset' and not dataset.get('second_crop'):
        message = 'ContrastiveModel compares two crops of each image. Set `second_crop: true`.'
        problems.append(problem(('datasets', 'train', 'second_crop'), message))
    if network is None:
        return problems
    if not traits_of(find_registered(ARCH_REGISTRY, network['type'])).contrastive:
        allowed = ', '.join(names_of(lambda traits: traits.contrastive))
        message = f"'{network['type']}' has no contrastive encoder for ContrastiveModel to train. Allowed: {allowed}."
        return [*problems, problem(('network_g', 'type'), message)]
    built: Contrastive = build(ARCH_REGISTRY, network, 'meta')
    sizes = by_stage(AllInOneTrainingOptions.sound(dataset)[0], 'batch_size_per_gpu')
    return problems + _check_queue(built.queue_length, sizes, train.get('accumulate') or 1, processes)


def _check_stages(train: Mapping[str, Any]) -> list[Problem]:
    """Check that the restorer is trained before the run ends."""
    encoder, total = train.get('encoder_iter') or 0, train.get('total_iter')
    if total is None or encoder < total:
        return []
    message = f'{encoder:,} is not below total_iter {total:,}: the restorer would never be trained. Lower it.'
    return [Problem(('train', 'encoder_iter'), message, 'short')]


def _check_gpus(gpus: object, processes: int) -> list[Problem]:
    number = torch.cuda.device_count() if gpus == 'auto' else gpus
    if processes > 1 or not isinstance(number, int) or number < 2:
        return []
    advice = 'Start one process per GPU (torchrun ... --launcher pytorch), or set `num_gpu: 1`.'
    return [problem('num_gpu', f'{number} GPUs of one process cannot share a queue of keys. {advice}')]


def _check_queue(length: int, sizes: Mapping[Keys, int], parts: int, processes: int) -> list[Problem]:
    """Check that the queue length is a multiple of the keys of a pass, so that all keys stay equally long."""
    for path, size in sizes.items():
        keys = size * processes // parts
        if size % parts or length % keys == 0:  # a batch that cannot be split is reported elsewhere
            continue
        made = place(('datasets', 'train', *path)) + f' {size:,}'
        made += f' x {processes} processes' * (processes > 1) + f' / train.accumulate {parts}' * (parts > 1)
        near = max(1, round(length / keys)) * keys
        message = f'{length:,} is not a multiple of the {keys:,} keys of a pass ({made}). Set {near:,}.'
        return [problem(('network_g', 'queue_length'), message)]
    return []
