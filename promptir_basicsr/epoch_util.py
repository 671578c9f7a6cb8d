"""How long an epoch is, and how many of them BasicSR runs."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from promptir_basicsr.option_util import check_count


class EpochPlan(NamedTuple):
    """What BasicSR makes of an epoch.

    Attributes:
        samples: drawn in an epoch, by all processes together.
        batch: of an iteration, over all processes and GPUs.
        iterations: whole batches of an epoch; BasicSR drops the last, smaller one.
        epochs: that BasicSR runs at most.
        in_process: GPUs that share the batch of a process.
    """

    samples: int
    batch: int
    iterations: int
    epochs: int
    in_process: int


def plan_epochs(options: Mapping[str, Any], samples: int, processes: int = 1) -> EpochPlan | None:
    """The epochs of a training; None where `num_gpu` or `train.total_iter` are no counts.

    BasicSR runs ceil(total_iter / ceil(samples / batch)) + 1 epochs and drops the last, smaller batch of each. With
    several GPUs in one process it counts the epochs as if there were one.

    Args:
        options: of the whole run, with a sound `datasets.train`.
        samples: length of the training set.
        processes: how many processes share an iteration.
    """
    dataset, total = options['datasets']['train'], options['train'].get('total_iter')
    gpus: Any = torch.cuda.device_count() if options.get('num_gpu') == 'auto' else options.get('num_gpu')
    if check_count('', gpus, least=0) or check_count('', total):
        return None
    samples = math.ceil(samples * dataset.get('dataset_enlarge_ratio', 1) / processes)
    in_process = 1 if processes > 1 else max(1, gpus)
    batch = dataset['batch_size_per_gpu'] * in_process
    epochs = math.ceil(total / math.ceil(samples / dataset['batch_size_per_gpu'])) + 1
    return EpochPlan(samples * processes, batch * processes, samples // batch, epochs, in_process)
