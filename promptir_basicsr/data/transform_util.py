"""Cutting, turning and converting images; (H, W, 3) arrays unless said otherwise."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch


def centre_area(size: Sequence[int], multiple: int) -> tuple[int, int, int, int]:
    """Top, left, height and width of the area at the centre whose sides are multiples.

    A side shorter than one multiple is kept.
    """
    height, width = (side - side % multiple if side >= multiple else side for side in size)
    return (size[0] - height) // 2, (size[1] - width) // 2, height, width


def centre_crop(image: np.ndarray, multiple: int) -> np.ndarray:
    """Cut at the centre to sides that are multiples, see `centre_area`."""
    top, left, height, width = centre_area(image.shape[:2], multiple)
    return image[top : top + height, left : left + width]


def reflect_to(image: np.ndarray, size: int) -> np.ndarray:
    """Reflect an image at its far borders until both sides are at least `size`."""
    missing = [(0, max(0, size - side)) for side in image.shape[:2]]
    return np.pad(image, [*missing, (0, 0)], mode='reflect')


def flip_rotate(image: np.ndarray, mode: int) -> np.ndarray:
    """One of the eight flips and rotations of a square.

    Bits of mode: 1 horizontal flip, 2 vertical flip, 4 then a rotation by 90 degrees, counter-clockwise. Returns a
    contiguous copy.
    """
    if mode & 4:  # a rotation is a transposition and then a vertical flip
        image = cv2.transpose(image)
        mode = (mode & 1) << 1 ^ 2 | (mode & 2) >> 1
    if mode & 3:
        return cv2.flip(image, {1: 1, 2: 0, 3: -1}[mode & 3])
    return np.ascontiguousarray(image)


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """(H, W, 3) -> (3, H, W) float32; uint8 and uint16 are scaled to [0, 1]."""
    planes = np.ascontiguousarray(image.transpose(2, 0, 1))
    if planes.dtype != np.float32:
        planes = np.divide(planes, np.float32(np.iinfo(planes.dtype).max), dtype=np.float32)
    return torch.from_numpy(planes)
