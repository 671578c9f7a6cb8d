"""Weights go in and out of every layout without a bit changed, and tell what they are of."""

import copy
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import promptir_basicsr
from promptir_basicsr import cli
from promptir_basicsr.archs import AirNet, DegradationSensor, PIPNAFNet, PIPRestormer, PromptedNetwork, PromptIR
from promptir_basicsr.checkpoints.checkpoint import build, digest, read_checkpoint, write_checkpoint
from promptir_basicsr.checkpoints.pretrained import load_sensor, read_weights
from promptir_basicsr.checkpoints.reading import PREFIXES
from promptir_basicsr.core.errors import OptionError
from tests.golden.seeded import seeded_array, seeded_fill, seeded_image

GOLDEN = Path(__file__).parents[1] / 'golden'
SMALL: dict[str, Any] = {
    'dim': 8,
    'num_blocks': [1, 1, 1, 1],
    'num_refinement_blocks': 1,
    'heads': [1, 1, 1, 1],
    'prompt_sizes': [4, 4, 4],
}
SENSOR = {'type': 'DegradationSensor', 'dim': 4, 'num_blocks': 0}
PIP = {**SMALL, 'prompt_dims': [12, 16, 32]}
NETWORKS: dict[str, tuple[Any, dict[str, Any]]] = {
    'PromptIR': (PromptIR, SMALL),
    'PIP': (PIPRestormer, PIP),
    'PIP with sensor': (PIPRestormer, {**PIP, 'sensor': SENSOR}),
    'PIP of gates': (PIPRestormer, {**PIP, 'interaction': 'gate'}),
    'NAFNet': (PIPNAFNet, {'width': 4, 'enc_blk_nums': [1, 1, 1, 1]}),
    'AirNet': (AirNet, {'dim': 4, 'num_groups': 1, 'num_blocks': 2, 'queue_length': 6}),
    'sensor': (DegradationSensor, {'dim': 4, 'num_blocks': 1, 'num_degradations': 3}),
}
LAYERS = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_block': 1, 'upscale': 1}


