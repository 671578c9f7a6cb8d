import json
import math
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data

from promptir_basicsr.degradations.physics import (
    disk_kernel,
    linear_to_srgb,
    motion_kernel,
    outdoor_depth,
    smooth_field,
    srgb_to_linear,
)
from promptir_basicsr.degradations.spec import (
    DEGRADATIONS,
    Choice,
    Degradation,
    Degrade,
    Image,
    Number,
    Switch,
    degradation,
)
from promptir_basicsr.degradations.synthesis import (
    defocus_blur,
    gaussian_noise,
    haze,
    jpeg,
    low_light,
    motion_blur,
    rain,
    snow,
)

DOCS = Path(__file__).parents[2] / 'docs' / 'degradations.md'
PHOTOS = {name: getattr(skimage.data, name)() for name in ('astronaut', 'coffee', 'chelsea')}


def new_rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def photo(name: str = 'chelsea', size: int = 0) -> Image:
    image = PHOTOS[name].astype(np.float32) / 255
    return np.ascontiguousarray(image[:size, :size]) if size else image


def flat(level: float, height: int = 256, width: int = 256) -> Image:
    return np.full((height, width, 3), level, np.float32)


def psnr(a: Image, b: Image) -> float:
    return float(-10 * np.log10(np.mean((a.astype(np.float64) - b) ** 2)))


def required(name: str) -> dict[str, float]:
    """A moderate value for every parameter that has no default."""
    parameters = DEGRADATIONS[name].parameters
    return {key: (p.low + p.high) / 10 for key, p in parameters.items() if isinstance(p, Number) and p.default is None}


@pytest.fixture
def registry() -> Iterator[None]:
    before = dict(DEGRADATIONS)
    yield
    DEGRADATIONS.clear()
    DEGRADATIONS.update(before)


# What every registered degradation promises


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('size', [(1, 1), (1, 7), (7, 1), (3, 500), (33, 64)])
@pytest.mark.parametrize('name', sorted(DEGRADATIONS))
def test_contract(name: str, size: tuple[int, int], channels: int) -> None:
    image = np.ascontiguousarray(np.resize(photo(), (*size, channels)))
    before = image.copy()
    for seed in range(4):
        degraded = DEGRADATIONS[name](image, new_rng(seed), **required(name))
        assert degraded.dtype == np.float32
        assert degraded.shape == image.shape
        assert 0 <= degraded.min() <= degraded.max() <= 1
        assert not np.shares_memory(degraded, image)
        np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize('name', ['rain', 'snow', 'haze', 'motion_blur', 'defocus_blur', 'jpeg'])
def test_a_grey_image_is_degraded_like_three_equal_colours(name: str) -> None:
    grey = np.rint(photo(size=100)[..., :1] * 255) / np.float32(255)
    expected = DEGRADATIONS[name](np.repeat(grey, 3, axis=2), new_rng())
    np.testing.assert_allclose(DEGRADATIONS[name](grey, new_rng()), expected[..., 1:2], atol=1e-6)


def test_grey_noise_and_low_light_are_their_formulas() -> None:
    grey = photo(size=64)[..., :1]
    normal = new_rng(7).standard_normal(grey.shape, dtype=np.float32)
    expected = np.floor(np.clip(grey * np.float32(255) + normal * np.float32(25), 0, 255)) / np.float32(255)
    np.testing.assert_array_equal(gaussian_noise(grey, new_rng(7), sigma=25), expected)

    rng = new_rng(7)
    gain = np.float32(0.1 * (1 + 0.5 * rng.uniform(-1, 1)) * 4000)
    electrons = rng.poisson(srgb_to_linear(grey) * gain) + 4 * rng.standard_normal(grey.shape, dtype=np.float32)
    expected = np.rint(linear_to_srgb((electrons / 4000).astype(np.float32)) * 255) / 255
    found = low_light(grey, new_rng(7), exposure=0.1, full_well=4000, read_noise=4, cast=0.5)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_degradation_that_changes_the_shape_is_named(registry: None) -> None:
    @degradation
    def flattened(image: Image, rng: np.random.Generator) -> Image:
        return image[..., 0]

    with pytest.raises(ValueError, match=r'flattened returned an image \(4, 5\) for an input \(4, 5, 1\)'):
        flattened(np.zeros((4, 5, 1), np.float32), new_rng())


@pytest.mark.parametrize('name', sorted(DEGRADATIONS))
def test_all_randomness_comes_from_the_generator(name: str) -> None:
    image = photo(size=64)
    degrade = Degrade({'type': name, **required(name)})
    np.random.seed(1)
    first = degrade(image, new_rng(5))
    np.random.seed(2)
    state = np.random.get_state()[1].copy()
    np.testing.assert_array_equal(first, degrade(image, new_rng(5)))
    np.testing.assert_array_equal(state, np.random.get_state()[1])
    assert not np.array_equal(first, degrade(image, new_rng(6)))


@pytest.mark.parametrize('name', sorted(DEGRADATIONS))
def test_a_rotated_view_is_degraded_like_its_copy(name: str) -> None:
    view = np.rot90(photo(size=48))[:, ::-1]
    expected = DEGRADATIONS[name](np.ascontiguousarray(view), new_rng(), **required(name))
    np.testing.assert_array_equal(DEGRADATIONS[name](view, new_rng(), **required(name)), expected)


