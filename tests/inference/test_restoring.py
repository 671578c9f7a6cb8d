"""Images of any size, whole and in tiles: exact where that can be, close where it is promised, clear mistakes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from benchmarks.tiling import not_reduced
from promptir_basicsr.archs import PIPRestormer, PromptIR
from promptir_basicsr.archs.layers.formulation import set_formulation
from promptir_basicsr.checks.run import check_options
from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.core.vocabulary import STATISTICS
from promptir_basicsr.core.yaml_loader import load_yaml
from promptir_basicsr.degradations.spec import Degrade
from promptir_basicsr.inference.restoring import Settings, restore_images
from promptir_basicsr.runtime import memory
from promptir_basicsr.runtime.memory import Need, peak_bytes
from tests.golden.seeded import seeded_fill, seeded_image
from tests.models.step_data import EDSR, model_with

SMALL = {
    'dim': 8,
    'num_blocks': (1, 1, 1, 1),
    'num_refinement_blocks': 1,
    'heads': (1, 1, 1, 1),
    'prompt_sizes': (4, 4, 4),
}
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    'promptir': lambda: PromptIR(**SMALL),
    'pip topm': lambda: PIPRestormer(**SMALL),
    'pip cross': lambda: PIPRestormer(**SMALL, interaction='cross'),
}
REACH = 112
"""More pixels than the output of these networks depends on in each direction, without what is global."""


def built(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    return seeded_fill(NETWORKS[name]().to(dtype)).eval()


def told(net: nn.Module) -> int | None:
    return 1 if net.takes_degradation else None


def photograph(options: dict) -> Tensor:
    """A degraded one, (1, 3, 144, 192)."""
    pixels = skimage.data.coffee()[100:244, 150:342].astype(np.float32) / 255
    pixels = Degrade(options)(pixels, np.random.default_rng(0))
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None].float()


def psnr(found: Tensor, expected: Tensor) -> float:
    return -10 * torch.log10((found - expected).square().mean()).item()


@pytest.mark.parametrize('tile', [None, 64, 200, 'auto'])
@pytest.mark.parametrize('name', ['promptir', 'pip topm'])
def test_an_image_that_fits_a_tile_is_restored_bit_by_bit_as_by_the_network(name: str, tile: int | None) -> None:
    net, x = built(name), seeded_image((2, 3, 40, 64))
    with torch.no_grad():
        expected = net(x, told(net))
    assert torch.equal(restore_images(net, x, Settings(tile=tile), told(net)), expected)


@pytest.mark.parametrize(
    ('name', 'formulation'),
    [
        ('promptir', 'plain'),
        *((name, 'fast') for name in NETWORKS),
        *(pytest.param(name, 'plain', marks=pytest.mark.slow) for name in ('pip topm', 'pip cross')),
    ],
)
def test_with_the_quantities_of_the_whole_image_tiles_are_the_whole_image(name: str, formulation: str) -> None:
    """Where tiles share twice what the network reaches beside what is blended; without them they are not."""
    net, x = built(name, torch.float64), seeded_image((1, 3, 640, 8)).double()
    set_formulation(net, formulation)
    whole = restore_images(net, x, degradation=told(net))
    overlap = 4 * REACH
    plain = restore_images(net, x, Settings(tile=480, overlap=overlap, statistics='tile'), told(net))
    assert (plain - whole).abs().max() > 1e-2
    with not_reduced():
        found = restore_images(net, x, Settings(tile=480, overlap=overlap, statistics='reduced'), told(net))
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    'degrade',
    [
        {'type': 'gaussian_noise', 'sigma': 25},
        pytest.param({'type': 'low_light', 'exposure': 0.15, 'cast': 0}, marks=pytest.mark.slow),
    ],
    ids=['noise', 'dark'],
)
def test_sums_over_tiles_come_closer_than_plain_tiles(degrade: dict) -> None:
    """By 15 dB with one pass, and no further away with two, for the weights that PromptIR starts with."""
    torch.manual_seed(0)
    net, x = PromptIR(**SMALL).eval(), photograph(degrade)
    whole = restore_images(net, x)
    found = {
        (way, passes): psnr(restore_images(net, x, Settings(tile=80, statistics=way, passes=passes)), whole)
        for way, passes in (('tile', 1), ('tiles', 1), ('tiles', 2))
    }
    with not_reduced():
        best = psnr(restore_images(net, x, Settings(tile=80, statistics='reduced')), whole)
    assert found['tiles', 1] > found['tile', 1] + 15
    assert found['tiles', 2] > found['tiles', 1] - 0.5
    assert found['tiles', 2] == pytest.approx(best, abs=3)


@given(
    height=st.integers(1, 300),
    width=st.integers(1, 200),
    tile=st.integers(16, 96),
    overlap=st.integers(0, 15),
    statistics=st.sampled_from(STATISTICS),
)
@settings(max_examples=8, deadline=None)
def test_any_size(height: int, width: int, tile: int, overlap: int, statistics: str) -> None:
    net, x = built('promptir'), seeded_image((1, 3, height, width))
    calls: list[tuple[int, int]] = []
    way = Settings(tile=tile, overlap=overlap, statistics=statistics)
    found = restore_images(net, x, way, progress=lambda *call: calls.append(call))
    assert found.shape == x.shape
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    total = calls[-1][1]
    assert calls == [(done, total) for done in range(1, total + 1)]


def test_networks_of_others_are_tiled_plainly() -> None:
    """Exactly, where their reach is less than what is thrown away of an overlap."""
    net = nn.Sequential(nn.Conv2d(3, 6, 5, padding=2), nn.GELU(), nn.Conv2d(6, 3, 5, padding=2)).eval()
    x = torch.rand(2, 3, 70, 101)
    with torch.no_grad():
        expected = net(x)
    for statistics in STATISTICS:
        calls: list[tuple[int, ...]] = []
        way = Settings(tile=48, overlap=16, statistics=statistics)
        found = restore_images(net, x, way, progress=lambda *call, calls=calls: calls.append(call))  # type: ignore[misc]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
        assert calls == [(done, 6) for done in range(1, 7)]


@pytest.mark.parametrize('tile', [None, 16])
@pytest.mark.parametrize('size', [(24, 24), (17, 30)])
def test_the_ensemble_of_an_equivariant_network_is_the_network(size: tuple[int, int], tile: int | None) -> None:
    class Pixelwise(nn.Module):
        size_multiple = 4

        def forward(self, x: Tensor) -> Tensor:
            return x.square() - x.flip(1)

    x = torch.rand(2, 3, *size)
    found = restore_images(Pixelwise(), x, Settings(tile=tile, overlap=4, ensemble=True))
    torch.testing.assert_close(found, x.square() - x.flip(1), rtol=0, atol=1e-6)


def test_the_ensemble_is_the_mean_of_eight() -> None:
    net, x = built('promptir'), seeded_image((1, 3, 24, 40))
    calls: list[tuple[int, int]] = []
    found = restore_images(net, x, Settings(ensemble=True), progress=lambda *call: calls.append(call))
    assert calls[-1] == (8, 8)
    one, other = x, x.flip(-1)
    expected = [restore_images(net, one), restore_images(net, other).flip(-1)]
    for turns in (1, 2, 3):
        expected.append(torch.rot90(restore_images(net, torch.rot90(one, turns, (2, 3))), -turns, (2, 3)))
        turned = torch.rot90(restore_images(net, torch.rot90(other, turns, (2, 3))), -turns, (2, 3))
        expected.append(turned.flip(-1))
    torch.testing.assert_close(found, torch.stack(expected).mean(dim=0), rtol=0, atol=1e-5)
    assert (found - expected[0]).abs().max() > 1e-3


def test_the_sensor_is_asked_once_and_sees_the_whole_image() -> None:
    net = built('pip topm')
    seen: list[tuple[int, ...]] = []

    def sensor(x: Tensor) -> Tensor:
        seen.append(tuple(x.shape))
        return torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.0]]).expand(len(x), 5)

    net.sensor = sensor
    x = seeded_image((1, 3, 100, 60))
    found = restore_images(net, x, Settings(tile=64))
    assert seen == [(1, 3, 100, 60)]
    mixture = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.0])
    torch.testing.assert_close(found, restore_images(net, x, Settings(tile=64), mixture), rtol=0, atol=1e-5)
    weaker = restore_images(net, x, Settings(tile=64), mixture, strength=0.2)
    assert (weaker - found).abs().max() > 1e-4


@pytest.mark.parametrize('tile', [None, 64])
def test_half_precision(tile: int | None) -> None:
    net, x = built('promptir'), seeded_image((1, 3, 72, 90))
    exact = restore_images(net, x, Settings(tile=tile))
    found = restore_images(net, x, Settings(tile=tile, precision='bf16'))
    assert found.dtype == torch.float32
    assert 0 < (found - exact).norm() < 0.06 * exact.norm()
    assert not torch.is_autocast_enabled('cpu')


def test_flags_of_the_process_are_left_as_they_are() -> None:
    before = torch.backends.cudnn.allow_tf32
    seen = []
    net = nn.Identity()
    net.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    restore_images(net, torch.rand(1, 3, 4, 4))
    assert seen == [False]
    assert torch.backends.cudnn.allow_tf32 == before


class Limited(nn.Module):
    """Runs out of memory as torch does, above an area."""

    def __init__(self, area: int) -> None:
        super().__init__()
        self.area = area

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2] * x.shape[-1] > self.area:
            raise torch.OutOfMemoryError('CUDA out of memory.')
        return 2 * x


def test_out_of_memory_takes_smaller_tiles(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('promptir_basicsr.inference.restoring.logger.propagate', True)
    x = torch.rand(1, 3, 300, 400)
    found = restore_images(Limited(130**2), x, Settings(tile='auto'))
    torch.testing.assert_close(found, 2 * x)
    messages = [record.message for record in caplog.records]
    assert messages[-1].startswith('300x400 pixels (HxW): out of memory with tiles of 200 pixels; continuing with 100')
    with pytest.raises(torch.OutOfMemoryError, match="Set tile to 'auto'"):
        restore_images(Limited(130**2), x)
    with pytest.raises(torch.OutOfMemoryError):
        restore_images(Limited(50**2), x, Settings(tile='auto'))


def test_the_largest_tiles_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a pass over tiles takes stays within the memory that is said to be free, and is near the part to be used."""
    net, x = built('promptir'), seeded_image((1, 3, 200, 300))
    monkeypatch.setattr(memory, 'free_bytes', lambda device: 20 * 10**6)
    sizes: list[tuple[int, ...]] = []
    hook = net.register_forward_pre_hook(lambda _, args: sizes.append(tuple(args[0].shape[-2:])))
    taken = peak_bytes(lambda image: restore_images(net, image, Settings(tile='auto')), x)
    hook.remove()
    assert 64 <= min(sizes[-1]) <= max(sizes[-1]) < 200
    assert taken < 20 * 10**6
    sizes.clear()
    monkeypatch.undo()
    net.register_forward_pre_hook(lambda _, args: sizes.append(tuple(args[0].shape[-2:])))
    restore_images(net, x, Settings(tile='auto'))
    assert sizes == [(200, 304)]