def small(name: str, seed: int = 0) -> nn.Module:
    kind, options = NETWORKS[name]
    return seeded_fill(kind(**options), seed).eval()


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Names in the same order, and bits."""
    return list(one) == list(other) and all(
        value.dtype == other[name].dtype and torch.equal(value, other[name]) for name, value in one.items()
    )


def convert(*words: object) -> int:
    return cli.main(['convert', *map(str, words)])


@pytest.mark.parametrize('name', NETWORKS)
def test_every_network_is_read_and_built(tmp_path: Path, name: str) -> None:
    net, x = small(name), seeded_image((1, 3, 16, 16), 1)
    checkpoint = read_checkpoint(saved(tmp_path / 'net.pth', {'params': net.state_dict()}))
    state = torch.get_rng_state()
    again = build(checkpoint)
    assert torch.equal(state, torch.get_rng_state())
    assert not again.training
    assert type(again) is type(net)
    assert same(again.state_dict(), net.state_dict())
    told = [0] if getattr(net, 'takes_degradation', False) else []
    with torch.no_grad():
        assert torch.equal(again(x, *told), net(x, *told))
    assert checkpoint.network['type'] == type(net).__name__
    assert 'recognised from names and shapes' in ' '.join(checkpoint.notes)


@pytest.mark.parametrize('name', ['PromptIR', 'PIP'])
def test_there_and_back_is_bit_exact(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """basicsr, official, basicsr, safetensors, basicsr: weights, order of names, metadata."""
    weights = small(name).state_dict()
    weights['output.weight'].view(-1)[:4] = torch.tensor([float('nan'), float('-inf'), -0.0, 1e-45])
    told = {'format': 1, 'package': '0', 'name': 'run', 'iteration': 12, 'metrics': {'iteration': 12, 'rows': []}}
    files = [saved(tmp_path / 'a.pth', {'params': weights, 'metadata': told})]
    for file in ('b.ckpt', 'c.pth', 'd.safetensors', 'e.pth'):
        assert convert(files[-1], tmp_path / file) == 0
        files.append(tmp_path / file)
    last = torch.load(files[-1], weights_only=True)
    assert list(last['params']) == list(weights)
    for part, value in weights.items():
        assert last['params'][part].numpy().tobytes() == value.numpy().tobytes(), part
    assert {key: last['metadata'][key] for key in told} == told
    assert last['metadata']['network_g']['type'] == type(small(name)).__name__
    sums = re.findall('^SHA-256 +([0-9a-f]{64})$', capsys.readouterr().out, re.M)
    assert len(sums) == 8
    assert set(sums) == {digest(weights)}


def test_both_sets_of_a_training_are_kept(tmp_path: Path) -> None:
    one, other = small('PromptIR').state_dict(), small('PromptIR', seed=1).state_dict()
    path = saved(tmp_path / 'net.pth', {'params': one, 'params_ema': other})
    checkpoint = read_checkpoint(path)
    assert (checkpoint.key, list(checkpoint.others)) == ('params_ema', ['params'])
    assert same(checkpoint.weights, other)
    assert same(read_checkpoint(path, key='params').weights, one)
    assert convert(path, tmp_path / 'both.pth') == 0
    both = torch.load(tmp_path / 'both.pth', weights_only=True)
    assert list(both) == ['params', 'params_ema', 'metadata']
    assert same(both['params'], one)
    assert same(both['params_ema'], other)
    assert convert(path, tmp_path / 'one.pth', '--key', 'params') == 0
    assert list(torch.load(tmp_path / 'one.pth', weights_only=True)) == ['params', 'metadata']
    assert convert(path, tmp_path / 'ema.safetensors') == 0
    assert same(read_checkpoint(tmp_path / 'ema.safetensors').weights, other)


def test_official_of_promptir_is_lightnings_with_its_six_unused_tensors(tmp_path: Path) -> None:
    net = small('PromptIR')
    assert convert(saved(tmp_path / 'net.pth', {'params': net.state_dict()}), tmp_path / 'net.ckpt') == 0
    content = torch.load(tmp_path / 'net.ckpt', weights_only=True)
    assert content['pytorch-lightning_version']
    released = net.released_state_dict()
    assert content['state_dict'].keys() == {f'net.{name}' for name in released}
    assert all(torch.equal(content['state_dict'][f'net.{name}'], value) for name, value in released.items())
    checkpoint = read_checkpoint(tmp_path / 'net.ckpt')
    assert sorted(checkpoint.dropped) == sorted(released.keys() - net.state_dict().keys())
    assert len(checkpoint.dropped) == 6
    assert 'chnl_reduce1.weight' in ' '.join(checkpoint.notes)


def test_official_of_pip_is_its_programs_with_three_unused_tensors_and_no_sensor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = small('PIP with sensor')
    path = saved(tmp_path / 'net.pth', {'params': net.state_dict(), 'metadata': {'format': 1, 'epoch': 7}})
    assert convert(path, tmp_path / 'net.pkl') == 0
    content = torch.load(tmp_path / 'net.pkl', weights_only=True)
    assert content['epoch'] == 7
    assert content['params'].keys() == net.released_state_dict().keys()
    assert re.search(r'^dropped +\d+: sensor\.', capsys.readouterr().out, re.M)
    checkpoint = read_checkpoint(tmp_path / 'net.pkl')
    assert (len(checkpoint.dropped), checkpoint.network.get('sensor')) == (3, None)
    assert build(checkpoint).sensor is None


def test_official_of_airnet_is_a_state_dict_and_nothing_else(tmp_path: Path) -> None:
    net, told = small('AirNet'), {'format': 1, 'iteration': 7}
    path = saved(tmp_path / 'net.pth', {'params': net.state_dict(), 'metadata': told})
    assert convert(path, tmp_path / 'net.ckpt') == 0
    content = torch.load(tmp_path / 'net.ckpt', weights_only=True)
    assert same(content, net.state_dict())
    NETWORKS['AirNet'][0](**NETWORKS['AirNet'][1]).load_state_dict(content, strict=True)
    assert same(read_checkpoint(tmp_path / 'net.ckpt').weights, net.state_dict())


@pytest.mark.parametrize('length', [3, 12, None])
def test_an_airnet_of_another_queue_length_loads_with_a_new_queue(tmp_path: Path, length: int | None) -> None:
    weights = AirNet(**{**NETWORKS['AirNet'][1], 'queue_length': length or 6}).state_dict()
    weights['E.E.queue_ptr'].fill_(2)
    if length is None:
        del weights['E.E.queue'], weights['E.E.queue_ptr']
    path = saved(tmp_path / 'All.pth', weights)
    found = read_checkpoint(path)
    assert found.network['queue_length' if length else 'dim'] == (length or 4)
    assert found.network.get('queue_length') == length
    assert ('Newly initialised' in ' '.join(found.notes)) == (length is None)
    given = read_checkpoint(path, {'type': 'AirNet', **NETWORKS['AirNet'][1]})
    assert given.weights['E.E.queue'].shape == (16, 6)
    assert given.weights['E.E.queue_ptr'].item() == 0
    assert 'none of this length: E.E.queue, E.E.queue_ptr.' in ' '.join(given.notes)
    built = build(given).state_dict()
    assert all('queue' in name or torch.equal(built[name], value) for name, value in weights.items())


@pytest.mark.parametrize(
    ('name', 'message'), [('NAFNet', 'PIPNAFNet was never released'), ('PIP of gates', "interaction='gate', which")]
)
def test_what_was_never_released_has_no_official_layout(
    tmp_path: Path, name: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path / 'net.pth', {'params': small(name).state_dict()})
    assert convert(path, tmp_path / 'net.ckpt') == 2
    told = capsys.readouterr().err
    assert message in told
    assert "Use 'basicsr' or 'safetensors'." in told
    assert [file.name for file in tmp_path.iterdir()] == ['net.pth']


def test_a_file_without_metadata_is_reported_like_one_with_metadata(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path / 'net.pth', {'params': small('PromptIR').state_dict()})
    before = path.read_bytes()
    assert convert(path) == 0
    told = capsys.readouterr().out
    assert 'network       PromptIR {inp_channels: 3, out_channels: 3, dim: 8, num_blocks: [1, 1, 1, 1]' in told
    assert re.search(r'^weights +\d+ tensors, [\d,]+ parameters, float32$', told, re.M)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ['net.pth']


def test_nothing_is_overwritten_by_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path / 'net.pth', {'params': small('sensor').state_dict()})
    (tmp_path / 'there.pth').write_text('precious')
    assert convert(path, tmp_path / 'there.pth') == 2
    assert 'already exists. Use another name, or replace it with `--overwrite`.' in capsys.readouterr().err
    assert (tmp_path / 'there.pth').read_text() == 'precious'
    assert convert(path, tmp_path / 'there.pth', '--overwrite') == 0
    assert same(read_checkpoint(tmp_path / 'there.pth').weights, small('sensor').state_dict())
    assert convert(path, path, '--overwrite') == 0
    assert same(read_checkpoint(path).weights, small('sensor').state_dict())
    assert convert(path, tmp_path / 'new' / 'folder' / 'net.safetensors') == 0
    assert same(read_checkpoint(tmp_path / 'new/folder/net.safetensors').weights, small('sensor').state_dict())


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['out.bin'], 'unknown ending. Set the layout: `--to basicsr|official|safetensors`'),
        (['out.pth', '--to', 'safetensors'], 'a file in the layout safetensors must end in .safetensors'),
        (['out.safetensors', '--to', 'basicsr'], 'a file in the layout basicsr must end in .pth or .pt'),
        (['--to', 'basicsr', '--half'], '--to and --half: OUT, the file to write, is missing'),
        (['folder.pth'], 'is a folder'),
        (['net.pth/out.pth'], 'cannot be created'),
        (['out.pth', '--key', 'params_ema'], "no weights under 'params_ema'. Available: params."),
        (['out.pth', '-opt', 'none.yml'], "the option file 'none.yml' does not exist"),
        (['out.pth', '-opt', 'empty.yml'], 'network_g, the network of the weights, is missing'),
        (['out.pth', '-opt', 'wide.yml'], 'do not fit DegradationSensor(dim=8)'),
        (['out.pth', '-opt', 'typo.yml'], "unknown network 'DegradationSensr'. Did you mean 'DegradationSensor'?"),
        (['out.pth', '-opt', 'wrong.yml'], 'DegradationSensor: dim is 1'),
    ],
)
def test_mistakes_are_reported_and_nothing_is_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / 'net.pth', {'params': small('sensor').state_dict()})
    (tmp_path / 'folder.pth').mkdir()
    (tmp_path / 'empty.yml').write_text('name: x\n')
    for name, network in (
        ('wide', {'type': 'DegradationSensor', 'dim': 8}),
        ('typo', {'type': 'DegradationSensr'}),
        ('wrong', {'type': 'DegradationSensor', 'dim': 1}),
    ):
        (tmp_path / f'{name}.yml').write_text(yaml.safe_dump({'network_g': network}))
    before = {file.name for file in tmp_path.iterdir()}
    assert convert('net.pth', *words) == 2
    assert message in capsys.readouterr().err
    assert {file.name for file in tmp_path.iterdir()} == before


def test_half_precision_is_half_the_size_and_computes_in_float32(tmp_path: Path) -> None:
    net = small('PromptIR')
    path = saved(tmp_path / 'net.pth', {'params': net.state_dict()})
    assert convert(path, tmp_path / 'half.safetensors', '--half') == 0
    checkpoint = read_checkpoint(tmp_path / 'half.safetensors')
    assert same(checkpoint.weights, {name: value.half() for name, value in net.state_dict().items()})
    assert 'Stored as float16; the network computes in float32.' in checkpoint.notes
    again = build(checkpoint)
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    x = seeded_image((1, 3, 16, 16))
    with torch.no_grad():
        torch.testing.assert_close(again(x), net(x), rtol=0, atol=0.02)
    large = copy.deepcopy(net.state_dict())
    large['output.weight'][0] = 1e6
    assert convert(saved(tmp_path / 'large.pth', {'params': large}), tmp_path / 'b.pth', '--half') == 2
    assert not (tmp_path / 'b.pth').exists()


def test_networks_of_others_by_options_alone(tmp_path: Path) -> None:
    """A PromptedNetwork, whose backbone may be anything, and one of BasicSR's own. What metadata names is not built."""
    prompted = {'type': 'PromptedNetwork', 'network': LAYERS, 'taps': ['body.0'], 'residual': False}
    net = PromptedNetwork(**{name: value for name, value in prompted.items() if name != 'type'})
    path = saved(tmp_path / 'net.pth', {'params': seeded_fill(net).state_dict()})
    with pytest.raises(OptionError, match=r'seem to be of a PromptedNetwork.*Pass `-opt FILE` with its network_g'):
        read_checkpoint(path)
    (tmp_path / 'run.yml').write_text(yaml.safe_dump({'name': 'run', 'network_g': prompted}))
    assert convert(path, tmp_path / 'known.safetensors', '-opt', tmp_path / 'run.yml') == 0
    with pytest.raises(OptionError, match=r'the file names PromptedNetwork; .* Pass `-opt FILE`'):
        read_checkpoint(tmp_path / 'known.safetensors')
    checkpoint = read_checkpoint(tmp_path / 'known.safetensors', tmp_path / 'run.yml')
    assert checkpoint.network == prompted
    x = seeded_image((1, 3, 16, 16))
    with torch.no_grad():
        assert torch.equal(build(checkpoint)(x, 2), net.eval()(x, 2))

    plain = read_checkpoint(saved(tmp_path / 'plain.pth', net.network.state_dict()), network=LAYERS)
    assert (plain.layout, plain.key) == ('bare', '')
    assert same(build(plain).state_dict(), net.network.state_dict())
    with pytest.raises(
        OptionError, match='do not match PIPRestormer, PromptIR, PIPNAFNet, AirNet or DegradationSensor'
    ):
        read_checkpoint(tmp_path / 'plain.pth')