@pytest.mark.parametrize('name', sorted(DEGRADATIONS))
def test_can_be_pickled_for_workers(name: str) -> None:
    degrade = Degrade({'type': name, **required(name)})
    copy = pickle.loads(pickle.dumps(degrade))
    assert copy.key == degrade.key
    np.testing.assert_array_equal(copy(photo(size=32), new_rng()), degrade(photo(size=32), new_rng()))


@pytest.mark.parametrize('name', sorted(DEGRADATIONS))
def test_documented_with_every_parameter_default_and_bound(name: str) -> None:
    section = re.search(rf'^## `{name}`\n(.*?)(?=^## )', DOCS.read_text(encoding='utf-8'), re.MULTILINE | re.DOTALL)
    assert section, f'docs/degradations.md has no section for {name}'
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in section[1].splitlines() if line[:1] == '|']
    documented = {row[0].strip('`'): row[1:] for row in rows[2:]}
    assert list(documented) == list(DEGRADATIONS[name].parameters)
    for key, parameter in DEGRADATIONS[name].parameters.items():
        default, allowed = documented[key][:2]
        if isinstance(parameter, Number):
            assert allowed == f'{parameter.low:.7g} to {parameter.high:.7g}', key
            assert default == ('required' if parameter.default is None else f'`{json.dumps(parameter.default)}`'), key
        elif isinstance(parameter, Choice):
            assert (default, allowed) == (f'`{parameter.default}`', ', '.join(f'`{o}`' for o in parameter.options))
        else:
            assert (default, allowed) == (f'`{json.dumps(parameter.default)}`', '`true`, `false`')


@pytest.mark.parametrize(
    ('name', 'neutral'),
    [
        ('gaussian_noise', {'sigma': 0, 'quantize': 'float'}),
        ('rain', {'density': 0}),
        ('rain', {'intensity': 0}),
        ('snow', {'density': 0}),
        ('snow', {'opacity': 0}),
        ('haze', {'beta': 0}),
        ('motion_blur', {'length': 0}),
        ('defocus_blur', {'radius': 0.5}),
    ],
)
def test_neutral_values_leave_the_picture_unquantised(name: str, neutral: dict[str, float]) -> None:
    image = new_rng().random((20, 30, 3), dtype=np.float32)
    np.testing.assert_allclose(DEGRADATIONS[name](image, new_rng(), **neutral), image, atol=2e-6)


@pytest.mark.parametrize(
    ('name', 'low', 'high'),
    [('rain', 25, 30), ('snow', 25, 30), ('haze', 12, 18), ('low_light', 8, 12), ('jpeg', 27, 35)],
)
def test_default_strength(name: str, low: float, high: float) -> None:
    images = [photo('astronaut')[::2, ::2], photo('coffee')[::2, ::2]]
    values = [psnr(DEGRADATIONS[name](image, new_rng(seed)), image) for image in images for seed in range(20)]
    assert low < np.mean(values) < high


# Noise


@pytest.mark.parametrize('sigma', [15, 25, 50])
def test_noise_is_the_published_formula(sigma: int) -> None:
    image = PHOTOS['chelsea']
    normal = new_rng(7).standard_normal(image.shape, dtype=np.float32)
    expected = np.clip(image + normal * np.float32(sigma), 0, 255).astype(np.uint8)
    noisy = gaussian_noise(photo(), new_rng(7), sigma=sigma)
    np.testing.assert_array_equal(noisy, expected.astype(np.float32) / 255)
    rounded = gaussian_noise(photo(), new_rng(7), sigma=sigma, quantize='round')
    expected = np.rint(np.clip(image + normal * np.float32(sigma), 0, 255)).astype(np.uint8)
    np.testing.assert_array_equal(rounded, expected.astype(np.float32) / 255)


@pytest.mark.parametrize(('sigma', 'expected'), [(15, 24.6), (25, 20.2), (50, 14.5)])
def test_noise_psnr(sigma: int, expected: float) -> None:
    assert psnr(gaussian_noise(photo(), new_rng(), sigma=sigma), photo()) == pytest.approx(expected, abs=0.3)


def test_floor_darkens_by_half_a_grey_level_and_round_does_not() -> None:
    image = flat(128 / 255, 512, 512)
    exact, floor, nearest = (
        gaussian_noise(image, new_rng(3), sigma=20, quantize=q).mean(dtype=np.float64) * 255
        for q in ('float', 'floor', 'round')
    )
    assert floor - exact == pytest.approx(-0.5, abs=0.005)
    assert nearest - exact == pytest.approx(0, abs=0.005)
    assert exact == pytest.approx(128, abs=0.1)


def test_noise_standard_deviation_and_whiteness() -> None:
    noise = gaussian_noise(flat(0.5), new_rng(), sigma=25, quantize='float') - np.float32(0.5)
    assert noise.std() * 255 == pytest.approx(25, rel=0.01)
    for shifted in (noise[1:], noise[:, 1:], noise[:, :, 1:]):
        other = noise[tuple(slice(0, n) for n in shifted.shape)]
        assert abs(np.corrcoef(shifted.ravel(), other.ravel())[0, 1]) < 0.01


