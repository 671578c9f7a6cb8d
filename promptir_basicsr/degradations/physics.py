"""Models of light, optics, weather and sensors that the synthetic degradations use.

Images are (H, W, 3) RGB or (H, W, 1) grey, float32 in [0, 1]; maps are (H, W) float32. Lengths are in pixels, angles
in degrees; x points right and y down, with the centre of the first pixel at (0, 0).
"""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from promptir_basicsr.degradations.spec import Image

Array = npt.NDArray[np.floating]
FWHM_PER_SIGMA = 2.355


def srgb_to_linear(image: Image) -> Image:
    """Convert sRGB code values to linear light, both in [0, 1] (IEC 61966-2-1); clips the input to this range."""
    image = np.clip(image, 0, 1)
    return np.where(image <= 0.04045, image / 12.92, ((image + 0.055) / 1.055) ** np.float32(2.4))


def linear_to_srgb(light: Image) -> Image:
    """Convert linear light to sRGB code values, both in [0, 1] (IEC 61966-2-1); clips the input to this range."""
    light = np.clip(light, 0, 1)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** np.float32(1 / 2.4) - 0.055)


def quantise(image: Image) -> Image:
    """Round to the nearest of the 256 code values k / 255 in [0, 1]."""
    return np.rint(np.clip(image, 0, 1) * np.float32(255)) / np.float32(255)


def blur(image: Image, kernel: Array, linear_light: bool) -> Image:
    """Convolve with a kernel of odd size; image borders are mirrored.

    Args:
        linear_light: Convolve linear light instead of sRGB code values, as lenses and shutters do.
    """
    source = srgb_to_linear(image) if linear_light else np.clip(image, 0, 1)
    # filter2D correlates; a convolution flips the kernel.
    blurred = np.asarray(cv2.filter2D(source, -1, kernel[::-1, ::-1].copy(), borderType=cv2.BORDER_REFLECT), np.float32)
    blurred = blurred.reshape(image.shape)  # OpenCV drops the axis of a single channel
    return linear_to_srgb(blurred) if linear_light else np.clip(blurred, 0, 1)


def motion_kernel(length: float, angle: float, bend: float) -> Array:
    """Return the point spread function of a camera moving at constant speed during the exposure.

    The path is a circular arc, a straight line for bend 0. Densely sampled points are split bilinearly among four
    pixels, which preserves their centre of mass, so the image is not shifted.

    Args:
        length: Length of the path in pixels; 0 returns a single 1.
        angle: Mean direction, counter-clockwise from horizontal, in degrees.
        bend: Angle by which the direction turns along the path, in degrees.

    Returns:
        (K, K), K odd, sum 1, centre of mass in the middle.
    """
    count = 8 * int(np.ceil(length)) + 1
    heading = np.deg2rad(angle + bend * (np.arange(count) + 0.5 - count / 2) / count)
    x, y = (np.cumsum(part) * length / count for part in (np.cos(heading), -np.sin(heading)))
    x, y = x - x.mean(), y - y.mean()
    reach = int(np.ceil(max(np.abs(x).max(), np.abs(y).max()) - 1e-6))
    size = 2 * reach + 1
    # Rounded because sin(pi) is not exactly 0 and a horizontal path must stay within its row.
    x, y = (np.clip(np.round(part + reach, 6), 0, size - 1) for part in (x, y))
    column, row = np.floor(x).astype(int), np.floor(y).astype(int)
    kernel = np.zeros((size + 1, size + 1))
    for dy in (0, 1):
        for dx in (0, 1):
            np.add.at(kernel, (row + dy, column + dx), (1 - np.abs(x - column - dx)) * (1 - np.abs(y - row - dy)))
    return (kernel[:size, :size] / count).astype(np.float32)


def disk_kernel(radius: float, samples: int = 8) -> Array:
    """Return the point spread function of a lens out of focus: the fraction of each pixel that a disk covers.

    Args:
        radius: In pixels; up to 0.5 the disk is inside one pixel, and the result is a single 1.
        samples: Sub-samples per pixel and axis.

    Returns:
        (K, K), K odd, sum 1, symmetric.
    """
    reach = int(np.ceil(radius - 0.5))
    if reach < 1:
        return np.ones((1, 1), np.float32)
    size = 2 * reach + 1
    position = (np.arange(size * samples) + 0.5) / samples - size / 2
    inside = position[:, None] ** 2 + position**2 <= radius**2
    coverage = inside.reshape(size, samples, size, samples).sum(axis=(1, 3))
    return (coverage / coverage.sum()).astype(np.float32)


