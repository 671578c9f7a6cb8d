"""Files made to harm: nothing in them is run, and they cost no more than their size; each is one sentence."""

import io
import json
import os
import random
import resource
import struct
import subprocess
import sys
import time
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from promptir_basicsr.archs import DegradationSensor, traits
from promptir_basicsr.checkpoints.checkpoint import build, read_checkpoint
from promptir_basicsr.checkpoints.folder import damage
from promptir_basicsr.checkpoints.reading import read_state, read_weight_file
from promptir_basicsr.checkpoints.unpickling import LARGEST_PICKLE, load_inert
from promptir_basicsr.core.errors import OptionError
from tests.golden.seeded import seeded_fill

WEIGHTS = OrderedDict(weight=torch.arange(6.0).reshape(2, 3), bias=torch.tensor([1.5, -2.0]))
SENSOR = {'type': 'DegradationSensor', 'dim': 4, 'num_blocks': 1, 'num_degradations': 3}


def saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def archive(path: Path, pickled: bytes, values: bytes = b'', how: int = zipfile.ZIP_STORED) -> Path:
    """A file of `torch.save` with a pickle of one's own."""
    with zipfile.ZipFile(path, 'w', how) as file:
        for name, content in {'data.pkl': pickled, 'byteorder': b'little', 'data/0': values, 'version': b'3\n'}.items():
            file.writestr(f'net/{name}', content)
    return path


STORAGE = b'((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ'


def tensor(size: str, stride: str, offset: int = 0) -> bytes:
    """The pickle of a tensor of `data/0`; sizes as text of Python 2's pickles, such as `I3\\n`."""
    call = b'ctorch._utils\n_rebuild_tensor_v2\n' + STORAGE
    return call + f'I{offset}\n({size}t({stride}t'.encode() + b'I00\n}tR'


def named(*tensors: bytes) -> bytes:
    names = (f'w{number}'.encode() for number in range(len(tensors)))
    items = (struct.pack('<cI', b'X', len(name)) + name + each for name, each in zip(names, tensors, strict=True))
    return b'\x80\x02}(' + b''.join(items) + b'u.'


def refused(path: Path, read: Any = read_weight_file) -> str:
    with pytest.raises(OptionError) as error:
        read(path)
    (line,) = error.value.lines
    assert str(path) in line
    assert 'weights_only' not in line
    assert len(line) < 600
    return line


def test_the_handmade_tensor_is_one(tmp_path: Path) -> None:
    path = archive(tmp_path / 'net.pth', named(tensor('I2\nI1\n', 'I1\nI1\n')), np.float32([3, 4]).tobytes())
    assert read_weight_file(path).sets['']['w0'].tolist() == [[3], [4]]


@pytest.mark.parametrize(
    ('size', 'stride', 'offset'),
    [
        ('I100000000000\n', 'I0\n', 0),  # stride 0
        ('I3\n', 'I1\n', 0),  # longer than the values
        ('I1\n', 'I1\n', 2),  # behind them
        ('I2\n', 'I9223372036854775807\n', 0),
        ('I-1\n', 'I1\n', 0),
        ('I2\n', 'I-1\n', 1),
        ('I1\nI1\n', 'I1\n', 0),
        ('I1\n' * 100, 'I1\n' * 100, 0),
        ('I4294967296\nI4294967296\n', 'I0\nI0\n', 0),
    ],
)
def test_tensors_that_claim_more_than_is_there(tmp_path: Path, size: str, stride: str, offset: int) -> None:
    path = archive(tmp_path / 'net.pth', named(tensor(size, stride, offset)), bytes(4))
    assert 'cannot be read' in refused(path)


def test_views_of_the_same_values_are_counted(tmp_path: Path) -> None:
    views = 300  # of 4 MB: 1.2 GB
    path = archive(tmp_path / 'net.pth', named(*[tensor('I1000000\n', 'I1\n')] * views), bytes(4_000_000))
    assert 'claim more values than the file has' in refused(path)


def test_what_is_compressed_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / 'net.pth'
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as file:
        file.writestr('net/version', '3\n')
        file.writestr('net/data.pkl', named())
        with file.open('net/data/0', 'w', force_zip64=True) as entry:
            for _ in range(30):
                entry.write(bytes(10_000_000))
    started = time.process_time()
    assert 'compressed' in damage(str(path))
    assert 'compressed' in refused(path)
    assert 'compressed' in refused(path, read_state)
    assert time.process_time() - started < 1


