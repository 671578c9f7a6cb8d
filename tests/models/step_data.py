"""Models and batches for tests of the training step."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from basicsr.models import build_model
from skimage import data
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from tests.models.model_options import NETWORK, run_options

PIP = {**NETWORK, 'type': 'PIPRestormer'}
EDSR = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 2, 'upscale': 1}


def photographs(number: int = 4, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Crops of a photograph with noise, of two tasks that take turns."""
    photograph = torch.from_numpy(np.ascontiguousarray(data.chelsea().transpose(2, 0, 1))).to(dtype) / 255
    gt = torch.stack([photograph[:, 100:116, 20 * i : 20 * i + 16] for i in range(4, 4 + number)])
    noise = torch.randn(gt.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    return {
        'lq': (gt + 0.1 * noise).clamp(0, 1),
        'gt': gt,
        'task': ['denoise', 'derain'] * (number // 2) + ['denoise'] * (number % 2),
        'degradation': torch.tensor([0, 1] * (number // 2) + [0] * (number % 2)),
    }


def model_with(folder: Path, network: dict[str, Any] = NETWORK, **changes: Any) -> Any:
    """A PromptModel of seed 0 in a folder; changes as for `run_options`."""
    torch.manual_seed(0)
    return build_model(run_options(folder, network_g=copy.deepcopy(network), **copy.deepcopy(changes)))


def distribute(model: Any, rank: int) -> None:
    """Let a model be one of two processes; BasicSR itself wraps networks for GPUs only."""
    model.net_g = DistributedDataParallel(model.net_g)
    model.opt.update(dist=True, rank=rank, world_size=2)
    model.setup_step(model.step.objective)


def train(model: Any, batch: dict[str, Any], steps: int = 1, first: int = 1) -> list[dict[str, float]]:
    """Steps on the same batch, and the log of each."""
    logs = []
    for iteration in range(first, first + steps):
        model.feed_data(batch)
        model.optimize_parameters(iteration)
        logs.append(dict(model.get_current_log()))
    return logs


def weights(model: Any) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.get_bare_model(model.net_g).state_dict().items()}


def gradients(model: Any) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.net_g.named_parameters() if p.grad is not None}
