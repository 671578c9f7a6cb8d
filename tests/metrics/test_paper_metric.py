"""Parity with scikit-image, and the contract with BasicSR's metric registry."""

import inspect
import math

import numpy as np
import pytest
import skimage.data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from promptir_basicsr.metrics import calculate_paper_psnr, calculate_paper_ssim, definition, psnr, ssim, to_y

# isort: split
# BasicSR can be imported once the package has prepared it
from basicsr.metrics import calculate_metric
from basicsr.metrics.metric_util import to_y_channel
from basicsr.utils.color_util import rgb2ycbcr
from basicsr.utils.registry import METRIC_REGISTRY

SKIMAGE_WINDOW = {'uniform': {}, 'gaussian': {'gaussian_weights': True}}
# one strip of rows, exactly one, one more, and several
SIZES = [(7, 7), (7, 40), (38, 9), (39, 33), (101, 83), (128, 128)]
PHOTOS = ['astronaut', 'chelsea', 'coffee', 'rocket']


def pair(height: int, width: int, channels: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    target = rng.random((height, width, channels) if channels > 1 else (height, width))
    return np.clip(target + 0.1 * rng.standard_normal(target.shape), 0, 1), target


def photo_pair(name: str, sigma: float = 25) -> tuple[np.ndarray, np.ndarray]:
    """A noisy and a clean crop, RGB float64 in [0, 1]."""
    target = getattr(skimage.data, name)()[20:221, 30:331] / 255
    noise = np.random.default_rng(1).standard_normal(target.shape)
    return np.clip(target + sigma / 255 * noise, 0, 1), target


def skimage_ssim(restored: np.ndarray, target: np.ndarray, data_range: float = 1, window: str = 'uniform') -> float:
    channel_axis = -1 if target.ndim == 3 else None
    return structural_similarity(
        target, restored, data_range=data_range, channel_axis=channel_axis, **SKIMAGE_WINDOW[window]
    )


def skimage_psnr(restored: np.ndarray, target: np.ndarray, data_range: float = 1) -> float:
    return peak_signal_noise_ratio(target, restored, data_range=data_range)


def to_uint8(image: np.ndarray) -> np.ndarray:
    return np.round(image * 255).astype(np.uint8)


class TestAgainstSkimage:
    @pytest.mark.parametrize('channels', [1, 3])
    @pytest.mark.parametrize('size', SIZES)
    def test_random_images(self, size: tuple[int, int], channels: int) -> None:
        restored, target = pair(*size, channels)
        assert psnr(restored, target) == pytest.approx(skimage_psnr(restored, target), abs=1e-10)
        assert ssim(restored, target) == pytest.approx(skimage_ssim(restored, target), abs=1e-12)

    @pytest.mark.parametrize('size', [(11, 11), (42, 20), (43, 20), (101, 83)])
    def test_gaussian_window(self, size: tuple[int, int]) -> None:
        restored, target = pair(*size)
        expected = skimage_ssim(restored, target, window='gaussian')
        assert ssim(restored, target, window='gaussian') == pytest.approx(expected, abs=1e-12)

    @pytest.mark.parametrize('window', SKIMAGE_WINDOW)
    @pytest.mark.parametrize('sigma', [1, 25])
    @pytest.mark.parametrize('name', PHOTOS)
    def test_photographs(self, name: str, sigma: float, window: str) -> None:
        restored, target = photo_pair(name, sigma)
        assert psnr(restored, target) == pytest.approx(skimage_psnr(restored, target), abs=1e-10)
        expected = skimage_ssim(restored, target, window=window)
        assert ssim(restored, target, window=window) == pytest.approx(expected, abs=1e-12)

    @pytest.mark.parametrize('name', PHOTOS)
    def test_float32_is_computed_in_float64(self, name: str) -> None:
        restored, target = (image.astype(np.float32) for image in photo_pair(name))
        wide = restored.astype(np.float64), target.astype(np.float64)
        assert psnr(restored, target) == pytest.approx(skimage_psnr(*wide), abs=1e-10)
        assert ssim(restored, target) == pytest.approx(skimage_ssim(*wide), abs=1e-12)
        # scikit-image stays in float32 and the papers' programs with it
        assert psnr(restored, target) == pytest.approx(skimage_psnr(restored, target), abs=1e-6)
        assert ssim(restored, target) == pytest.approx(skimage_ssim(restored, target), abs=1e-6)

    def test_the_windows_are_not_interchangeable(self) -> None:
        restored, target = photo_pair('coffee')
        assert 5e-4 < abs(ssim(restored, target) - ssim(restored, target, window='gaussian')) < 0.05

    def test_data_range(self) -> None:
        restored, target = (image * 255 for image in pair(30, 40))
        assert psnr(restored, target, 255) == pytest.approx(skimage_psnr(restored, target, 255), abs=1e-10)
        assert ssim(restored, target, 255) == pytest.approx(skimage_ssim(restored, target, 255), abs=1e-12)

    def test_memory_layout_does_not_matter(self) -> None:
        restored, target = pair(40, 50)
        planes = np.ascontiguousarray(restored.transpose(2, 0, 1)).transpose(1, 2, 0)
        assert ssim(planes, target[::-1][::-1]) == ssim(restored, target)


class TestByHand:
    def test_psnr_of_a_known_error(self) -> None:
        target = np.full((8, 9, 3), 0.5)
        assert psnr(target + 0.1, target) == pytest.approx(20, abs=1e-12)
        assert psnr(target + 0.1, target, data_range=10) == pytest.approx(40, abs=1e-12)

    @pytest.mark.parametrize('window', SKIMAGE_WINDOW)
    def test_ssim_of_flat_images(self, window: str) -> None:
        a, b, c1 = 0.3, 0.7, 0.01**2
        value = ssim(np.full((50, 20, 3), a), np.full((50, 20, 3), b), window=window)
        assert value == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1), abs=1e-9)

    @pytest.mark.parametrize('channels', [1, 3])
    def test_identical_images(self, channels: int) -> None:
        _, target = pair(40, 30, channels)
        assert psnr(target, target.copy()) == math.inf
        assert ssim(target, target.copy()) == pytest.approx(1, abs=1e-15)

    def test_ssim_of_every_window(self) -> None:
        """Each 7x7 window by numpy's own covariance."""
        restored, target = pair(9, 10, 1)
        values = []
        for top in range(3):
            for left in range(4):
                x, y = (image[top : top + 7, left : left + 7].ravel() for image in (restored, target))
                (vx, vxy), (_, vy) = np.cov(x, y)
                mx, my = x.mean(), y.mean()
                values.append((2 * mx * my + 1e-4) * (2 * vxy + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))
        assert ssim(restored, target) == pytest.approx(np.mean(values), abs=1e-12)

    def test_luma_of_black_white_and_primaries(self) -> None:
        colours = np.array([[[0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]]], dtype=float)
        assert to_y(colours)[0] * 255 == pytest.approx([16, 235, 81.481, 144.553, 40.966], abs=1e-12)


