"""Synthetic degradations of clean images.

A degradation is f(image, rng, **parameters) -> image with image (H, W, 3) RGB or (H, W, 1) grey, float32, [0, 1], for
any H, W >= 1.
It returns a new array of the same kind and uses rng as its only source of randomness. Only noise, low light and JPEG
quantise. Option files use them through `Degrade`; `docs/degradations.md` lists all parameters.
"""

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np

from promptir_basicsr.core.problems import Problem, problem
from promptir_basicsr.degradations.physics import (
    FWHM_PER_SIGMA,
    Particles,
    blur,
    disk_kernel,
    linear_to_srgb,
    motion_kernel,
    outdoor_depth,
    quantise,
    render_particles,
    srgb_to_linear,
)
from promptir_basicsr.degradations.spec import Choice, Image, Number, Switch, degradation

_JPEG_SAMPLING = {
    '420': cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    '422': cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
    '444': cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
}


def _check_noise(values: dict[str, Any]) -> Iterator[Problem]:
    if not values['clip'] and values['quantize'] != 'float':
        found = f'as 8 bits cannot hold values outside [0, 255], found {values["quantize"]}'
        yield problem('', f'clip: false needs quantize: float, {found}', ('clip',))


@degradation(
    check=_check_noise,
    sigma=Number(low=0, high=255, unit='grey levels of 255'),
    quantize=Choice('floor', ('floor', 'round', 'float')),
    clip=Switch(True),
)
def gaussian_noise(image: Image, rng: np.random.Generator, sigma: float, quantize: str, clip: bool) -> Image:
    """Add white Gaussian noise.

    `floor` is the protocol of AirNet, PromptIR and their successors: uint8(clip(255 x + sigma n, 0, 255)) / 255. Its
    truncating cast darkens images by half a grey level on average.

    Examples:
        >>> from promptir_basicsr.degradations import gaussian_noise
        >>> grey = np.full((8, 8, 3), 0.5, np.float32)
        >>> noisy = gaussian_noise(grey, np.random.default_rng(0), sigma=25)
        >>> noisy.shape, bool((noisy == grey).all())
        ((8, 8, 3), False)
    """
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    if quantize == 'float':
        noisy = image + noise * np.float32(sigma / 255)
        return np.clip(noisy, 0, 1) if clip else noisy
    levels = np.clip(image * np.float32(255) + noise * np.float32(sigma), 0, 255)
    return (np.floor(levels) if quantize == 'floor' else np.rint(levels)) / np.float32(255)


@degradation(
    density=Number((8, 30), low=0, high=1000, unit='streaks per 10,000 pixels'),
    length=Number((20, 50), low=1, high=1000, unit='pixels'),
    width=Number((1.0, 2.5), low=0.2, high=100, unit='pixels'),
    angle=Number((-20, 20), low=-90, high=90, unit='degrees from vertical'),
    intensity=Number((0.3, 0.7), low=0, high=1, unit='peak opacity'),
    depth=Number(2.5, low=1, high=10, unit='farthest / nearest'),
    jitter=Number(0.25, low=0, high=1),
    blend=Choice('screen', ('screen', 'add')),
)
def rain(
    image: Image,
    rng: np.random.Generator,
    density: float,
    length: float,
    width: float,
    angle: float,
    intensity: float,
    depth: float,
    jitter: float,
    blend: str,
) -> Image:
    """Add rain streaks: thin bright segments with a common slant, at distances between 1 and `depth`.

    A streak n times as far is n times shorter and thinner. Opacity falls to an eighth of its peak half a length from
    the centre. `screen`, 1 - (1 - x)(1 - streak), never saturates;
    `add`, min(x + streak, 1), is the model of Rain100L and loses detail in bright regions.
    """
    height, breadth = image.shape[:2]
    count, x, y = _scatter(height, breadth, density, 0.6 * length * (1 + jitter) + 2 * width, rng)
    distance = rng.uniform(1, depth, count)
    wobble = rng.uniform(-1, 1, (3, count))
    lengths = length / distance * (1 + jitter * wobble[0])
    streaks = Particles(
        x=x,
        y=y,
        angle=(angle + 8 * jitter * rng.standard_normal(count)).astype(np.float32),
        core=(0.2 * lengths).astype(np.float32),
        fade=(0.15 * lengths).astype(np.float32),
        sigma=(width / distance * (1 + jitter * wobble[1]) / FWHM_PER_SIGMA).astype(np.float32),
        opacity=np.clip(intensity * (1 + jitter * wobble[2]), 0, 1).astype(np.float32),
    )
    layer = render_particles(height, breadth, streaks)[:, :, None]
    return np.clip(image + layer * (1 - image) if blend == 'screen' else image + layer, 0, 1)


@degradation(
    density=Number((10, 30), low=0, high=1000, unit='flakes per 10,000 pixels'),
    size=Number((6, 12), low=0.5, high=500, unit='pixels'),
    opacity=Number((0.6, 0.9), low=0, high=1),
    angle=Number((-30, 30), low=-90, high=90, unit='degrees from vertical'),
    motion=Number((0.2, 1.0), low=0, high=20, unit='flake diameters'),
    depth=Number(5, low=1, high=20, unit='farthest / nearest'),
)
def snow(
    image: Image,
    rng: np.random.Generator,
    density: float,
    size: float,
    opacity: float,
    angle: float,
    motion: float,
    depth: float,
) -> Image:
    """Add snowflakes: soft white spots, slightly elongated along their fall, at distances between 1 and `depth`.

    Few flakes are near, large and out of focus (wide and faint), many are far, small and sharp.
    """
    height, breadth = image.shape[:2]
    count, x, y = _scatter(height, breadth, density, 1.4 * size * (1.1 + 0.5 * motion), rng)
    # The number of flakes per unit of distance grows with its square: cube root of a uniform number.
    distance = 1 + (depth - 1) * np.cbrt(rng.uniform(0, 1, count))
    diameter = size / distance * rng.uniform(0.6, 1.4, count)
    sigma = (diameter / FWHM_PER_SIGMA).astype(np.float32)
    flakes = Particles(
        x=x,
        y=y,
        angle=(angle + 10 * rng.standard_normal(count)).astype(np.float32),
        core=(0.5 * motion * diameter).astype(np.float32),
        fade=sigma,
        sigma=sigma,
        opacity=(opacity * rng.uniform(0.5, 1, count)).astype(np.float32),
    )
    layer = render_particles(height, breadth, flakes)[:, :, None]
    return np.clip(image + layer * (1 - image), 0, 1)


