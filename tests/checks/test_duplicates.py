"""The same photograph is found whatever file it was saved to, and another one is not."""

import itertools
from collections.abc import Callable

import cv2
import numpy as np
import pytest
import skimage.data

from promptir_basicsr.checks.images import FINGERPRINT_BYTES, find_duplicates, fingerprint
from promptir_basicsr.data.images import decode

NAMES = 'astronaut chelsea coffee rocket retina camera moon brick grass gravel coins motorcycle'.split()


def photograph(name: str) -> np.ndarray:
    image = skimage.data.stereo_motorcycle()[0] if name == 'motorcycle' else getattr(skimage.data, name)()
    return np.ascontiguousarray(image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2))


@pytest.fixture(scope='module')
def album() -> dict[str, np.ndarray]:
    return {name: photograph(name) for name in NAMES}


def saved(image: np.ndarray, extension: str, *parameters: int) -> np.ndarray:
    """Written to a file and read again."""
    return decode(cv2.imencode(extension, image[..., ::-1], parameters)[1].tobytes(), extension)


def jpeg(quality: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda image: saved(image, '.jpg', cv2.IMWRITE_JPEG_QUALITY, quality)


def found(first: list[np.ndarray], second: list[np.ndarray]) -> list[tuple[int, int]]:
    return find_duplicates([fingerprint(image) for image in first], [fingerprint(image) for image in second])


COPIES = {
    'jpeg75': jpeg(75),
    'jpeg85': jpeg(85),
    'jpeg95': jpeg(95),
    'png': lambda image: saved(image, '.png'),
    'sixteen bit': lambda image: image.astype(np.uint16) * 257,
    'half as large': lambda image: cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
    'one row and column less': lambda image: image[:-1, 1:],
    'brighter': lambda image: np.clip(image * 1.05 + 4, 0, 255).astype(np.uint8),
}


@pytest.mark.parametrize('copy', COPIES)
def test_copies_are_found_and_nothing_else(copy: str, album: dict[str, np.ndarray]) -> None:
    images = list(album.values())
    copies = [COPIES[copy](image) for image in reversed(images)]
    last = len(images) - 1
    assert found(images, copies) == [(last - number, number) for number in range(len(images))]


def test_no_two_photographs_are_the_same(album: dict[str, np.ndarray]) -> None:
    for one, other in itertools.combinations(album, 2):
        assert found([album[one]], [album[other]]) == [], (one, other)


def test_two_views_of_one_scene_are_two_photographs() -> None:
    left, right, _ = skimage.data.stereo_motorcycle()
    assert found([left], [right]) == []


def test_crops_flips_and_rotations_are_other_photographs(album: dict[str, np.ndarray]) -> None:
    for name, image in album.items():
        height, width = image.shape[:2]
        halves = [image[: height // 2], image[height // 2 :], image[:, : width // 2], image[:, width // 2 :]]
        inner = image[height // 8 : -height // 8, width // 8 : -width // 8]
        pieces = [image, *halves, inner, image[::-1], np.rot90(image)]
        pieces = [np.ascontiguousarray(piece) for piece in pieces]
        assert found(pieces, pieces) == [(number, number) for number in range(len(pieces))], name


def test_flat_images_are_not_duplicates() -> None:
    rocket = skimage.data.rocket()
    skies = [np.ascontiguousarray(rocket[:100, left : left + 100]) for left in (0, 100, 200, 300)]
    flat = [np.full((50, 60, 3), grey, np.uint8) for grey in (0, 0, 250, 251)]
    ramp = np.broadcast_to(np.linspace(0, 255, 60)[None, :, None], (50, 60, 3)).astype(np.uint8)
    assert found([*skies[1:], *flat, ramp], [*skies, *flat, ramp]) == []


def test_every_copy_counts(album: dict[str, np.ndarray]) -> None:
    cat, coffee = album['chelsea'], album['coffee']
    assert found([cat, coffee, jpeg(90)(cat)], [coffee, cat]) == [(1, 0), (0, 1), (2, 1)]


def test_nothing_to_compare(album: dict[str, np.ndarray]) -> None:
    assert found([], [album['coffee']]) == []
    assert found([album['coffee']], []) == []


def test_tiny_images_have_fingerprints() -> None:
    assert len(fingerprint(np.zeros((1, 1, 3), np.uint8))) == FINGERPRINT_BYTES


def test_protocol_sizes_are_compared_at_once(album: dict[str, np.ndarray]) -> None:
    """As many training images as three degradations have, with copies beyond the rows that are compared at once."""
    rng = np.random.default_rng(0)
    others = [rng.integers(0, 256, FINGERPRINT_BYTES, np.uint8).tobytes() for _ in range(7205 + 668)]
    first, second = others[:7205], others[7205:]
    for place, image in zip((0, 4095, 4096, 7204), album.values(), strict=False):
        first[place] = fingerprint(image)
        second[place % 668] = fingerprint(jpeg(80)(image))
    assert find_duplicates(first, second) == sorted(
        ((place, place % 668) for place in (0, 4095, 4096, 7204)), key=lambda pair: pair[1]
    )