def test_overlapping_entries(tmp_path: Path) -> None:
    """Many entries of one place in the file."""
    path = archive(tmp_path / 'net.pth', named(), bytes(100_000))
    content = path.read_bytes()
    start = content.index(b'PK\x01\x02')
    index, end = content[start : content.index(b'PK\x05\x06')], bytearray(content[content.index(b'PK\x05\x06') :])
    entries = index + b''.join(
        index[index.rindex(b'PK\x01\x02', 0, index.index(b'net/data/0')) : index.index(b'net/data/0') + 10].replace(
            b'net/data/0', f'net/dat{n:03}'.encode()
        )
        for n in range(100)
    )
    end[8:16] = struct.pack('<HHI', 104, 104, len(entries))
    path.write_bytes(content[:start] + entries + end)
    assert 'claims to be larger than the file' in refused(path)


# pickles

ATTRIBUTE = b'}X\x09\x00\x00\x00is_sparseK\x07s'
SET_ATTRIBUTES = [
    b'ctorch.storage\nUntypedStorage\n' + ATTRIBUTE + b'b0',
    b'ctorch.storage\nUntypedStorage\nN' + ATTRIBUTE + b'\x86b0',
    b'ctorch\nSize\n' + ATTRIBUTE + b'b0',
    b'ccollections\nOrderedDict\n' + ATTRIBUTE + b'b0',
    b'ctorch._utils\n_rebuild_tensor_v2\nN' + ATTRIBUTE + b'\x86b0',
    b'ctorch.nn.parameter\nParameter\nN' + ATTRIBUTE + b'\x86b0',
    b'ctorch\nfloat32\nN' + ATTRIBUTE + b'\x86b0',
]


@pytest.mark.parametrize('attack', SET_ATTRIBUTES)
def test_a_pickle_sets_no_attributes(tmp_path: Path, attack: bytes) -> None:
    before = dict(vars(torch.UntypedStorage)), dict(vars(torch.nn.Parameter)), dict(vars(torch.Size))
    # A name that the safe reader of torch does not know once made way for a second one.
    pickled = named(tensor('I1\n', 'I1\n')).replace(b'\x80\x02', b'\x80\x02csome\nname\n0' + attack, 1)
    assert read_weight_file(archive(tmp_path / 'net.pth', pickled, bytes(4))).sets['']['w0'].tolist() == [0]
    assert before == (dict(vars(torch.UntypedStorage)), dict(vars(torch.nn.Parameter)), dict(vars(torch.Size)))


CHANGING = b'ctorch\nlibrary\n', b'ctorch\n_dynamo\n', b'cos\nsystem\n', b'cbuiltins\nexec\n', b'ctorch.hub\nload\n'


@pytest.mark.parametrize('name', CHANGING)
@pytest.mark.parametrize(
    'code', [b'X\x04\x00\x00\x00trueR', b'(X\x04\x00\x00\x00truetR', b'(X\x04\x00\x00\x00truet\x81']
)
def test_nothing_is_called_or_imported(tmp_path: Path, name: bytes, code: bytes) -> None:
    modules = set(sys.modules)
    refused(archive(tmp_path / 'net.pth', b'\x80\x02' + name + code + b'.'))
    assert set(sys.modules) == modules


DEEP = 60_000
STRUCTURES = {
    'deep list': b']' * DEEP + b'a' * (DEEP - 1),
    'deep tuple': b')' + b'\x85' * DEEP,
    'deep tuple as a key': b'})' + b'\x85' * DEEP + b'Ns',
    'deep tuple in a set': b'\x8f()' + b'\x85' * DEEP + b'\x90',
    'deep tuple in an ordered one': b'ccollections\nOrderedDict\n](' + b')' + b'\x85' * DEEP + b'N\x86e\x85R',
    'deep tuple in a dictionary of old': b'()' + b'\x85' * DEEP + b'Nd',
    'deep key of a storage': STORAGE[:-3].replace(b'X\x01\x00\x00\x000', b')' + b'\x85' * DEEP) + b'K\x01tQ',
    'list of itself': b']q\x00h\x00a',
    'mapping of itself': b'}q\x00X\x06\x00\x00\x00paramsh\x00s',
    'many lists': b']' + b'q\x00(' + b'h\x00' * 9 + b'l' + (b'q\x00(' + b'h\x00' * 9 + b'l') * 60,
    'a long call': b'cone\nname\n(' + b'N' * 100_000 + b'tq\x00R' + b'h\x01h\x00R' * 10_000,
    'a large index of the memo': b'Nr\xff\xff\xff\x7f',
    'a long array of bytes': b'\x96\x00\x00\x00\x00\x20\x00\x00\x00',
    'a long text': b'\x8d\x00\x00\x00\x00\x20\x00\x00\x00',
    'many classes': b''.join(f'cm\nn{number}\n'.encode() for number in range(20_000)),
    'an extension': b'\x82\x01',
    'nothing': b'',
}