def test_noise_without_strength_keeps_all_8_bit_values() -> None:
    image = np.repeat(np.arange(256, dtype=np.float32)[:, None, None] / 255, 3, axis=2)
    for quantize in ('floor', 'round', 'float'):
        np.testing.assert_array_equal(gaussian_noise(image, new_rng(), sigma=0, quantize=quantize), image)


def test_unclipped_noise_leaves_the_range_and_lowers_the_psnr() -> None:
    unclipped = gaussian_noise(photo('coffee'), new_rng(), sigma=50, quantize='float', clip=False)
    assert unclipped.min() < 0
    assert unclipped.max() > 1
    assert psnr(unclipped, photo('coffee')) == pytest.approx(14.15, abs=0.03)
    for name in set(DEGRADATIONS) - {'gaussian_noise'}:
        after = DEGRADATIONS[name](unclipped[:40, :40], new_rng())
        assert 0 <= after.min() <= after.max() <= 1


def test_a_range_is_drawn_uniformly_and_before_the_noise() -> None:
    degrade = Degrade({'type': 'gaussian_noise', 'sigma': [10, 50], 'quantize': 'float', 'clip': False})
    rng = new_rng()
    image = flat(0.5, 32, 32)
    sigmas = np.array([(degrade(image, rng) - image).std() * 255 for _ in range(300)])
    assert sigmas.min() == pytest.approx(10, abs=2)
    assert sigmas.max() == pytest.approx(50, abs=3)
    assert sigmas.mean() == pytest.approx(30, abs=2)
    assert sigmas.std() == pytest.approx(40 / math.sqrt(12), rel=0.1)

    rng = new_rng(4)
    sigma = rng.uniform(10, 50)
    expected = gaussian_noise(image, rng, sigma=sigma, quantize='float', clip=False)
    np.testing.assert_array_equal(degrade(image, new_rng(4)), expected)


CHAIN: list[dict[str, Any]] = [
    {'type': 'haze'},
    {'type': 'rain', 'angle': [-10, 10]},
    {'type': 'gaussian_noise', 'sigma': [5, 50]},
    {'type': 'jpeg', 'quality': [10, 50]},
]


@pytest.mark.parametrize('spec', [*({'type': name} for name in sorted(DEGRADATIONS)), CHAIN], ids=str)
def test_random_parameters_are_returned_and_change_no_draw(spec: Any) -> None:
    """The same picture as when called, the same numbers used up, and no range left."""
    spec = spec if isinstance(spec, list) else {**spec, **required(spec['type'])}
    degrade, image, rng, other = Degrade(spec), photo(size=40), new_rng(3), new_rng(3)
    before = degrade.key
    degraded, drawn = degrade.apply(image, rng)
    np.testing.assert_array_equal(degraded, degrade(image, other))
    assert rng.random() == other.random()
    assert degrade.key == before
    values = [value for step in drawn.spec for value in step.values()]
    assert not any(isinstance(value, list) for value in values)
    assert [step.keys() - {'type'} for step in drawn.spec] == [
        DEGRADATIONS[step['type']].parameters.keys() for step in drawn.spec
    ]
    # A specification like any other: checked, pickled, drawn from as often as wanted.
    assert Degrade(drawn.spec).key == drawn.key
    again = pickle.loads(pickle.dumps(drawn))
    np.testing.assert_array_equal(again(image, new_rng(9)), drawn(image, new_rng(9)))


@pytest.mark.parametrize('name', ['motion_blur', 'defocus_blur', 'jpeg'])
def test_drawn_once_and_applied_twice_is_the_same_where_nothing_else_is_random(name: str) -> None:
    image = photo(size=40)
    degraded, drawn = Degrade({'type': name}).apply(image, new_rng(3))
    np.testing.assert_array_equal(drawn(image, new_rng(8)), degraded)
    assert not np.array_equal(Degrade({'type': name})(image, new_rng(8)), degraded)


def test_drawn_once_and_applied_twice_noise_is_as_strong_and_another() -> None:
    image = flat(0.5, 64, 64)
    degrade = Degrade({'type': 'gaussian_noise', 'sigma': [1, 60], 'quantize': 'float', 'clip': False})
    for seed in range(5):
        rng = new_rng(seed)
        first, drawn = degrade.apply(image, rng)
        second = drawn(image, rng)
        assert (second - image).std() == pytest.approx((first - image).std(), rel=0.05)
        assert abs(np.corrcoef((first - image).ravel(), (second - image).ravel())[0, 1]) < 0.05


def test_whole_number_ranges_include_both_ends() -> None:
    rng = new_rng()
    number = Number(integer=True)
    drawn = [number.draw(number.canonical([1, 3.0]), rng) for _ in range(100)]
    assert set(drawn) == {1, 2, 3}
    assert all(type(value) is int for value in drawn)


# Rain and snow


