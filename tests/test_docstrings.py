"""Every class and function that the pages tell users to import has an example in its docstring, and it runs.

Examples use `np` and `torch` without importing them, and files that the fixture writes.
"""

import doctest
import importlib
import inspect
import re
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import skimage.data
import torch

import promptir_basicsr  # noqa: F401  (registers)

# isort: split
from promptir_basicsr import cli
from promptir_basicsr.archs import PromptIR
from promptir_basicsr.degradations import DEGRADATIONS
from tests.pages import PAGES, blocks, text_of

SMALL = {'dim': 8, 'num_blocks': [1, 1, 1, 1], 'heads': [1, 1, 1, 1], 'prompt_sizes': [4, 4, 4]}
OPTIONS = """
base: demo.yml
name: mine
num_gpu: 0
datasets:
  train:
    gt_size: 16
    num_worker_per_gpu: 0
    tasks:
      - {type: denoise, clean: 'skimage://', files: [coffee.png], degrade: {type: jpeg}, copies: 200}
  val:
    tasks:
      - {type: denoise, clean: 'skimage://', files: [microaneurysms.png], degrade: {type: gaussian_noise, sigma: 25}}
      - {type: lowlight, clean: 'skimage://', files: [microaneurysms.png], degrade: {type: low_light}}
network_g: {dim: 8, num_refinement_blocks: 4, heads: [1, 1, 1, 1], ffn_expansion_factor: 2.66, prompt_sizes: [4, 4, 4]}
"""


def imported() -> list[str]:
    """Names in docs/api, and names that the pages import."""
    listed = [name for page in PAGES for name in re.findall(r'^::: (\S+)$', text_of(page), re.M)]
    code = '\n'.join(text for page in PAGES for language, text in blocks(page) if language == 'python')
    lines = re.findall(r'^from (promptir_basicsr\S*) import (.+)$', code, re.M)
    names = [f'{module}.{name.strip()}' for module, names in lines for name in names.split(',')]
    return list(dict.fromkeys([*listed, *names]))


def found(name: str) -> Any:
    """The object of a name; a module itself."""
    module, _, last = name.rpartition('.')
    return getattr(importlib.import_module(module), last, None) or importlib.import_module(name)


NAMES = [name for name in imported() if callable(found(name))]


@pytest.fixture(scope='module')
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that examples name."""
    folder = tmp_path_factory.mktemp('examples')
    (folder / 'mine.yml').write_text(OPTIONS, encoding='utf-8')
    photograph = skimage.data.coffee()[100:148, 150:214, ::-1]
    cv2.imwrite(str(folder / 'photo.jpg'), photograph)
    for side, image in {'clear': photograph, 'rainy': 255 - photograph}.items():
        (folder / side).mkdir()
        for number in (1, 2):
            cv2.imwrite(str(folder / side / f'{number}.png'), image)
    torch.manual_seed(0)
    torch.save({'params': PromptIR(**SMALL).state_dict()}, folder / 'net_g_latest.pth')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr('sys.argv', ['pytest'])
        assert cli.main('prepare -opt mine.yml --out database --workers 1'.split()) == 0
    return folder


def test_names_are_found() -> None:
    assert len(NAMES) > 70
    assert {name for name in imported() if name not in NAMES} == {
        'promptir_basicsr.degradations.DEGRADATIONS',
        'promptir_basicsr.inference.spandrel',
    }


@pytest.mark.parametrize('name', NAMES)
def test_there_is_an_example(name: str) -> None:
    assert '\nExamples:\n    >>> ' in (inspect.getdoc(found(name)) or '')


LONG = ('promptir_basicsr.demo.build_page', 'promptir_basicsr.explain.explain', 'promptir_basicsr.export.export_onnx')
"""Examples of more than five seconds."""


@pytest.mark.parametrize('name', [pytest.param(name, marks=[pytest.mark.slow] * (name in LONG)) for name in NAMES])
def test_the_example_runs(name: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(made, tmp_path / 'here')
    monkeypatch.chdir(tmp_path / 'here')
    monkeypatch.setenv('GRADIO_ANALYTICS_ENABLED', 'False')
    torch.manual_seed(0)
    registered = set(DEGRADATIONS)
    runner = doctest.DocTestRunner(optionflags=doctest.REPORT_ONLY_FIRST_FAILURE)
    said: list[str] = []
    for example in doctest.DocTestFinder().find(found(name), name, module=False, globs={'np': np, 'torch': torch}):
        runner.run(example, out=said.append)  # those of methods too
    for new in DEGRADATIONS.keys() - registered:
        del DEGRADATIONS[new]
    assert runner.tries > 0
    assert runner.failures == 0, ''.join(said)