def test_memory_is_counted_as_it_lives() -> None:
    x = torch.zeros(1000)
    assert peak_bytes(lambda x: [x + number for number in range(5)], x) == 5 * 4000
    assert peak_bytes(lambda x: [float((x + number).sum()) for number in range(5)], x) == 4000 + 4
    assert peak_bytes(lambda x: x.add_(1).view(10, 100), x) == 0
    need = Need.measured(lambda x: torch.cat([x, x]), torch.zeros(2, 3, 1, 1), 16, torch.device('cpu'))
    assert need.each == 2 * 2 * 3 * 4
    assert need.fixed == 0


@pytest.mark.parametrize(
    ('files', 'left'),
    [
        ({'memory.max': '1000', 'memory.current': '300'}, 700),
        ({'memory.max': 'max', 'memory.current': '300'}, None),
        ({'memory/memory.limit_in_bytes': '5', 'memory/memory.usage_in_bytes': '7'}, 0),
        ({}, None),
    ],
)
def test_the_limit_of_a_container(files: dict[str, str], left: int | None, tmp_path: Path) -> None:
    (tmp_path / 'memory').mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(f'{text}\n')
    assert memory._left_to_group(tmp_path) == left


@pytest.mark.parametrize(
    ('wrong', 'said'),
    [
        ({'tile': 0}, 'tile: 0 is not a whole number of at least 1. Or use auto.'),
        ({'tile': 'large'}, "tile: 'large' is not a whole number"),
        ({'tile': 32, 'overlap': 32}, 'overlap: 32 pixels, but a tile has 32.'),
        ({'overlap': -1}, 'overlap: -1'),
        ({'statistics': 'tile s'}, "statistics: unknown choice 'tile s'. Did you mean 'tiles'?"),
        ({'passes': 0}, 'passes: 0'),
        ({'precision': 'fp8'}, "precision: unknown precision 'fp8'"),
        ({'kernels': 'cuda'}, "kernels: unknown choice 'cuda'. Allowed: triton."),
        ({'size_multiple': 0}, 'size_multiple: 0'),
    ],
)
def test_mistakes(wrong: dict, said: str) -> None:
    with pytest.raises(OptionError) as raised:
        Settings(**wrong)
    assert said in str(raised.value)
    with pytest.raises(OptionError) as raised:
        Settings(**{'ensemble': False, 'passes': -3, **wrong})
    assert len(raised.value.lines) == (1 if 'passes' in wrong else 2)