@pytest.mark.parametrize('kind', [rain, snow])
def test_weather_only_brightens_and_keeps_white(kind: Degradation) -> None:
    image = photo('coffee')
    change = kind(image, new_rng()) - image
    assert change.min() >= 0
    assert change.max() > 0.2
    assert (kind(flat(1.0, 64, 64), new_rng()) == 1).all()


def test_added_rain_is_the_same_layer_and_saturates() -> None:
    layer = rain(flat(0.0), new_rng(), blend='add', density=50)
    np.testing.assert_array_equal(layer, rain(flat(0.0), new_rng(), density=50))
    image = photo('coffee')[:256, :256]
    np.testing.assert_allclose(rain(image, new_rng(), blend='add', density=50), np.minimum(image + layer, 1), atol=1e-6)
    expected = 1 - (1 - image) * (1 - layer)
    np.testing.assert_allclose(rain(image, new_rng(), density=50), expected, atol=1e-6)


@pytest.mark.parametrize('angle', [-60, -15, 0, 30, 80])
def test_streaks_follow_the_angle(angle: float) -> None:
    layer = rain(flat(0.0), new_rng(), angle=angle, density=30, width=5, depth=1, jitter=0)[:, :, 0]
    dy, dx = np.gradient(layer)
    # The structure tensor's main axis crosses the streaks; (sin, cos) of the angle runs along them.
    across = np.rad2deg(0.5 * np.arctan2(2 * (dx * dy).sum(), (dx**2 - dy**2).sum()))
    assert (across + angle + 90) % 180 - 90 == pytest.approx(0, abs=2)
    sine, cosine = np.sin(np.deg2rad(angle)), np.cos(np.deg2rad(angle))
    assert ((dx * cosine - dy * sine) ** 2).sum() > 10 * ((dx * sine + dy * cosine) ** 2).sum()


def test_streak_length_width_and_intensity() -> None:
    layer = rain(flat(0.0, 800, 800), new_rng(1), density=0.2, length=40, width=3, angle=0, depth=1, jitter=0)[:, :, 0]
    column = int(layer.max(axis=0)[50:-50].argmax()) + 50
    row = int(layer[:, column].argmax())
    half = layer[row, column] / 2
    assert (layer[row, column - 10 : column + 11] > half).sum() == pytest.approx(3, abs=1)
    assert (layer[:, column] > half / 4).sum() == pytest.approx(40, abs=3)
    assert 0.25 < layer.max() < 0.75


@pytest.mark.parametrize('kind', [rain, snow])
def test_no_empty_margins(kind: Degradation) -> None:
    mean = np.mean([kind(flat(0.0, 64, 64), new_rng(seed))[:, :, 0] for seed in range(300)], axis=0)
    inside = mean[16:-16, 16:-16].mean()
    for edge in (mean[:4], mean[-4:], mean[:, :4], mean[:, -4:]):
        assert edge.mean() == pytest.approx(inside, rel=0.25)


@pytest.mark.parametrize('kind', [rain, snow])
def test_coverage_grows_with_density_not_with_the_picture(kind: Degradation) -> None:
    def coverage(density: float, size: int) -> float:
        return float(np.mean([kind(flat(0.0, size, size), new_rng(s), density=density).mean() for s in range(30)]))

    assert coverage(5, 128) < coverage(10, 128) < coverage(20, 128)
    assert coverage(20, 64) == pytest.approx(coverage(20, 192), rel=0.2)


# Haze


def test_haze_can_be_inverted() -> None:
    image = photo('astronaut')
    hazy = haze(image, new_rng(), A=0.9, beta=0.1, near=7, far=7)
    t = math.exp(-0.7)
    np.testing.assert_allclose((hazy - 0.9 * (1 - t)) / t, image, atol=1e-5)


def test_haze_grows_with_beta_and_distance() -> None:
    values = [psnr(haze(photo(), new_rng(), A=1, beta=beta), photo()) for beta in (0.04, 0.08, 0.12, 0.2)]
    assert values == sorted(values, reverse=True)
    veil = haze(flat(0.0), new_rng(), A=1, beta=0.1, near=2, far=20, variation=0)
    assert (np.diff(veil[:, 0, 0]) < 0).all()
    np.testing.assert_allclose(veil[-1], 1 - math.exp(-0.2), rtol=1e-5)
    np.testing.assert_allclose(veil[0], 1 - math.exp(-2), rtol=1e-5)
    np.testing.assert_array_equal(haze(flat(1.0), new_rng(), A=1), flat(1.0))


def test_airlight_is_the_limit_and_grey() -> None:
    np.testing.assert_allclose(haze(photo(), new_rng(), A=0.85, beta=50), 0.85, atol=1e-6)


def test_depth_stays_in_range_and_is_smooth() -> None:
    depth = outdoor_depth(300, 400, 2, 15, 0.3, new_rng())
    assert 2 - 1e-4 <= depth.min() <= depth.max() <= 15 + 1e-4
    assert depth[:60].mean() > 2 * depth[-60:].mean()
    field = np.stack([smooth_field(64, 90, new_rng(seed)) for seed in range(200)])
    assert field.mean() == pytest.approx(0, abs=0.1)
    assert np.sqrt((field**2).mean()) == pytest.approx(1, abs=0.1)
    assert np.abs(np.diff(field, n=2, axis=1)).max() < 0.1


