"""Pictures go through `basicsr restore` and come out restored, of the same kind, or with a word on why not.

A network whose last layer is zero gives its input back bit for bit, so that pixels can be compared exactly.
"""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pillow_heif
import pytest
import tifffile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from promptir_basicsr import cli
from promptir_basicsr.archs import DegradationSensor, PIPRestormer, PromptIR
from promptir_basicsr.commands.restore import parse_labels
from promptir_basicsr.core.command_line import argument_parser
from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.inference.batch import Reporter, measured, restore_files
from promptir_basicsr.inference.plan import plan_restoration
from promptir_basicsr.inference.restorer import Restorer, restore
from promptir_basicsr.inference.restoring import Settings
from promptir_basicsr.pictures.io import decode_picture, read_picture
from tests.golden.seeded import seeded_fill, seeded_image
from tests.pictures.picture_files import by_opencv, by_pillow, exif, opencv_pixels, photograph, png, turned

# isort: split
from basicsr.utils.registry import ARCH_REGISTRY

CONSOLE = str(shutil.which('basicsr', path=os.path.dirname(sys.executable)))
TINY = {
    'num_blocks': [1, 1, 1, 1],
    'num_refinement_blocks': 1,
    'heads': [1, 1, 1, 1],
    'prompt_sizes': [4, 4, 4],
}
GOLDEN = Path(__file__).parents[1] / 'golden'


def promptir() -> PromptIR:
    return seeded_fill(PromptIR(dim=8, **TINY)).eval()


def pip(**more) -> PIPRestormer:
    return seeded_fill(PIPRestormer(dim=16, **TINY, **more)).eval()


