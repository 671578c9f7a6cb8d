"""Degraded and clear image of a pair look alike under every degradation; images of two scenes do not."""

import itertools

import numpy as np
import pytest
import skimage.data

from promptir_basicsr.checks.images import LEAST_LIKENESS, fingerprint, likeness
from promptir_basicsr.core.arrays import to_float
from promptir_basicsr.degradations.spec import DEGRADATIONS, Degrade

NAMES = 'astronaut chelsea coffee rocket retina'.split()
NOISE = {'type': 'gaussian_noise', 'sigma': 100}
SPECS = [[NOISE if name == 'gaussian_noise' else {'type': name}] for name in DEGRADATIONS]
SPECS += [[{'type': 'low_light'}, {'type': 'haze'}, {'type': 'rain'}]]


@pytest.fixture(scope='module')
def album() -> dict[str, np.ndarray]:
    return {name: np.ascontiguousarray(getattr(skimage.data, name)()[:400, :400]) for name in NAMES}


def image(values: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)


@pytest.mark.parametrize('spec', SPECS, ids=lambda spec: '+'.join(one['type'] for one in spec))
def test_degraded_images_look_like_their_clear_ones_and_no_others(spec, album) -> None:
    clear = {name: fingerprint(pixels) for name, pixels in album.items()}
    for number, (name, pixels) in enumerate(album.items()):
        degraded = fingerprint(image(Degrade(spec)(to_float(pixels), np.random.default_rng(number))))
        found = {other: likeness(degraded, print_) for other, print_ in clear.items()}
        assert [other for other, value in found.items() if value >= LEAST_LIKENESS] == [name], found


def test_what_a_camera_does_in_the_dark_and_in_thick_haze(album) -> None:
    rng = np.random.default_rng(0)
    for pixels in album.values():
        clear, values = fingerprint(pixels), to_float(pixels)
        dark = image(0.03 * values + rng.normal(0, 0.008, values.shape))
        for changed in (dark, image(0.08 * values + 0.87), 255 - pixels, image(values**3), pixels[10:-10, 10:-10]):
            assert likeness(fingerprint(changed), clear) > 2 * LEAST_LIKENESS


def test_it_is_symmetric_and_one_for_the_same_image(album) -> None:
    prints = [fingerprint(pixels) for pixels in album.values()]
    assert all(likeness(one, one) == pytest.approx(1) for one in prints)
    for one, other in itertools.combinations(prints, 2):
        assert likeness(one, other) == pytest.approx(likeness(other, one))
        assert likeness(one, other) < LEAST_LIKENESS


def test_an_image_without_detail_is_like_any_other(album) -> None:
    clear = fingerprint(album['coffee'])
    slope = np.repeat(np.linspace(0, 255, 400, dtype=np.uint8)[None, :, None], 400, axis=0).repeat(3, axis=2)
    for flat in (np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 255, np.uint8), slope):
        assert likeness(fingerprint(np.ascontiguousarray(flat)), clear) == 1
