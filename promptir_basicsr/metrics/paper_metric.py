"""PSNR and SSIM as the all-in-one restoration papers measure them: on float images, never rounded to 8 bit.

`psnr`, `ssim` and `to_y` are functions on arrays, tested against scikit-image. The two `calculate_paper_*` functions
register them as BasicSR metrics.

Shape legend: H, W pixels; C channels, 1 or 3.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
from basicsr.utils.registry import METRIC_REGISTRY

from promptir_basicsr.core.registry import register

Array = npt.NDArray[Any]
F = TypeVar('F', bound=Callable[..., float])

BT601 = (65.481, 128.553, 24.966)  # R, G, B of MATLAB's rgb2ycbcr, for images in [0, 1] and Y in [16, 235]
BT601_BLACK = 16.0
K1, K2 = 0.01, 0.03  # stabilising constants of Wang et al. 2004
STRIP_ROWS = 32  # rows of the SSIM map computed at a time: the buffers of one strip fit the CPU cache
GAUSSIAN_KERNEL = cv2.getGaussianKernel(11, 1.5, cv2.CV_64F)


class Window(NamedTuple):
    """A normalised local average: side in pixels, function, and name in tables."""

    size: int
    average: Callable[[Array], Array]
    text: str


WINDOWS = {
    'uniform': Window(7, lambda image: cv2.boxFilter(image, -1, (7, 7)), '7x7 uniform window'),
    'gaussian': Window(
        11,
        lambda image: cv2.sepFilter2D(image, -1, GAUSSIAN_KERNEL, GAUSSIAN_KERNEL),
        '11x11 Gaussian window (sigma 1.5)',
    ),
}


def psnr(restored: Array, target: Array, data_range: float = 1.0) -> float:
    """Peak signal-to-noise ratio over all pixels and channels, as `skimage.metrics.peak_signal_noise_ratio`.

    Args:
        restored: (H, W) or (H, W, C), float, in the range of `data_range`; the caller clips.
        target: same shape.
        data_range: the peak value, 1 for images in [0, 1].

    Returns:
        PSNR in dB, computed in float64; infinite for identical images.

    Raises:
        ValueError: the shapes differ, or an array is not a float image.

    Examples:
        >>> from promptir_basicsr.metrics import psnr
        >>> round(psnr(np.full((8, 8, 3), 0.6), np.full((8, 8, 3), 0.5)), 2)
        20.0
    """
    _check_pair(restored, target)
    error = np.subtract(restored, target, dtype=np.float64)
    error *= error
    mean_square = float(error.mean())
    return float('inf') if mean_square == 0 else float(10 * np.log10(data_range**2 / mean_square))


def ssim(restored: Array, target: Array, data_range: float = 1.0, window: str = 'uniform') -> float:
    """Structural similarity, as `skimage.metrics.structural_similarity(channel_axis=-1)` with its other defaults.

    Wang et al. 2004, equation 13, with sample covariances (N/(N-1), N the pixels of a window). Each channel is
    compared separately and the channels are averaged. Only windows entirely inside the image count.

    Args:
        restored: (H, W) or (H, W, C), float, in the range of `data_range`; the caller clips.
        target: same shape.
        data_range: the peak value, 1 for images in [0, 1].
        window: 'uniform' (7x7; PromptIR, AdaIR, BioIR, PIP) or 'gaussian' (11x11, sigma 1.5; MoCE-IR, which calls
            scikit-image with `gaussian_weights=True` and leaves `use_sample_covariance` at its default True).
            The two differ by up to 0.008 on the same images.

    Returns:
        Mean similarity, computed in float64; 1 for identical images.

    Raises:
        ValueError: the shapes differ, an array is not a float image, a side is shorter than the window, or the
            window is unknown.

    Examples:
        >>> from promptir_basicsr.metrics import ssim
        >>> image = np.random.default_rng(0).random((16, 16, 3))
        >>> round(ssim(image, image), 4), ssim(image, 1 - image) < 0
        (1.0, True)
    """
    _check_pair(restored, target)
    if window not in WINDOWS:
        raise ValueError(f"ssim: unknown window '{window}', must be one of {', '.join(WINDOWS)}")
    size, average, _ = WINDOWS[window]
    height, width = target.shape[:2]
    if min(height, width) < size:
        raise ValueError(
            f'ssim: image of {height}x{width} pixels, the {size}x{size} window needs at least {size}x{size}'
        )

    rows = height - size + 1
    total = 0.0
    for top in range(0, rows, STRIP_ROWS):
        part = slice(top, min(top + STRIP_ROWS, rows) + size - 1)
        x = np.ascontiguousarray(restored[part], dtype=np.float64)
        y = np.ascontiguousarray(target[part], dtype=np.float64)
        total += float(_ssim_map(x, y, data_range, size, average).sum())
    # all channels have the same number of windows, so the mean over everything is the mean of the channel means
    return total / (rows * (width - size + 1) * (target.size // (height * width)))


def to_y(image: Array) -> Array:
    """Luma of ITU-R BT.601 in studio swing, as in MATLAB's `rgb2ycbcr` and the deraining literature.

    Args:
        image: (H, W, 3), RGB, float, [0, 1]. A grey image, (H, W) or (H, W, 1), is returned as (H, W).

    Returns:
        (H, W), float64, [16/255, 235/255] for colour input.

    Raises:
        ValueError: the number of channels is neither 1 nor 3.

    Examples:
        >>> from promptir_basicsr.metrics import to_y
        >>> (to_y(np.ones((1, 1, 3))) * 255).round(2)
        array([[235.]])
    """
    if image.ndim == 2 or image.shape[2:] == (1,):
        return image.reshape(image.shape[:2]).astype(np.float64)
    if image.shape[2:] != (3,):
        raise ValueError(f'to_y: found shape {image.shape}, must be (H, W, 3) RGB or grey')
    red, green, blue = (weight * image[..., channel].astype(np.float64) for channel, weight in enumerate(BT601))
    return (red + green + blue + BT601_BLACK) / 255


def definition(opt: Mapping[str, Any], grey: bool = False) -> str:
    """Return one line that describes a metric, for the header of a result table.

    Args:
        opt: a metric's options as in `val: metrics:`, i.e. `{type: ..., test_y_channel: ..., ...}`.
        grey: whether the images have one channel.

    Returns:
        For example 'PSNR: RGB, float, not rounded, data range 1'. For third-party metrics, their attribute
        `definition` or their type name.
    """
    name = opt['type']
    if name in ('calculate_paper_psnr', 'calculate_psnr'):
        parts = ['PSNR: ']
    elif name in ('calculate_paper_ssim', 'calculate_ssim'):
        parts = ['SSIM: ']
    else:
        metric = METRIC_REGISTRY.get(name) if name in METRIC_REGISTRY else None
        return str(getattr(metric, 'definition', name))

    parts[0] += 'grey' if grey else 'Y channel (BT.601)' if opt.get('test_y_channel') else 'RGB'
    parts.append('float, not rounded, data range 1' if 'paper' in name else 'rounded to 8 bit, data range 255')
    if name == 'calculate_paper_ssim':
        window = opt.get('window', 'uniform')
        parts.append(f'{WINDOWS[window].text if window in WINDOWS else window}, sample covariance')
    elif name == 'calculate_ssim':
        parts.append(f'{WINDOWS["gaussian"].text}, population covariance')
    if parts[0] == 'SSIM: RGB':
        parts.append('channel mean')
    if opt.get('crop_border'):
        parts.append(f'border of {opt["crop_border"]} pixels omitted')
    return ', '.join(parts)


def _paper_metric(function: F) -> F:
    """Mark a metric that expects unrounded float RGB images in [0, 1], and attach its definition."""
    vars(function).update(wants_float=True, definition=definition({'type': function.__name__}))
    return function


@register(METRIC_REGISTRY)
@_paper_metric
def calculate_paper_psnr(
    img: Array, img2: Array, crop_border: int = 0, test_y_channel: bool = False, better: str = 'higher'
) -> float:
    """PSNR of the all-in-one papers: RGB, float, not rounded, data range 1.

    Args:
        img: restored, (H, W), (H, W, 1) or (H, W, 3). Float arrays are RGB and are clipped to [0, 1] here. uint8
            arrays are BGR in [0, 255], already rounded, as BasicSR's own models pass them.
        img2: target, same shape, float or uint8 as `img`.
        crop_border: pixels omitted at each side.
        test_y_channel: compare the BT.601 luma (see `to_y`) instead of RGB.
        better: read by BasicSR as the direction of improvement; must be 'higher'.

    Returns:
        PSNR in dB; infinite for identical images.

    Raises:
        ValueError: shapes, types, the value range or options are invalid. An unknown option raises TypeError.

    Examples:
        >>> from promptir_basicsr.metrics import calculate_paper_psnr
        >>> restored, target = np.full((8, 8, 3), 0.6), np.full((8, 8, 3), 0.5)
        >>> round(calculate_paper_psnr(restored, target, crop_border=1), 2)
        20.0
    """
    return psnr(*_prepare(img, img2, crop_border, test_y_channel, better))


@register(METRIC_REGISTRY)
@_paper_metric
def calculate_paper_ssim(
    img: Array,
    img2: Array,
    crop_border: int = 0,
    test_y_channel: bool = False,
    better: str = 'higher',
    window: str = 'uniform',
) -> float:
    """SSIM of the all-in-one papers: RGB, float, not rounded, 7x7 uniform window, channel mean.

    Args:
        img, img2, crop_border, test_y_channel, better: as in `calculate_paper_psnr`.
        window: 'uniform', or 'gaussian' as in the tables of MoCE-IR (see `ssim`).

    Returns:
        Mean similarity; 1 for identical images.

    Raises:
        ValueError: shapes, types, the value range or options are invalid. An unknown option raises TypeError.

    Examples:
        >>> from promptir_basicsr.metrics import calculate_paper_ssim
        >>> image = np.random.default_rng(0).random((16, 16, 3))
        >>> round(calculate_paper_ssim(image, image), 4)
        1.0
    """
    return ssim(*_prepare(img, img2, crop_border, test_y_channel, better), window=window)


def _ssim_map(x: Array, y: Array, data_range: float, size: int, average: Callable[[Array], Array]) -> Array:
    """Return the similarity of every window of x and y, (h, w[, C]) float64 -> (h-size+1, w-size+1[, C]).

    Works in place, with four local averages instead of five, because only the sum of the variances is needed.
    """
    border = size // 2
    inside = (slice(border, -border), slice(border, -border))
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    sample = size**2 / (size**2 - 1)

    mean_x, mean_y = average(x)[inside], average(y)[inside]
    covariance = average(x * y)[inside]
    variances = average(x * x + y * y)[inside]

    means = mean_x * mean_y
    squares = mean_x * mean_x
    squares += mean_y * mean_y

    covariance -= means
    covariance *= 2 * sample
    covariance += c2
    variances -= squares
    variances *= sample
    variances += c2
    means *= 2
    means += c1
    squares += c1

    means *= covariance
    squares *= variances
    means /= squares
    return means


def _check_pair(restored: Array, target: Array) -> None:
    if restored.shape != target.shape:
        raise ValueError(f'the images differ in shape: restored {restored.shape}, target {target.shape}')
    if target.ndim not in (2, 3) or target.size == 0:
        raise ValueError(f'found shape {target.shape}, must be one image, (H, W) or (H, W, C)')
    for name, image in (('restored', restored), ('target', target)):
        if not np.issubdtype(image.dtype, np.floating):
            raise ValueError(f'{name} is {image.dtype}, must be float; divide 8-bit images by 255')


def _prepare(img: Array, img2: Array, crop_border: int, test_y_channel: bool, better: str) -> tuple[Array, Array]:
    """Convert a model's images to a pair of float64 images in [0, 1], RGB (H', W', 3) or one plane (H', W')."""
    if better != 'higher':
        raise ValueError(f"better: '{better}', but PSNR and SSIM are better when they are higher")
    if (img.dtype == np.uint8) != (img2.dtype == np.uint8):
        raise ValueError(f'img is {img.dtype} and img2 {img2.dtype}: both must be uint8 (BGR) or both float (RGB)')
    restored, target = _to_rgb(img, 'img'), _to_rgb(img2, 'img2')
    # an unclipped network output may have any range, a target may not
    if target.size and target.max() > 2:
        raise ValueError(f'img2 is float with values up to {target.max():.4g}; float images must be RGB in [0, 1]')
    _check_pair(restored, target)

    height, width = target.shape[:2]
    if crop_border < 0 or 2 * crop_border >= min(height, width):
        raise ValueError(f'crop_border: {crop_border} does not fit an image of {height}x{width} pixels')
    inside = (slice(crop_border, height - crop_border), slice(crop_border, width - crop_border))
    restored, target = restored[inside], target[inside]
    for image in (restored, target):
        np.clip(image, 0, 1, out=image)
    return (to_y(restored), to_y(target)) if test_y_channel else (restored, target)


def _to_rgb(image: Array, name: str) -> Array:
    """Return a float64 copy, (H, W) or (H, W, 3) RGB, not clipped."""
    if image.shape[2:] == (1,):
        image = image[..., 0]
    if image.ndim != 2 and image.shape[2:] != (3,):
        raise ValueError(f'{name}: found shape {image.shape}, must be (H, W), (H, W, 1) or (H, W, 3)')
    if image.dtype == np.uint8:
        return (image[..., ::-1] if image.ndim == 3 else image) / 255.0
    if not np.issubdtype(image.dtype, np.floating):
        raise ValueError(f'{name}: found {image.dtype}, must be uint8 (BGR, [0, 255]) or float (RGB, [0, 1])')
    return image.astype(np.float64)