class TestLuma:
    @pytest.mark.parametrize('name', PHOTOS)
    def test_against_basicsr(self, name: str) -> None:
        restored, _ = photo_pair(name)
        assert np.abs(to_y(restored) - rgb2ycbcr(restored.astype(np.float32), y_only=True)).max() < 1e-6

    def test_grey_is_its_own_luma(self) -> None:
        grey, _ = pair(8, 9, 1)
        assert np.array_equal(to_y(grey), grey)
        assert np.array_equal(to_y(grey[..., None]), grey)

    def test_other_channels_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r'found shape \(8, 9, 4\)'):
            to_y(np.zeros((8, 9, 4)))

    @pytest.mark.parametrize('name', PHOTOS)
    def test_y_channel_of_8_bit_images_is_basicsr_s(self, name: str) -> None:
        """On uint8 images nothing is left to be rounded, so both packages measure the same PSNR."""
        bgr = [to_uint8(image)[..., ::-1] for image in photo_pair(name)]
        options = {'type': 'calculate_psnr', 'crop_border': 4, 'test_y_channel': True}
        theirs = calculate_metric({'img': bgr[0], 'img2': bgr[1]}, options)
        assert calculate_paper_psnr(*bgr, crop_border=4, test_y_channel=True) == pytest.approx(theirs, abs=1e-4)

    @pytest.mark.parametrize('window', SKIMAGE_WINDOW)
    def test_y_channel_against_skimage(self, window: str) -> None:
        restored, target = photo_pair('coffee')
        luma = [
            to_y_channel((image[..., ::-1] * 255).astype(np.float32))[..., 0].astype(np.float64) / 255
            for image in (restored, target)
        ]
        actual = calculate_paper_psnr(restored, target, test_y_channel=True)
        assert actual == pytest.approx(skimage_psnr(*luma), abs=1e-5)
        actual = calculate_paper_ssim(restored, target, test_y_channel=True, window=window)
        assert actual == pytest.approx(skimage_ssim(*luma, window=window), abs=1e-5)


