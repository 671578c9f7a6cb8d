"""A file that `basicsr export` has written computes what the network does, or is not written."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
import yaml
from PIL import Image
from torch import Tensor, nn

import promptir_basicsr  # noqa: F401  (registers)

# isort: split
from basicsr.utils.registry import ARCH_REGISTRY

from promptir_basicsr import cli
from promptir_basicsr.archs import AirNet, DegradationSensor, PIPNAFNet, PIPRestormer, PromptedNetwork, PromptIR
from promptir_basicsr.checkpoints.checkpoint import Checkpoint, write_checkpoint
from promptir_basicsr.core.arrays import pad_to_multiple
from promptir_basicsr.core.command_line import argument_parser
from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.core.version import __version__
from promptir_basicsr.export import exporter
from promptir_basicsr.export.exporter import Difference, ExportMismatch, export_onnx, export_program
from promptir_basicsr.export.graphs import AnySize, run_onnx, run_program
from promptir_basicsr.inference.restoring import restore_images
from tests.golden.seeded import airnet_fill, seeded_fill, seeded_image

ROOT = Path(__file__).parents[2]
TINY: dict[str, Any] = {
    'dim': 8,
    'num_blocks': [1, 1, 1, 1],
    'num_refinement_blocks': 1,
    'heads': [1, 1, 1, 1],
    'prompt_sizes': [4, 4, 4],
}
NAFNET: dict[str, Any] = {
    'width': 8,
    'enc_blk_nums': [1, 1, 1, 1],
    'dec_blk_nums': [1, 1, 1, 1],
    'prompt_sizes': [4, 4, 4, 4],
}
SWINIR = {
    'type': 'SwinIR',
    'upscale': 1,
    'img_size': 32,
    'window_size': 8,
    'img_range': 1.0,
    'depths': [2],
    'embed_dim': 24,
    'num_heads': [2],
    'mlp_ratio': 2,
    'upsampler': '',
}
EDSR = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 16, 'num_block': 2, 'upscale': 1}
PROMPTED: dict[str, Any] = {'network': EDSR, 'taps': ['conv_after_body'], 'residual': False}
SENSOR = {'type': 'DegradationSensor', 'dim': 8}


def saved(net: nn.Module, options: dict[str, Any], path: Path, **metadata: Any) -> str:
    """Weights in a file as a training leaves them."""
    write_checkpoint(
        Checkpoint('', net.state_dict(), {'type': type(net).__name__, **options}, metadata), path, 'basicsr'
    )
    return str(path)


def promptir() -> PromptIR:
    return seeded_fill(PromptIR(**TINY)).eval()  # type: ignore[return-value]


def prompted() -> PromptedNetwork:
    """The smallest network with PIP's prompts."""
    return seeded_fill(PromptedNetwork(**PROMPTED)).eval()  # type: ignore[return-value]


def pip(**options: Any) -> PIPRestormer:
    return seeded_fill(PIPRestormer(**TINY, **options)).eval()  # type: ignore[return-value]