# Blur


def test_srgb_curve() -> None:
    codes = np.array([0, 0.02, 0.5, 1], np.float32)
    np.testing.assert_allclose(srgb_to_linear(codes), [0, 0.02 / 12.92, 0.2140411, 1], atol=1e-6)
    ramp = np.linspace(0, 1, 1000, dtype=np.float32)
    np.testing.assert_allclose(linear_to_srgb(srgb_to_linear(ramp)), ramp, atol=2e-6)
    assert srgb_to_linear(ramp).dtype == linear_to_srgb(ramp).dtype == np.float32


def moments(kernel: np.ndarray) -> tuple[float, float, float, float, float]:
    """Centre x and y, variance x and y, covariance, with x to the right and y upwards."""
    half = kernel.shape[0] // 2
    y, x = np.mgrid[half : -half - 1 : -1, -half : half + 1]
    cx, cy = (kernel * x).sum(), (kernel * y).sum()
    return cx, cy, (kernel * x**2).sum() - cx**2, (kernel * y**2).sum() - cy**2, (kernel * x * y).sum() - cx * cy


@pytest.mark.parametrize('radius', [0, 0.3, 0.8, 1, 2.5, 3.3, 7])
def test_disk_kernel(radius: float) -> None:
    kernel = disk_kernel(radius)
    assert kernel.shape[0] % 2 == 1
    assert kernel.sum() == pytest.approx(1, abs=1e-6)
    for other in (kernel[::-1], kernel[:, ::-1], kernel.T):
        np.testing.assert_array_equal(kernel, other)
    if radius > 1:  # variance of a disk, r^2 / 4, and of the pixel that samples it
        assert moments(kernel)[2] == pytest.approx(radius**2 / 4 + 1 / 12, rel=0.03)
        assert kernel.max() == pytest.approx(1 / (math.pi * radius**2), rel=0.03)


@pytest.mark.parametrize('bend', [0, 40, -120])
@pytest.mark.parametrize('length', [0, 0.5, 1, 4, 10, 23.7])
@pytest.mark.parametrize('angle', [0, 30, 90, 135, 180, -45])
def test_motion_kernel(length: float, angle: float, bend: float) -> None:
    kernel = motion_kernel(length, angle, bend)
    assert kernel.shape[0] == kernel.shape[1]
    assert kernel.shape[0] % 2 == 1
    assert kernel.min() >= 0
    assert kernel.sum() == pytest.approx(1, abs=1e-6)
    centre_x, centre_y, variance_x, variance_y, covariance = moments(kernel)
    assert (centre_x, centre_y) == pytest.approx((0, 0), abs=1e-5)
    if bend == 0:
        np.testing.assert_allclose(kernel, kernel[::-1, ::-1], atol=1e-6)
        # A uniform line has variance length^2 / 12 along its direction; splitting among pixels adds up to 1/4.
        radians = math.radians(angle)
        assert covariance == pytest.approx(length**2 / 12 * math.cos(radians) * math.sin(radians), abs=0.1)
        assert 0 <= variance_x - length**2 / 12 * math.cos(radians) ** 2 + 1e-5 <= 0.26
        assert 0 <= variance_y - length**2 / 12 * math.sin(radians) ** 2 + 1e-5 <= 0.26


def test_a_bent_path_is_an_arc() -> None:
    kernel = motion_kernel(30, 0, 180)  # turning counter-clockwise from down over right to up: a U
    half = kernel.shape[0] // 2
    radius = 30 / math.pi
    rows, columns = np.nonzero(kernel > 0.001)
    x, y = columns - half, half - rows - 2 * radius / math.pi  # from the centre of the circle
    np.testing.assert_allclose(np.hypot(x, y), radius, atol=1.5)
    assert y.max() < 1.5
    assert np.ptp(x) == pytest.approx(2 * radius, abs=2)


@pytest.mark.parametrize('linear_light', [True, False])
def test_blur_keeps_constants_and_total_light(linear_light: bool) -> None:
    spot = flat(0.0, 65, 65)
    spot[32, 32] = [1.0, 0.7, 0.4]
    for kind, values in ((motion_blur, {'length': 9, 'angle': 25, 'bend': 50}), (defocus_blur, {'radius': 2.7})):
        values['linear_light'] = linear_light
        np.testing.assert_allclose(kind(flat(0.3), new_rng(), **values), 0.3, atol=2e-6)
        blurred = kind(spot, new_rng(), **values)
        light = srgb_to_linear if linear_light else np.asarray
        np.testing.assert_allclose(light(blurred).sum((0, 1)), light(spot).sum((0, 1)), rtol=1e-4)


def test_blurring_mirrors_at_the_edges_and_keeps_the_mean() -> None:
    blurred = defocus_blur(photo('coffee'), new_rng(), radius=4, linear_light=False)
    expected = photo('coffee').mean((0, 1), dtype=np.float64)
    np.testing.assert_allclose(blurred.mean((0, 1), dtype=np.float64), expected, rtol=1e-5)