@pytest.mark.parametrize('name', STRUCTURES)
def test_structures_that_a_reader_can_fall_over(tmp_path: Path, name: str) -> None:
    pickled = STRUCTURES[name]
    for number, content in enumerate((pickled, b'}X\x08\x00\x00\x00metadata' + pickled + b's')):
        path = archive(tmp_path / f'{number}.pth', b'\x80\x04' + content + b'.', bytes(4))
        started = time.process_time()
        refused(path)
        refused(path, read_state)
        assert time.process_time() - started < 20


def test_a_pickle_has_a_largest_size(tmp_path: Path) -> None:
    path = archive(tmp_path / 'net.pth', b'\x80\x02' + b'}' * LARGEST_PICKLE + b'.')
    assert f'more than {LARGEST_PICKLE:,} bytes besides the values' in refused(path)


def test_metadata_of_any_shape_is_plain_or_omitted(tmp_path: Path) -> None:
    circle: dict[str, Any] = {'format': 1}
    circle['circle'] = circle
    doubled: Any = ['x' * 1000]
    for _ in range(60):
        doubled = [doubled, doubled]
    deep: Any = 1
    for _ in range(800):
        deep = [deep]
    for value in ({'format': 1, 'a': torch.ones(1)}, circle, {'format': 1, 'a': doubled}, [1], {'a': 1}, 'format'):
        path = saved(tmp_path / 'net.pth', {'params': WEIGHTS, 'metadata': value})
        assert read_weight_file(path).metadata == {}
    path = saved(tmp_path / 'net.pth', {'params': WEIGHTS, 'metadata': {'format': 1, 'tuple': (1, 2)}})
    assert read_weight_file(path).metadata == {'format': 1, 'tuple': [1, 2]}
    for text in ('[' * 100_000, '"' + 'x' * 2_000_000 + '"', '{"a":' * 2000 + '1' + '}' * 2000):
        safetensors.torch.save_file(dict(WEIGHTS), tmp_path / 'a.safetensors', {'promptir_basicsr': text})
        assert read_weight_file(tmp_path / 'a.safetensors').metadata == {}


def test_a_network_that_contains_itself(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(1, 1))
    net.add_module('self', net)
    assert 'no weights, but an object of another program' in refused(saved(tmp_path / 'net.pth', net))
    for kept in (b'N', b']', b'}X\x0b\x00\x00\x00_parametersK\x01s', b'}X\x08\x00\x00\x00_modules}K\x01Nss'):
        refused(archive(tmp_path / 'net.pth', b'\x80\x02csome\nnet\n)\x81' + kept + b'b.'))


KINDS = ('sparse', 'csr', 'quantised', 'meta', 'nested', 'conjugated')


def kinds() -> dict[str, Any]:
    return {
        'sparse': torch.eye(3).to_sparse(),
        'csr': torch.eye(3).to_sparse_csr(),
        'quantised': torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8),
        'meta': torch.ones(3, device='meta'),
        'nested': torch.nested.nested_tensor([torch.ones(2)]),
        'conjugated': torch.ones(2, dtype=torch.complex64).conj(),
    }


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('kind', KINDS)
def test_tensors_of_other_kinds(tmp_path: Path, kind: str, zipped: bool) -> None:
    for content in ({'params': {'a': kinds()[kind]}}, {'a': kinds()[kind], 'b': torch.ones(1)}):
        line = refused(saved(tmp_path / 'net.pth', content, _use_new_zipfile_serialization=zipped))
        assert 'support' in line


