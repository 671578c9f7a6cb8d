"""Normal numbers of training samples are normal, and all other numbers numpy's."""

import pickle

import numpy as np
import pytest
from scipy import stats

from promptir_basicsr.data.allinone_dataset import TrainingGenerator
from promptir_basicsr.degradations.spec import Degrade

COUNT = 4_000_000


@pytest.fixture(scope='module')
def numbers() -> np.ndarray:
    return TrainingGenerator([1, 2, 3]).standard_normal(COUNT, dtype=np.float32).astype(np.float64)


def test_moments(numbers) -> None:
    standard_error = COUNT**-0.5
    assert abs(numbers.mean()) < 4 * standard_error
    assert abs(numbers.std() - 1) < 4 * standard_error / np.sqrt(2)
    assert abs(np.mean(numbers**3)) < 4 * standard_error * np.sqrt(15)
    assert abs(np.mean(numbers**4) - 3) < 4 * standard_error * np.sqrt(96)


def test_distribution(numbers) -> None:
    # Under the normal law the statistic times sqrt(count) is above 1.95 once in a thousand times.
    assert stats.kstest(numbers, 'norm').statistic * np.sqrt(COUNT) < 1.95
    for limit in (3, 4, 4.5):
        expected = 2 * stats.norm.sf(limit) * COUNT
        assert abs(np.sum(np.abs(numbers) > limit) - expected) < 5 * np.sqrt(expected) + 0.07 * expected


def test_exact_distribution_function() -> None:
    """Of the sum of two quantiles, computed without drawing; the class promises 1e-5."""
    from promptir_basicsr.data.allinone_dataset import _quantiles

    values = _quantiles().astype(np.float64)
    assert 2 * values[-1] > 6.1
    for x in np.linspace(-6, 6, 49):
        probability = np.mean(np.searchsorted(values, x - values, side='right')) / len(values)
        assert abs(probability - stats.norm.cdf(x)) < 1e-5


def test_neighbours_and_pixels_are_independent(numbers) -> None:
    for lag in (1, 2, 3, 384):
        assert abs(np.mean(numbers[:-lag] * numbers[lag:])) < 4 * COUNT**-0.5
    squares = numbers**2 - 1
    assert abs(np.mean(squares[:-1] * squares[1:])) < 4 * 2 * COUNT**-0.5


@pytest.mark.parametrize('shape', [(), (0,), (1,), (7,), (3, 5, 3), 6])
def test_shapes_and_types(shape) -> None:
    for kind in (np.float32, np.float64):
        drawn = TrainingGenerator(0).standard_normal(shape, dtype=kind)
        assert (drawn.shape, drawn.dtype) == (np.zeros(shape).shape, kind)
    out = np.empty(5, np.float32)
    assert TrainingGenerator(0).standard_normal(dtype=np.float32, out=out) is out
    np.testing.assert_array_equal(out, TrainingGenerator(0).standard_normal(5, dtype=np.float32))
    assert isinstance(TrainingGenerator(0).standard_normal(), float)


def test_every_other_number_is_numpys() -> None:
    ours, theirs = TrainingGenerator([4, 5]), np.random.default_rng([4, 5])
    np.testing.assert_array_equal(ours.integers(1000, size=50), theirs.integers(1000, size=50))
    np.testing.assert_array_equal(ours.random(50), theirs.random(50))
    np.testing.assert_array_equal(ours.poisson(3.0, 50), theirs.poisson(3.0, 50))
    np.testing.assert_array_equal(ours.normal(size=50), theirs.normal(size=50))


def test_it_travels() -> None:
    generator = TrainingGenerator(3)
    generator.random(3)
    copy = pickle.loads(pickle.dumps(generator))
    assert copy.random() == generator.random()


def test_noise_has_the_given_strength() -> None:
    grey = np.full((512, 512, 3), 0.5, np.float32)
    for sigma in (15, 25, 50):
        degrade = Degrade({'type': 'gaussian_noise', 'sigma': sigma, 'quantize': 'float', 'clip': False})
        found = np.std(degrade(grey, TrainingGenerator(sigma)) - grey) * 255
        assert abs(found / sigma - 1) < 4 / np.sqrt(2 * grey.size)