@pytest.fixture(scope='module')
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files of weights: a PromptIR, one that gives its input back, a PIP, and one with a sensor."""
    same = promptir()
    torch.nn.init.zeros_(same.output.weight)
    nets = {
        'promptir': promptir(),
        'same': same,
        'pip': pip(),
        'pip_sensor': pip(sensor={'type': 'DegradationSensor', 'dim': 4}),
        'sensor': DegradationSensor(dim=4),
        'grey': seeded_fill(PromptIR(dim=8, inp_channels=1, out_channels=1, **TINY)),
        'six': PromptIR(dim=8, inp_channels=6, out_channels=6, **TINY),
    }
    folder = tmp_path_factory.mktemp('weights')
    for name, net in nets.items():
        torch.save({'params': net.state_dict()}, folder / f'{name}.pth')
    return {name: str(folder / f'{name}.pth') for name in nets}


@pytest.fixture(scope='module')
def same(weights: dict[str, str]) -> Restorer:
    return Restorer(weights['same'], device='cpu')


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['pytest'])
    return tmp_path


@pytest.fixture
def command(folder: Path, weights: dict[str, str], capsys: pytest.CaptureFixture[str]):
    """`basicsr restore` in this process: status, what it said, and what to standard error."""

    def run(*words: str, net: str | None = 'same') -> tuple[int, str, str]:
        given = ['--weights', weights[net]] if net else []
        status = cli.main(['restore', *map(str, words), *given, '--device', 'cpu'])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def put(path: str | Path, content: bytes | None = None) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(photograph(20, 30)) if content is None else content)
    return path


def contents(folder: str | Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob('*') if path.is_file()}


# any picture


KINDS = {
    'png': ('png', (1, 2, 3, 4), (8, 16)),
    'tiff': ('tif', (1, 2, 3, 4), (8, 16)),
    'jpeg': ('jpg', (1, 3), (8,)),
    'cmyk': ('jpg', (3,), (8,)),
    'webp': ('webp', (3, 4), (8,)),
    'bmp': ('bmp', (1, 3, 4), (8,)),
    'gif': ('gif', (1,), (8,)),
    'bits': ('png', (1,), (8,)),
}
DAMAGES = ('none', 'none', 'none', 'cut', 'text', 'empty', 'animated', 'flipped')


def made(kind: str, image: np.ndarray, orientation: int) -> tuple[bytes, np.ndarray]:
    """A file with an image, and what other programs see in it, upright."""
    block = exif(orientation)
    if kind == 'png':
        return png(image, (b'eXIf', block)), turned(image, orientation)
    if kind == 'tiff':
        content, channels = io.BytesIO(), 1 if image.ndim == 2 else image.shape[2]
        more = {'extrasamples': ['unassalpha'], 'planarconfig': 'contig'} if channels in (2, 4) else {}
        way = [(274, 'H', 1, orientation, True)]
        tifffile.imwrite(content, image, photometric='rgb' if channels > 2 else 'minisblack', extratags=way, **more)
        return content.getvalue(), turned(image, orientation)
    if kind == 'jpeg':
        content = by_pillow(image, 'JPEG', exif=b'Exif\0\0' + block)
        return content, turned(opencv_pixels(content), orientation)
    if kind == 'cmyk':
        content = by_pillow(image, 'JPEG', 'CMYK', exif=b'Exif\0\0' + block)
        return content, turned(np.asarray(Image.open(io.BytesIO(content)).convert('RGB')), orientation)
    if kind == 'webp':
        return by_pillow(image, 'WEBP', lossless=True, exact=True, exif=block), turned(image, orientation)
    if kind == 'bmp':
        return by_opencv(image, '.bmp'), image
    if kind == 'gif':
        return by_pillow(image, 'GIF'), np.dstack([image] * 3)
    return png(image // 64, colours=0, bits=2), image // 64 * 85


def damaged(content: bytes, damage: str, place: float) -> bytes:
    if damage == 'cut':
        return content[: int(place * 0.9 * len(content))]
    if damage == 'animated':
        frames = [Image.fromarray(photograph(9, 9) // number) for number in (1, 2)]
        stream = io.BytesIO()
        frames[0].save(stream, ('GIF', 'PNG', 'TIFF')[int(place * 3)], save_all=True, append_images=frames[1:])
        return stream.getvalue()
    if damage == 'flipped':
        changed = bytearray(content)
        changed[int(place * (len(content) - 1))] ^= 0x55
        return bytes(changed)
    return {'none': content, 'text': b'no picture', 'empty': b''}[damage]


def check_one(restorer: Restorer, data: st.DataObject, folder: Path) -> None:
    kind = data.draw(st.sampled_from(sorted(KINDS)))
    extension, channels, depths = KINDS[kind]
    side = st.integers(1, 24)
    image = photograph(
        data.draw(side), data.draw(side), data.draw(st.sampled_from(channels)), data.draw(st.sampled_from(depths))
    )
    orientation, damage = data.draw(st.integers(1, 8)), data.draw(st.sampled_from(DAMAGES))
    content, expected = made(kind, image, orientation)
    content = damaged(content, damage, data.draw(st.floats(0, 0.999)))
    shutil.rmtree(folder, ignore_errors=True)
    source = put(folder / f'in/picture.{extension}', content)
    put(folder / 'in/other.png', png(photograph(3, 5)))
    plan = plan_restoration([str(folder / 'in')], str(folder / 'out'))
    plan = measured(plan)
    outcome = restore_files(restorer, plan, Reporter(plan))
    assert source.read_bytes() == content
    assert outcome.restored + len(outcome.failed) == 2
    np.testing.assert_array_equal(read_picture(folder / 'out/other.png').image, photograph(3, 5))
    target = folder / f'out/picture.{"png" if extension == "gif" else extension}'
    assert target.exists() == (outcome.restored == 2)
    if damage == 'none' or (damage == 'cut' and target.exists()):  # of some files the end is of no matter
        assert outcome.failed == []
        compare(target.read_bytes(), expected, kind)
    elif damage != 'flipped':  # one byte may be of no matter
        assert len(outcome.failed) == 1
        assert outcome.failed[0].startswith(f"'{source}' ")
    elif outcome.restored == 2:
        assert read_picture(target).size == read_picture(source).size


def compare(content: bytes, expected: np.ndarray, kind: str) -> None:
    """What is in a file by other programs: the very pixels, or nearly where the format has losses."""
    if kind in ('jpeg', 'cmyk'):
        seen = opencv_pixels(content)
        assert seen.shape == expected.shape
        assert Image.open(io.BytesIO(content)).getexif()[0x0112] == 1
        assert abs(seen.astype(int) - expected).mean() < 4
        return
    if kind == 'tiff':
        page = tifffile.TiffFile(io.BytesIO(content)).pages[0]
        assert (page.imagelength, page.imagewidth) == expected.shape[:2]
        seen = page.asarray().reshape(expected.shape)  # it leaves sides of one pixel out
    elif expected.dtype == np.uint16:
        seen = opencv_pixels(content)
        seen = seen[..., [0, 3]] if expected.shape[2:] == (2,) else seen
    else:
        seen = np.asarray(Image.open(io.BytesIO(content)))
    assert seen.dtype == expected.dtype
    np.testing.assert_array_equal(seen, expected)


COMMON = {'deadline': None, 'suppress_health_check': [HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]}


@settings(max_examples=60, **COMMON)
@given(st.data())
def test_any_picture(same: Restorer, tmp_path: Path, data: st.DataObject) -> None:
    check_one(same, data, tmp_path / 'x')


@pytest.mark.slow
@settings(max_examples=2000, **COMMON)
@given(st.data())
def test_any_of_very_many_pictures(same: Restorer, tmp_path: Path, data: st.DataObject) -> None:
    check_one(same, data, tmp_path / 'x')


@pytest.mark.parametrize('size', [(1, 1), (1, 7), (3, 2), (17, 301), (128, 127)])
def test_any_size(size: tuple[int, int], command, folder: Path) -> None:
    image = photograph(*size, depth=16)
    put('a.png', png(image))
    assert command('a.png', '-o', 'b.png')[0] == 0
    np.testing.assert_array_equal(opencv_pixels(Path('b.png').read_bytes()), image)


@pytest.mark.slow
def test_a_large_picture(weights: dict[str, str], tmp_path: Path) -> None:
    image = np.tile(photograph(375, 300), (4, 5, 1))[:1500, :2000]
    image = np.ascontiguousarray(np.pad(image, ((0, 0), (0, 2000 - image.shape[1]), (0, 0)), mode='wrap'))
    put(tmp_path / 'a.png', by_opencv(image, '.png'))
    words = ['a.png', '-o', 'b.png', '--weights', weights['same'], '--tile', '512']
    done = subprocess.run([CONSOLE, 'restore', *words], cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(opencv_pixels((tmp_path / 'b.png').read_bytes()), image)


# the network


def direct(image: np.ndarray, net: torch.nn.Module, *told) -> np.ndarray:
    """8-bit RGB restored by the network itself; sides are multiples of 8."""
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        y = net(x, *told)[0].permute(1, 2, 0).numpy()
    return np.rint(y.clip(0, 1) * 255).astype(np.uint8)


def differ(a: np.ndarray, b: np.ndarray) -> int:
    return int(abs(a.astype(int) - b).max())


def test_the_command_gives_what_the_network_gives(command, folder: Path) -> None:
    image = photograph(64, 48)
    put('a.png', png(image))
    status, said, _ = command('a.png', '-o', 'out', net='promptir')
    assert status == 0
    expected = direct(image, promptir())
    assert differ(expected, image) > 10
    assert differ(opencv_pixels(Path('out/a.png').read_bytes()), expected) <= 1
    assert 'promptir.pth: ' in said
    assert ' Network: PromptIR, ' in said
    assert '\na.png -> out/a.png  48x64, ' in said
    assert '\n1 restored, ' in said
    assert 'megapixels/s' in said


def test_the_released_layout(command, folder: Path, weights: dict[str, str]) -> None:
    released = {f'net.{name}': value for name, value in promptir().released_state_dict().items()}
    torch.save({'epoch': 3, 'global_step': 7, 'state_dict': released}, 'released.ckpt')
    image = photograph(40, 56)
    put('a.png', png(image))
    assert command('a.png', '-o', 'b.png', '--weights', 'released.ckpt', net=None)[0] == 0
    assert differ(opencv_pixels(Path('b.png').read_bytes()), direct(image, promptir())) <= 1


@pytest.mark.slow
def test_the_released_layout_gives_the_golden_output(tmp_path: Path) -> None:
    net = seeded_fill(PromptIR()).eval()
    released = {f'net.{name}': value for name, value in net.released_state_dict().items()}
    torch.save({'state_dict': released}, tmp_path / 'released.ckpt')
    with np.load(GOLDEN / 'promptir_dev.npz') as golden:
        expected = torch.from_numpy(golden['y_1x64x64_s0'])
    x = seeded_image((1, 3, 64, 64), 0)
    restored = Restorer(tmp_path / 'released.ckpt', device='cpu').restore(x)
    torch.testing.assert_close(restored, expected, rtol=0, atol=1e-4)
    pixels = x[0].permute(1, 2, 0).numpy()
    put(tmp_path / 'a.png', png(np.rint(pixels * 255).astype(np.uint8)))
    put(tmp_path / 'deep.png', png(np.rint(pixels * 65535).astype(np.uint16)))
    words = ['a.png', 'deep.png', '-o', 'out', '--weights', 'released.ckpt', '--device', 'cpu']
    done = subprocess.run([CONSOLE, 'restore', *words], cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    seen = opencv_pixels((tmp_path / 'out/deep.png').read_bytes()) / 65535
    golden_picture = expected[0].permute(1, 2, 0).clamp(0, 1).numpy()
    np.testing.assert_allclose(seen, golden_picture, rtol=0, atol=1e-3)  # the file holds 16 bits of the input
    image = np.rint(pixels * 255).astype(np.uint8)
    assert differ(opencv_pixels((tmp_path / 'out/a.png').read_bytes()), direct(image, net)) <= 1


@pytest.mark.parametrize(
    ('words', 'told'),
    [
        (['--labels', 'derain'], ['derain']),
        (['--labels', '2'], [2]),
        (['--labels', 'derain:0.75,dehaze:0.25'], [{'derain': 0.75, 'dehaze': 0.25}]),
        (['--labels', 'derain', '--strength', '0.5'], ['derain', 0.5]),
    ],
)
def test_labels(words: list[str], told: list, command, folder: Path) -> None:
    image = photograph(32, 48)
    put('a.png', png(image))
    assert command('a.png', '-o', 'b.png', *words, net='pip')[0] == 0
    assert differ(opencv_pixels(Path('b.png').read_bytes()), direct(image, pip(), *told)) <= 1
    assert differ(direct(image, pip(), *told), direct(image, pip(), 'denoise')) > 1


def test_a_sensor_is_used_if_no_label_is_given(command, weights: dict[str, str]) -> None:
    image = photograph(32, 48)
    put('a.png', png(image))
    net = pip(sensor={'type': 'DegradationSensor', 'dim': 4})
    for number, words in enumerate(([], ['--labels', 'blind'])):
        assert command('a.png', '-o', f'b{number}.png', *words, net='pip_sensor')[0] == 0
        assert differ(opencv_pixels(Path(f'b{number}.png').read_bytes()), direct(image, net)) <= 1


@pytest.mark.parametrize(
    ('text', 'labels'),
    [
        (None, None),
        ('blind', None),
        ('derain', 'derain'),
        ('3', 3),
        ('derain:1', {'derain': 1.0}),
        ('derain, dehaze:0.5', {'derain': 1.0, 'dehaze': 0.5}),
        ('0:0.2,4:0.8', {0: 0.2, 4: 0.8}),
    ],
)
def test_labels_of_the_command_line(text: str | None, labels: object) -> None:
    assert parse_labels(text) == labels


@pytest.mark.parametrize('text', ['', 'derain:', 'derain:x', ':1', 'derain:-1', 'derain,derain', 'derain:nan', 'a:inf'])
def test_labels_that_are_not_understood(text: str) -> None:
    if text == 'derain:':
        assert parse_labels(text) == {'derain': 1.0}
        return
    with pytest.raises(OptionError, match=r'--labels: cannot parse '):
        parse_labels(text)


def test_batches_give_what_single_pictures_give(command) -> None:
    for number in range(3):
        put(f'in/{number}.png', png(photograph(40, 32 + number // 2 * 9)))
    put('in/grey.png', png(photograph(40, 32, 1, 16)))
    put('in/damaged.png', png(photograph(40, 32))[:500])
    for batch in (1, 2, 4):
        status, said, _ = command('in', '-o', f'out{batch}', '--batch', batch, net='promptir')
        assert status == 1
        assert '4 restored, 1 failed' in said
    single = contents('out1')
    assert sorted(single) == ['0.png', '1.png', '2.png', 'grey.png']
    for batch in (2, 4):
        together = contents(f'out{batch}')
        for name in single:
            most = 257 if name == 'grey.png' else 1
            assert differ(opencv_pixels(together[name]), opencv_pixels(single[name])) <= most


def test_settings_reach_the_network(command, folder: Path) -> None:
    image = photograph(64, 64)
    put('a.png', png(image))
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    net, mean = promptir(), torch.zeros(1, 3, 64, 64)
    with torch.no_grad():
        for turns in range(4):
            for flipped in (False, True):
                way = torch.rot90(x.flip(-1) if flipped else x, turns, (-2, -1))
                back = torch.rot90(net(way), -turns, (-2, -1))
                mean += (back.flip(-1) if flipped else back) / 8
    expected = np.rint(mean[0].permute(1, 2, 0).numpy().clip(0, 1) * 255).astype(np.uint8)
    assert command('a.png', '-o', 'b.png', '--ensemble', net='promptir')[0] == 0
    assert differ(opencv_pixels(Path('b.png').read_bytes()), expected) <= 1
    results = {}
    for name, words in {'whole': [], 'tiles': ['--tile', '32', '--overlap', '8', '--statistics', 'tile']}.items():
        assert command('a.png', '-o', f'{name}.png', *words, '--precision', 'fp32', net='promptir')[0] == 0
        results[name] = opencv_pixels(Path(f'{name}.png').read_bytes())
    assert differ(results['whole'], results['tiles']) > 0
    assert command('a.png', '-o', 'half.png', '--precision', 'bf16', net='promptir')[0] == 0
    assert 0 < differ(opencv_pixels(Path('half.png').read_bytes()), results['whole']) < 60


# in Python


IMAGES = [photograph(21, 18, channels, depth) for channels in (1, 2, 3, 4) for depth in (8, 16)]


@pytest.mark.parametrize('image', IMAGES, ids=lambda image: f'{image.shape}-{image.dtype}')
def test_arrays_come_back_as_they_were(same: Restorer, image: np.ndarray) -> None:
    restored = same.restore(image)
    assert restored.dtype == image.dtype
    np.testing.assert_array_equal(restored, image)
    for kind in (np.float16, np.float32, np.float64):
        floats = (image / np.iinfo(image.dtype).max).astype(kind)
        again = same.restore(floats)
        assert again.dtype == kind
        np.testing.assert_allclose(again, floats, atol=1e-3 if kind == np.float16 else 1e-7)


def test_a_grey_image_is_the_mean_of_its_colours(weights: dict[str, str]) -> None:
    grey, alpha = photograph(24, 24, 1), photograph(24, 24, 2)
    restorer = Restorer(weights['promptir'], device='cpu')
    colours = restorer.restore(np.dstack([grey] * 3).astype(np.float32) / 255)
    assert abs(colours[..., 0] - colours[..., 2]).max() > 0.01
    np.testing.assert_allclose(restorer.restore(grey) / 255, colours.mean(axis=2), atol=0.51 / 255)
    np.testing.assert_array_equal(restorer.restore(alpha)[..., 1], alpha[..., 1])


# a network of one channel


def in_grey(image: np.ndarray) -> np.ndarray:
    """(H, W) of any kind of integers, by OpenCV."""
    return cv2.cvtColor(np.ascontiguousarray(image[..., :3]), cv2.COLOR_RGB2GRAY) if image.shape[2:] > (2,) else (
        image if image.ndim == 2 else image[..., 0]
    )  # fmt: skip


@pytest.mark.parametrize('image', IMAGES, ids=lambda image: f'{image.shape}-{image.dtype}')
def test_a_network_of_one_channel_makes_grey_pictures(weights: dict[str, str], image: np.ndarray) -> None:
    restorer = Restorer(weights['grey'], device='cpu')
    assert restorer.channels == 1
    restored, most = restorer.restore(image), np.iinfo(image.dtype).max
    has_alpha = image.shape[2:] in ((2,), (4,))
    assert (restored.shape, restored.dtype) == (image.shape[:2] + (2,) * has_alpha, image.dtype)
    if has_alpha:
        np.testing.assert_array_equal(restored[..., 1], image[..., -1])
    x = torch.from_numpy(in_grey(image).astype(np.float32) / np.float32(most))[None]
    expected = restorer.restore(x)
    assert expected.shape == x.shape
    plane = restored[..., 0] if has_alpha else restored
    np.testing.assert_array_equal(plane, np.rint(expected[0].clamp(0, 1).numpy() * np.float32(most)))
    floats = restorer.restore(image.astype(np.float64) / most)
    assert (floats.shape, floats.dtype) == (restored.shape, np.float64)
    np.testing.assert_allclose(floats, restored / most, atol=0.02)
    with pytest.raises(ValueError, match=r'must be \(1, H, W\) or \(B, 1, H, W\), grey'):
        restorer.restore(x.expand(3, -1, -1))


def test_a_six_channel_network_cannot_restore_images(weights: dict[str, str]) -> None:
    with pytest.raises(OptionError, match=r'six.pth.: PromptIR needs images of 6 channels; images have 3 \(RGB\) or 1'):
        Restorer(weights['six'])


def test_colours_that_become_grey_are_named_once(command, folder: Path, weights: dict[str, str]) -> None:
    restorer, image = Restorer(weights['grey'], device='cpu'), photograph(20, 30)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
    put('in/a.png', png(image))
    put('in/b.jpg', by_pillow(image, 'JPEG', icc_profile=profile))
    put('in/c.tif', by_pillow(image, 'TIFF', icc_profile=profile))
    put('in/d.png', png(image[..., 0]))
    put('in/e.png', png(photograph(20, 30, 4, 16)))
    put('in/f.webp', by_pillow(image, 'WEBP', lossless=True))
    put('in/g.bmp', by_pillow(image, 'BMP'))
    put('in/h.ppm', by_pillow(image, 'PPM'))
    status, said, failed = command('in', '-o', 'out', net='grey')
    assert (status, failed) == (0, '')
    notes = {
        line.partition(' -> ')[0][-5:]: line.rpartition(' s')[2].strip() for line in said.splitlines() if ' -> ' in line
    }
    plain = '(converted to grey)'
    assert notes == {
        **dict.fromkeys(('a.png', 'e.png', '.webp', 'g.bmp', 'h.ppm'), plain),
        **dict.fromkeys(('b.jpg', 'c.tif'), '(converted to grey, without its colour profile)'),
        'd.png': '',
    }
    for name in ('a.png', 'd.png', 'e.png', 'g.bmp', 'h.ppm', 'c.tif'):
        result = read_picture(f'out/{name}')
        np.testing.assert_array_equal(result.image, restorer.restore(read_picture(f'in/{name}').image))
        assert result.profile is None
    assert Image.open('out/b.jpg').mode == 'L'
    assert 'icc_profile' not in Image.open('out/b.jpg').info
    webp = read_picture('out/f.webp').image  # the format has no grey
    np.testing.assert_array_equal(webp, np.dstack([restorer.restore(image)] * 3))


def test_results_outside_the_range_are_clipped_in_arrays_alone(weights: dict[str, str]) -> None:
    restorer = Restorer(weights['promptir'], device='cpu')
    image = np.zeros((16, 16, 3), np.float32)
    image[::3] = 1
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    restored = restorer.restore(tensor)
    assert restored.min() < 0 or restored.max() > 1
    np.testing.assert_array_equal(restorer.restore(image), restored.permute(1, 2, 0).clamp(0, 1).numpy())


@pytest.mark.parametrize('shape', [(3, 9, 14), (1, 3, 9, 14), (4, 3, 16, 8)])
@pytest.mark.parametrize('kind', [torch.float16, torch.float32, torch.float64])
def test_tensors_come_back_as_they_were(same: Restorer, shape: tuple[int, ...], kind: torch.dtype) -> None:
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(kind)
    y = same.restore(x)
    assert (y.shape, y.dtype, y.device) == (x.shape, x.dtype, x.device)
    torch.testing.assert_close(y, x, rtol=0, atol=1e-7)


def test_one_call_restores_an_image(weights: dict[str, str]) -> None:
    image = photograph(16, 24)
    np.testing.assert_array_equal(restore(image, weights['same']), image)
    told = restore(image, weights['pip'], 'derain', 0.5, settings=Settings(precision='fp32'), device='cpu')
    assert differ(told, direct(image, pip(), 'derain', 0.5)) <= 1


NAN = np.full((4, 4, 3), np.nan, np.float32)


@pytest.mark.parametrize(
    ('image', 'words'),
    [
        (NAN, 'not finite'),
        (torch.from_numpy(NAN).permute(2, 0, 1), 'not finite'),
        (np.full((4, 4, 3), 200.0), r'range from 200 to 200; float images must be in \[0, 1\]'),
        (torch.full((3, 4, 4), 255.0), 'range from 255 to 255'),
        (np.zeros((4, 4, 3), np.int64), 'type int64'),
        (np.zeros((4, 4, 3), bool), 'type bool'),
        (np.zeros((4, 4, 5), np.uint8), r'shape \(4, 4, 5\)'),
        (np.zeros((4, 4, 1), np.uint8), r'shape \(4, 4, 1\)'),
        (np.zeros((0, 4, 3), np.uint8), r'shape \(0, 4, 3\)'),
        (np.zeros(4, np.uint8), r'shape \(4,\)'),
        (torch.zeros(4, 4, 3), r'shape \(4, 4, 3\)'),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), 'type torch.uint8'),
    ],
)
def test_images_that_are_not_understood(same: Restorer, image, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        same.restore(image)


def test_labels_that_a_network_accepts(weights: dict[str, str], same: Restorer) -> None:
    image = photograph(16, 16)
    with pytest.raises(ValueError, match='PromptIR is blind: it accepts neither labels nor'):
        same.restore(image, 'derain')
    with pytest.raises(ValueError, match='is blind'):
        same.restore(image, strength=0.5)
    blind = Restorer(weights['pip'], device='cpu')
    with pytest.raises(
        ValueError, match=r'no sensor to predict it. Use a label or a mixture of: denoise, derain, dehaze'
    ):
        blind.restore(image)
    with pytest.raises(ValueError, match=r"unknown degradation 'derian'. Did you mean 'derain'"):
        blind.restore(image, 'derian')


def test_networks_that_do_not_keep_the_size(weights: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r'sensor.pth.: DegradationSensor returns an output of \(1, 5\) for an image'):
        Restorer(weights['sensor'])
    options = {'type': 'SRVGGNetCompact', 'num_feat': 4, 'num_conv': 1, 'upscale': 2}
    net = ARCH_REGISTRY.get('SRVGGNetCompact')(num_feat=4, num_conv=1, upscale=2)
    torch.save({'params': net.state_dict()}, tmp_path / 'x2.pth')
    with pytest.raises(OptionError, match=r'SRVGGNetCompact returns an output of \(1, 3, 32, 32\)'):
        Restorer(tmp_path / 'x2.pth', network=options)


def test_any_network_that_keeps_the_size(tmp_path: Path, command) -> None:
    options = {'type': 'SRVGGNetCompact', 'num_feat': 4, 'num_conv': 1, 'upscale': 1}
    net = ARCH_REGISTRY.get('SRVGGNetCompact')(num_feat=4, num_conv=1, upscale=1)
    torch.save({'params': net.state_dict()}, 'other.pth')
    Path('other.yml').write_text(f'network_g: {json.dumps(options)}\n')
    image = photograph(32, 40)
    put('a.png', png(image))
    assert command('a.png', '-o', 'b.png', '--weights', 'other.pth', '-opt', 'other.yml', net=None)[0] == 0
    assert differ(opencv_pixels(Path('b.png').read_bytes()), direct(image, net)) <= 1


def test_a_window_that_only_the_arguments_name_is_padded_to(tmp_path: Path) -> None:
    options = {'type': 'SwinIR', 'img_size': 16, 'window_size': 8, 'embed_dim': 8, 'depths': [1], 'num_heads': [2]}
    options['upscale'] = 1
    net = ARCH_REGISTRY.get('SwinIR')(**{key: value for key, value in options.items() if key != 'type'}).eval()
    torch.save({'params': net.state_dict()}, tmp_path / 'swinir.pth')
    restorer = Restorer(tmp_path / 'swinir.pth', network=options, device='cpu')
    x = torch.rand(1, 3, 19, 24)
    with torch.no_grad():
        expected = net(torch.nn.functional.pad(x, (0, 0, 0, 5), 'reflect'))[..., :19, :]
    torch.testing.assert_close(restorer.restore(x), expected)


def test_every_argument_is_documented() -> None:
    page = (Path(__file__).parents[2] / 'docs' / 'restore.md').read_text()
    actions = argument_parser('restore')._actions
    names = [name for action in actions for name in action.option_strings if name not in ('-h', '--help')]
    assert len(names) > 15
    assert [name for name in names if f'`{name}' not in page] == []


def test_values_that_are_not_finite_are_not_an_image(weights: dict[str, str]) -> None:
    restorer = Restorer(weights['promptir'], device='cpu')
    with torch.no_grad():
        restorer.net.output.weight.fill_(float('inf'))
    with pytest.raises(ValueError, match='PromptIR returned values that are not finite'):
        restorer.restore(photograph(8, 8))


def test_devices(weights: dict[str, str]) -> None:
    with pytest.raises(OptionError, match=r"device: unknown device 'gpu'. Allowed: auto, cpu, cuda"):
        Restorer(weights['same'], device='gpu')
    with pytest.raises(OptionError, match="device: 'cuda:99' does not exist; GPUs that PyTorch can use: "):
        Restorer(weights['same'], device='cuda:99')
    with pytest.raises(OptionError, match='tf32 is a format of GPUs'):
        Restorer(weights['same'], device='cpu', settings=Settings(precision='tf32'))
    expected = 'cuda' if torch.cuda.is_available() else 'cpu'
    assert Restorer(weights['same']).device.type == expected


# files


def test_the_tree_of_a_folder_is_kept(command) -> None:
    for name in ('in/a.png', 'in/sub/a.png', 'in/sub/deeper/b.PNG', 'in/.hidden.png', 'in/.git/c.png'):
        put(name)
    put('in/notes.txt', b'x')
    put('in/sub/movie.mp4', b'x')
    status, said, _ = command('in', '-o', 'out', '-r')
    assert status == 0
    assert sorted(contents('out')) == ['a.png', 'sub/a.png', 'sub/deeper/b.PNG']
    assert '3 restored, other files: 2, ' in said
    status, said, _ = command('in', '-o', 'flat')
    assert sorted(contents('flat')) == ['a.png']
    assert '1 restored, other files: 1, ' in said


def test_patterns(command) -> None:
    for name in ('in/a.png', 'in/b.jpg', 'in/sub/c.png', 'in/sub/deeper/d.png', 'in/[x].png'):
        put(name, by_pillow(photograph(9, 9), 'JPEG') if name.endswith('jpg') else None)
    assert command('in/*.png', '-o', 'one')[0] == 0
    assert sorted(contents('one')) == ['[x].png', 'a.png']
    assert command('in/**/*.png', '-o', 'all')[0] == 0
    assert sorted(contents('all')) == ['[x].png', 'a.png', 'sub/c.png', 'sub/deeper/d.png']
    assert command('in/[x].png', '-o', 'literal')[0] == 0
    assert sorted(contents('literal')) == ['[x].png']
    assert command('in/?.*', 'in/b.jpg', '-o', 'both')[0] == 0
    assert sorted(contents('both')) == ['a.png', 'b.jpg']


def test_results_below_an_input_folder_are_not_inputs(command) -> None:
    put('a.png')
    put('sub/b.png')
    for _ in range(2):
        assert command('.', '-o', 'out', '-r', '--overwrite')[0] == 0
        assert sorted(contents('out')) == ['a.png', 'sub/b.png']
    assert command('**/*.png', '-o', 'out', '--overwrite')[0] == 0
    assert sorted(contents('out')) == ['a.png', 'sub/b.png']


def test_names_and_formats_of_results(command) -> None:
    image = photograph(12, 10)
    put('in/a.png', png(image))
    put('in/b.jpg', by_pillow(image, 'JPEG'))
    put('in/c.gif', by_pillow(image[..., 0], 'GIF'))
    put('in/d.mpo', by_pillow(image, 'JPEG'))
    put('in/e.tiff', by_pillow(image, 'TIFF'))
    put('in/wrong.gif', by_pillow(image, 'JPEG'))
    assert command('in', '-o', 'out', '--suffix', '_clear')[0] == 0
    kinds = {path.name: Image.open(path).format for path in Path('out').iterdir()}
    assert kinds == {
        'a_clear.png': 'PNG',
        'b_clear.jpg': 'JPEG',
        'c_clear.png': 'PNG',
        'd_clear.mpo': 'JPEG',
        'e_clear.tiff': 'TIFF',
        'wrong_clear.png': 'PNG',
    }
    assert command('in/b.jpg', '-o', 'png', '--format', '.PNG')[0] == 0
    np.testing.assert_array_equal(
        opencv_pixels(Path('png/b.png').read_bytes()), opencv_pixels(Path('in/b.jpg').read_bytes())
    )
    assert command('in/a.png', '-o', 'single.tif')[0] == 0
    assert Image.open('single.tif').format == 'TIFF'
    assert command('in/a.png', '-o', 'folder.png/')[0] == 0
    assert sorted(contents('folder.png')) == ['a.png']


def test_the_content_counts_not_the_name(command) -> None:
    put('in/really.jpg', png(photograph(9, 8, 4, 16)))
    assert command('in', '-o', 'out')[0] == 0
    np.testing.assert_array_equal(decode_picture(Path('out/really.jpg').read_bytes()).image, photograph(9, 8, 4, 16))
    status, _, told = command('in', '-o', 'jpegs', '--format', 'jpg')
    assert status == 1
    assert "'jpegs/really.jpg': JPEG stores 8 bits, the image has 16. Use one of PNG, TIFF, PPM." in told
    assert contents('jpegs') == {} if Path('jpegs').exists() else True


def test_nothing_is_overwritten_by_default(command) -> None:
    put('in/a.png')
    put('in/b.png')
    put('out/a.png', b'mine')
    before = contents('.')
    status, said, told = command('in', '-o', 'out')
    assert (status, said) == (2, '')
    assert told == "'out/a.png' exists already. --overwrite replaces them, --skip-existing skips them.\n"
    assert contents('.') == before
    status, said, _ = command('in', '-o', 'out', '--skip-existing')
    assert status == 0
    assert '1 restored, 1 existing skipped, ' in said
    assert Path('out/a.png').read_bytes() == b'mine'
    assert command('in', '-o', 'out', '--overwrite')[0] == 0
    assert Image.open('out/a.png').size == (30, 20)


def test_an_input_is_never_overwritten(command) -> None:
    put('in/a.png')
    Path('link').symlink_to('in')
    before = contents('in')
    for words in (['in', '-o', 'in'], ['in/a.png', '-o', 'in/a.png'], ['in', '-o', 'link'], ['link/a.png', '-o', 'in']):
        status, _, told = command(*words, '--overwrite')
        assert status == 2
        assert 'inputs are never overwritten. Use another folder with -o, or a --suffix.' in told
        assert contents('in') == before
    assert command('in', '-o', 'in', '--suffix', '_2')[0] == 0
    assert sorted(contents('in')) == ['a.png', 'a_2.png']


def test_a_file_that_comes_into_being_meanwhile_stays(same: Restorer, folder: Path) -> None:
    put('in/a.png')
    plan = plan_restoration(['in'], 'out')
    put('out/a.png', b'mine')
    plan = measured(plan)
    outcome = restore_files(same, plan, Reporter(plan))
    assert outcome.failed == ["'out/a.png' was created meanwhile by another program; it was not replaced."]
    assert Path('out/a.png').read_bytes() == b'mine'


def test_a_dry_run_writes_nothing(command) -> None:
    put('in/a.png')
    put('in/b.png', b'text')
    before = contents('.')
    status, said, _ = command('in', '-o', 'out', '--dry-run')
    assert status == 0
    assert said.endswith(
        '\nin/a.png -> out/a.png  30x20\nin/b.png -> out/b.png  its size cannot be read\n'
        '2 to be restored. Nothing was done.\n'
    )
    assert contents('.') == before


MISTAKES = {
    'no weights': (['in', '-o', 'out'], None, '--weights: missing. .*docs/weights.md lists pretrained weights'),
    'no input': (
        ['gone.png', '-o', 'out'],
        'same',
        "'gone.png' does not exist. Paths are relative to the current folder.",
    ),
    'no match': (['in/*.tif', '-o', 'out'], 'same', r"'in/\*.tif' matches no files."),
    'no pictures': (['texts', '-o', 'out'], 'same', "no images found in 'texts'. 1 files have other extensions."),
    'only folders': (['tree', '-o', 'out'], 'same', "'tree' contains only folders, no images. Use -r to include them."),
    'two of a name': (
        ['in', 'tree/in', '-o', 'out'],
        'same',
        r"'in/a.png', 'tree/in/a.png' have the same output '.*out/a.png'. Restore them to different folders.",
    ),
    'two of a stem': (['in', '-o', 'out', '--format', 'png'], 'same', "'in/a.jpg', 'in/a.png' have the same output "),
    'a file for several': (['in', '-o', 'x.png'], 'same', r"-o: 'x.png' looks like a file, .*\(2 now\). Use a folder"),
    'a file that is there': (['in', '-o', 'texts/t.txt'], 'same', "-o: 'texts/t.txt' is a file; use a folder."),
    'a gif': (['in/a.png', '-o', 'x.gif'], 'same', "-o: 'x.gif' cannot be written. Formats: png, jpg"),
    'a format': (
        ['in', '-o', 'out', '--format', 'pngg'],
        'same',
        "--format: 'pngg' cannot be written. Did you mean 'png'",
    ),
    'two formats': (['in/a.png', '-o', 'x.png', '--format', 'jpg'], 'same', 'contradict each other'),
    'a suffix': (['in', '-o', 'out', '--suffix', '/x'], 'same', "--suffix: '/x' contains a path separator"),
    'a suffix of a file': (
        ['in/a.png', '-o', 'x.png', '--suffix', 'x'],
        'same',
        "--suffix: 'x.png' is an existing file",
    ),
    'a batch': (['in', '-o', 'out', '--batch', '0'], 'same', '--batch: 0 is not a whole number of at least 1'),
    'an overlap': (['in', '-o', 'out', '--tile', '32', '--overlap', '32'], 'same', '--overlap: 32 pixels, but a tile'),
    'statistics': (['in', '-o', 'out', '--statistics', 'tils'], 'same', "--statistics: .*Did you mean 'tile"),
    'a tile': (
        ['in', '-o', 'out', '--tile', '4', '--overlap', '0'],
        'same',
        '--tile: 4, but the network needs mul',
    ),
    'a label': (['in', '-o', 'out', '--labels', 'derian'], 'pip', "--labels: .*'derian'. Did you mean 'derain'"),
    'no label': (
        ['in', '-o', 'out'],
        'pip',
        '--labels: PIPRestormer needs the degradation .*: denoise, derain, dehaze, deblur, lowl',
    ),
    'a label too many': (['in', '-o', 'out', '--labels', 'derain'], 'same', '--labels: PromptIR is blind'),
    'a strength': (['in', '-o', 'out', '--strength', '2'], 'same', 'PromptIR is blind'),
    'a device': (['in', '-o', 'out', '--device', 'cuda:77'], 'same', "device: 'cuda:77' does not exist"),
    'weights': (['in', '-o', 'out', '--weights', 'gone.pth'], None, 'gone.pth'),
    'no weights file': (['in', '-o', 'out', '--weights', 'in/a.png'], None, 'in/a.png'),
}


@pytest.mark.parametrize('name', MISTAKES)
def test_mistakes_are_reported_before_any_work(
    name: str, folder: Path, weights: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    words, net, expected = MISTAKES[name]
    for file in ('in/a.png', 'tree/in/a.png'):
        put(file)
    put('in/a.jpg', by_pillow(photograph(), 'JPEG'))
    put('texts/t.txt', b'x')
    before = contents('.')
    given = ['--weights', weights[net]] if net else []
    assert cli.main(['restore', *words, *given]) == 2
    said = capsys.readouterr()
    assert said.out == ''
    assert 'Traceback' not in said.err
    assert re.search(expected, said.err), said.err
    assert contents('.') == before
    assert not Path('out').exists()


def test_several_mistakes_are_reported_at_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ['a.png', 'b.png', '-o', 'out', '--batch', '0', '--labels', ',', '--format', 'x', '--overlap', '-1']
    assert cli.main(['restore', *words]) == 2
    told = capsys.readouterr().err
    for part in ("'a.png' does", "'b.png' does", '--batch', '--labels', '--format', '--overlap', '--weights'):
        assert part in told
    assert len(told.splitlines()) == 7


# the command as people run it


def environment() -> dict[str, str]:
    return {**os.environ, 'OMP_NUM_THREADS': '1', 'OMP_WAIT_POLICY': 'PASSIVE'}


def test_a_folder_of_all_sorts(folder: Path, weights: dict[str, str]) -> None:
    image = photograph(30, 20)
    put('in/a b\n.png', png(image))
    put('in/grey.png', png(photograph(30, 20, 1, 16)))
    put('in/inks.jpg', by_pillow(image, 'JPEG', 'CMYK'))
    put('in/turned.jpg', by_pillow(image, 'JPEG', exif=b'Exif\0\0' + exif(6)))
    put('in/cut.jpg', by_pillow(photograph(99, 99), 'JPEG')[:2000])
    put('in/text.png', b'some text')
    put('in/empty.bmp', b'')
    put('in/moving.gif', damaged(b'', 'animated', 0.0))
    put('in/notes.md', b'#')
    put(os.fsdecode(b'in/\xff.png'))
    words = ['in', '-o', 'out', '--weights', weights['same'], '--device', 'cpu']
    done = subprocess.run([CONSOLE, 'restore', *words], env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert sorted(contents('out')) == ['a b\n.png', 'grey.png', 'inks.jpg', 'turned.jpg', '\udcff.png']
    assert Image.open('out/turned.jpg').size == (30, 20)
    lines = done.stdout.splitlines()
    assert any(line.startswith(r'in/a b\n.png -> out/a b\n.png  20x30, ') for line in lines)
    assert any(line.endswith('(CMYK converted to RGB without a profile)') for line in lines)
    assert lines[-1].startswith('5 restored, 4 failed, other files: 1, ')
    told = done.stderr.splitlines()
    assert all(line.startswith("failed: 'in/") for line in told)  # once each, and nothing else
    assert [line.split("'")[1] for line in told] == ['in/cut.jpg', 'in/empty.bmp', 'in/moving.gif', 'in/text.png']
    for line, words in zip(told, ('truncated', 'is empty (0 bytes)', '2 frames', 'is text'), strict=True):
        assert words in line


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='there are no FIFOs')
def test_skipped_files_are_named(command) -> None:
    put('in/a.png')
    for name in ('in/b.CR3', 'in/c.nef', 'in/d.jxl', 'in/e.txt'):
        put(name, b'x')
    os.mkfifo('in/pipe.png')
    status, said, told = command('in', '-o', 'out')
    assert status == 0
    assert told.splitlines() == [
        '2 camera RAW files skipped. Convert them to PNG or TIFF first.',
        '1 JPEG XL file skipped. Convert them to PNG or TIFF first.',
        "'in/pipe.png' skipped: not a regular file.",
    ]
    assert '1 restored, other files: 1, ' in said
    assert 'RAW files skipped' in command('in', '-o', 'out2', '--dry-run')[2]
    os.remove('in/a.png')
    status, _, told = command('in', '-o', 'out')
    assert status == 2
    assert '2 camera RAW files skipped' in told
    status, _, told = command('in/pipe.png', '-o', 'out')  # named itself
    assert status == 1
    assert told == "failed: 'in/pipe.png' cannot be read: Not a regular file.\n"


def test_phones_pictures(command) -> None:
    image = photograph(40, 60)
    put('in/a.avif', by_pillow(image, 'AVIF'))
    pillow_heif.from_bytes('RGB', (60, 40), image.tobytes()).save('in/b.HEIC')
    assert command('in', '-o', 'out')[0] == 0
    assert sorted(contents('out')) == ['a.png', 'b.png']
    for name, result in (('a.avif', 'a.png'), ('b.HEIC', 'b.png')):
        np.testing.assert_array_equal(read_picture(f'out/{result}').image, read_picture(f'in/{name}').image)


def test_the_limit_of_pixels(command) -> None:
    put('in/a.png')
    status, _, told = command('in', '-o', 'out', '--max-pixels', '599')
    assert status == 1
    assert "'in/a.png' has 30x20 = 600 pixels; 599 are allowed (`--max-pixels`" in told
    assert command('in', '-o', 'out', '--max-pixels', '600')[0] == 0


@pytest.mark.parametrize(
    'words',
    ['restore a.png -o', 'prepare --protocol 3d --out', 'explain -opt a.yml --out', 'convert a.pth', 'export a.pth'],
)
def test_results_do_not_go_to_an_empty_path(words: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put('a.png')
    with pytest.raises(SystemExit) as ended:
        cli.main([*words.split(), ''])
    assert ended.value.code == 2
    assert 'is empty; use . for the current folder' in capsys.readouterr().err
    assert list(contents('.')) == ['a.png']


@pytest.mark.skipif(os.name != 'posix', reason='sends a signal')
def test_ctrl_c_leaves_whole_files(command) -> None:
    def interrupt() -> None:
        while not Path('out/00.png').exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    for number in range(40):
        put(f'in/{number:02}.png', png(photograph(96, 96)))
    threading.Thread(target=interrupt).start()
    check_interrupted(*command('in', '-o', 'out', net='promptir'), 96)


def check_interrupted(status: int, said: str, told: str, side: int) -> None:
    assert status == 130
    assert told.startswith('Interrupted, ')
    assert '--skip-existing continues with the rest.' in told
    results = sorted(Path('out').iterdir())
    assert 0 < len(results) < 40
    assert f'{len(results)} restored, ' in said
    for path in results:
        assert opencv_pixels(path.read_bytes()).shape == (side, side, 3)


@pytest.mark.slow
@pytest.mark.skipif(os.name != 'posix', reason='sends a signal')
def test_ctrl_c_of_the_command(folder: Path, weights: dict[str, str]) -> None:
    for number in range(40):
        put(f'in/{number:02}.png', png(photograph(200, 200)))
    words = ['in', '-o', 'out', '--weights', weights['promptir'], '--device', 'cpu']
    with subprocess.Popen(
        [CONSOLE, 'restore', *words], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        assert 'PromptIR' in running.stdout.readline()
        assert running.stdout.readline().startswith('in/00.png -> ')
        running.send_signal(signal.SIGINT)
        said, told = running.communicate(timeout=120)
    check_interrupted(running.returncode, said, told, 200)
