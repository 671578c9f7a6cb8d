"""What modules know of a whole image, from its tiles: exact where it is a sum, removed in any case."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from promptir_basicsr.archs import PIPNAFNet, PIPRestormer, PromptedNetwork, PromptIR
from promptir_basicsr.archs.layers.formulation import set_formulation
from promptir_basicsr.archs.layers.global_statistics import Place, WholeImage, bilinear_matrix
from promptir_basicsr.archs.layers.prompts import PromptGenBlock, PromptInPrompt, TopMCrossAttention
from promptir_basicsr.archs.layers.restormer import MDTA, TransformerBlock
from promptir_basicsr.core.vocabulary import FORMULATIONS
from promptir_basicsr.inference.tiles import Grid
from tests.golden.seeded import seeded_fill, seeded_image

SMALL = {'dim': 8, 'num_blocks': (1, 1, 1, 1), 'num_refinement_blocks': 1, 'heads': (1, 1, 2, 2)}
PROMPTS = {'prompt_sizes': (4, 4, 4)}
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    'promptir': lambda: PromptIR(**SMALL, **PROMPTS, bias=True),
    'pip topm': lambda: PIPRestormer(**SMALL, **PROMPTS),
    'pip cross': lambda: PIPRestormer(**SMALL, **PROMPTS, interaction='cross', layer_norm_type='BiasFree'),
    'pip gate': lambda: PIPRestormer(**SMALL, **PROMPTS, interaction='promptir_gate'),
    'pip nafnet': lambda: PIPNAFNet(width=8, enc_blk_nums=(1, 1, 1, 1), prompt_dims=(12, 12, 16, 24)),
    'taps': lambda: PromptedNetwork(
        {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1, 'upscale': 1},
        taps=['conv_after_body'],
        prompts='promptir',
    ),
}
DOUBLE = {'rtol': 0.0, 'atol': 1e-11}


def built(name: str) -> nn.Module:
    return seeded_fill(NETWORKS[name]().double()).eval()


def run(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return net(x, torch.arange(len(x)) % 5) if getattr(net, 'takes_degradation', False) else net(x)


def pieces(x: Tensor, tile: int, overlap: int = 16, multiple: int = 4) -> list[tuple[Place, Tensor]]:
    """Tiles of features: (B, C, H, W)."""
    grid = Grid.over(*x.shape[-2:], tile, overlap, multiple)
    cut = [
        (place, x[..., top : top + place.tile[0], left : left + place.tile[1]])
        for place, _ in grid.places()
        for top, left in [place.start]
    ]
    assert len(cut) > 2
    return cut


@given(before=st.integers(1, 40), after=st.integers(1, 90), seed=st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_the_matrix_resizes_as_torch_does(before: int, after: int, seed: int) -> None:
    line = torch.randn(1, 1, before, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    expected = F.interpolate(line, size=(after, 1), mode='bilinear', align_corners=False)
    torch.testing.assert_close(bilinear_matrix(before, after) @ line, expected, **DOUBLE)
    wider = bilinear_matrix(before, after, -2, after + 1)
    assert not wider[:2].any()
    assert not wider[-1].any()
    assert torch.equal(wider[2:-1], bilinear_matrix(before, after))


@pytest.mark.parametrize('formulation', FORMULATIONS)
@pytest.mark.parametrize('name', NETWORKS)
def test_an_image_that_is_its_only_tile_is_restored_as_ever(name: str, formulation: str) -> None:
    """Both while the quantities are worked out and when they are used."""
    net, x = built(name), seeded_image((2, 3, 48, 32)).double()
    set_formulation(net, formulation)
    expected, whole = run(net, x), WholeImage(net, 2)
    assert whole
    with whole.attached():
        whole.at(Place.of_all(48, 32))
        recorded = run(net, x)
        whole.settle()
        whole.recording = False
        used = run(net, x)
        other = run(net, x.flip(-1).square())
    torch.testing.assert_close(recorded, expected, **DOUBLE)
    torch.testing.assert_close(used, expected, **DOUBLE)
    assert torch.equal(run(net, x), expected)
    assert (other - run(net, x.flip(-1).square())).abs().max() > 1e-6  # it was not its own quantities that were used


@pytest.mark.parametrize('formulation', FORMULATIONS)
@pytest.mark.parametrize('grad', [False, True], ids=['strips', 'flat'])
def test_similarities_are_those_of_all_pixels(formulation: str, grad: bool) -> None:
    """The attention of a block over tiles, with halos of a pixel: the matrix of the whole image, image by image."""
    block = seeded_fill(TransformerBlock(8, 2, 2.0, True, 'WithBias').double())
    set_formulation(block, formulation)
    x = seeded_image((3, 8, 64, 48)).double()
    seen: list[Tensor] = []
    attention = block.attn.attention
    block.attn.attention = lambda similarity: seen.append(similarity.detach().clone()) or attention(similarity)
    with torch.set_grad_enabled(grad):
        block(x)
        expected = torch.cat(seen)
        whole = WholeImage(block, 3)
        with whole.attached():
            for place, tile in pieces(x, 32):
                whole.at(place)
                block(tile)
            whole.settle()
            whole.recording = False
            seen.clear()
            block(tile)
    torch.testing.assert_close(torch.cat(seen), expected, **DOUBLE)


def test_the_weights_and_the_prompt_of_promptir() -> None:
    """The weights of all pixels, and of the prompt the tile's part, its border included."""
    bank = seeded_fill(PromptGenBlock(6, 4, 5, feature_dim=8).double())
    x = seeded_image((2, 8, 72, 52)).double()
    with torch.no_grad():
        expected, weights = bank(x), bank.weights(x)
        whole = WholeImage(bank, 2)
        with whole.attached():
            for place, tile in pieces(x, 32):
                whole.at(place)
                bank(tile)
            whole.settle()
            whole.recording = False
            for place, tile in pieces(x, 32):
                whole.at(place)
                torch.testing.assert_close(bank.weights(tile), weights, **DOUBLE)
                (top, left), (height, width) = place.start, place.tile
                part = expected[..., top : top + height, left : left + width]
                torch.testing.assert_close(bank(tile), part, **DOUBLE)


