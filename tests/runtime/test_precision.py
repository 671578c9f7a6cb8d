"""Precision of training and of validation."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import promptir_basicsr  # noqa: F401  (registers)

# isort: split
from basicsr.utils.registry import ARCH_REGISTRY

from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.core.registry import register
from promptir_basicsr.runtime.precision import set_float32
from tests.models.step_data import model_with, photographs, train, weights


@register(ARCH_REGISTRY)
class WatchedNet(nn.Module):
    """A convolution that notes what it is computed with."""

    scale = 1

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.seen: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        self.seen.append((y.dtype, torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))
        return y


WATCHED = {'type': 'WatchedNet'}


@pytest.fixture(autouse=True)
def flags_as_before() -> Any:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize(('precision', 'dtype'), [('bf16', torch.bfloat16), ('fp16', torch.float16)])
def test_the_network_is_run_in_half_precision_and_everything_else_in_full(
    tmp_path: Path, precision: str, dtype: torch.dtype
) -> None:
    model = model_with(tmp_path, WATCHED, precision=precision)
    dtypes: list[torch.dtype] = []
    pixel = model.step.objective.pixel
    pixel.register_forward_hook(lambda _, given, loss: dtypes.extend((*[x.dtype for x in given], loss.dtype)))
    train(model, photographs())
    assert model.net_g.seen == [(dtype, False, False)]
    assert model.output.dtype == torch.float32
    assert set(dtypes) == {torch.float32}
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.net_g.parameters())
    model.test()
    assert model.net_g.seen[-1] == (torch.float32, False, False)


def test_validation_has_a_precision_of_its_own(tmp_path: Path) -> None:
    model = model_with(tmp_path, WATCHED, val__precision='bf16')
    train(model, photographs())
    model.test()
    assert [dtype for dtype, *_ in model.net_g.seen] == [torch.float32, torch.bfloat16]
    assert model.output.dtype == torch.float32
    image = photographs()['lq']
    with torch.no_grad():
        exact = F.conv2d(image, *model.net_g.parameters(), padding=1)
    assert 0 < (model.output - exact).abs().max() < 0.02


def test_tf32_is_allowed_in_its_steps_alone(tmp_path: Path) -> None:
    torch.backends.cudnn.allow_tf32 = True  # torch's default
    model = model_with(tmp_path, WATCHED)
    train(model, photographs())
    model.step.precision = 'tf32'  # which a model on a CPU refuses, see below
    set_float32('tf32')
    train(model, photographs())
    model.test()
    train(model, photographs())
    assert [allowed for _, *allowed in model.net_g.seen] == [[False] * 2, [True] * 2, [False] * 2, [True] * 2]


@pytest.mark.parametrize('place', ['precision', 'val__precision'])
def test_tf32_without_a_gpu_is_refused(tmp_path: Path, place: str) -> None:
    with pytest.raises(OptionError, match=place.replace('__', '.') + ': tf32 is a format of GPUs'):
        model_with(tmp_path, WATCHED, **{place: 'tf32'})


@pytest.mark.parametrize('precision', ['bf16', 'fp16'])
def test_a_short_training_ends_where_that_of_float32_does(tmp_path: Path, precision: str) -> None:
    batch = photographs(number=2)
    losses = {}
    for name in ('fp32', precision):
        model = model_with(tmp_path, precision=name)
        losses[name] = [log['l_pix'] for log in train(model, batch, steps=12)]
    assert losses['fp32'][-1] < 0.8 * losses['fp32'][0]
    assert losses[precision] == pytest.approx(losses['fp32'], rel=0.02)
    assert losses[precision] != losses['fp32']


def test_fp16_leaves_out_a_step_that_overflows_and_lowers_its_scale(tmp_path: Path) -> None:
    model = model_with(tmp_path, WATCHED, precision='fp16', train__ema_decay=0.5)
    before, batch = weights(model), photographs()
    (log,) = train(model, {**batch, 'lq': 1e6 * batch['lq']})
    assert log['grad_scale'] == 2**15
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())
    (log,) = train(model, batch)
    assert log['grad_scale'] == 2**15
    assert not any(torch.equal(value, before[name]) for name, value in weights(model).items())


def test_fp16_resumes_with_its_scale_to_the_same_weights(tmp_path: Path) -> None:
    batch = photographs()
    whole = model_with(tmp_path, WATCHED, precision='fp16', train__grad_clip_norm=0.01)
    train(whole, {**batch, 'lq': 1e6 * batch['lq']})
    train(whole, batch, first=2)
    whole.save(0, 2)
    logs = train(whole, batch, steps=2, first=3)

    state = torch.load(tmp_path / 'training_states' / '2.state', weights_only=True)
    assert state['grad_scaler']['scale'] == 2**15
    assert state['grad_scaler']['_growth_tracker'] == 1
    resumed = model_with(tmp_path, WATCHED, precision='fp16', train__grad_clip_norm=0.01)
    resumed.load_network(resumed.net_g, str(tmp_path / 'models' / 'net_g_2.pth'))
    resumed.resume_training(state)
    assert train(resumed, batch, steps=2, first=3) == logs
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(resumed).items())
    assert resumed.step.grad_scaler.state_dict() == whole.step.grad_scaler.state_dict()
    # Other precisions have no scale: they neither write one nor mind it.
    plain = model_with(tmp_path, WATCHED)
    plain.resume_training(state)
    plain.save(0, 4)
    assert 'grad_scaler' not in torch.load(tmp_path / 'training_states' / '4.state', weights_only=True)


def test_the_norm_that_is_clipped_is_that_of_the_gradient_without_its_scale(tmp_path: Path) -> None:
    norms = {}
    for precision in ('fp32', 'fp16'):
        model = model_with(tmp_path, WATCHED, precision=precision, train__grad_clip_norm=1e-4)
        (log,) = train(model, photographs())
        norms[precision] = log['grad_norm']
        gradient = torch.cat([p.grad.flatten() for p in model.net_g.parameters()])
        assert gradient.norm().item() == pytest.approx(1e-4, rel=1e-3)
    assert norms['fp16'] == pytest.approx(norms['fp32'], rel=1e-2)
