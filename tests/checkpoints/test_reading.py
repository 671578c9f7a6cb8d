"""Files of weights as people have them: whole, cut off, of other programs, or something else altogether."""

import io
import os
import pickle
import random
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import skimage.data
import skimage.io
import torch
from torch import nn

from promptir_basicsr.checkpoints.reading import are_weights, named_as, read_weight_file, readings
from promptir_basicsr.core.errors import OptionError

WEIGHTS = OrderedDict(weight=torch.arange(6.0).reshape(2, 3), bias=torch.tensor([1.5, -2.0]))


def saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def assert_weights(found: Any) -> None:
    assert {name: value.tolist() for name, value in found.items()} == {k: v.tolist() for k, v in WEIGHTS.items()}


@pytest.mark.parametrize(
    ('content', 'layout', 'key'),
    [
        ({'params': WEIGHTS}, 'basicsr', 'params'),
        ({'params': {'other': torch.ones(1)}, 'params_ema': WEIGHTS}, 'basicsr', 'params_ema'),
        ({'params': WEIGHTS, 'epoch': 3}, 'basicsr', 'params'),
        ({'state_dict': WEIGHTS, 'epoch': 3, 'optimizer_states': [{'state': {}}]}, 'official', 'state_dict'),
        ({'model': WEIGHTS, 'args': None}, 'basicsr', 'model'),
        (WEIGHTS, 'bare', ''),
    ],
)
@pytest.mark.parametrize('zipped', [True, False])
def test_layouts(tmp_path: Path, content: Any, layout: str, key: str, zipped: bool) -> None:
    file = read_weight_file(saved(tmp_path / 'net.pth', content, _use_new_zipfile_serialization=zipped))
    assert (file.layout, file.choose(), file.foreign) == (layout, key, ())
    assert_weights(file.sets[key])
    assert file.epoch == (content.get('epoch') if layout != 'bare' else None)


def test_safetensors_whatever_the_ending(tmp_path: Path) -> None:
    for name in ('net.safetensors', 'net.pth'):
        safetensors.torch.save_file(dict(WEIGHTS), tmp_path / name, {'promptir_basicsr': '{"format": 1, "name": "x"}'})
        file = read_weight_file(tmp_path / name)
        assert (file.layout, file.choose(), file.metadata['name']) == ('safetensors', '', 'x')
        assert_weights(file.sets[''])
    safetensors.torch.save_file(dict(WEIGHTS), tmp_path / 'other.safetensors', {'promptir_basicsr': 'no JSON'})
    assert read_weight_file(tmp_path / 'other.safetensors').metadata == {}
    # A file of PyTorch under that name is still one.
    assert read_weight_file(saved(tmp_path / 'wrong.safetensors', {'params': WEIGHTS})).layout == 'basicsr'


def test_keys(tmp_path: Path) -> None:
    two = read_weight_file(saved(tmp_path / 'two.pth', {'params': WEIGHTS, 'params_ema': WEIGHTS}))
    assert (two.choose(), two.choose('params')) == ('params_ema', 'params')
    with pytest.raises(OptionError, match=r"no weights under 'parms'. Available: params, params_ema"):
        two.choose('parms')
    gan = read_weight_file(saved(tmp_path / 'gan.pth', {'generator': WEIGHTS, 'discriminator': WEIGHTS}))
    with pytest.raises(OptionError, match=r'several sets of weights: generator, discriminator. Set one'):
        gan.choose()
    assert gan.choose('generator') == 'generator'


