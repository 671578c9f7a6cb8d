"""Whatever stands in an option file or on the command line: it is accepted, or refused in words.

120 mutations of option files, 120 files of random content and 120 replacements on the command line in the ordinary
tests; 3,000 of each with `-m slow`.
"""

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import promptir_basicsr  # noqa: F401  (prepares BasicSR)
from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.host.options import checked_options
from tests.checks.test_run import measuring, training
from tests.options.test_corpus import FILES, text_of

NAME = 'fuzzed.yml'
# A complete training and a complete test first: what else is in options/ mostly lacks its data here.
TEXTS = [yaml.safe_dump(options, sort_keys=False) for options in (training(), training(), training(), measuring())]
TEXTS += [text_of(path) for path in FILES]
KEY = re.compile(r'^(\s*(?:- )*[\w.]+:)(?: .*)?$', re.M)
VALUE = re.compile(r'(?<=[:,\[] )[^\s{}\[\],]+')
# No path leads up and out: the whole disk is a folder of images like any other, and listing it takes its time.
HARM = 'os.system [mkdir harm]'
SCALARS = (
    '~ -1 0 1 2 1.5 1e400 -1e-400 .nan .inf -.inf true no 1_000 0x1F 0o17 1:30:00 2024-01-01 = << {} [] [[[]]] [~] '
    "[.nan] '' 'x' '1e-4' '0' * & ! | > @ ` % ? - : # --- ... PromptIR AllInOneDataset SRModel skimage:// auto 3d / .. "
    '/nowhere ~nobody-here/x ../../x C:\\x con x.lmdb x.yml /dev/null 99999999999999999999 9223372036854775807 '
    '-9223372036854775808 1000000 0.001 [-1] [0,0,0,0] [1,1,1,100000] [1.5,2,3,4] {a:b} {type:x} {1:2} {~:1} {.nan:1} '
    '*nowhere &here !!binary !!set !!omap !!timestamp !!int !!float !!null !unknown'
).split() + [
    f'!!python/object/apply:{HARM}',
    f'!!python/object/new:{HARM}',
    '!!python/name:os.system',
    '{<<: {type: x}}',
    '{type: PromptIR, dim: 8}',
    '{[1]: 2}',
    '{lq: "{a}{b}{a}", gt: "{c}"}',
    '"\\0"',
    '"\\ud800"',
    '"\\u202e\\n"',
    '&a [*a]',
]
LONG = st.builds(
    lambda part, number: part * number, st.sampled_from(['1', 'long', '[', 'a/../', '"x" ']), st.integers(1, 5000)
)
JUNK = [
    '\t',
    '\0',
    '\x85',
    '\ufeff',
    '\u2028',
    '\U0001f600',
    '\r',
    '\r\n',
    '{',
    '}',
    '[',
    ']',
    ': ',
    '- ',
    '"',
    "'",
    '&',
    '*',
]


def line_edits(text: str, draw: Callable[..., Any]) -> str:
    """A line goes, comes twice, moves, or another one comes between."""
    lines = text.split('\n')
    at, other = draw(st.integers(0, len(lines) - 1)), draw(st.integers(0, len(lines) - 1))
    kind = draw(st.sampled_from(['delete', 'double', 'swap', 'indent', 'insert']))
    if kind == 'delete':
        del lines[at]
    elif kind == 'double':
        lines.insert(other, lines[at])
    elif kind == 'swap':
        lines[at], lines[other] = lines[other], lines[at]
    elif kind == 'indent':
        lines[at] = ' ' * draw(st.integers(0, 9)) + lines[at].lstrip()
    else:
        lines.insert(at, draw(st.sampled_from(SCALARS)))
    return '\n'.join(lines)


def values(text: str, draw: Callable[..., Any]) -> str:
    """Another value for a key, or within a flow collection."""
    places = list((KEY if draw(st.booleans()) else VALUE).finditer(text))
    if not places:
        return text
    place = draw(st.sampled_from(places))
    value = draw(
        st.sampled_from(SCALARS) | LONG | DOCUMENTS.map(lambda part: yaml.safe_dump(part, default_flow_style=True))
    )
    start = place.end(1) if place.re is KEY else place.start()
    return f'{text[:start]} {value.strip()}{text[place.end() :]}'


def characters(text: str, draw: Callable[..., Any]) -> str:
    at = draw(st.integers(0, len(text)))
    return text[:at] + draw(st.sampled_from(JUNK) | st.characters()) + text[at:]


def endings(text: str, draw: Callable[..., Any]) -> str:
    kind = draw(st.sampled_from(['crlf', 'bom', 'cut', 'twice']))
    if kind == 'crlf':
        return text.replace('\n', '\r\n')
    if kind == 'bom':
        return '\ufeff' + text
    return text[: draw(st.integers(0, len(text)))] if kind == 'cut' else f'{text}\n---\n{text}'


DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.sampled_from(SCALARS),
    lambda parts: st.lists(parts, max_size=4) | st.dictionaries(st.text(max_size=9) | st.integers(), parts, max_size=4),
    max_leaves=9,
)
TOP = (
    'name',
    'model_type',
    'num_gpu',
    'datasets',
    'network_g',
    'path',
    'train',
    'val',
    'logger',
    'precision',
    'compile',
)


@st.composite
def mutated(draw: Callable[..., Any]) -> bytes:
    """An option file with one to four changes."""
    text = draw(st.sampled_from(TEXTS))
    for _ in range(draw(st.integers(1, 4))):
        text = draw(st.sampled_from([values, values, values, line_edits, characters, endings]))(text, draw) or ' '
    return text.encode('utf-8', 'surrogatepass')


def bomb(kind: str, depth: int) -> bytes:
    """Aliases that double in every line, as lists or merged, and brackets without end."""
    if kind == 'deep':
        return b'a: ' + b'[{x: ' * (depth * 40)
    part = '[{0}, {0}]' if kind == 'lists' else '{{<<: [{0}, {0}]}}'
    lines = ['a0: &a0 {k: 1}'] + [f'a{n}: &a{n} {part.format(f"*a{n - 1}")}' for n in range(1, depth)]
    return '\n'.join(lines).encode()


RANDOM = (
    st.binary(max_size=200)
    | st.text(max_size=200).map(lambda text: text.encode('utf-8', 'surrogatepass'))
    | DOCUMENTS.map(lambda part: yaml.safe_dump(part).encode())
    | st.dictionaries(st.sampled_from(TOP), DOCUMENTS, max_size=8).map(lambda part: yaml.safe_dump(part).encode())
    | st.builds(bomb, st.sampled_from(['lists', 'merges', 'deep']), st.integers(2, 60))
)
PLACES = (
    'name num_gpu manual_seed network_g network_g:dim network_g:heads:0 network_g:type val:metrics val:labels datasets '
    'datasets:train:tasks:0 datasets:train:tasks:0:clean datasets:train:tasks:0:degrade datasets:train:protocol '
    'datasets:train:tasks:0:files:1 datasets:train:dataroot datasets:train:sampling datasets:val val:best_metric '
    'path:pretrain_network_g train:optim_g:lr train:optim_g:betas:1 train:scheduler train:total_iter logger '
    'train:loss_scaler:history x"]=__import__("os").system("mkdir\\tharm");y["z'
).split()


@pytest.fixture(scope='module', autouse=True)
def folder() -> Iterator[None]:
    """An empty current folder, and nothing in those above that `..` may lead to."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        inner = Path(folder, 'a', 'b')
        inner.mkdir(parents=True)
        os.chdir(inner)
        yield
        os.chdir(before)


def hold(content: bytes, force_yml: list[str]) -> None:
    """The promise."""
    Path(NAME).write_bytes(content)
    problems = []
    try:
        options, _ = checked_options(NAME, force_yml, is_train=b'train:' in content)
        assert yaml.safe_dump(options)  # it can be handed to BasicSR's own parser
    except OptionError as error:
        problems = error.lines or ['']
    wrong = [line for line in problems if '\n' in line or not line.startswith((f'{NAME}:', '--force_yml '))]
    assert wrong == []
    assert os.listdir() == [NAME]


def examples(number: int) -> Callable[..., Any]:
    return settings(
        max_examples=number, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )


@examples(50)
@given(mutated())
def test_mutations_of_option_files(content: bytes) -> None:
    hold(content, [])


@examples(50)
@given(RANDOM)
def test_random_files(content: bytes) -> None:
    hold(content, [])


@examples(50)
@given(st.sampled_from(PLACES), st.sampled_from(SCALARS) | LONG | st.text(max_size=20))
def test_replacements_on_the_command_line(place: str, value: str) -> None:
    hold(TEXTS[0].encode(), [f'{place}={value}'])


@pytest.mark.slow
@examples(3000)
@given(mutated())
def test_many_mutations_of_option_files(content: bytes) -> None:
    hold(content, [])


@pytest.mark.slow
@examples(3000)
@given(RANDOM)
def test_many_random_files(content: bytes) -> None:
    hold(content, [])


@pytest.mark.slow
@examples(3000)
@given(st.sampled_from(PLACES), st.sampled_from(SCALARS) | LONG | st.text(max_size=20))
def test_many_replacements_on_the_command_line(place: str, value: str) -> None:
    hold(TEXTS[0].encode(), [f'{place}={value}'])