def test_highlights_survive_in_linear_light() -> None:
    image = flat(0.1, 64, 64)
    image[30:34, 30:34] = 1
    bright = defocus_blur(image, new_rng(), radius=4)
    assert bright[32, 32, 0] > defocus_blur(image, new_rng(), radius=4, linear_light=False)[32, 32, 0] + 0.1


def test_angle_0_blurs_along_rows_90_along_columns_45_up_to_the_right() -> None:
    rows = np.repeat(new_rng().random((40, 1, 3), dtype=np.float32), 50, axis=1)
    columns = np.repeat(new_rng().random((1, 50, 3), dtype=np.float32), 40, axis=0)
    for angle in (0, 180):
        np.testing.assert_allclose(motion_blur(rows, new_rng(), length=11, angle=angle), rows, atol=2e-6)
        assert motion_blur(columns, new_rng(), length=11, angle=angle).std() < 0.6 * columns.std()
    np.testing.assert_allclose(motion_blur(columns, new_rng(), length=11, angle=90), columns, atol=2e-6)
    spot = flat(0.0, 31, 31)
    spot[15, 15] = 1
    blurred = motion_blur(spot, new_rng(), length=15, angle=45)[:, :, 0]
    assert blurred[11, 19] > 0.1  # above and to the right
    assert blurred[11, 11] < 1e-6


def test_a_bent_blur_is_a_convolution() -> None:
    spot = flat(0.0, 61, 61)
    spot[30, 30] = 1
    kernel = motion_kernel(20, 10, 120)
    half = kernel.shape[0] // 2
    blurred = motion_blur(spot, new_rng(), length=20, angle=10, bend=120, linear_light=False)
    np.testing.assert_allclose(blurred[30 - half : 31 + half, 30 - half : 31 + half, 1], kernel, atol=1e-6)


# Low light and JPEG


def test_low_light_darkens_monotonically() -> None:
    image = photo('astronaut', 256)
    means = [low_light(image, new_rng(), exposure=e, cast=0).mean() for e in (0, 0.02, 0.05, 0.1, 0.3, 1)]
    assert means == sorted(means)
    assert means[0] < 0.02
    assert means[3] < 0.45 * image.mean()
    clean = low_light(image, new_rng(), exposure=1, cast=0, full_well=1e6, read_noise=0)
    assert psnr(clean, image) > 45


def test_low_light_has_the_sensor_s_noise() -> None:
    image = flat(1.0)
    dark = low_light(image, new_rng(), exposure=0.25, cast=0, full_well=1000, read_noise=10)
    electrons = srgb_to_linear(dark).astype(np.float64) * 1000
    assert electrons.mean() == pytest.approx(250, rel=0.01)
    assert electrons.std() == pytest.approx(math.sqrt(250 + 10**2), rel=0.02)
    levels = dark * np.float32(255)
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-4)


def test_colour_cast_is_bounded() -> None:
    gains = []
    for seed in range(50):
        dark = low_light(flat(1.0, 32, 32), new_rng(seed), exposure=0.5, cast=0.2, full_well=1e6, read_noise=0)
        gains.append(srgb_to_linear(dark).mean((0, 1)) / 0.5)
    assert 0.79 < np.min(gains) < 0.85
    assert 1.15 < np.max(gains) < 1.21


def test_jpeg_quality_and_channels() -> None:
    values = [psnr(jpeg(photo('coffee'), new_rng(), quality=q), photo('coffee')) for q in (5, 15, 40, 75, 95)]
    assert values == sorted(values)
    assert psnr(jpeg(photo('coffee'), new_rng(), quality=100, subsampling='444'), photo('coffee')) > 40
    for channel in range(3):
        pure = flat(0.0, 16, 16)
        pure[:, :, channel] = 1
        np.testing.assert_allclose(jpeg(pure, new_rng(), quality=90), pure, atol=0.03)


def test_jpeg_subsampling_costs_colour() -> None:
    values = [
        psnr(jpeg(photo('astronaut'), new_rng(), quality=80, subsampling=s), photo('astronaut')) for s in (420, 444)
    ]
    assert values[0] < values[1]


# Specifications


def test_composition_is_applied_in_order() -> None:
    image = photo(size=64)
    noise, compress = {'type': 'gaussian_noise', 'sigma': 25}, {'type': 'jpeg', 'quality': 20}
    rng = new_rng(1)
    expected = jpeg(gaussian_noise(image, rng, sigma=25), rng, quality=20)
    result = Degrade([noise, compress])(image, new_rng(1))
    np.testing.assert_array_equal(result, expected)
    assert not np.array_equal(result, Degrade([compress, noise])(image, new_rng(1)))


def test_key_and_spec_are_canonical() -> None:
    given = {'clip': True, 'sigma': 25.0, 'type': 'gaussian_noise'}
    degrade = Degrade(given)
    assert given == {'clip': True, 'sigma': 25.0, 'type': 'gaussian_noise'}
    assert degrade.spec == [{'type': 'gaussian_noise', 'sigma': 25, 'clip': True}]
    assert list(degrade.spec[0]) == ['type', 'sigma', 'clip']
    assert type(degrade.spec[0]['sigma']) is int
    for same in ([given], {'type': 'gaussian_noise', 'sigma': 25}, degrade.spec, json.loads(degrade.key)):
        assert Degrade(same).key == degrade.key
    assert degrade.key == '[{"sigma":25,"type":"gaussian_noise"}]'
    assert Degrade({'type': 'haze', 'A': (0.5, 1.0)}).key == Degrade({'A': [0.5, 1], 'type': 'haze'}).key
    keys = {
        Degrade(spec).key
        for spec in (
            given,
            {**given, 'sigma': 25.5},
            {**given, 'sigma': [25, 25]},
            {**given, 'quantize': 'round'},
            [given, given],
        )
    }
    assert len(keys) == 5
    degrade.spec[0]['sigma'] = 99
    assert degrade.spec[0]['sigma'] == 25