def test_metadata_that_is_wrong_does_not_mislead(tmp_path: Path) -> None:
    weights = small('PromptIR').state_dict()
    for network in ({'type': 'PromptIR', 'dim': 16}, {'type': 'Gone'}, {'type': 'PromptIR', 'dimm': 8}, 'PromptIR', {}):
        path = saved(tmp_path / 'net.pth', {'params': weights, 'metadata': {'format': 1, 'network_g': network}})
        checkpoint = read_checkpoint(path)
        assert checkpoint.network['dim'] == 8
        assert 'recognised from names and shapes' in ' '.join(checkpoint.notes)
    alone = {'layer.weight': torch.ones(1)}
    for network, message in (
        ({'type': 'Gone'}, 'the file names Gone; without options only PIPRestormer, .* are built. Pass `-opt FILE`'),
        (LAYERS, 'the file names EDSR; '),
        ({'type': 'PromptIR', 'dim': 'wide'}, 'dim'),
    ):
        path = saved(tmp_path / 'net.pth', {'params': alone, 'metadata': {'format': 1, 'network_g': network}})
        with pytest.raises(OptionError, match=message):
            read_checkpoint(path)


PIP_WITH_SENSOR = small('PIP with sensor')


@given(wrappers=st.lists(st.sampled_from(PREFIXES), max_size=6).map(''.join))
@settings(deadline=None, max_examples=15)
def test_wrappers_in_any_combination(wrappers: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """As the commands read weights, and as a training does: of the network, and of the sensor in it."""
    folder, net = tmp_path_factory.mktemp('wrapped'), PIP_WITH_SENSOR
    state, again = net.state_dict(), small('PIP with sensor', seed=1)
    path = saved(folder / 'net.pth', {'params': {wrappers + name: value for name, value in state.items()}})
    assert same(read_checkpoint(path).weights, state)
    assert same(read_weights(str(path), ('params',), again)[0], state)
    sensor = {name: value for name, value in state.items() if name.startswith('sensor.')}
    own = {wrappers + name.removeprefix('sensor.'): value for name, value in sensor.items()}
    for file in (path, saved(folder / 'sensor.pth', {'params': own})):
        small_again = small('PIP with sensor', seed=1)
        load_sensor([small_again], {'pretrain_network_sensor': str(file)})
        assert all(torch.equal(small_again.state_dict()[name], value) for name, value in sensor.items())
    load_sensor([again], {'pretrain_network_g': str(path)})  # which has come with it


def test_basicsr_loads_what_is_written(tmp_path: Path) -> None:
    from basicsr.models.base_model import BaseModel

    net = small('PromptIR')
    assert convert(saved(tmp_path / 'net.pth', net.state_dict()), tmp_path / 'new.pth') == 0
    fresh = PromptIR(**SMALL)
    BaseModel({'num_gpu': 0, 'is_train': False}).load_network(fresh, str(tmp_path / 'new.pth'), True, 'params')
    assert same(fresh.state_dict(), net.state_dict())


def test_the_header_of_safetensors_is_readable_by_others(tmp_path: Path) -> None:
    write_checkpoint(
        read_checkpoint(saved(tmp_path / 'net.pth', small('sensor').state_dict())),
        tmp_path / 'n.safetensors',
        'safetensors',
    )
    with safetensors.safe_open(tmp_path / 'n.safetensors', 'np') as file:
        header = file.metadata()
        assert set(file.keys()) == small('sensor').state_dict().keys()
    assert header['format'] == 'pt'
    told = json.loads(header['promptir_basicsr'])
    assert told['network_g']['type'] == 'DegradationSensor'
    assert (told['format'], told['package']) == (1, promptir_basicsr.__version__)


def test_digest_is_of_names_types_shapes_and_bits() -> None:
    weights = {'a': torch.arange(6.0).reshape(2, 3), 'b': torch.tensor(1)}
    assert digest(weights) == digest(dict(reversed(weights.items())))
    assert digest(weights) == digest({**weights, 'a': weights['a'].t().contiguous().t()})
    for other in (
        {**weights, 'a': weights['a'].reshape(3, 2)},
        {**weights, 'a': weights['a'].double()},
        {**weights, 'b': torch.tensor(2)},
        {'a': weights['a'], 'c': weights['b']},
        {'a': weights['a']},
    ):
        assert digest(other) != digest(weights)


def released_file(path: Path, layout: str) -> Path:
    """A checkpoint as the authors', with Lightning's other entries, in the golden fill."""
    shapes = json.loads((GOLDEN / f'{layout}_official_keys.json').read_text())
    weights = {name: torch.from_numpy(seeded_array(name, tuple(shape))) for name, shape in shapes.items()}
    if layout == 'pip':
        return saved(path, {'params': weights, 'epoch': 3})
    content = {
        'epoch': 119,
        'global_step': 1000,
        'pytorch-lightning_version': '2.0.1',
        'state_dict': {f'net.{name}': value for name, value in weights.items()},
        'loops': {'fit_loop': {'state_dict': {}}},
        'callbacks': {'ModelCheckpoint': {'best_model_score': np.float64(31.0)}},
        'optimizer_states': [],
        'lr_schedulers': [],
    }
    return saved(path, content)


def test_released_promptir_restores_to_the_golden_output(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(released_file(tmp_path / 'model.ckpt', 'promptir'))
    assert (len(checkpoint.weights), len(checkpoint.dropped)) == (542, 6)
    assert checkpoint.network['ffn_expansion_factor'] == 2.66
    assert (checkpoint.metadata['epoch'], checkpoint.metadata['iteration']) == (119, 1000)
    net = build(checkpoint)
    with np.load(GOLDEN / 'promptir_dev.npz') as golden, torch.no_grad():
        for key, shape, seed in (('1x64x64', (1, 3, 64, 64), 0), ('2x32x48', (2, 3, 32, 48), 1)):
            expected = torch.from_numpy(golden[f'y_{key}_s{seed}'])
            torch.testing.assert_close(net(seeded_image(shape, seed)), expected, rtol=0, atol=1e-4)  # type: ignore[arg-type]


@pytest.mark.slow
def test_released_pip_restores_to_the_golden_output(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(released_file(tmp_path / 'net.pkl', 'pip'))
    assert (checkpoint.network['type'], checkpoint.network['interaction']) == ('PIPRestormer', 'topm')
    assert (len(checkpoint.weights), len(checkpoint.dropped)) == (609, 3)
    with np.load(GOLDEN / 'pip_cross_topm_dev.npz') as golden, torch.no_grad():
        expected = torch.from_numpy(golden['y_1x64x64_s0_c1'])
        out = build(checkpoint)(seeded_image((1, 3, 64, 64)), torch.tensor([1]))
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_the_command_itself(tmp_path: Path) -> None:
    saved(tmp_path / 'net.pth', {'params': small('PromptIR').state_dict()})
    done = subprocess.run(
        [sys.executable, '-m', 'promptir_basicsr', 'convert', 'net.pth', 'net.ckpt', '--to', 'official'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, '')
    assert re.search('^filled +6: chnl_reduce1.weight', done.stdout, re.M)
    assert same(read_checkpoint(tmp_path / 'net.ckpt').weights, small('PromptIR').state_dict())
