"""Option files mean the same to this package's loader and to another parser, ruamel.yaml."""

import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from promptir_basicsr.core.yaml_loader import load_yaml

ROOT = Path(__file__).parents[2]
FILES = sorted([*(ROOT / 'options').glob('*.yml'), *(ROOT / 'promptir_basicsr').rglob('*.yml')])
BLOCKS = [
    (f'{page.relative_to(ROOT)}:{number}', text)
    for page in (ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md')))
    for number, text in enumerate(re.findall(r'^ *```yaml\n(.*?)^ *```', page.read_text(encoding='utf-8'), re.M | re.S))
]


def other(text: str) -> Any:
    parser = YAML(typ='safe', pure=True)
    return parser.load(text)


def test_there_is_something_to_compare() -> None:
    assert len(FILES) > 25
    assert len(BLOCKS) > 20
    assert any('<<' in path.read_text(encoding='utf-8') for path in FILES)


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.name)
def test_option_files(path: Path) -> None:
    assert load_yaml(str(path)) == other(path.read_text(encoding='utf-8'))


@pytest.mark.parametrize(('place', 'text'), BLOCKS, ids=[place for place, _ in BLOCKS])
def test_yaml_in_the_documentation(place: str, text: str, tmp_path: Path) -> None:
    expected = other(text)
    path = tmp_path / 'block.yml'
    path.write_text(text if isinstance(expected, dict) else f'block:\n  {text}'.replace('\n', '\n  '), encoding='utf-8')
    loaded = load_yaml(str(path))
    assert (loaded if isinstance(expected, dict) else loaded['block']) == expected


MERGES = """
base: &base {total_iter: 100, ema_decay: 0.99, betas: [0.9, 0.999]}
longer: &longer {<<: *base, total_iter: 400}
other: &other {total_iter: 7, accumulate: 2}
first: {<<: [*longer, *other], ema_decay: 1e-4}
second: {<<: [*other, *longer], pixel_opt: {<<: *base}}
"""


def test_merges(tmp_path: Path) -> None:
    path = tmp_path / 'merges.yml'
    path.write_text(MERGES, encoding='utf-8')
    loaded = load_yaml(str(path))
    assert loaded == other(MERGES)
    assert loaded['first']['total_iter'] == 400
    assert loaded['second']['total_iter'] == 7