def test_describe() -> None:
    assert Degrade({'type': 'gaussian_noise', 'sigma': 25}).describe() == 'gaussian_noise(sigma=25, floor)'
    ranged = Degrade({'type': 'gaussian_noise', 'clip': True, 'sigma': [0, 50.5]})
    assert ranged.describe() == 'gaussian_noise(sigma=[0, 50.5], floor, clip=true)'
    assert Degrade({'type': 'haze'}).describe() == 'haze'
    both = [{'type': 'haze'}, {'type': 'gaussian_noise', 'sigma': 25}]
    assert Degrade(both).describe() == 'haze + gaussian_noise'


NOISE = {'type': 'gaussian_noise', 'sigma': 25}


@pytest.mark.parametrize(
    ('spec', 'expected'),
    [
        (None, ['d: must be a mapping {type: NAME, ...}, found None. Allowed types: defocus_blur, gaussian_noise,']),
        ('rain', ["d: must be a mapping {type: NAME, ...}, found 'rain'"]),
        ([], ['d: an empty list']),
        (['rain'], ["d[0]: must be a mapping {type: NAME, ...}, found 'rain'"]),
        ({'sigma': 25}, ['d: type is missing. Allowed types:']),
        ({'type': 'gausian_noise'}, ["d: unknown degradation 'gausian_noise'. Did you mean 'gaussian_noise'? Allowed"]),
        ({'type': ['rain']}, ["d: unknown degradation ['rain']"]),
        ({'type': 'gaussian_noise'}, ['d: gaussian_noise needs sigma, a number from 0 to 255']),
        (
            {**NOISE, 'sigm': 3},
            ["d.sigm: gaussian_noise has no parameter of this name. Did you mean 'sigma'? Allowed: sigma, "],
        ),
        ({**NOISE, True: 3}, ['d.True: gaussian_noise has no parameter of this name. Allowed: sigma, quantize, clip']),
        ({'type': 'haze', 'a': 1}, ["d.a: haze has no parameter of this name. Did you mean 'A'?"]),
        ({**NOISE, 'sigma': '1e-4'}, ['d.sigma: must be a number from 0 to 255', "'1e-4'; write 1.0e-4"]),
        ({**NOISE, 'sigma': '2e1'}, ["the text '2e1'; write 2.0e+1"]),
        ({**NOISE, 'sigma': '25'}, ["the text '25'; write 25 without quotes"]),
        ({**NOISE, 'sigma': 'strong'}, ["found the text 'strong'"]),
        ({**NOISE, 'sigma': None}, ['d.sigma: must be a number from 0 to 255', 'found None']),
        ({**NOISE, 'sigma': True}, ['d.sigma:', 'found True']),
        ({**NOISE, 'sigma': math.nan}, ['d.sigma:', 'found nan']),
        ({**NOISE, 'sigma': math.inf}, ['d.sigma:', 'found inf']),
        ({**NOISE, 'sigma': {'low': 1}}, ['d.sigma:', "found {'low': 1}"]),
        ({**NOISE, 'sigma': -1}, ['d.sigma: must be a number from 0 to 255', 'found -1']),
        ({**NOISE, 'sigma': [0, 256]}, ['d.sigma:', 'found 256']),
        ({**NOISE, 'sigma': [50, 5]}, ['d.sigma: the range [50, 5] is reversed; use [5, 50]']),
        ({**NOISE, 'sigma': [15, 25, 50]}, ['d.sigma: a range needs two ends, [low, high], found [15, 25, 50]']),
        ({**NOISE, 'sigma': ['5', 50]}, ['d.sigma:', "the text '5'; write 5 without quotes"]),
        ({**NOISE, 'quantize': 'flor'}, ["d.quantize: must be one of floor, round, float, found 'flor'. Did you mean"]),
        ({**NOISE, 'quantize': ['floor']}, ["d.quantize: must be one of floor, round, float, found ['floor']"]),
        ({**NOISE, 'clip': 'no'}, ["d.clip: must be true or false, found 'no'"]),
        ({**NOISE, 'clip': 0}, ['d.clip: must be true or false, found 0']),
        ({**NOISE, 'clip': False}, ['d: clip: false needs quantize: float']),
        ({'type': 'jpeg', 'quality': 50.5}, ['d.quality: must be a whole number from 1 to 100', 'found 50.5']),
        ({'type': 'haze', 'near': 8, 'far': [5, 10]}, ['d: near must not exceed far, found near 8 and far [5, 10]']),
        ({'type': 'haze', 'near': 8}, ['d: near must not exceed far, found near 8 and far [5, 12]']),
    ],
)
def test_mistakes_are_named(spec: object, expected: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        Degrade(spec, where='d')
    message = str(error.value)
    assert message.startswith(('d: ', 'd.', 'd['))
    assert '\n' not in message
    for part in expected:
        assert part in message


def test_all_mistakes_are_reported_at_once() -> None:
    spec = [
        {'type': 'haze', 'bta': 0.1, 'A': 2},
        {'type': 'fog'},
        NOISE,
        {'type': 'gaussian_noise', 'sigma': 'x', 'clip': 1},
    ]
    with pytest.raises(ValueError) as error:
        Degrade(spec, where='datasets.train.tasks[1].degrade')
    starts = [
        line.split(': ')[0].removeprefix('datasets.train.tasks[1].degrade') for line in str(error.value).split('\n')
    ]
    assert starts == ['[0].bta', '[0].A', '[1]', '[3].sigma', '[3].clip']


def test_calling_a_degradation_directly_checks_values_too() -> None:
    with pytest.raises(ValueError, match=r'gaussian_noise\.quantize: must be one of'):
        gaussian_noise(photo(size=8), new_rng(), sigma=5, quantize='ceil')
    with pytest.raises(ValueError, match='gaussian_noise needs sigma'):
        gaussian_noise(photo(size=8), new_rng())


@pytest.mark.parametrize(
    'image', [PHOTOS['coffee'], np.zeros((4, 4), np.float32), np.zeros((3, 4, 4), np.float32), np.zeros((4, 4, 3))]
)
def test_wrong_images_are_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r'needs a float32 image \(H, W, 3\) or \(H, W, 1\), found'):
        Degrade({'type': 'rain'})(image, new_rng())


