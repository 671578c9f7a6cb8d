"""The Triton kernels: their numbers (kernel_cases.py), and what Triton's compiler makes of them for GPUs not at hand.

The interpreter shows numbers; the compiler shows what the interpreter does not look at: types, and how memory is read.
"""

import importlib
import os
import re
import subprocess
import sys
from itertools import product
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
import torch

from promptir_basicsr.archs.fast import kernels
from promptir_basicsr.archs.fast.kernels import kernel_problems, normalize_channels, usable

CASES = Path(__file__).parent / 'kernel_cases.py'
SLOW = [
    'test_all_operators_are_as_torch_wants_them',
    'test_depthwise_of_many_tiles',
    'test_gate_of_many_tiles',
    'test_gradients_are_the_numerical_ones',
    'test_places_beyond_32_bits',
]
ORDINARY = sorted(set(re.findall(r'^def (test_\w+)', CASES.read_text(encoding='utf-8'), re.MULTILINE)) - set(SLOW))

needs_triton = pytest.mark.skipif(not kernels.available, reason='needs Triton 3.3 or newer')


def run_cases(directory: Path, where: str, markers: str) -> dict[str, list[str]]:
    """Run kernel_cases.py in a process of its own. Returns what went wrong with each case, by its function's name."""
    report = directory / 'cases.xml'
    environment = {**os.environ, 'TRITON_CACHE_DIR': str(directory)}
    environment['TRITON_INTERPRET'] = '1' if where == 'interpreter' else '0'
    command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '-m', markers, f'--junit-xml={report}']
    process = subprocess.run([*command, str(CASES)], capture_output=True, text=True, env=environment)
    assert process.returncode in (0, 1), process.stdout + process.stderr
    found: dict[str, list[str]] = {}
    for case in ElementTree.parse(report).getroot().iter('testcase'):
        wrong = [f'{case.get("name")}: {each.text}' for each in case if each.tag in ('failure', 'error')]
        found.setdefault(case.get('name', '').partition('[')[0], []).extend(wrong)
    return found


PLACES = [
    pytest.param('interpreter', marks=pytest.mark.slow),
    pytest.param('cuda', marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')),
]


@pytest.fixture(scope='module', params=PLACES)
def ordinary(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    return run_cases(tmp_path_factory.mktemp('kernels'), request.param, 'not slow')


@pytest.fixture(scope='module', params=PLACES)
def slow(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    return run_cases(tmp_path_factory.mktemp('kernels'), request.param, 'slow')


@needs_triton
@pytest.mark.parametrize('name', ORDINARY)
def test_case(ordinary: dict[str, list[str]], name: str) -> None:
    assert name in ordinary
    assert not ordinary[name], '\n'.join(ordinary[name])


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize('name', SLOW)
def test_slow_case(slow: dict[str, list[str]], name: str) -> None:
    assert name in slow
    assert not slow[name], '\n'.join(slow[name])


def test_without_the_interpreter_the_cpu_is_for_torch() -> None:
    if kernels.interpreted:
        pytest.skip('TRITON_INTERPRET=1')
    x = torch.zeros(1, 4, 2, 2).contiguous(memory_format=torch.channels_last)
    assert not usable(x)
    with pytest.raises(ValueError, match=r'no Triton kernel supports x, which is .* on cpu\. Check usable\(x\)'):
        normalize_channels(x, True, 1e-5)


def test_without_triton_nothing_is_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'triton', None)
    assert not kernels.has_triton()
    old = ModuleType('triton')
    old.__version__ = '3.2.0'
    monkeypatch.setitem(sys.modules, 'triton', old)
    assert not kernels.has_triton()


def test_kernels_are_off_until_they_are_asked_for() -> None:
    program = 'from promptir_basicsr.archs.fast import kernels; assert not kernels.enabled; '
    program += 'kernels.set_kernels("triton"); assert kernels.enabled'
    subprocess.run([sys.executable, '-c', program], check=True)


def test_kernels_are_switched_for_a_block() -> None:
    assert not kernels.enabled
    with kernels.kernels_of('triton'):
        assert kernels.enabled
        with kernels.kernels_of(None):
            assert kernels.enabled
    assert not kernels.enabled
    with pytest.raises(ValueError, match=r"kernels: unknown choice 'tritn'\. Did you mean 'triton'\?"):
        kernels.set_kernels('tritn')


def test_what_the_kernels_lack_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device('cpu'), torch.device('cuda', 0)
    monkeypatch.setattr(kernels, 'available', False)
    assert kernel_problems('kernels', None, cpu) == []
    (problem,) = kernel_problems('kernels', 'triton', gpu)
    assert str(problem).startswith('kernels: the Triton kernels need Triton 3.3')
    assert 'it is not installed' in problem.message
    monkeypatch.setattr(kernels, 'available', True)
    monkeypatch.setattr(kernels, 'interpreted', False)
    (problem,) = kernel_problems('kernels', 'triton', cpu)
    assert 'this run is on the CPU' in problem.message
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda device: 'Old GPU')
    for generation, expected in ((6, 1), (7, 0)):
        monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device, first=generation: (first, 0))
        assert len(kernel_problems('kernels', 'triton', gpu)) == expected
    monkeypatch.setattr(kernels, 'interpreted', True)
    assert kernel_problems('kernels', 'triton', cpu) == []