METRICS = [calculate_paper_psnr, calculate_paper_ssim]


@pytest.mark.parametrize('metric', METRICS)
class TestRegistered:
    def test_contract(self, metric) -> None:
        assert METRIC_REGISTRY.get(metric.__name__) is metric
        assert metric.wants_float is True
        assert metric.definition == definition({'type': metric.__name__})
        assert '\n' not in metric.definition
        parameters = inspect.signature(metric).parameters
        assert list(parameters)[:5] == ['img', 'img2', 'crop_border', 'test_y_channel', 'better']
        assert all(parameter.kind is parameter.POSITIONAL_OR_KEYWORD for parameter in parameters.values())

    def test_through_basicsr(self, metric) -> None:
        restored, target = photo_pair('astronaut')
        options = {'type': metric.__name__, 'crop_border': 4, 'better': 'higher'}
        value = calculate_metric({'img': restored, 'img2': target}, options)
        reference = {'calculate_paper_psnr': skimage_psnr, 'calculate_paper_ssim': skimage_ssim}[metric.__name__]
        assert type(value) is float
        assert value == pytest.approx(reference(restored[4:-4, 4:-4], target[4:-4, 4:-4]), abs=1e-10)

    @pytest.mark.parametrize('test_y_channel', [False, True])
    def test_uint8_is_bgr_of_255(self, metric, test_y_channel: bool) -> None:
        restored, target = (to_uint8(image) for image in photo_pair('coffee'))
        from_bgr = metric(restored[..., ::-1], target[..., ::-1], test_y_channel=test_y_channel)
        assert from_bgr == metric(restored / 255, target / 255, test_y_channel=test_y_channel)
        if test_y_channel:
            assert from_bgr != metric(restored, target, test_y_channel=True)

    def test_not_rounded(self, metric) -> None:
        restored, target = photo_pair('chelsea', sigma=1)
        assert metric(restored, target) != metric(to_uint8(restored) / 255, target)

    def test_output_is_clipped_and_inputs_are_left_alone(self, metric) -> None:
        restored, target = photo_pair('chelsea')
        loose = restored * 3 - 1
        before = loose.copy()
        assert metric(loose, target) == metric(np.clip(loose, 0, 1), target)
        assert np.array_equal(loose, before)

    @pytest.mark.parametrize('dtype', [np.float64, np.uint8])
    def test_grey(self, metric, dtype: type) -> None:
        restored, target = ((image * (255 if dtype is np.uint8 else 1)).astype(dtype) for image in pair(30, 40, 1))
        value = metric(restored, target)
        assert value == metric(restored[..., None], target[..., None])
        assert value == metric(restored, target, test_y_channel=True)
        assert value == pytest.approx(metric(*(np.dstack([image] * 3) for image in (restored, target))), abs=1e-12)

    def test_misspelt_option_is_named(self, metric) -> None:
        restored, target = pair(20, 20)
        with pytest.raises(TypeError, match=rf"{metric.__name__}\(\).*'crop_boarder'"):
            calculate_metric({'img': restored, 'img2': target}, {'type': metric.__name__, 'crop_boarder': 4})

    def test_lower_is_not_better(self, metric) -> None:
        with pytest.raises(ValueError, match="better: 'lower'"):
            metric(*pair(20, 20), better='lower')

    @pytest.mark.parametrize('crop_border', [-1, 10, 30])
    def test_border_must_leave_something(self, metric, crop_border: int) -> None:
        with pytest.raises(ValueError, match=f'crop_border: {crop_border} does not fit an image of 20x25 pixels'):
            metric(*pair(20, 25), crop_border=crop_border)

    @pytest.mark.parametrize(
        ('restored', 'target', 'message'),
        [
            (
                np.zeros((20, 20, 3)),
                np.zeros((20, 21, 3)),
                r'differ in shape: restored \(20, 20, 3\), target \(20, 21, 3\)',
            ),
            (np.zeros((20, 20, 3)), np.zeros((20, 20, 3), np.uint8), 'img is float64 and img2 uint8'),
            (np.zeros((20, 20, 3), np.uint16), np.zeros((20, 20, 3), np.uint16), 'img: found uint16'),
            (np.zeros((3, 20, 20)), np.zeros((3, 20, 20)), r'img: found shape \(3, 20, 20\)'),
            (np.zeros((1, 20, 20, 3)), np.zeros((1, 20, 20, 3)), r'img: found shape \(1, 20, 20, 3\)'),
            (np.zeros((20, 20, 3)), np.full((20, 20, 3), 200.0), r'img2 is float with values up to 200'),
        ],
    )
    def test_images_that_do_not_fit(self, metric, restored: np.ndarray, target: np.ndarray, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            metric(restored, target)


class TestRefused:
    @pytest.mark.parametrize(('window', 'size'), [('uniform', 7), ('gaussian', 11)])
    def test_smaller_than_the_window(self, window: str, size: int) -> None:
        image = np.zeros((size - 1, 40, 3))
        with pytest.raises(ValueError, match=f'image of {size - 1}x40 pixels, the {size}x{size} window'):
            ssim(image, image, window=window)
        with pytest.raises(ValueError, match='win_size exceeds image extent'):
            skimage_ssim(image, image, window=window)

    def test_unknown_window(self) -> None:
        with pytest.raises(ValueError, match="unknown window 'gausian', must be one of uniform, gaussian"):
            calculate_paper_ssim(*pair(20, 20), window='gausian')

    @pytest.mark.parametrize('function', [psnr, ssim])
    def test_8_bit_images_in_the_core(self, function) -> None:
        image = np.zeros((20, 20, 3), np.uint8)
        with pytest.raises(ValueError, match='restored is uint8, must be float'):
            function(image, image)


@pytest.mark.parametrize(
    ('opt', 'text'),
    [
        ({'type': 'calculate_paper_psnr'}, 'PSNR: RGB, float, not rounded, data range 1'),
        (
            {'type': 'calculate_paper_psnr', 'test_y_channel': True, 'crop_border': 4},
            'PSNR: Y channel (BT.601), float, not rounded, data range 1, border of 4 pixels omitted',
        ),
        (
            {'type': 'calculate_paper_ssim', 'crop_border': 0},
            'SSIM: RGB, float, not rounded, data range 1, 7x7 uniform window, sample covariance, channel mean',
        ),
        (
            {'type': 'calculate_paper_ssim', 'window': 'gaussian'},
            'SSIM: RGB, float, not rounded, data range 1, 11x11 Gaussian window (sigma 1.5), sample covariance, '
            'channel mean',
        ),
        (
            {'type': 'calculate_psnr', 'crop_border': 0, 'test_y_channel': False},
            'PSNR: RGB, rounded to 8 bit, data range 255',
        ),
        (
            {'type': 'calculate_ssim', 'crop_border': 0, 'test_y_channel': True},
            'SSIM: Y channel (BT.601), rounded to 8 bit, data range 255, 11x11 Gaussian window (sigma 1.5), '
            'population covariance',
        ),
        ({'type': 'calculate_niqe', 'crop_border': 0}, 'calculate_niqe'),
        ({'type': 'somebody_elses'}, 'somebody_elses'),
    ],
)
def test_definition(opt: dict, text: str) -> None:
    assert definition(opt) == text
    grey = text.replace('RGB', 'grey').replace('Y channel (BT.601)', 'grey').replace(', channel mean', '')
    assert definition(opt, grey=True) == grey


def test_definition_of_a_third_party_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    def calculate_foreign(img: np.ndarray, img2: np.ndarray) -> float:
        return 0.0

    calculate_foreign.definition = 'foreign: as its author says'
    monkeypatch.setitem(METRIC_REGISTRY._obj_map, 'calculate_foreign', calculate_foreign)
    assert definition({'type': 'calculate_foreign'}) == 'foreign: as its author says'
