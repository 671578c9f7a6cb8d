"""Convert images between arrays, tensors, bytes and files."""

from pathlib import Path

import cv2
import numpy as np
import torch
from torch.nn import functional as F

from promptir_basicsr.core.files import atomic_write


def to_float(image: np.ndarray) -> np.ndarray:
    """Convert uint8 or uint16 to float32 in [0, 1]."""
    return image.astype(np.float32) / np.float32(np.iinfo(image.dtype).max)


def to_grey(image: np.ndarray) -> np.ndarray:
    """Convert (H, W, 3) RGB, uint8, uint16 or float32, to (H, W, 1) of the same type: the full-range luma of BT.601.

    0.299 R + 0.587 G + 0.114 B, computed by OpenCV's RGB2GRAY. Integer pixels with R = G = B keep their value.
    """
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """Convert (H, W, C) to (C, H, W) float32; uint8 and uint16 are scaled to [0, 1]."""
    planes = np.ascontiguousarray(image.transpose(2, 0, 1))
    if planes.dtype != np.float32:
        planes = np.divide(planes, np.float32(np.iinfo(planes.dtype).max), dtype=np.float32)
    return torch.from_numpy(planes)


def to_bytes(image: np.ndarray, bits: int = 8) -> np.ndarray:
    """Convert float [0, 1] to uint8 or, with 16 bits, uint16; rounded."""
    return (np.clip(image, 0, 1) * (2**bits - 1)).round().astype(f'uint{bits}')


def save_picture(image: np.ndarray, path: str | Path) -> None:
    """Write an (H, W, 3) RGB or (H, W, 1) grey image, uint8 or uint16, as PNG; creates the folder.

    Raises:
        SaveError: the file could not be written.
        OSError: the folder could not be created.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    done, content = cv2.imencode('.png', image if image.shape[2] == 1 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    assert done
    atomic_write(content.tobytes(), path)


def pad_to_multiple(x: torch.Tensor, multiple: int) -> torch.Tensor:
    """Pad right and bottom until both sides are multiples of `multiple`.

    Reflects as far as the image allows and repeats the border beyond that, so any size from 1x1 works; crop results
    with `[..., :H, :W]`.

    Args:
        x: (B, C, H, W).
        multiple: in pixels.

    Returns:
        (B, C, H', W') with H' and W' the next multiples; `x` itself if it needs no padding.
    """
    height, width = x.shape[-2:]
    bottom, right = -height % multiple, -width % multiple
    if not bottom and not right:
        return x
    reflected = (0, min(right, width - 1), 0, min(bottom, height - 1))
    x = F.pad(x, reflected, mode='reflect')
    return F.pad(x, (0, right - reflected[1], 0, bottom - reflected[3]), mode='replicate')
