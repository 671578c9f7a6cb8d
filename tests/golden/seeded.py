"""Weights and images that follow from names and seeds alone, so that golden numbers need no weight file beside them."""

import zlib

import numpy as np
import torch
from torch import Tensor, nn


def seeded_array(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """The float32 values of the parameter `name`.

    Temperatures are uniform in [0.5, 1.5), prompt banks (5-D) uniform in [0, 1), vectors normal around 1 (weights) or 0
    (the rest) with deviation 0.1, anything else normal with deviation 1 / sqrt(fan-in).
    """
    draw = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()) + seed))
    if name.endswith('temperature'):
        values = draw.random(shape) + 0.5
    elif len(shape) == 5 and name.endswith('prompt_param'):
        values = draw.random(shape)
    elif len(shape) == 1:
        values = 0.1 * draw.standard_normal(shape) + float(name.endswith('weight'))
    else:
        values = draw.standard_normal(shape) / np.sqrt(max(1, int(np.prod(shape[1:]))))
    return values.astype(np.float32)


def seeded_fill(module: nn.Module, seed: int = 0) -> nn.Module:
    """Overwrite each parameter of `module` by its seeded values; gives back `module`."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.from_numpy(seeded_array(name, tuple(parameter.shape), seed)))
    return module


def seeded_image(shape: tuple[int, int, int, int], seed: int = 0) -> Tensor:
    """A batch (B, C, H, W) of smooth waves with a little noise, float32 in [0, 1]."""
    draw = np.random.Generator(np.random.PCG64(12345 + seed))
    batch, channels, height, width = shape
    rows, columns = np.arange(height)[:, None] / 32.0, np.arange(width)[None, :] / 32.0
    image = np.empty(shape)
    for plane in image.reshape(batch * channels, height, width):
        (down, across), (phase, other) = draw.uniform(0.5, 3.0, 2), draw.uniform(0, 6.28, 2)
        plane[:] = 0.5 + 0.25 * np.sin(down * rows + phase) + 0.2 * np.cos(across * columns + other)
    image += 0.03 * draw.standard_normal(shape)
    return torch.from_numpy(image.clip(0, 1).astype(np.float32))


def airnet_fill(module: nn.Module, seed: int = 0) -> nn.Module:
    """Overwrite parameters and buffers of an AirNet by seeded values; gives back `module`.

    As `seeded_fill`, with a quarter of it in the last convolution of each block, without which features and sampling
    offsets grow beyond what float32 can compare. Variances are uniform in [0.5, 1.5), keys of the queue of length 1,
    counters and the pointer 0.
    """
    with torch.no_grad():
        for name, tensor in module.state_dict(keep_vars=True).items():
            shape, draw = tuple(tensor.shape), np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()) + seed))
            if not tensor.is_floating_point():
                tensor.zero_()
                continue
            values = draw.random(shape) + 0.5 if name.endswith('running_var') else seeded_array(name, shape, seed)
            if name.endswith('conv2.weight'):
                values = values / 4
            if name.endswith('queue'):
                values = values / np.linalg.norm(values.astype(np.float64), axis=0)
            tensor.copy_(torch.from_numpy(values.astype(np.float32)))
    return module