# Loads and stores of a program, from the rows of its tile. Nine taps a channel; rows share the places they look at, of
# which there are three columns of rows + 2; a gate has two halves. Loads of features are 8 bytes, four channels each.
TRAFFIC = {
    'convolve': (lambda rows: {16: 9, 8: 3 * (rows + 2)}, lambda rows: {8: rows}),
    'convolve_backward': (lambda rows: {16: 9, 8: 3 * (rows + 2) + rows}, lambda rows: {8: rows, 4: 10}),
    'gate': (lambda rows: {16: 18, 8: 6 * (rows + 2)}, lambda rows: {8: rows}),
    'gate_backward': (lambda rows: {16: 18, 8: 6 * (rows + 2) + rows}, lambda rows: {8: 2 * rows}),
    'normalize': (lambda rows: {16: 2}, lambda rows: {16: 2}),
    'normalize_backward': (lambda rows: {16: 4}, lambda rows: {16: 2}),
}
CHOICES = {
    'convolve': [{'HAS_BIAS': False}, {'HAS_BIAS': True}],
    'convolve_backward': [{}],
    'gate': [{'HAS_BIAS': bias, 'DUAL': dual} for bias in (False, True) for dual in (False, True)],
    'normalize': [{'SUBTRACT_MEAN': False}, {'SUBTRACT_MEAN': True}],
}
CHOICES['normalize_backward'] = CHOICES['normalize']
CHOICES['gate_backward'] = [{**choice, 'AGAIN': again} for choice in CHOICES['gate'] for again in (False, True)]


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    if not kernels.available or kernels.interpreted:
        pytest.skip('needs Triton 3.3 or newer, not interpreting')
    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    return importlib.import_module('tests.archs.fast.kernel_build')


@pytest.mark.slow
@pytest.mark.parametrize('name', TRAFFIC)
def test_memory_is_read_once_in_wide_words(compiler: ModuleType, name: str, tmp_path: Path) -> None:
    """What the compiler makes of a kernel for an H100 in bfloat16, with channels that divide by 16."""
    built = compiler.build(name, 128, torch.bfloat16, 90, **CHOICES[name][0])
    loads, stores = TRAFFIC[name]
    assert built.loads == loads(built.rows)
    assert built.stores == stores(built.rows)
    if compiler.CUOBJDUMP.exists():
        registers, stack = compiler.registers(built.cubin, tmp_path)
        assert stack == 0
        assert registers <= 168  # three blocks of four warps on a multiprocessor


@pytest.mark.slow
@pytest.mark.parametrize('capability', [75, 80, 90])
@pytest.mark.parametrize('name', TRAFFIC)
def test_kernels_compile_for_what_usable_allows(compiler: ModuleType, name: str, capability: int) -> None:
    """Each dtype with each choice; by turns with widths that divide by 16, do not, and 1, a constant to Triton."""
    dtypes = [torch.float32, torch.float16, torch.float64, *([torch.bfloat16] if capability >= 80 else [])]
    for index, (dtype, choices) in enumerate(product(dtypes, CHOICES[name])):
        assert compiler.build(name, (128, 127, 1)[index % 3], dtype, capability, **choices).cubin
