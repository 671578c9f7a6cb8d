"""Networks of other repositories, named by module and class."""

import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
import torch

from promptir_basicsr import cli
from promptir_basicsr.archs.traits import traits_of
from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.core.registry import build
from promptir_basicsr.inference.restorer import Restorer
from promptir_basicsr.options import read_options
from tests.tiny_training import TINY_TRAINING

# isort: split
from basicsr.utils.registry import ARCH_REGISTRY

BLOCKS = """
from torch import nn
def conv(a, b): return nn.Conv2d(a, b, 3, padding=1)
"""
MODEL = """
import torch
from torch import nn
from theirs.blocks import conv

RATE = 3

class Student(nn.Module):
    def __init__(self, dim=8, factor=4):
        super().__init__()
        self.down, self.up = nn.PixelUnshuffle(factor), nn.PixelShuffle(factor)
        self.norm = nn.BatchNorm2d(3)
        self.body = nn.Sequential(conv(3 * factor ** 2, dim), nn.GELU(), conv(dim, 3 * factor ** 2))
        self.later = torch.randn(3)
    def forward(self, x):
        return x + self.up(self.body(self.down(self.norm(x))))

class Larger(nn.Module):
    def forward(self, x):
        return nn.functional.interpolate(x, scale_factor=2)

class Windows(Student):
    window_size = 12

class Keeps(nn.Module):
    def __init__(self, path): ...
"""
NETWORK = 'network_g: {type: "theirs.model:Student", path: repository, dim: 16}'


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / 'repository' / 'theirs'
    folder.mkdir(parents=True)
    (folder / 'blocks.py').write_text(BLOCKS)
    (folder / 'model.py').write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', list(sys.path))
    registered = dict(ARCH_REGISTRY._obj_map)
    yield tmp_path
    ARCH_REGISTRY._obj_map = registered
    for name in [name for name in sys.modules if name.split('.')[0] in ('theirs', 'broken')]:
        del sys.modules[name]


def read(text: str) -> dict:
    Path('a.yml').write_text(text)
    return read_options('a.yml')['network_g']


def test_a_class_of_another_folder_is_trained_measured_and_restores(here: Path) -> None:
    start, end = TINY_TRAINING.index('network_g:'), TINY_TRAINING.index('path: {}')
    text = TINY_TRAINING[:start] + NETWORK + '\n' + TINY_TRAINING[end:]
    Path('a.yml').write_text(text)
    assert cli.main(['check', '-opt', 'a.yml']) == 0
    assert cli.main(['train', '-opt', 'a.yml']) == 0
    weights = here / 'experiments/tiny/models/net_g_latest.pth'
    image = skimage.data.astronaut()[:37, :50]
    cv2.imwrite('a.png', image[..., ::-1])
    assert cli.main(['restore', 'a.png', '-o', 'out', '--weights', str(weights), '-opt', 'a.yml']) == 0
    found = cv2.imread('out/a.png')[..., ::-1]

    sys.path.insert(0, str(here / 'repository'))
    kind = sys.modules['theirs.model'].Student
    net = kind(16).eval()
    net.load_state_dict(torch.load(weights)['params'])
    x = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        expected = net(torch.nn.functional.pad(x, (0, 2, 0, 3), mode='reflect'))[..., :37, :50]
    expected = (expected.clamp(0, 1) * 255).round()[0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(found, expected)

    with pytest.raises(OptionError, match=r'the file names theirs\.model:Student'):  # a file makes nothing run
        Restorer(str(weights))


def test_what_sides_must_be_multiples_of_is_found_by_trial(here: Path) -> None:
    def multiple(kind: str, **arguments: object) -> int | None:
        text = f'network_g: {{type: "theirs.model:{kind}", path: repository}}'
        return traits_of(build(ARCH_REGISTRY, {**read(text), **arguments})).declared_multiple

    assert [multiple('Student', factor=factor) for factor in (1, 2, 4, 8)] == [1, 2, 4, 8]
    assert multiple('Larger') is None
    assert multiple('Windows') is None
    assert traits_of(build(ARCH_REGISTRY, {**read(NETWORK), 'type': 'theirs.model:Windows'})).size_multiple == 12
    assert traits_of(build(ARCH_REGISTRY, read(NETWORK), 'meta')).declared_multiple is None


def test_the_trial_changes_nothing(here: Path) -> None:
    options = read(NETWORK)
    torch.manual_seed(0)
    net = build(ARCH_REGISTRY, options)
    after = torch.get_rng_state()
    torch.manual_seed(0)
    plain = sys.modules['theirs.model'].Student(dim=16)
    torch.testing.assert_close(after, torch.get_rng_state(), rtol=0, atol=0)
    assert all(module.training for module in net.modules())
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], value, rtol=0, atol=0)
    assert isinstance(net, type(plain))
    assert type(net).__name__ == 'Student'


@pytest.mark.parametrize(
    ('network', 'message'),
    [
        (
            'type: "theirs.model:Studnt", path: repository',
            r"a.yml:1: network_g.type: 'Studnt' does not exist.*'Student'\?",
        ),
        ('type: "theirs.model:RATE", path: repository', "network_g.type: 'RATE' is not a network"),
        (
            'type: "theirs.modle:A", path: repository',
            "the module 'theirs.modle' cannot be imported from '.*repository'",
        ),
        ('type: "theirs.model:Student"', 'cannot be imported .*ModuleNotFoundError'),
        ('type: "theirs.model:Student", path: nowhere', "network_g.path: 'nowhere' is not a folder"),
        ('type: "theirs.model:Student", path: [a]', r"network_g.path: \['a'\] is not a folder"),
        ('type: "theirs.model:", path: repository', 'not of the form MODULE:CLASS'),
        ('type: ":Student", path: repository', 'not of the form MODULE:CLASS'),
        ('type: "json:Student", path: repository', "the module 'json' is already imported from '"),
        ('type: "theirs.model:Keeps", path: repository', 'has an argument `path`'),
        ('type: "broken:Net", path: repository', 'cannot be imported .*: ZeroDivisionError: division by zero'),
        ('type: PromptedNetwork, network: {type: "theirs.model:No", path: repository}', 'network_g.network.type: '),
    ],
)
def test_what_cannot_be_taken_is_one_sentence(here: Path, network: str, message: str) -> None:
    (here / 'repository' / 'broken.py').write_text('1 / 0')
    with pytest.raises(OptionError, match=message) as error:
        read(f'network_g: {{{network}}}')
    assert len(error.value.lines) == 1