# what else torch.save writes is read as it was


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('protocol', [2, 4])
def test_what_torch_saves_is_read_as_it_was(tmp_path: Path, zipped: bool, protocol: int) -> None:
    base = torch.arange(24.0)
    expected: dict[str, Any] = {
        'tensors': [base[3:9], base.reshape(4, 6).t(), torch.zeros(0, 3), torch.tensor(2), torch.ones(2).bool()],
        'types': [torch.ones(3, dtype=kind) for kind in (torch.bfloat16, torch.float8_e4m3fn, torch.uint16)],
        'parameter': torch.nn.Parameter(torch.ones(2)),
        'named': OrderedDict(a=1, b=(2, [3.5, None, True])),
        'counter': Counter({4: 1, 9: 2}),
        'bytes': [b'\x00\xff', bytearray(b'ab')],
        'texts': ['', 'ä' * 300, 10**30, -1],
    }
    path = saved(tmp_path / 'x', expected, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    found, foreign = load_inert(str(path))
    assert foreign == ()
    for key in ('tensors', 'types'):
        for one, other in zip(found.pop(key), expected.pop(key), strict=True):
            assert (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride())
            assert torch.equal(one, other)
    assert torch.equal(found.pop('parameter'), expected.pop('parameter'))
    assert found == expected
    assert type(found['counter']) is Counter


# what a file alone has built


def metadata_file(path: Path, network: Any) -> Path:
    weights = seeded_fill(DegradationSensor(dim=4, num_blocks=1, num_degradations=3)).state_dict()
    return saved(path, {'params': weights, 'metadata': {'format': 1, 'network_g': network}})


@pytest.mark.parametrize(
    'network',
    [
        {'type': 'VGGFeatureExtractor', 'layer_name_list': ['conv1_1']},
        {'type': 'SpyNet', 'load_path': '/etc/passwd'},
        {'type': 'PIPRestormer', 'sensor': {'type': 'SpyNet', 'load_path': '/etc/passwd'}},
        {'type': 'PromptedNetwork', 'network': {'type': 'SpyNet', 'load_path': '/etc/passwd'}, 'taps': ['a']},
        {'type': ['PromptIR']},
        {'type': 'PromptIR', 'num_blocks': [3000, 3000, 3000, 3000]},
        {'type': 'PromptIR', 'num_blocks': [10**9, 1, 1, 1]},
        {'type': 'PromptIR', 'dim': 2**62},
        {'type': 'PromptIR', 'dim': 65_536, 'num_prompts': 65_536, 'prompt_sizes': [65_536] * 3},
        {'type': 'PIPNAFNet', 'width': 65_536, 'middle_blk_num': 65_536},
        {'type': 'DegradationSensor', 'num_degradations': 10**12},
        {'type': 'DegradationSensor', 'num_blocks': 65_536},
        {'type': 'PIPRestormer', 'num_degradations': 1e308, 'ffn_expansion_factor': float('inf')},
    ],
)
def test_what_metadata_may_have_built(tmp_path: Path, network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def harm(*_: Any, **__: Any) -> None:
        raise AssertionError('constructed')

    for name in ('VGGFeatureExtractor', 'SpyNet', 'PromptedNetwork'):
        monkeypatch.setattr(traits.ARCH_REGISTRY.get(name), '__init__', harm)
    started = time.process_time()
    checkpoint = read_checkpoint(metadata_file(tmp_path / 'net.pth', network))
    assert checkpoint.network == {**SENSOR, 'inp_channels': 3}  # which its tensors show
    assert time.process_time() - started < 3
    weights = {'layer.weight': torch.ones(1)}
    path = saved(tmp_path / 'other.pth', {'params': weights, 'metadata': {'format': 1, 'network_g': network}})
    assert 'Pass `-opt FILE`' in refused(path, read_checkpoint)
    assert time.process_time() - started < 6


def test_shapes_of_no_values_have_no_network_built(tmp_path: Path) -> None:
    """Names and shapes of a network that is recognised, without the values."""
    weights = DegradationSensor(dim=4, num_blocks=1, num_degradations=3).state_dict()
    huge = {**weights, 'classifier.weight': torch.zeros(2**40, 0), 'stem.0.weight': torch.zeros(2**40, 0)}
    many = {**weights, **{f'stages.0.{number}.x': torch.zeros(0) for number in range(12_000)}}
    for content in (huge, many):
        started = time.process_time()
        refused(saved(tmp_path / 'net.pth', content), read_checkpoint)
        assert time.process_time() - started < 20


@pytest.mark.parametrize('kind', [torch.uint8, torch.bool, torch.int64, torch.complex64])
def test_weights_are_floats(tmp_path: Path, kind: torch.dtype) -> None:
    weights = {name: value.to(kind) for name, value in DegradationSensor(dim=4, num_blocks=1).state_dict().items()}
    assert f'is of type {str(kind)[6:]}' in refused(saved(tmp_path / 'net.pth', weights), read_checkpoint)
    halves = {name: value.half() for name, value in DegradationSensor(dim=4, num_blocks=1).state_dict().items()}
    assert build(read_checkpoint(saved(tmp_path / 'half.pth', halves)))


# damage at random


def damaged(content: bytes, draw: random.Random) -> bytes:
    """A few bytes replaced, taken out, put in, or copied from another place."""
    changed = bytearray(content)
    for _ in range(draw.randint(1, 6)):
        place, kind = draw.randrange(len(changed)), draw.random()
        if kind < 0.6:
            changed[place] = draw.randrange(256)
        elif kind < 0.75:
            del changed[place : place + draw.randint(1, 20)]
        elif kind < 0.9:
            changed[place:place] = draw.randbytes(draw.randint(1, 8))
        else:
            other = draw.randrange(len(changed))
            changed[place : place + 8] = changed[other : other + 8]
    return bytes(changed) or b'x'


def deeply_damaged(content: bytes, draw: random.Random) -> bytes:
    """Where it is an archive, in half of the cases the pickle in it, under a right checksum."""
    if not content.startswith(b'PK') or draw.random() < 0.5:
        return damaged(content, draw)
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, 'w') as new:
        for name in old.namelist():
            part = old.read(name)
            new.writestr(name, damaged(part, draw) if name.endswith('data.pkl') else part)
    return made.getvalue()


def samples(folder: Path) -> list[bytes]:
    """Files of all layouts, an attack, and a network with its metadata."""
    safetensors.torch.save_file(dict(WEIGHTS), folder / 'a', {'promptir_basicsr': json.dumps({'network_g': SENSOR})})
    saved(folder / 'b', {'params': WEIGHTS}, _use_new_zipfile_serialization=False)
    saved(folder / 'c', {'state_dict': WEIGHTS, 'epoch': 3, 'extra': np.float64(1), 'set': {1, 2}})
    saved(folder / 'd', torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)))
    saved(folder / 'e', torch.nn.Linear(3, 2), _use_new_zipfile_serialization=False, pickle_protocol=4)
    metadata_file(folder / 'f', SENSOR)
    harm = b'\x80\x02cos\nsystem\n(X\x0d\x00\x00\x00touch harm.txttR0' + named(tensor('I1\n', 'I1\n'))[2:]
    archive(folder / 'g', harm, bytes(4))
    return [(folder / name).read_bytes() for name in 'abcdefg']