def test_objects_of_other_programs_are_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that is imported, a function that is called or a state that is set would leave a mark."""
    mark = tmp_path / 'mark'
    package = types.ModuleType('foreign_package')
    exec('class Options(dict): pass\nclass Path: pass\nclass Shape(tuple): pass', vars(package))
    monkeypatch.setitem(sys.modules, 'foreign_package', package)
    for kind in (package.Options, package.Path, package.Shape):
        kind.__module__ = 'foreign_package'
    options = package.Options(lr=2e-4, inner=package.Options(a=1))
    options.extra = [1, 2]
    place = package.Path()
    place.parts = ('a', 'b')

    class Command:
        def __reduce__(self) -> Any:
            return os.system, (f'touch {mark}',)

    class Evaluated:
        def __reduce__(self) -> Any:
            return eval, (f'open({str(mark)!r}, "w")',)

    content = {
        'epoch': 119,
        'global_step': 4200,
        'pytorch-lightning_version': '2.0.1',
        'state_dict': OrderedDict((f'net.{name}', value) for name, value in WEIGHTS.items()),
        'hyper_parameters': options,
        'callbacks': {'ModelCheckpoint': {'best': np.float64(3.5), 'score': torch.tensor(1.0), 'folder': place}},
        'loops': {package.Path(), 3},
        'shape': package.Shape((1, 2)),
        'numbers': [np.arange(3), {Command(), Evaluated()}],
        'optimizer_states': [{'state': {0: {'exp_avg': torch.zeros(2)}}}],
    }
    path = saved(tmp_path / 'model.ckpt', content)
    monkeypatch.delitem(sys.modules, 'foreign_package')
    (tmp_path / 'foreign_package.py').write_text(f'open({str(mark)!r}, "w")')
    monkeypatch.syspath_prepend(tmp_path)

    file = read_weight_file(path)
    assert (file.layout, file.epoch, file.iteration) == ('official', 119, 4200)
    assert_weights({name.removeprefix('net.'): value for name, value in file.sets['state_dict'].items()})
    assert {'foreign_package.Options', 'foreign_package.Path', '__builtin__.eval'} <= set(file.foreign)
    assert any(name.endswith('.system') for name in file.foreign)
    assert 'foreign_package' not in sys.modules
    assert not mark.exists()


def test_a_command_in_place_of_the_weights_is_not_run(tmp_path: Path) -> None:
    mark = tmp_path / 'mark'

    class Command:
        def __reduce__(self) -> Any:
            return os.system, (f'touch {mark}',)

    for content in (Command(), {'params': Command()}, {'params': {'weight': Command()}}, [Command()]):
        for zipped in (True, False):
            path = saved(tmp_path / 'net.pth', content, _use_new_zipfile_serialization=zipped)
            with pytest.raises(OptionError, match=r'no weights|cannot be read'):
                read_weight_file(path)
    (tmp_path / 'plain.pth').write_bytes(pickle.dumps(Command(), protocol=2))
    with pytest.raises(OptionError, match='cannot be read'):
        read_weight_file(tmp_path / 'plain.pth')
    assert not mark.exists()


def test_attributes_of_torchs_functions_cannot_be_set(tmp_path: Path) -> None:
    """A pickle may call `setattr` on whatever it can name: here on the function that makes tensors."""
    path, before = saved(tmp_path / 'net.pth', {'params': WEIGHTS}), torch._utils._rebuild_tensor_v2.__defaults__
    with zipfile.ZipFile(path) as file:
        records = {name: file.read(name) for name in file.namelist()}
    attack = b'ctorch._utils\n_rebuild_tensor_v2\n(N}X\x0c\x00\x00\x00__defaults__(K\x07tstb0'
    with zipfile.ZipFile(path, 'w') as file:
        for name, content in records.items():
            file.writestr(name, content[:2] + attack + content[2:] if name.endswith('data.pkl') else content)
    assert_weights(read_weight_file(path).sets['params'])
    assert torch._utils._rebuild_tensor_v2.__defaults__ == before


def test_a_whole_network_gives_its_weights(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Sequential(nn.Linear(2, 1, bias=False)))
    net.register_buffer('scratch', torch.ones(1), persistent=False)
    for content in (net, {'model': net, 'epoch': 1}):
        file = read_weight_file(saved(tmp_path / 'whole.pth', content))
        (weights,) = file.sets.values()
        wanted = net.state_dict()
        assert weights.keys() == wanted.keys()
        assert all(torch.equal(weights[name], wanted[name]) for name in wanted)
        assert 'torch.nn.modules.linear.Linear' in file.foreign


def test_shared_and_strange_tensors(tmp_path: Path) -> None:
    base = torch.arange(12.0)
    content = {
        'params': {
            'a': base[:6].reshape(2, 3).t(),
            'b': base[3:9],
            'half': torch.ones(2, dtype=torch.bfloat16),
            'count': torch.tensor(3),
            'parameter': nn.Parameter(torch.ones(2)),
            'empty': torch.zeros(0, 4),
        },
        'extra': np.float32(1),
    }
    file = read_weight_file(saved(tmp_path / 'net.pth', content))
    assert file.foreign
    for name, value in content['params'].items():
        found = file.sets['params'][name]
        assert (found.dtype, found.shape) == (value.dtype, value.shape)
        assert torch.equal(found, value)


def picture(path: Path) -> None:
    skimage.io.imsave(path.with_suffix('.png'), skimage.data.coffee()[:20, :20])
    path.with_suffix('.png').rename(path)


def jpeg(path: Path) -> None:
    skimage.io.imsave(path.with_suffix('.jpg'), skimage.data.coffee()[:20, :20])
    path.with_suffix('.jpg').rename(path)


def archive(path: Path) -> None:
    with zipfile.ZipFile(path, 'w') as file:
        file.writestr('readme.txt', 'weights are elsewhere')


def script(path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(str(path))


LFS = b'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 142560000\n'


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (picture, r'is an image \(PNG\)'),
        (jpeg, r'is an image \(JPEG\)'),
        (archive, 'is a zip archive with readme.txt'),
        (script, 'is a TorchScript program'),
        (lambda path: path.write_bytes(LFS), 'is a git LFS pointer.*git lfs pull'),
        (lambda path: path.write_bytes(b''), 'is empty'),
        (lambda path: path.write_text('\n<!DOCTYPE html><html>Sign in</html>'), 'is a web page'),
        (lambda path: path.write_text('weights'), 'not a file of PyTorch .* or safetensors'),
        (lambda path: path.mkdir(), 'is a folder. It contains no weights'),
        (lambda path: saved(path, torch.ones(3)), 'contains no weights by name, but a Tensor'),
        (lambda path: saved(path, {'iter': 3}), 'contains no weights of a network. It has: iter'),
        (lambda path: saved(path, {}), 'It has: nothing'),
        (lambda path: saved(path, {'iter': 7, 'optimizers': [], 'schedulers': []}), 'training state.*net_g_7.pth'),
        (lambda path: path.write_bytes(pickle.dumps({'params': 1})), 'damaged or not a file of weights'),
        (lambda path: safetensors.torch.save_file({}, path), 'safetensors without tensors'),
    ],
)
def test_files_without_weights_are_reported_by_their_kind(tmp_path: Path, make: Any, message: str) -> None:
    path = tmp_path / 'net.pth'
    make(path)
    with pytest.raises(OptionError, match=message) as error:
        read_weight_file(path)
    assert len(error.value.lines) == 1
    assert str(path) in error.value.lines[0]


def test_missing_names(tmp_path: Path) -> None:
    saved(tmp_path / 'net_g_best.pth', {'params': WEIGHTS})
    with pytest.raises(OptionError, match=r"does not exist. Did you mean 'net_g_best.pth'\?"):
        read_weight_file(tmp_path / 'net_g_bset.pth')
    with pytest.raises(OptionError, match=r'is a folder. Pass a file in it: net_g_best.pth.'):
        read_weight_file(tmp_path)
    with pytest.raises(OptionError, match='does not exist'):
        read_weight_file(tmp_path / 'nowhere' / 'net.pth')


def test_no_truncated_file_is_accepted_as_complete(tmp_path: Path) -> None:
    safetensors.torch.save_file(dict(WEIGHTS), tmp_path / 'c.safetensors')
    files = [
        saved(tmp_path / 'a.pth', {'params': WEIGHTS}),
        saved(tmp_path / 'b.pth', {'params': WEIGHTS}, _use_new_zipfile_serialization=False),
        tmp_path / 'c.safetensors',
    ]
    for path in files:
        whole = path.read_bytes()
        for length in {1, 2, 9, len(whole) // 3, len(whole) // 2, len(whole) - 9, len(whole) - 1}:
            path.write_bytes(whole[:length])
            with pytest.raises(OptionError, match=r'cut off|not a file of PyTorch'):
                read_weight_file(path)


def damaged(content: bytes, draw: random.Random) -> bytes:
    """A few bytes replaced, taken out or put in."""
    changed = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        place, kind = draw.randrange(len(changed)), draw.random()
        if kind < 0.7:
            changed[place] = draw.randrange(256)
        elif kind < 0.85:
            del changed[place : place + draw.randint(1, 20)]
        else:
            changed[place:place] = draw.randbytes(draw.randint(1, 8))
    return bytes(changed) or b'x'


def test_damaged_files_are_read_or_reported(tmp_path: Path) -> None:
    safetensors.torch.save_file(dict(WEIGHTS), tmp_path / 'c')
    saved(tmp_path / 'a', {'params': WEIGHTS})
    saved(tmp_path / 'b', {'params': WEIGHTS}, _use_new_zipfile_serialization=False)
    saved(tmp_path / 'd', {'state_dict': WEIGHTS, 'extra': np.float64(1), 'set': {1, 2}})
    files, told = [(tmp_path / name).read_bytes() for name in 'abcd'], 0
    draw = random.Random(0)
    for _ in range(400):
        (tmp_path / 'net.pth').write_bytes(damaged(draw.choice(files), draw))
        try:
            read_weight_file(tmp_path / 'net.pth')
        except OptionError:
            told += 1
    assert 300 < told < 400


def test_a_bit_that_has_changed_is_noticed(tmp_path: Path) -> None:
    path = saved(tmp_path / 'net.pth', {'params': {'weight': torch.arange(100.0)}})
    content = bytearray(path.read_bytes())
    content[bytes(content).index(torch.arange(3.0).numpy().tobytes()) + 200] ^= 1
    path.write_bytes(content)
    with pytest.raises(OptionError, match=r'is damaged: .*data/0 in it has changed'):
        read_weight_file(path)


def test_what_are_weights() -> None:
    assert are_weights(WEIGHTS)
    assert not are_weights({})
    assert not are_weights({'weight': torch.ones(1), 'epoch': 3})
    assert not are_weights({0: torch.ones(1)})
    assert not are_weights(io.BytesIO())


def test_readings_of_names() -> None:
    one = torch.zeros(1)
    named = {'module.net.a': one, 'module.net.b': one, 'module.c': one}
    assert [(prefix, sorted(found), outside) for prefix, found, outside in readings(named)] == [
        ('module.', ['c', 'net.a', 'net.b'], []),
        ('', ['module.c', 'module.net.a', 'module.net.b'], []),
        ('module.net.', ['a', 'b'], ['module.c']),
    ]
    assert sorted(named_as(named, {'a', 'b'})) == ['a', 'b']
    assert sorted(named_as(named, {'net.a', 'c'})) == ['c', 'net.a', 'net.b']
    assert sorted(named_as({'module.a': one}, ())) == ['a']


def test_deeply_nested_prefixes_take_no_time() -> None:
    one = torch.zeros(1)
    wrappers = ('module.', 'net.', 'model.', 'net_g.', '_orig_mod.')
    names = [f'{a}{b}{c}{d}{"net." * 10_000}x' for a in wrappers for b in wrappers for c in wrappers for d in wrappers]
    assert len(list(readings(dict.fromkeys(names, one)))) == 32