@pytest.mark.parametrize('size', [(72, 52), (4, 60)])
@pytest.mark.parametrize('prompt_size', [5, 16])
def test_the_prompt_of_pip(size: tuple[int, int], prompt_size: int) -> None:
    """Features sampled from all tiles, more or fewer than there are pixels, and the tile's part of the prompt."""
    prompt = seeded_fill(PromptInPrompt(8, 3, prompt_size).double())
    x, weights = seeded_image((2, 8, *size)).double(), torch.tensor([[1.0, 0, 0], [0, 0.5, 0.5]]).double()
    with torch.no_grad():
        expected = prompt(x, weights)
        whole = WholeImage(prompt, 2)
        assert len(whole) == 1  # the attention inside is over prompts
        with whole.attached():
            for place, tile in pieces(x, 24):
                whole.at(place)
                prompt(tile, weights)
            whole.settle()
            whole.recording = False
            for place, tile in pieces(x, 24):
                whole.at(place)
                (top, left), (height, width) = place.start, place.tile
                part = expected[..., top : top + height, left : left + width]
                torch.testing.assert_close(prompt(tile, weights), part, **DOUBLE)


def test_global_pooling_of_any_network() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1)).double()
    x = seeded_image((2, 3, 64, 48)).double()
    with torch.no_grad():
        expected, whole = net(x), WholeImage(net, 2)
        with whole.attached():
            for place, tile in pieces(x, 32):
                whole.at(place)
                net(tile)
            whole.settle()
            whole.recording = False
            torch.testing.assert_close(net(tile), expected, **DOUBLE)
        assert (net(tile) - expected).abs().max() > 1e-4
    assert not WholeImage(nn.AdaptiveAvgPool2d(2), 1)


def test_rough_statistics_replace_those_of_tiles_not_yet_seen() -> None:
    net, x = nn.AdaptiveAvgPool2d(1), seeded_image((1, 2, 40, 40)).double()
    whole = WholeImage(net, 1)
    with whole.attached():
        whole.at(Place.of_all(10, 10))
        net(torch.full((1, 2, 10, 10), 5.0, dtype=torch.float64))
        whole.settle(rough=True)
        whole.at(Place((40, 40), (0, 0), (20, 40), ((0, 10), (0, 40))))
        found = net(x[..., :20, :])
    expected = (x[..., :10, :].sum(dim=(-2, -1)) + 5.0 * 30 * 40) / (40 * 40)
    torch.testing.assert_close(found[..., 0, 0], expected, **DOUBLE)


def test_everything_is_as_before_after_an_error() -> None:
    net, x = built('pip nafnet'), seeded_image((1, 3, 32, 32)).double()
    expected, whole = run(net, x), WholeImage(net, 1)
    whole.at(Place.of_all(32, 32))
    with pytest.raises(ValueError, match='divisible'), whole.attached():
        run(net, x[..., :31])
    assert all('whole' not in vars(module) and not module._forward_hooks for module in net.modules())
    assert torch.equal(run(net, x), expected)
    with whole.attached(), pytest.raises(RuntimeError, match='restoring an image'), WholeImage(net, 1).attached():
        pass
    assert all('whole' not in vars(module) for module in net.modules())


@pytest.mark.parametrize('formulation', FORMULATIONS)
@pytest.mark.parametrize('attention', [MDTA, TopMCrossAttention])
def test_half_precision(formulation: str, attention: Callable[[int, int, bool], nn.Module]) -> None:
    """Under autocast, to the rounding of bfloat16; sums are wider."""
    net = seeded_fill(attention(12, 2, False))
    x = seeded_image((1, 12, 24, 16))
    inputs = (x,) if attention is MDTA else (x, x.flip(-1))
    with torch.no_grad():
        expected, whole = net(*inputs), WholeImage(net, 1)
        with whole.attached(), torch.autocast('cpu', torch.bfloat16):
            whole.at(Place.of_all(24, 16))
            found = net(*inputs)
            assert all(part.dtype == torch.float64 for part in whole._quantities[0]._sums or ())
            whole.settle()
            whole.recording = False
            used = net(*inputs)
    assert found.dtype == used.dtype == torch.bfloat16
    assert (found.float() - expected).norm() < 0.05 * expected.norm()
    assert torch.equal(found, used)


def test_the_sensor_is_not_included() -> None:
    sensor = {'type': 'DegradationSensor', 'dim': 4}
    told, blind = (PIPRestormer(**SMALL, **PROMPTS, **more) for more in ({}, {'sensor': sensor}))
    assert len(WholeImage(told, 1)) == len(WholeImage(blind, 1)) == 8 + 3 + 3