def run(*words: object) -> int:
    return cli.main(['export', *map(str, words)])


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pip.pt2` and, of one size, `pip.onnx`, made by the command, with the weights and a photograph beside them."""
    folder = tmp_path_factory.mktemp('exported')
    before = sys.argv
    try:
        network = {'network_g': {'type': 'PromptedNetwork', **PROMPTED}}  # which builds a network of BasicSR's
        (folder / 'pip.yml').write_text(yaml.safe_dump(network))
        weights = saved(prompted(), PROMPTED, folder / 'pip.pth')
        assert run(weights, folder / 'pip.pt2', '-opt', folder / 'pip.yml') == 0
        assert run(weights, folder / 'pip.onnx', '-opt', folder / 'pip.yml', '--fixed', '40x33') == 0
    finally:
        sys.argv = before
    Image.fromarray(skimage.data.chelsea()[60:161, 110:231]).save(folder / 'photograph.png')
    return folder


def blocks(page: str) -> list[str]:
    """The Python of a page."""
    return re.findall(r'^```python\n(.*?)^```', (ROOT / 'docs' / page).read_text(), re.M | re.S)


@pytest.mark.slow
def test_onnx_by_the_page(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, 'argv', sys.argv)
    weights = saved(promptir(), TINY, folder / 'promptir.pth', iteration=7, metrics={'psnr': 31.5})
    assert run(weights, 'promptir.onnx', '--sizes', '64x64', '2x96x128', '200x152') == 0
    names: dict[str, Any] = {}
    exec(blocks('export.md')[0], names)
    assert names['network'] == 'PromptIR'
    told = names['told']
    assert json.loads(told['iteration']) == 7
    assert json.loads(told['metrics']) == {'psnr': 31.5}
    assert (told['package'], told['size_multiple'], told['image']) == (__version__, '8', 'any')
    assert 'degradations' not in told

    session = names['session']
    shapes = {value.name: value.shape for value in (*session.get_inputs(), *session.get_outputs())}
    assert shapes == {name: ['batch', 3, 'height', 'width'] for name in ('image', 'restored')}
    net = promptir()
    for shape in ((1, 3, 1, 1), (2, 3, 5, 90), (1, 3, 101, 121), (3, 3, 48, 40)):
        image = seeded_image(shape)
        (found,) = session.run(None, {'image': image.numpy()})
        np.testing.assert_allclose(found, restore_images(net, image).numpy(), rtol=0, atol=1e-4)
    expected = restore_images(net, torch.from_numpy(names['image'])).clamp(0, 1) * 255
    written = np.asarray(Image.open('restored.png')).astype(np.float32)
    assert np.abs(written - expected[0].permute(1, 2, 0).numpy()).max() <= 0.51


def test_torch_by_the_page(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(blocks('export.md')[1], names)
    assert names['degradations'] == ['denoise', 'derain', 'dehaze', 'deblur', 'lowlight']
    net, image = prompted(), names['image']
    expected = restore_images(net, image, degradation='derain').clamp(0, 1)
    torch.testing.assert_close(names['restored'], expected, rtol=0, atol=1e-4)
    assert (expected - restore_images(net, image, degradation='dehaze').clamp(0, 1)).abs().max() > 1e-3
    for shape in ((1, 3, 1, 1), (2, 3, 5, 90), (3, 3, 40, 33)):
        images = seeded_image(shape)
        mixtures = torch.rand(shape[0], 5, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            found = names['net'](images, mixtures)
        torch.testing.assert_close(found, restore_images(net, images, degradation=mixtures), rtol=0, atol=1e-4)


def test_onnx_of_one_size(folder: Path) -> None:
    images = seeded_image((1, 3, 40, 33))
    mixtures = torch.rand(1, 5, generator=torch.Generator().manual_seed(1))
    found = run_onnx((folder / 'pip.onnx').read_bytes())(images, mixtures)
    torch.testing.assert_close(found, restore_images(prompted(), images, degradation=mixtures), rtol=0, atol=1e-4)


def test_nothing_of_this_machine_is_in_the_files(folder: Path) -> None:
    for name in ('pip.onnx', 'pip.pt2'):
        content = (folder / name).read_bytes()
        for place in (ROOT, Path(torch.__file__).parents[1], folder):
            assert str(place).encode() not in content
    assert sorted(path.name for path in folder.iterdir() if path.suffix in ('.tmp', '.part')) == []


@pytest.mark.parametrize('multiple', [1, 8, 16])
def test_images_are_continued_as_by_padding(multiple: int) -> None:
    module = AnySize(nn.Identity(), multiple, False)
    for height in (1, 2, 3, 7, 8, 9, 15, 16, 17, 40):
        for width in (1, 4, 8, 33):
            image = torch.rand(2, 3, height, width)
            assert torch.equal(module._continued(image, multiple), pad_to_multiple(image, multiple))
            assert torch.equal(module(image), image)


class Deviant(nn.Module):
    """A network that is another one as a graph."""

    def __init__(self, sized: bool = False) -> None:
        super().__init__()
        self.conv, self.sized = nn.Conv2d(3, 3, 3, padding=1), sized

    def forward(self, x: Tensor) -> Tensor:
        if self.sized:
            return self.conv(x) + (1.0 if x.shape[-1] > 100 else 0.0)
        return self.conv(x) + (0.001 if torch.compiler.is_compiling() else 0.0)


@pytest.fixture
def deviant(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[object]]:
    """WEIGHTS and options for the command."""
    monkeypatch.setattr(sys, 'argv', sys.argv)
    monkeypatch.setitem(ARCH_REGISTRY._obj_map, 'Deviant', Deviant)

    def make(**options: Any) -> list[object]:
        (tmp_path / 'deviant.yml').write_text(json.dumps({'network_g': {'type': 'Deviant', **options}}))
        return [saved(Deviant(), options, tmp_path / 'deviant.pth'), '-opt', tmp_path / 'deviant.yml']

    return make


def test_a_graph_that_differs_is_not_written(deviant: Callable[..., list[object]], tmp_path: Path, capsys) -> None:
    target = tmp_path / 'out.pt2'
    target.write_text('before')
    weights, *opt = deviant()
    assert run(weights, target, *opt, '--overwrite') == 1
    told = capsys.readouterr()
    assert "was not written: its output differs from the network's by more than 0.0001 for values" in told.err
    assert re.search(r'2 +96 +128 +1\.0e-03 ', told.out)
    assert target.read_text() == 'before'
    assert not list(tmp_path.glob('.*.part'))
    with pytest.raises(ExportMismatch) as raised:
        export_program(Deviant().eval(), target, [(1, 8, 8)])
    assert [(one.batch, one.height, one.width) for one in raised.value.differences] == [(1, 8, 8)]
    assert not Difference(1, 8, 8, float('nan'), 1.0).agrees


def test_a_network_that_needs_a_fixed_size(deviant: Callable[..., list[object]], tmp_path: Path, capsys) -> None:
    weights, *opt = deviant(sized=True)
    assert run(weights, tmp_path / 'out.pt2', *opt) == 2
    told = capsys.readouterr().err
    assert told.startswith('Deviant cannot be exported: ')
    assert told.endswith('Set a fixed size: `--fixed HEIGHTxWIDTH`.\n')
    assert len(told.splitlines()) == 1
    assert run(weights, tmp_path / 'out.pt2', *opt, '--fixed', '33x120') == 0
    files = {'metadata.json': ''}
    net = torch.export.load(tmp_path / 'out.pt2', extra_files=files).module()
    assert json.loads(files['metadata.json'])['image'] == [1, 3, 33, 120]
    with pytest.raises((AssertionError, RuntimeError)):
        net(torch.rand(1, 3, 33, 90))


def test_mistakes_are_reported_at_once(deviant: Callable[..., list[object]], tmp_path: Path, capsys) -> None:
    weights, *opt = deviant()
    (tmp_path / 'there.onnx').write_text('before')
    advice = 'Write height x width in pixels, such as 96x128.'
    for words, message in (
        (['out'], "'{}/out': unknown ending. Use NAME.onnx or NAME.pt2, or set `--to`."),
        (['there.onnx'], "'{}/there.onnx' already exists. Use another name, or replace it with `--overwrite`."),
        (['.', '--to', 'onnx'], "'{}' is a folder. Use the name of a file."),
        (['out.pt2', '--opset', '20'], '--opset: only for ONNX. Omit it for torch.'),
        (['out.pt2', '--sizes', '8x8', '8', '0x8'], f"--sizes: '8' is not a size. {advice}"),
        (['out.pt2', '--fixed', '2x8x8'], f"--fixed: '2x8x8' is not a size. {advice}"),
        (['out.pt2', '--labels'], 'labels: Deviant does not use degradation labels. Omit it.'),
    ):
        assert run(weights, tmp_path / words[0], *words[1:], *opt) == 2
        told = capsys.readouterr().err
        assert told.splitlines()[0] == message.format(tmp_path)
    assert (tmp_path / 'there.onnx').read_text() == 'before'
    assert run(tmp_path / 'nothing.pth', tmp_path / 'out.pt2') == 2
    assert 'nothing.pth' in capsys.readouterr().err
    assert sorted(path.suffix for path in tmp_path.iterdir()) == ['.onnx', '.pth', '.yml']


def test_a_missing_package_is_reported(
    deviant: Callable[..., list[object]], monkeypatch, tmp_path: Path, capsys
) -> None:
    monkeypatch.setattr(exporter, 'PACKAGES', ('onnx', 'a_package_that_is_not_there'))
    weights, *opt = deviant()
    assert run(weights, tmp_path / 'out.onnx', *opt) == 2
    told = capsys.readouterr().err
    assert told == "ONNX needs a_package_that_is_not_there: pip install 'promptir_basicsr[export]'\n"


OTHERS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    'PIPRestormer': (pip, {}),
    'PIPRestormer, gates': (lambda: pip(interaction='gate'), {}),
    'PIPRestormer with a sensor': (lambda: pip(sensor=SENSOR), {}),
    'PIPRestormer with a hard sensor': (lambda: pip(sensor=SENSOR, hard_sensor=True), {}),
    'PIPRestormer with a sensor, --labels': (lambda: pip(sensor=SENSOR), {'labels': True}),
    'PromptIR': (promptir, {}),
    'PromptIR, BiasFree, biases, no prompts': (
        lambda: PromptIR(**TINY, layer_norm_type='BiasFree', bias=True, prompts=False),
        {},
    ),
    'PIPNAFNet': (lambda: PIPNAFNet(**NAFNET), {}),
    'AirNet': (lambda: airnet_fill(AirNet(dim=8, num_groups=2, num_blocks=2, queue_length=8)), {}),
    'DegradationSensor': (lambda: DegradationSensor(dim=8), {}),
    'PromptedNetwork on EDSR': (lambda: PromptedNetwork(EDSR, ['body.0', 'conv_after_body']), {}),
    "PromptedNetwork on PromptIR, PromptIR's prompts": (
        lambda: PromptedNetwork({'type': 'PromptIR', **TINY}, ['refinement'], prompts='promptir', residual=False),
        {},
    ),
    'PromptedNetwork on SwinIR, --fixed': (
        lambda: PromptedNetwork(SWINIR, ['conv_after_body', 'layers.0']),
        {'fixed': (45, 64)},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['onnx', 'pt2'])
@pytest.mark.parametrize('name', OTHERS)
def test_all_networks(name: str, kind: str, tmp_path: Path) -> None:
    make, options = OTHERS[name]
    export_it = export_onnx if kind == 'onnx' else export_program
    net = make()
    net = (net if name == 'AirNet' else seeded_fill(net)).eval()
    differences = export_it(net, tmp_path / f'out.{kind}', **options)
    assert len(differences) == (1 if 'fixed' in options else 4)
    assert max(each.largest for each in differences) < 1e-4
    assert 0.1 < max(each.reach for each in differences) < 50
    sys.stdout.write(f'| {name} | {kind} | {max(each.largest for each in differences):.1e} |\n')


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['onnx', 'pt2'])
@pytest.mark.parametrize('network', [PromptIR, PIPRestormer])
def test_full_size(network: type[nn.Module], kind: str, tmp_path: Path) -> None:
    with torch.device('meta'):
        net = network()
    net = seeded_fill(net.to_empty(device='cpu')).eval()
    export_it = export_onnx if kind == 'onnx' else export_program
    differences = export_it(net, tmp_path / f'out.{kind}')
    assert max(each.largest / each.reach for each in differences) < 2e-5  # random weights reach further than images
    assert 0.5 < max(each.reach for each in differences) < 20
    sys.stdout.write(f'| {network.__name__}, full size | {kind} | {max(each.largest for each in differences):.1e} |\n')


@pytest.mark.slow
def test_the_third_block_of_the_page(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    exec(blocks('export.md')[2], {})
    assert (folder / 'own.pt2').exists()


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['onnx', 'pt2'])
def test_a_network_of_one_channel(kind: str, tmp_path: Path) -> None:
    net = seeded_fill(PromptIR(**TINY, inp_channels=1, out_channels=1)).eval()
    path = tmp_path / f'grey.{kind}'
    differences = (export_onnx if kind == 'onnx' else export_program)(net, path, [(1, 40, 24), (2, 17, 33)])
    assert [one.agrees for one in differences] == [True, True]
    image = seeded_image((1, 1, 21, 30))
    run = run_onnx(path.read_bytes()) if kind == 'onnx' else run_program(path.read_bytes())
    torch.testing.assert_close(run(image, None), restore_images(net, image), rtol=0, atol=1e-4)


def test_swinir_needs_a_fixed_size(tmp_path: Path) -> None:
    net = PromptedNetwork(SWINIR, ['conv_after_body']).eval()
    with pytest.raises(OptionError, match=r'PromptedNetwork cannot be exported: .*--fixed HEIGHTxWIDTH'):
        export_program(net, tmp_path / 'out.pt2')


def test_the_page_knows_every_argument() -> None:
    page = (ROOT / 'docs' / 'export.md').read_text()
    flags = [flag for action in argument_parser('export')._actions for flag in action.option_strings]
    assert [flag for flag in flags if f'`{flag}' not in page and flag not in ('-h', '--help')] == []