def states(folder: Path) -> list[bytes]:
    net = torch.nn.Linear(3, 2)
    adam = torch.optim.AdamW(net.parameters())
    net(torch.ones(1, 3)).sum().backward()
    adam.step()
    step = torch.optim.lr_scheduler.MultiStepLR(adam, [2, 5])
    state = {'epoch': 1, 'iter': 7, 'optimizers': [adam.state_dict()], 'schedulers': [step.state_dict()]}
    saved(folder / 'h', state)
    saved(folder / 'i', {**state, 'random': {'torch': torch.get_rng_state()}}, _use_new_zipfile_serialization=False)
    assert read_state(str(folder / 'i'))['schedulers'][0]['milestones'] == Counter({2: 1, 5: 1})
    return [(folder / name).read_bytes() for name in 'hi']


def fuzz(kind: str, count: int, seed: int) -> None:
    """Read damaged files, in the current folder; prints how many were read and the most memory, in bytes."""
    read: Any = {'weights': read_checkpoint, 'state': read_state}[kind]
    files = {'weights': samples, 'state': states}[kind](Path())
    there, draw, whole = sorted(os.listdir()), random.Random(seed), 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(count):
        content = deeply_damaged(draw.choice(files), draw)
        Path('net.pth').write_bytes(content)
        try:
            read('net.pth')
            whole += 1
        except OptionError as error:
            if any('weights_only' in line or len(line) > 2000 for line in error.lines):
                raise AssertionError(error.lines) from error
        except BaseException:
            Path('culprit').write_bytes(content)
            print(f'file {number}', file=sys.stderr)
            raise
        os.remove('net.pth')
    assert sorted(os.listdir()) == there  # nothing was run
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps({'read': whole, 'grown': grown * 1024}))


def fuzzed(folder: Path, kind: str, count: int) -> dict[str, int]:
    """`fuzz` in a process of its own, that may crash and whose memory is measured."""
    script = f'from tests.checkpoints.test_unpickling import fuzz; fuzz({kind!r}, {count}, 0)'
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get('PYTHONPATH')])])
    ran = subprocess.run(
        [sys.executable, '-c', script],
        cwd=folder,
        env={**os.environ, 'PYTHONPATH': path},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ('kind', 'count'),
    [
        ('weights', 50),
        ('state', 20),
        pytest.param('weights', 20_000, marks=pytest.mark.slow),
        pytest.param('state', 5_000, marks=pytest.mark.slow),
    ],
)
def test_damaged_files_are_read_or_refused(tmp_path: Path, kind: str, count: int) -> None:
    found = fuzzed(tmp_path, kind, count)
    print(found)
    assert found['read'] < count / 2
    assert found['grown'] < 1e9