def _check_haze(values: dict[str, Any]) -> Iterator[Problem]:
    if np.max(values['near']) > np.min(values['far']):
        message = f'near must not exceed far, found near {values["near"]} and far {values["far"]}'
        yield problem('', message, ('near',), ('far',))


@degradation(
    check=_check_haze,
    A=Number((0.8, 1.0), low=0, high=1),
    beta=Number((0.04, 0.2), low=0, high=100, unit='1/metre'),
    near=Number((1, 3), low=0.01, high=1e5, unit='metres'),
    far=Number((5, 12), low=0.01, high=1e5, unit='metres'),
    variation=Number(0.15, low=0, high=1, unit='image heights'),
)
def haze(
    image: Image, rng: np.random.Generator, A: float, beta: float, near: float, far: float, variation: float
) -> Image:
    """Add haze by the scattering model I = J t + A (1 - t), t = exp(-beta d), on sRGB values as in RESIDE.

    The depth map d is synthetic: see `outdoor_depth`.
    """
    depth = outdoor_depth(image.shape[0], image.shape[1], near, far, variation, rng)
    transmission = np.exp(np.float32(-beta) * depth)[:, :, None]
    return np.clip(image * transmission + np.float32(A) * (1 - transmission), 0, 1)


@degradation(
    length=Number((5, 25), low=0, high=500, unit='pixels'),
    angle=Number((0, 180), low=-360, high=360, unit='degrees from horizontal'),
    bend=Number(0, low=-360, high=360, unit='degrees'),
    linear_light=Switch(True),
)
def motion_blur(
    image: Image, rng: np.random.Generator, length: float, angle: float, bend: float, linear_light: bool
) -> Image:
    """Add camera shake: a straight or evenly bent path at constant speed, the same for the whole image."""
    return blur(image, motion_kernel(length, angle, bend), linear_light)


@degradation(radius=Number((1, 5), low=0, high=100, unit='pixels'), linear_light=Switch(True))
def defocus_blur(image: Image, rng: np.random.Generator, radius: float, linear_light: bool) -> Image:
    """Add defocus blur: a uniform disk, the same for the whole image."""
    return blur(image, disk_kernel(radius), linear_light)


@degradation(
    exposure=Number((0.04, 0.16), low=0, high=1),
    full_well=Number(4000, low=1, high=1e6, unit='electrons at white'),
    read_noise=Number(4, low=0, high=1e4, unit='electrons'),
    cast=Number(0.1, low=0, high=0.9),
)
def low_light(
    image: Image, rng: np.random.Generator, exposure: float, full_well: float, read_noise: float, cast: float
) -> Image:
    """Simulate a photograph taken with too little light and not brightened: dark, noisy, 8 bits.

    Linear light is scaled by `exposure` and a colour cast, one factor per channel; the sensor counts electrons
    (Poisson) and adds Gaussian read noise; the result is encoded as sRGB and rounded to 8 bits.
    """
    gain = exposure * (1 + cast * rng.uniform(-1, 1, image.shape[2:]))
    expected = srgb_to_linear(image) * (gain * full_well).astype(np.float32)
    electrons = rng.poisson(expected) + read_noise * rng.standard_normal(image.shape, dtype=np.float32)
    return quantise(linear_to_srgb((electrons / full_well).astype(np.float32)))


@degradation(quality=Number((10, 50), low=1, high=100, integer=True), subsampling=Choice('420', ('420', '422', '444')))
def jpeg(image: Image, rng: np.random.Generator, quality: int, subsampling: str) -> Image:
    """Compress as JPEG (libjpeg tables), after rounding to 8 bits. `subsampling` does not affect grey images."""
    levels: np.ndarray = np.rint(np.clip(image, 0, 1) * np.float32(255)).astype(np.uint8)
    options = [cv2.IMWRITE_JPEG_QUALITY, quality]
    if image.shape[2] == 3:
        levels = cv2.cvtColor(levels, cv2.COLOR_RGB2BGR)
        options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, _JPEG_SAMPLING[subsampling]]
    written, data = cv2.imencode('.jpg', levels, options)
    assert written
    decoded = np.asarray(cv2.imdecode(data, cv2.IMREAD_UNCHANGED)).reshape(image.shape)[:, :, ::-1]
    return decoded.astype(np.float32) / np.float32(255)


def _scatter(height: int, width: int, density: float, margin: float, rng: np.random.Generator) -> tuple[int, Any, Any]:
    """Draw number and centres of particles in the image and a margin around it; density is per 10,000 pixels."""
    count = int(rng.poisson(density * (height + 2 * margin) * (width + 2 * margin) / 1e4))
    x = rng.uniform(-margin - 0.5, width + margin - 0.5, count).astype(np.float32)
    y = rng.uniform(-margin - 0.5, height + margin - 0.5, count).astype(np.float32)
    return count, x, y