# One's own


@pytest.mark.usefixtures('registry')
def test_a_degradation_of_one_s_own() -> None:
    @degradation(strength=Number((0.2, 0.4), low=0, high=1), kind=Choice('down', ('down', 'up')))
    def fade(image: Image, rng: np.random.Generator, strength: float, kind: str, twice: bool = False) -> Image:
        """Fade."""
        factor = 1 - strength if kind == 'down' else 1 + strength
        return np.clip(image * np.float32(factor ** (1 + twice)), 0, 1)

    assert DEGRADATIONS['fade'] is fade
    assert fade.__doc__ == 'Fade.'
    result = Degrade({'type': 'fade', 'strength': 0.5, 'twice': True})(flat(0.8, 4, 4), new_rng())
    np.testing.assert_allclose(result, 0.2)
    assert 0.6 <= fade(flat(1.0, 2, 2), new_rng()).mean() <= 0.8
    with pytest.raises(ValueError, match=r'degrade.strength: must be a number from 0 to 1 or a range'):
        Degrade({'type': 'fade', 'strength': 3})


@pytest.mark.usefixtures('registry')
def test_a_bare_decorator_reads_plain_defaults() -> None:
    @degradation
    def dots(image: Image, rng: np.random.Generator, count: int = 3, level: float = 1, wrap: bool = True) -> Image:
        return image.copy()

    assert dots.parameters == {'count': Number(3, integer=True), 'level': Number(1), 'wrap': Switch(True)}


@pytest.mark.usefixtures('registry')
def test_registration_mistakes() -> None:
    def other(image: Image, rng: np.random.Generator) -> Image:
        return image.copy()

    again = degradation(other)
    assert degradation(other) is not again  # the same module may register again, as after a reload
    other.__module__ = 'elsewhere'
    with pytest.raises(ValueError, match=f"elsewhere: {__name__} has already registered 'other'"):
        degradation(other)
    with pytest.raises(TypeError, match='declare strength'):

        @degradation
        def undeclared(image: Image, rng: np.random.Generator, strength: float) -> Image:
            return image

    with pytest.raises(TypeError, match=r"cannot have the declared parameters \['sigma'\]"):

        @degradation(sigma=Number(1))
        def misspelt(image: Image, rng: np.random.Generator, sigm: float = 1) -> Image:
            return image

    assert not {'undeclared', 'misspelt'} & set(DEGRADATIONS)


@pytest.mark.usefixtures('registry')
def test_the_documented_example_works() -> None:
    code = re.findall(r'```python\n(.*?)```', DOCS.read_text(encoding='utf-8'), re.DOTALL)
    scope = {'image': photo(size=32)}
    for block in code:
        exec(block, scope)
    assert scope['degraded'].shape == (32, 32, 3)
    striped = Degrade({'type': 'stripes', 'strength': 0.5})(flat(0.5, 16, 16), new_rng())
    assert striped.std(axis=0).max() < 1e-6 < striped.std(axis=1).min()


def test_the_documented_specifications_are_valid() -> None:
    yaml = pytest.importorskip('yaml')
    blocks = re.findall(r'```yaml\n(.*?)```', DOCS.read_text(encoding='utf-8'), re.DOTALL)
    specs = [yaml.safe_load(block[block.index('degrade:') :].partition(':')[2]) for block in blocks]
    assert len(specs) == 4
    for spec in specs[:3]:
        Degrade(spec)(photo(size=32), new_rng())