def smooth_field(height: int, width: int, rng: np.random.Generator, cells: int = 4) -> Array:
    """Return a smooth random field, (H, W), of mean 0 and std of about 1: a cubic B-spline on cells x cells."""
    grid = rng.standard_normal((cells + 3, cells + 3), dtype=np.float32)
    field: Array = _spline_weights(height, cells) @ grid @ _spline_weights(width, cells).T
    field /= np.float32(0.48)  # the weights' root mean square
    return field


def _spline_weights(count: int, cells: int) -> Array:
    """Return the weights (count, cells + 3) of the knots of a cubic B-spline at evenly spaced positions."""
    distance = np.abs(np.linspace(1, cells + 1, count)[:, None] - np.arange(cells + 3))
    inner, outer = 2 / 3 - distance**2 + distance**3 / 2, np.maximum(2 - distance, 0) ** 3 / 6
    return np.where(distance < 1, inner, outer).astype(np.float32)


def outdoor_depth(
    height: int, width: int, near: float, far: float, variation: float, rng: np.random.Generator
) -> Array:
    """Return the depth map of a random open scene, for images without a depth map.

    In perspective, the inverse depth of level ground decreases linearly from the bottom of the image to the horizon.
    Here it decreases from 1 / near in the last row to 1 / far in the first; smooth random variation moves the rows up
    and down, like hills, trees and houses.

    Args:
        near: Smallest depth in metres.
        far: Largest depth in metres.
        variation: Standard deviation of the random part as a fraction of the image height.

    Returns:
        (H, W) in metres, within [near, far].
    """
    ramp = np.linspace(1, 0, height, dtype=np.float32)[:, None]
    position = np.clip(ramp + np.float32(variation) * smooth_field(height, width, rng), 0, 1)
    depth: Array = 1 / (1 / near + np.float32(1 / far - 1 / near) * position)
    return depth


@dataclass(frozen=True)
class Particles:
    """Drops or flakes as soft line segments; arrays of one length.

    Attributes:
        x: Centre, to the right.
        y: Centre, downwards.
        angle: Direction of the segment from vertical, positive for lower ends to the right, in degrees.
        core: Half the length over which the opacity is full.
        fade: Standard deviation of the Gaussian fade at the ends.
        sigma: Standard deviation of the Gaussian profile across the segment.
        opacity: Peak opacity, [0, 1].
    """

    x: Array
    y: Array
    angle: Array
    core: Array
    fade: Array
    sigma: Array
    opacity: Array


def render_particles(height: int, width: int, particles: Particles) -> Array:
    """Return the opacity map (H, W) in [0, 1] of overlapping particles: 1 - product of (1 - opacity).

    Profiles are widened by the blur of a square pixel and dimmed accordingly, so thin segments are anti-aliased and
    faint instead of broken.
    """
    pixel_variance = 1 / 12
    sigma = np.sqrt(particles.sigma**2 + pixel_variance)
    fade = np.sqrt(particles.fade**2 + pixel_variance)
    opacity = particles.opacity * particles.sigma / sigma
    sine, cosine = np.sin(np.deg2rad(particles.angle)), np.cos(np.deg2rad(particles.angle))
    along, across = particles.core + 2.5 * fade, 2.5 * sigma
    reach_x = along * np.abs(sine) + across * np.abs(cosine)
    reach_y = along * np.abs(cosine) + across * np.abs(sine)
    left = np.clip(np.floor(particles.x - reach_x), 0, width).astype(int)
    right = np.clip(np.ceil(particles.x + reach_x) + 1, 0, width).astype(int)
    top = np.clip(np.floor(particles.y - reach_y), 0, height).astype(int)
    bottom = np.clip(np.ceil(particles.y + reach_y) + 1, 0, height).astype(int)

    clear = np.ones((height, width), np.float32)
    columns, rows = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    for i in np.flatnonzero((left < right) & (top < bottom)):
        x = columns[left[i] : right[i]] - particles.x[i]
        y = rows[top[i] : bottom[i]] - particles.y[i]
        beyond = np.abs(x * (sine[i] / fade[i]) + y * (cosine[i] / fade[i])) - particles.core[i] / fade[i]
        np.maximum(beyond, 0, out=beyond)
        aside = x * (cosine[i] / sigma[i]) - y * (sine[i] / sigma[i])
        beyond *= beyond
        aside *= aside
        beyond += aside
        beyond *= np.float32(-0.5)
        clear[top[i] : bottom[i], left[i] : right[i]] *= 1 - opacity[i] * np.exp(beyond)
    return 1 - clear
