"""All losses and the loss scaler in PromptModel: the log, the gradient, a resume, several processes."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing
from skimage import data
from torch import Tensor

import promptir_basicsr  # noqa: F401  (registers)

# isort: split
from basicsr.models import build_model

from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.losses import decorrelation
from promptir_basicsr.models.batch import Batch, run_network
from tests.forked import basicsr
from tests.models.model_options import NETWORK, run_options
from tests.models.step_data import distribute
from tests.tiny_training import TINY_TRAINING

PIP = {**NETWORK, 'type': 'PIPRestormer'}
ALL = {
    'pixel_opt': {'type': 'SmoothL1Loss'},
    'frequency_opt': {'type': 'FrequencyLoss'},
    'prompt_opt': {'type': 'PromptDecorrelationLoss', 'kind': 'cosine', 'loss_weight': 0.5},
}
OPTIONS = (
    TINY_TRAINING.replace('type: PromptIR', 'type: PIPRestormer')
    .replace('total_iter: 4', 'total_iter: 2')
    .replace(
        'pixel_opt: {type: L1Loss}',
        (
            'pixel_opt: {type: SmoothL1Loss}\n'
            '  frequency_opt: {type: FrequencyLoss, loss_weight: 0.1}\n'
            '  prompt_opt: {type: PromptDecorrelationLoss, kind: angle}\n'
            '  loss_scaler: {history: 100, limit: 5, factor: 2.5}'
        ),
    )
)


def batch(noise: float = 0.1, broken: bool = False) -> dict[str, Any]:
    """Four crops of a photograph; the targets of a broken batch are twenty times too bright."""
    photograph = torch.from_numpy(np.ascontiguousarray(data.chelsea().transpose(2, 0, 1))).float() / 255
    gt = torch.stack([photograph[:, 100:116, 20 * i : 20 * i + 16] for i in range(4, 8)])
    lq = (gt + noise * torch.randn(gt.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    gt = 20 * gt if broken else gt
    return {'lq': lq, 'gt': gt, 'task': ['denoise'] * 4, 'degradation': torch.tensor([0, 0, 4, 4])}


def model_with(folder: Path, losses: dict[str, Any], network: dict[str, Any] = PIP, **train: Any) -> Any:
    torch.manual_seed(0)
    train = {'pixel_opt': None, 'optim_g': {'type': 'SGD', 'lr': 0.05}, **losses, **train}
    changes = {f'train__{key}': value for key, value in train.items()}
    return build_model(run_options(folder, network_g=dict(network), **changes))


def step(model: Any, iteration: int, images: dict[str, Any]) -> dict[str, float]:
    model.feed_data(images)
    model.optimize_parameters(iteration)
    return dict(model.get_current_log())


def images_terms(model: Any, images: dict[str, Any]) -> dict[str, Tensor]:
    """SmoothL1 and frequency loss by their definitions."""
    error = run_network(model.net_g, Batch.of(images, model.device)) - images['gt']
    spectrum = torch.fft.fft2(error)
    size = torch.where(error.abs() < 1, 0.5 * error**2, error.abs() - 0.5)
    return {'l_pix': size.mean(), 'l_freq': 0.1 * (spectrum.real.abs().mean() + spectrum.imag.abs().mean()) / 2}


def prompt_term(model: Any) -> Tensor:
    banks = (getattr(model.net_g, f'prompt{level}').detask_prompt_param for level in (1, 2, 3))
    return 0.5 * sum(decorrelation(bank[0, :, :, 0, 0], 'cosine') for bank in banks)


def state_of(model: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.get_bare_model(model.net_g).state_dict().items()}


def test_every_term_is_in_the_log_and_in_the_gradient(tmp_path: Path) -> None:
    model = model_with(tmp_path, ALL)
    images = batch()
    model.feed_data(images)
    terms = {**images_terms(model, images), 'l_prompt': prompt_term(model)}
    expected = torch.autograd.grad(sum(terms.values()), list(model.net_g.parameters()))  # type: ignore[arg-type]
    log = step(model, 1, images)
    assert list(log) == ['l_freq', 'l_pix', 'l_pix_denoise', 'l_prompt']
    assert {name: log[name] for name in terms} == pytest.approx({n: t.item() for n, t in terms.items()}, rel=1e-5)
    for parameter, gradient in zip(model.net_g.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize('network', [PIP, NETWORK], ids=lambda network: network['type'])
def test_prompts_part_and_the_images_improve(tmp_path: Path, network: dict[str, Any]) -> None:
    model = model_with(tmp_path, ALL, network, optim_g={'type': 'Adam', 'lr': 2e-3})
    logs = [step(model, iteration, batch()) for iteration in range(1, 13)]
    assert all(logs[-1][name] < 0.99 * logs[0][name] for name in ('l_pix', 'l_freq', 'l_prompt'))


def test_a_frequency_loss_trains_alone(tmp_path: Path) -> None:
    model = model_with(tmp_path, {'frequency_opt': {'type': 'FrequencyLoss'}})
    first = step(model, 1, batch())
    assert list(first) == ['l_freq']
    assert step(model, 2, batch())['l_freq'] < first['l_freq']
    assert model.opt['train']['pixel_opt'] is None


def test_without_an_image_loss_training_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='no image loss'):
        model_with(tmp_path, {'prompt_opt': {'type': 'PromptDecorrelationLoss'}})


def test_a_network_without_prompts_is_refused_at_the_start(tmp_path: Path) -> None:
    edsr = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1, 'upscale': 1}
    with pytest.raises(OptionError, match=r'^train\.prompt_opt: EDSR: has no prompts\.'):
        model_with(tmp_path, ALL, edsr)


# the loss scaler


def test_a_batch_that_went_wrong_counts_less_and_the_prompts_as_ever(tmp_path: Path) -> None:
    model = model_with(tmp_path, ALL, optim_g={'type': 'SGD', 'lr': 0.0}, loss_scaler={})
    good, bad = batch(noise=0.05), batch(broken=True)
    model.feed_data(good)
    low, high = (sum(images_terms(model, images).values()) for images in (good, bad))
    assert high > 5 * low  # type: ignore[operator]
    gradients = [
        torch.autograd.grad(term, list(model.net_g.parameters()), allow_unused=True)
        for term in (high, prompt_term(model))
    ]
    assert step(model, 1, good)['loss_scale'] == 1
    log = step(model, 2, bad)
    scale = (2.5 * low / high).item()  # type: ignore[union-attr,operator]
    assert log['loss_scale'] == pytest.approx(scale, rel=1e-5)
    assert log['l_pix'] + log['l_freq'] == pytest.approx(high.item(), rel=1e-5)  # type: ignore[union-attr]
    for parameter, of_images, of_prompts in zip(model.net_g.parameters(), *gradients, strict=True):
        expected = scale * of_images + (0 if of_prompts is None else of_prompts)
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-7)


def test_a_resume_remembers_the_losses(tmp_path: Path) -> None:
    whole = model_with(tmp_path, ALL, loss_scaler={'history': 3})
    for iteration in (1, 2):
        step(whole, iteration, batch(noise=0.05))
    whole.save(0, 2)
    scales = [step(whole, iteration, batch(broken=True))['loss_scale'] for iteration in (3, 4)]
    assert all(scale < 1 for scale in scales)

    saved = torch.load(tmp_path / 'training_states' / '2.state', weights_only=True)
    for state, continues in ((saved, True), ({k: v for k, v in saved.items() if k != 'loss_scaler'}, False)):
        resumed = model_with(tmp_path, ALL, loss_scaler={'history': 3})
        resumed.load_network(resumed.net_g, str(tmp_path / 'models' / 'net_g_2.pth'))
        resumed.resume_training(state)
        again = [step(resumed, iteration, batch(broken=True))['loss_scale'] for iteration in (3, 4)]
        assert (again == scales) == continues
        same = all(torch.equal(value, state_of(whole)[name]) for name, value in state_of(resumed).items())
        assert same == continues


def test_a_run_without_the_scaler_resumes_from_a_state_with_it(tmp_path: Path) -> None:
    model = model_with(tmp_path, ALL, loss_scaler={})
    step(model, 1, batch())
    model.save(0, 1)
    plain = model_with(tmp_path, ALL)
    plain.resume_training(torch.load(tmp_path / 'training_states' / '1.state', weights_only=True))
    assert 'loss_scale' not in step(plain, 2, batch())
    plain.save(0, 2)
    assert 'loss_scaler' not in torch.load(tmp_path / 'training_states' / '2.state', weights_only=True)


def test_a_training_from_the_command_line(tmp_path: Path) -> None:
    (tmp_path / 'tiny.yml').write_text(OPTIONS, encoding='utf-8')
    process = basicsr('train', '-opt', 'tiny.yml', cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    lines = [line for line in (process.stdout + process.stderr).splitlines() if 'l_pix:' in line]
    values = [dict(re.findall(r'(\w+): (\d\.\d+e[-+]\d+)', line)) for line in lines]
    assert len(values) == 2
    assert all({'l_pix', 'l_freq', 'l_prompt', 'l_pix_derain', 'loss_scale'} <= line.keys() for line in values)
    state = torch.load(tmp_path / 'experiments/tiny/training_states/2.state', weights_only=True)
    sums = [float(line['l_pix']) + float(line['l_freq']) for line in values]
    assert state['loss_scaler']['losses'] == pytest.approx(sums, rel=1e-3)


# several processes


def train_half(rank: int, folder: str) -> None:
    """One of two processes, with half of each batch."""
    torch.set_num_threads(1)
    meeting = f'file://{folder}/meeting'
    torch.distributed.init_process_group('gloo', init_method=meeting, rank=rank, world_size=2)
    try:
        model = model_with(Path(folder), ALL, loss_scaler={})
        distribute(model, rank)
        halves = slice(2 * rank, 2 * rank + 2)
        logs = [step(model, i, {k: v[halves] for k, v in images.items()}) for i, images in enumerate(sequence(), 1)]
        content = {'net': state_of(model), 'logs': logs, **model.step.loss_scaler.state_dict()}
        torch.save(content, f'{folder}/rank{rank}.pth')
    finally:
        torch.distributed.destroy_process_group()


def sequence() -> list[dict[str, Any]]:
    return [batch(noise=0.05), batch(noise=0.05), batch(broken=True), batch()]


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(train_half, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f'rank{rank}.pth', weights_only=True) for rank in (0, 1))
    alone = model_with(tmp_path, ALL, loss_scaler={})
    logs = [step(alone, iteration, images) for iteration, images in enumerate(sequence(), 1)]
    assert logs[2]['loss_scale'] < 1
    for log, of_both in zip(logs, first['logs'], strict=True):
        assert of_both == pytest.approx(log, rel=1e-4)
    # so that a run goes on with any number of processes
    assert first['losses'] == second['losses'] == pytest.approx(alone.step.loss_scaler.state_dict()['losses'], rel=1e-4)
    for name, value in state_of(alone).items():
        assert torch.equal(first['net'][name], second['net'][name])
        torch.testing.assert_close(first['net'][name], value, rtol=1e-4, atol=1e-6)
