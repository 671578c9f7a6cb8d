"""Restore images, as arrays and tensors, with a network from a file of weights."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from promptir_basicsr.archs.fast.kernels import kernel_problems
from promptir_basicsr.archs.traits import Conditioned, NetworkTraits, traits_of, unwrapped
from promptir_basicsr.checkpoints.checkpoint import build, read_checkpoint
from promptir_basicsr.core.arrays import to_grey, to_tensor
from promptir_basicsr.core.errors import OptionError, raise_problems
from promptir_basicsr.inference.restoring import Settings, restore_images
from promptir_basicsr.runtime.precision import device_problems, find_device

Image = TypeVar('Image', np.ndarray, Tensor)

_PROBE = 16  # pixels
_LEAST, _MOST = -1.0, 2.0  # of float images; larger values mean another range


class Restorer:
    """Restore images of any size with a network.

    Args:
        weights: file of weights, a published folder, or a repository of the Hugging Face Hub; see
            `docs/weights.md`.
        network: `type` and arguments of the network, or an option file. Default: recognised from the file.
        device: 'auto' (a GPU if available), 'cpu', 'cuda', 'cuda:1'.
        settings: tiles, ensemble, precision.
        key: which weights of the file to use, such as 'params_ema'.

    Attributes:
        net: the network, in evaluation mode.
        checkpoint: metadata of the file.
        channels: image channels of the network, 3 (RGB) or 1 (grey).

    Raises:
        OptionError: the file, the network or the device cannot be used.

    Examples:
        >>> from promptir_basicsr.inference import Restorer
        >>> restorer = Restorer('net_g_latest.pth')
        >>> restored = restorer.restore(np.zeros((40, 60, 3), np.uint8))
        >>> restored.shape, restored.dtype
        ((40, 60, 3), dtype('uint8'))
    """

    def __init__(
        self,
        weights: str | os.PathLike[str],
        network: Mapping[str, Any] | str | os.PathLike[str] | None = None,
        device: str | torch.device = 'auto',
        settings: Settings | None = None,
        key: str | None = None,
    ) -> None:
        self.settings = settings or Settings()
        self.device = find_device(device)
        problems = device_problems('precision', self.settings.precision, self.device)
        problems += kernel_problems('kernels', self.settings.kernels, self.device)
        raise_problems(problems)
        self.checkpoint = read_checkpoint(weights, network, key)
        self.net = build(self.checkpoint, self.device)
        self.channels = self.traits.image_channels
        self._check_output(os.fspath(weights))

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str], **arguments: Any) -> 'Restorer':
        """Load published weights: the same as `Restorer(source, ...)`, under the usual name of Hub libraries.

        Args:
            source: a folder that `basicsr publish` has written, `OWNER/NAME` or `OWNER/NAME@REVISION` of the Hub.
            arguments: of the constructor.
        """
        return cls(source, **arguments)

    @property
    def traits(self) -> NetworkTraits:
        """Traits of the network, from its attributes and arguments."""
        return traits_of(self.net, self.checkpoint.network)

    def restore(
        self,
        image: Image,
        degradation: Any = None,
        strength: Any = 1.0,
        progress: Callable[[int, int], None] | None = None,
    ) -> Image:
        """Restore an image, or a batch of tensors.

        Args:
            image: array (H, W) grey, (H, W, 2) grey and alpha, (H, W, 3) RGB or (H, W, 4) RGB and alpha, uint8, uint16
                or float in [0, 1]; or tensor (3, H, W) or (B, 3, H, W), RGB, float in [0, 1], on any device, with 1 in
                place of 3 for a network of one channel.
            degradation, strength: passed to networks that accept labels.
            progress: called as progress(done, total) after each pass of the network.

        Returns:
            The same kind, size, dtype and device. Arrays are clipped and rounded to their dtype, tensors are not. Grey
            is the mean of the three channels, alpha is unchanged. A network with one channel converts RGB arrays to
            grey, (H, W) or (H, W, 2), by their luma (`to_grey`).

        Raises:
            ValueError: the image or its degradation is invalid, or the network returns non-finite values.
        """
        self._check_told(degradation, strength)
        if isinstance(image, Tensor):
            return self._tensor(image, degradation, strength, progress)
        return self._arrays([image], degradation, strength, progress)[0]

    def restore_batch(
        self,
        images: Sequence[np.ndarray],
        degradation: Any = None,
        strength: Any = 1.0,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[np.ndarray]:
        """Restore arrays of equal size as a batch, each as by `restore`."""
        self._check_told(degradation, strength)
        return self._arrays(images, degradation, strength, progress)

    def check_labels(self, degradation: Any = None, strength: Any = 1.0) -> None:
        """Check that the network accepts the degradation and strength, without restoring an image.

        Raises:
            ValueError: it does not, or a label is missing.
        """
        self._check_told(degradation, strength)
        if self.traits.conditioned:
            net: Conditioned = unwrapped(self.net)
            side = self.traits.size_multiple
            with torch.no_grad():
                net.prompt_context(torch.zeros(1, self.channels, side, side, device=self.device), degradation, strength)

    def _check_output(self, path: str) -> None:
        """Reject networks that upscale or classify, which would silently return wrong images."""
        net, traits = self.net, self.traits
        if self.channels not in (1, 3):
            found = f'{type(net).__name__} needs images of {self.channels} channels'
            raise OptionError(f"'{path}': {found}; images have 3 (RGB) or 1 (grey).")
        side = -(-_PROBE // traits.size_multiple) * traits.size_multiple
        x = torch.zeros(1, self.channels, side, side, device=self.device)
        try:
            with torch.no_grad():
                y = net(x, 0) if traits.takes_degradation else net(x)
        except (RuntimeError, ValueError):  # some networks need larger images; the first image will show
            return
        if not isinstance(y, Tensor) or y.shape != x.shape:
            made = f'an output of {tuple(y.shape)}' if isinstance(y, Tensor) else f'a {type(y).__name__}'
            told = f'{type(net).__name__} returns {made} for an image of {tuple(x.shape)}'
            raise OptionError(f"'{path}': {told}. Only networks that preserve the image size can be used.")

    def _check_told(self, degradation: Any, strength: Any) -> None:
        """Check labels here: networks ignore unsupported ones, and cannot name the ones that are missing."""
        kind, traits = type(self.net).__name__, self.traits
        if not traits.takes_degradation:
            if degradation is not None or strength != 1:
                raise ValueError(f'{kind} is blind: it accepts neither labels nor a strength. Omit them.')
        elif degradation is None and traits.needs_degradation:
            raise ValueError(
                f'{kind} needs the degradation of an image, and these weights have no sensor to predict it. '
                f'Use a label or a mixture of: {", ".join(traits.labels)}.'
            )

    def _tensor(self, image: Tensor, degradation: Any, strength: Any, progress: Any) -> Tensor:
        c = self.channels
        if not image.is_floating_point() or image.ndim not in (3, 4) or image.shape[-3] != c or not image.numel():
            raise ValueError(
                f'restore: a tensor of shape {tuple(image.shape)} and type {image.dtype}; must be ({c}, H, W) or '
                f'(B, {c}, H, W), {"RGB" if c == 3 else "grey"}, float in [0, 1].'
            )
        _check_range(float(image.min()), float(image.max()))
        whole = image.float() if image.ndim == 4 else image.float()[None]
        restored = self._run(whole, degradation, strength, progress).reshape(image.shape)
        return restored.to(image.device, image.dtype)

    def _arrays(self, images: Sequence[np.ndarray], degradation: Any, strength: Any, progress: Any) -> list[np.ndarray]:
        x = torch.stack([image_tensor(image, self.channels) for image in images])
        restored = self._run(x, degradation, strength, progress).cpu().numpy()
        return [_like(image, one) for image, one in zip(images, restored, strict=True)]

    def _run(self, x: Tensor, degradation: Any, strength: Any, progress: Any) -> Tensor:
        settings = replace(self.settings, size_multiple=self.settings.size_multiple or self.traits.size_multiple)
        restored = restore_images(self.net, x, settings, degradation, strength, progress)
        if not torch.isfinite(restored).all():
            hint = '' if self.settings.precision == 'fp32' else ' fp32 has a wider range.'
            raise ValueError(f'{type(self.net).__name__} returned values that are not finite.{hint}')
        return restored


def restore(
    image: Image, weights: str | os.PathLike[str], degradation: Any = None, strength: Any = 1.0, **options: Any
) -> Image:
    """Restore one image; for several, build a `Restorer` once.

    Args:
        image, degradation, strength: see `Restorer.restore`.
        weights, options: see `Restorer`.

    Examples:
        >>> from promptir_basicsr.inference import restore
        >>> restore(torch.rand(2, 3, 20, 30), weights='net_g_latest.pth').shape
        torch.Size([2, 3, 20, 30])
    """
    return Restorer(weights, **options).restore(image, degradation, strength)


def image_tensor(image: np.ndarray, channels: int = 3) -> Tensor:
    """Convert an array of any kind to (3, H, W) RGB or (1, H, W) grey, float32, [0, 1].

    Args:
        image: see `Restorer.restore`.
        channels: of the tensor, 3 or 1.

    Raises:
        ValueError: the image is invalid.
    """
    image = np.asarray(image)
    found = image.shape[2] if image.ndim == 3 else 1
    if image.ndim not in (2, 3) or found not in (1, 2, 3, 4) or not image.size or image.shape[2:] == (1,):
        raise ValueError(
            f'restore: an array of shape {image.shape}; must be (H, W), (H, W, 2), (H, W, 3) or (H, W, 4).'
        )
    colours = image[..., :3] if found >= 3 else image.reshape(*image.shape[:2], -1)[..., :1]
    if np.issubdtype(image.dtype, np.floating):
        _check_range(float(image.min()), float(image.max()))
        colours = colours.astype(np.float32)
    elif image.dtype not in (np.uint8, np.uint16):
        raise ValueError(f'restore: an array of type {image.dtype}; must be uint8, uint16 or float in [0, 1].')
    if colours.shape[2] > channels:
        colours = to_grey(colours)
    return to_tensor(np.repeat(colours, channels // colours.shape[2], axis=2))


def _check_range(least: float, most: float) -> None:
    if not (np.isfinite(least) and np.isfinite(most)):
        raise ValueError('restore: the image has values that are not finite (NaN or infinity).')
    if least < _LEAST or most > _MOST:
        raise ValueError(f'restore: the values range from {least:g} to {most:g}; float images must be in [0, 1].')


def _like(image: np.ndarray, restored: np.ndarray) -> np.ndarray:
    """Convert (C, H, W) to the dtype and shape of the input image, with its alpha; grey if C is 1."""
    image = np.asarray(image)
    channels = image.shape[2] if image.ndim == 3 else 1
    colours = np.clip(restored.transpose(1, 2, 0), 0, 1)
    if channels <= 2:
        colours = colours.mean(axis=2, keepdims=True)  # the same for one channel
    if np.issubdtype(image.dtype, np.integer):
        colours = np.rint(colours * np.float32(np.iinfo(image.dtype).max))
    colours = colours.astype(image.dtype)
    if channels in (2, 4):
        colours = np.concatenate([colours, image[..., -1:]], axis=2)
    return np.ascontiguousarray(colours[..., 0] if colours.shape[2] == 1 else colours)
