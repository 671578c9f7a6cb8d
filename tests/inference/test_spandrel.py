"""Weights through the loaders of other libraries: spandrel's, and deepinv's PromptIR."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from promptir_basicsr.checkpoints import build, read_checkpoint
from promptir_basicsr.checkpoints.checkpoint import Checkpoint, write_checkpoint
from promptir_basicsr.inference import Restorer, spandrel

# isort: split
from basicsr.archs import build_network
from spandrel import MAIN_REGISTRY, ModelLoader

TINY = {'dim': 8, 'num_blocks': [1, 1, 1, 1], 'num_refinement_blocks': 1, 'heads': [1, 1, 1, 1]}
PROMPTIR = {'type': 'PromptIR', **TINY, 'prompt_sizes': [4, 4, 4]}
SENSOR = {'type': 'DegradationSensor', 'dim': 8}
NETWORKS = {
    'PromptIR': PROMPTIR,
    'grey': {**PROMPTIR, 'inp_channels': 1, 'out_channels': 1},
    'PIPRestormer': {'type': 'PIPRestormer', **TINY, 'prompt_sizes': [4, 4, 4], 'sensor': SENSOR},
    'PIPNAFNet': {'type': 'PIPNAFNet', 'width': 8, 'sensor': SENSOR},
    'AirNet': {'type': 'AirNet', 'dim': 8, 'num_groups': 1, 'num_blocks': 1, 'queue_length': 6},
}


def network(options: dict[str, Any]) -> nn.Module:
    torch.manual_seed(1)
    net = build_network(dict(options)).eval()
    with torch.no_grad():
        for each in net.parameters():
            each.mul_(1.3)
    return net


@pytest.fixture
def x() -> Tensor:
    return torch.rand(1, 3, 41, 50, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize('ending', ['.pth', '.safetensors'])
@pytest.mark.parametrize('kind', NETWORKS)
def test_spandrel_loads_our_weights(kind: str, ending: str, tmp_path: Path, x: Tensor) -> None:
    options = NETWORKS[kind]
    net = network(options)
    torch.save({'params': net.state_dict(), 'params_ema': net.state_dict()}, tmp_path / 'net.pth')
    file = tmp_path / f'a{ending}'
    layout = 'basicsr' if ending == '.pth' else 'safetensors'
    write_checkpoint(read_checkpoint(tmp_path / 'net.pth', options), file, layout)
    spandrel.install()
    before = torch.get_rng_state()
    model = ModelLoader('cpu').load_from_file(file)
    assert torch.equal(before, torch.get_rng_state())
    assert model.architecture.id == options['type']
    assert (model.scale, model.purpose) == (1, 'Restoration')
    # Of an image that has to be padded, spandrel's sensor sees the padded one.
    x = x[:, : model.input_channels, :, :] if 'sensor' not in options else x[..., :32, :48]
    expected = Restorer(file, device='cpu').restore(x).clamp(0, 1)
    assert (expected - x).abs().max() > 0.01
    torch.testing.assert_close(model(x), expected, rtol=0, atol=3e-6)  # convolutions of another size round differently


def test_what_the_released_program_saves_is_loaded(tmp_path: Path, x: Tensor) -> None:
    net = network(PROMPTIR)
    write_checkpoint(Checkpoint('', net.state_dict(), dict(PROMPTIR)), tmp_path / 'a.ckpt', 'official')
    spandrel.install()
    model = ModelLoader('cpu').load_from_file(tmp_path / 'a.ckpt')
    torch.testing.assert_close(model.model.state_dict(), net.state_dict(), rtol=0, atol=0)


def test_installing_twice_changes_nothing() -> None:
    spandrel.install()
    before = [each.architecture for each in MAIN_REGISTRY.architectures('detection')]
    spandrel.install()
    assert [each.architecture for each in MAIN_REGISTRY.architectures('detection')] == before
    assert [each.id for each in before[: len(spandrel.NETWORKS)]] == list(spandrel.NETWORKS)


def test_weights_of_deepinv_load_here_and_vice_versa(tmp_path: Path, x: Tensor) -> None:
    deepinv = pytest.importorskip('deepinv')
    arguments = {'num_blocks': (1, 1, 1, 1), 'num_refinement_blocks': 1}
    torch.manual_seed(0)
    theirs = deepinv.models.PromptIR(**arguments, pretrained=None).eval()  # another `dim`, or other heads, do not run
    torch.save(theirs.state_dict(), tmp_path / 'theirs.pth')
    ours = build(read_checkpoint(tmp_path / 'theirs.pth'))
    x = x[..., :40, :48]
    with torch.no_grad():
        expected = theirs(x)
        torch.testing.assert_close(ours(x), expected, rtol=1e-6, atol=1e-6)

        torch.manual_seed(5)
        for each in ours.parameters():
            each.add_(0.02 * torch.randn_like(each))
        torch.save({'params': ours.state_dict()}, tmp_path / 'ours.pth')
        write_checkpoint(read_checkpoint(tmp_path / 'ours.pth'), tmp_path / 'ours.ckpt', 'official')
        released = torch.load(tmp_path / 'ours.ckpt', weights_only=True)['state_dict']
        theirs.load_state_dict({name.removeprefix('net.'): value for name, value in released.items()})
        assert (ours(x) - expected).abs().max() > 0.01
        torch.testing.assert_close(theirs(x), ours(x), rtol=1e-6, atol=1e-6)
