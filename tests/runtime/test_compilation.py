"""torch.compile in training and in validation."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch._dynamo.utils

import promptir_basicsr  # noqa: F401  (registers)
from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.runtime.compilation import compile_in_place, compiling, eagerly
from tests.models.step_data import EDSR, model_with, photographs, train, weights

needs_compiler = pytest.mark.skipif(shutil.which('g++') is None, reason='torch.compile needs a C++ compiler, no g++')

OPTIONS = """
name: tiny
model_type: PromptModel
num_gpu: 0
manual_seed: 0
compile: true
datasets:
  train:
    name: tiny_train
    type: AllInOneDataset
    gt_size: 16
    tasks:
      - {type: derain, clean: 'skimage://', files: [astronaut.png], degrade: {type: rain}, copies: 8}
    batch_size_per_gpu: 2
    num_worker_per_gpu: 0
network_g: {type: EDSR, num_in_ch: 3, num_out_ch: 3, num_feat: 4, num_block: 1, upscale: 1}
path: {}
train:
  total_iter: 2
  optim_g: {type: Adam, lr: 1e-3}
  scheduler: {type: FixedLR}
  pixel_opt: {type: L1Loss}
logger: {print_freq: 1, save_checkpoint_freq: 2, use_tb_logger: false}
"""


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch.compiler.reset()


@needs_compiler
@pytest.mark.slow
def test_a_compiled_step_is_the_step(tmp_path: Path, host_log: pytest.LogCaptureFixture) -> None:
    options = {'train__accumulate': 2, 'train__ema_decay': 0.5, 'activation_checkpointing': 'block'}
    plain = model_with(tmp_path, EDSR, **options)
    host_log.clear()
    model = model_with(tmp_path, EDSR, compile=True, **options)
    batch = photographs()
    logs = train(model, batch, steps=3)
    messages = [record.message for record in host_log.records]
    told = [message for message in messages if message.startswith(('Step:', 'Compiled'))]
    assert re.fullmatch(r'Step: fp32, .*, compiled, .*', told[0])
    assert re.fullmatch(r'Compiled in \d+\.\d s, including the first pass\.', told[1])
    assert len(told) == 2
    for log, expected in zip(logs, train(plain, batch, steps=3), strict=True):
        assert log == pytest.approx(expected, rel=1e-4)
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(model)[name], value, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            model.net_g_ema.state_dict()[name], plain.net_g_ema.state_dict()[name], rtol=1e-4, atol=1e-5
        )

    model.save(0, 3)
    saved = torch.load(tmp_path / 'models' / 'net_g_3.pth', weights_only=True)
    names = list(plain.net_g.state_dict())
    assert list(saved['params']) == list(saved['params_ema']) == names

    # Images of a validation, of any size, do not have the step compiled again.
    counters = torch._dynamo.utils.counters['stats']
    before = counters['unique_graphs']
    assert before > 0
    for use_ema in (False, True):
        for each in (plain, model):
            each.opt['val']['use_ema'] = use_ema
            each.feed_data({'lq': torch.ones(1, 3, 24, 40)})
            each.test()
        torch.testing.assert_close(model.output, plain.output, rtol=1e-4, atol=1e-5)
    assert counters['unique_graphs'] == before


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize('use_ema', [True, False])
def test_restoring_is_compiled_once_for_images_of_all_sizes(tmp_path: Path, use_ema: bool) -> None:
    options = {'train__ema_decay': 0.5, 'val__use_ema': use_ema}
    plain = model_with(tmp_path, EDSR, **options)
    model = model_with(tmp_path, EDSR, val__compile=True, **options)
    graphs = []
    for size in ((16, 24), (17, 31), (40, 20)):
        image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
        for each in (plain, model):
            each.feed_data({'lq': image})
            each.test()
        torch.testing.assert_close(model.output, plain.output, rtol=1e-5, atol=1e-6)
        graphs.append(torch._dynamo.utils.counters['stats']['unique_graphs'])
    assert graphs == [graphs[0]] * 3
    assert graphs[0] > 0
    assert list(model.net_g.state_dict()) == list(plain.net_g.state_dict())


@pytest.mark.slow
def test_without_a_compiler_a_run_ends_with_one_line(tmp_path: Path) -> None:
    (tmp_path / 'tiny.yml').write_text(OPTIONS, encoding='utf-8')
    process = subprocess.run(
        [sys.executable, '-m', 'promptir_basicsr', 'train', '-opt', 'tiny.yml'],
        cwd=tmp_path,
        env={
            **os.environ,
            'OMP_NUM_THREADS': '1',
            'CXX': '/nowhere/c++',
            'TORCHINDUCTOR_CACHE_DIR': str(tmp_path / 'cache'),
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 2
    assert 'Traceback' not in process.stderr
    (line,) = [line for line in process.stderr.splitlines() if line.startswith('compile: ')]
    assert line.startswith('compile: the network cannot be compiled here (')
    assert 'Set `compile: false`' in line


def test_only_failures_to_compile_are_reported_as_such() -> None:
    with pytest.raises(ZeroDivisionError), compiling('compile', True):
        raise ZeroDivisionError
    with (
        pytest.raises(OptionError, match=r'^val\.compile: .*Set `compile: false` in val'),
        compiling('val.compile', True),
    ):
        raise torch._dynamo.exc.TorchDynamoException('no way')
    with pytest.raises(torch._dynamo.exc.TorchDynamoException), compiling('compile', False):
        raise torch._dynamo.exc.TorchDynamoException('not asked for')


def test_a_compiled_network_can_be_run_as_it_is_written() -> None:
    """Without any compilation, which would take seconds."""
    net = torch.nn.Conv2d(3, 3, 1)
    names = list(net.state_dict())
    compile_in_place(net, True)
    image = torch.rand(1, 3, 8, 8)
    with eagerly():
        assert torch.equal(net(image), net.forward(image))
    assert torch._dynamo.utils.counters['stats']['unique_graphs'] == 0
    assert (type(net), list(net.state_dict())) == (torch.nn.Conv2d, names)