@pytest.mark.parametrize(
    ('val', 'said'),
    [
        ({'tile': 32}, ['val.tile: 32 pixels, but tile_overlap is 32. Use larger tiles, or a smaller overlap.']),
        ({'tile': 64, 'tile_overlap': 64}, ['val.tile: 64 pixels, but tile_overlap is 64. Use larger tiles, ']),
        ({'tile': 64}, []),
        ({'tile': 'auto', 'tile_overlap': 128}, []),
        ({'tile': 'all'}, ['val.tile: ']),
        ({'tile_statistics': 'tils'}, ["val.tile_statistics: unknown choice 'tils'. Did you mean 'tiles'?"]),
        ({'tile_statistics': 'whole'}, ["val.tile_statistics: unknown choice 'whole'. Allowed: reduced, tile, tiles."]),
    ],
)
def test_options_are_checked_before_a_run(val: dict, said: list[str]) -> None:
    options = load_yaml(str(Path(__file__).parents[2] / 'options' / 'demo.yml'))
    problems = [str(problem) for problem in check_options({**options, 'val': {**options['val'], **val}}, True)]
    assert len(problems) == len(said)
    assert all(problem.startswith(start) for problem, start in zip(problems, said, strict=True))


def test_a_tile_that_the_network_cannot_take() -> None:
    with pytest.raises(ValueError, match=r'PromptIR needs sides that are multiples of 8\. Use 64 or more'):
        restore_images(built('promptir'), seeded_image((1, 3, 24, 24)), Settings(tile=7, overlap=0))


def test_a_validation_restores_in_tiles(tmp_path: Path) -> None:
    """`val.tile` and its companions: the same as the function, one code path."""
    options = {'val__tile': 24, 'val__tile_overlap': 8, 'val__tile_statistics': 'tile', 'val__ensemble': True}
    model = model_with(tmp_path, EDSR, **options)
    x = torch.rand(1, 3, 50, 33)
    model.feed_data({'lq': x})
    model.test()
    expected = restore_images(model.net_g.eval(), x, Settings(tile=24, overlap=8, statistics='tile', ensemble=True))
    torch.testing.assert_close(model.output, expected, rtol=0, atol=1e-6)
    assert model.inference_settings.tile == 24


def test_a_compiled_network_is_run_as_it_is_written_with_the_quantities_of_the_whole_image() -> None:
    """Nothing is compiled, which would take minutes, and hooks and quantities reach the modules inside."""
    net, x = built('promptir'), seeded_image((1, 3, 72, 40))
    way = Settings(tile=48, overlap=16)
    expected = restore_images(net, x, way)
    compiled = torch.compile(net, dynamic=True, backend=lambda *_: pytest.fail('it was compiled'))
    assert torch.equal(restore_images(compiled, x, way), expected)
