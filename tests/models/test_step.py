"""The training step: parts of a batch, optimizer, average, memory layout, one line about all of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from torch import nn

import promptir_basicsr  # noqa: F401  (registers)
from promptir_basicsr.archs.fast import kernels
from promptir_basicsr.core.errors import OptionError
from tests.models.step_data import EDSR, PIP, distribute, gradients, model_with, photographs, train, weights

LOSSES = {
    'train__frequency_opt': {'type': 'FrequencyLoss'},
    'train__prompt_opt': {'type': 'PromptDecorrelationLoss', 'kind': 'cosine', 'loss_weight': 0.5},
}
SGD = {'type': 'SGD', 'lr': 0.05}


def in_double(model: Any) -> Any:
    """The model in double precision, in which only mistakes differ."""
    model.net_g.double()
    if hasattr(model, 'net_g_ema'):
        model.net_g_ema.double()
    return model


# parts of a batch


@pytest.mark.parametrize('scaler', [None, {}], ids=['plain', 'loss_scaler'])
@pytest.mark.parametrize(
    ('images', 'parts'), [(4, 3), (2, 5), *(pytest.param(4, parts, marks=pytest.mark.slow) for parts in (2, 4))]
)
def test_a_batch_in_parts_has_the_gradient_and_the_log_of_the_whole(
    tmp_path: Path, images: int, parts: int, scaler: dict[str, Any] | None
) -> None:
    def run(accumulate: int) -> tuple[Any, list[dict[str, float]]]:
        options = {'train__accumulate': accumulate, 'train__loss_scaler': scaler, 'train__optim_g': SGD, **LOSSES}
        model = in_double(model_with(tmp_path, PIP, **options))
        batch = photographs(images, torch.float64)
        logs = train(model, batch)
        # The loss scaler steps in here.
        return model, logs + train(model, {**batch, 'gt': 20 * batch['gt']}, first=2)

    (whole, whole_logs), (split, logs) = run(1), run(parts)
    assert [log.get('loss_scale', 1) < 1 for log in logs] == [False, scaler is not None]
    for log, expected in zip(logs, whole_logs, strict=True):
        assert log == pytest.approx(expected, rel=1e-6)
    for name, gradient in gradients(whole).items():
        torch.testing.assert_close(gradients(split)[name], gradient, rtol=1e-6, atol=1e-12)
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(split)[name], value, rtol=1e-9, atol=1e-12)
    # What comes after a step sees the whole batch.
    torch.testing.assert_close(split.output, whole.output, rtol=1e-9, atol=1e-12)
    assert not split.output.requires_grad
    assert {len(value) for value in vars(split.batch).values() if value is not None} == {images}


def test_each_part_has_its_own_images_and_labels(tmp_path: Path) -> None:
    model = model_with(tmp_path, PIP, train__accumulate=2)
    given = []
    model.net_g.register_forward_pre_hook(lambda _, arguments: given.append(arguments))
    batch = photographs()
    train(model, batch)
    assert [len(image) for image, _ in given] == [2, 2]
    assert torch.equal(torch.cat([image for image, _ in given]), batch['lq'])
    assert torch.cat([label for _, label in given]).tolist() == batch['degradation'].tolist()


def test_a_step_in_parts_is_one_step_of_optimizer_and_average(tmp_path: Path) -> None:
    options = {'train__accumulate': 4, 'train__optim_g': {'type': 'Adam', 'lr': 1e-3}, 'train__ema_decay': 0.5}
    model = model_with(tmp_path, EDSR, **options)
    first = weights(model)
    train(model, photographs())
    assert {state['step'].item() for state in model.optimizer_g.state.values()} == {1}
    for name, value in model.net_g_ema.state_dict().items():
        torch.testing.assert_close(value, (first[name] + weights(model)[name]) / 2)


def test_parts_need_less_memory(tmp_path: Path) -> None:
    def most(accumulate: int) -> int:
        """Bytes that are kept for a backward pass at one time."""
        model = model_with(tmp_path, EDSR, train__accumulate=accumulate)
        kept = [0]
        model.net_g.register_forward_pre_hook(lambda *_: kept.append(0))

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            kept[-1] += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            train(model, photographs())
        return max(kept)

    assert most(4) < 0.35 * most(1)


def test_a_sum_over_images_is_refused_in_parts_only(tmp_path: Path) -> None:
    loss = {'type': 'L1Loss', 'reduction': 'sum'}
    model_with(tmp_path, EDSR, train__pixel_opt=loss)
    with pytest.raises(OptionError, match=r'^train\.pixel_opt: is not a mean over images'):
        model_with(tmp_path, EDSR, train__pixel_opt=loss, train__accumulate=2)


# everything together


def test_the_options_combine(tmp_path: Path) -> None:
    options = {**LOSSES, 'train__loss_scaler': {}, 'train__ema_decay': 0.9, 'train__grad_clip_norm': 1.0}
    plain = model_with(tmp_path, PIP, **options)
    all_at_once = model_with(
        tmp_path,
        PIP,
        precision='bf16',
        activation_checkpointing='block',
        channels_last=True,
        train__accumulate=2,
        val__precision='bf16',
        **options,
    )
    batch = photographs()
    expected, logs = train(plain, batch, steps=6), train(all_at_once, batch, steps=6)
    assert expected[-1]['l_pix'] < 0.95 * expected[0]['l_pix']
    for log, other in zip(logs, expected, strict=True):
        assert log.keys() == other.keys()
        assert log['l_pix'] == pytest.approx(other['l_pix'], rel=0.02)
    plain.feed_data(batch)
    plain.test()
    all_at_once.feed_data(batch)
    all_at_once.test()
    assert (all_at_once.output - plain.output).abs().max() < 0.05
    assert list(all_at_once.net_g.state_dict()) == list(plain.net_g.state_dict())


def train_half(rank: int, folder: str) -> None:
    """One of two processes, with half of each batch, in two parts."""
    torch.set_num_threads(1)
    meeting = f'file://{folder}/meeting'
    torch.distributed.init_process_group('gloo', init_method=meeting, rank=rank, world_size=2)
    try:
        options = {**LOSSES, 'train__loss_scaler': {}, 'train__optim_g': SGD, 'train__accumulate': 2}
        model = in_double(model_with(Path(folder), PIP, **options))
        distribute(model, rank)
        halves = slice(2 * rank, 2 * rank + 2)
        batch = {key: value[halves] for key, value in photographs(4, torch.float64).items()}
        logs = train(model, batch) + train(model, {**batch, 'gt': 20 * batch['gt']}, first=2)
        torch.save({'net': weights(model), 'logs': logs}, f'{folder}/rank{rank}.pth')
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_with_parts_train_as_one_with_the_whole(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(train_half, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f'rank{rank}.pth', weights_only=True) for rank in (0, 1))
    alone = in_double(model_with(tmp_path, PIP, **LOSSES, train__loss_scaler={}, train__optim_g=SGD))
    batch = photographs(4, torch.float64)
    logs = train(alone, batch) + train(alone, {**batch, 'gt': 20 * batch['gt']}, first=2)
    assert logs[1]['loss_scale'] < 1
    for log, of_both in zip(logs, first['logs'], strict=True):
        assert of_both == pytest.approx(log, rel=1e-6)
    for name, value in weights(alone).items():
        assert torch.equal(first['net'][name], second['net'][name])
        torch.testing.assert_close(first['net'][name], value, rtol=1e-7, atol=1e-10)


# optimizer and average


@pytest.mark.parametrize(
    ('options', 'fused', 'foreach'),
    [
        ({'type': 'Adam'}, True, None),
        ({'type': 'AdamW', 'betas': [0.9, 0.99], 'weight_decay': 0.1}, True, None),
        ({'type': 'SGD', 'momentum': 0.9}, True, None),
        ({'type': 'Adagrad'}, True, None),
        ({'type': 'AdamW', 'foreach': True}, None, True),
        ({'type': 'AdamW', 'fused': False}, False, None),
        ({'type': 'RMSprop'}, None, None),
        # Fused kernels cannot be differentiated.
        ({'type': 'Adam', 'differentiable': True}, None, None),
    ],
    ids=str,
)
def test_the_optimizer_is_fused_where_that_is_possible(
    tmp_path: Path, options: dict[str, Any], fused: bool | None, foreach: bool | None
) -> None:
    model = model_with(tmp_path, EDSR, train__optim_g={**options, 'lr': 1e-3})
    group = model.optimizer_g.param_groups[0]
    assert type(model.optimizer_g).__name__ == options['type']
    assert group.get('fused') == fused
    assert group['foreach'] == foreach
    assert group['lr'] == 1e-3


@pytest.mark.parametrize('kind', ['Adam', 'AdamW', 'SGD', 'Adagrad'])
def test_a_fused_step_is_the_optimizers_step(tmp_path: Path, kind: str) -> None:
    fused = model_with(tmp_path, EDSR, train__optim_g={'type': kind, 'lr': 1e-2})
    plain = model_with(tmp_path, EDSR, train__optim_g={'type': kind, 'lr': 1e-2, 'foreach': False})
    train(fused, photographs(), steps=2)
    train(plain, photographs(), steps=2)
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(fused)[name], value, rtol=1e-5, atol=1e-6)


def test_a_wrong_optimizer_argument_is_still_reported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='Invalid beta parameter'):
        model_with(tmp_path, EDSR, train__optim_g={'type': 'Adam', 'lr': 1e-3, 'betas': [2.0, 0.9]})


@pytest.mark.parametrize('decay', [0, 0.3, 0.999])
def test_the_average_has_the_bits_of_the_loop(tmp_path: Path, decay: float) -> None:
    model = model_with(tmp_path, PIP, train__ema_decay=0.999)
    for module in (model.net_g, model.net_g_ema):
        module.register_buffer('count', torch.tensor([1, 2]))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.net_g.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    model.net_g.count += 5
    expected = {
        name: averaged.lerp(model.net_g.get_parameter(name), 1 - decay)
        for name, averaged in model.net_g_ema.named_parameters()
    }
    model.model_ema(decay)
    assert all(torch.equal(averaged, expected[name]) for name, averaged in model.net_g_ema.named_parameters())
    assert model.net_g_ema.count.tolist() == [6, 7]


# memory layout


def is_channels_last(tensor: torch.Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


@pytest.mark.parametrize('network', [EDSR, PIP], ids=lambda network: network['type'])
def test_channels_last_changes_the_layout_and_no_number(tmp_path: Path, network: dict[str, Any]) -> None:
    plain = in_double(model_with(tmp_path, network, train__ema_decay=0.5))
    model = in_double(model_with(tmp_path, network, train__ema_decay=0.5, channels_last=True))
    seen = []
    model.net_g.register_forward_pre_hook(lambda _, arguments: seen.append(is_channels_last(arguments[0])))
    batch = photographs(4, torch.float64)
    train(plain, batch, steps=3)
    train(model, batch, steps=3)
    assert seen == [True] * 3
    for net in (model.net_g, model.net_g_ema):
        convolutions = [part.weight for part in net.modules() if isinstance(part, nn.Conv2d)]
        assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in convolutions)
        assert any(is_channels_last(weight) for weight in convolutions)
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(model)[name], value, rtol=1e-9, atol=1e-12)


def test_a_run_may_resume_in_another_layout(tmp_path: Path) -> None:
    """Fused optimizers read the moments in the order in which they lie in memory."""
    whole = model_with(tmp_path, EDSR)
    batch = photographs()
    train(whole, batch, steps=2)
    whole.save(0, 2)
    train(whole, batch, steps=2, first=3)
    resumed = model_with(tmp_path, EDSR, channels_last=True)
    resumed.load_network(resumed.net_g, str(tmp_path / 'models' / 'net_g_2.pth'))
    resumed.resume_training(torch.load(tmp_path / 'training_states' / '2.state', weights_only=True))
    train(resumed, batch, steps=2, first=3)
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(resumed)[name], value, rtol=1e-5, atol=1e-6)


# what the log says


@pytest.mark.parametrize(
    ('network', 'changes', 'line'),
    [
        (EDSR, {}, 'fp32, activation checkpointing none, default layout, not compiled, batches at once, Adam (fused)'),
        (
            EDSR,
            {
                'precision': 'bf16',
                'activation_checkpointing': 'block',
                'channels_last': True,
                'train__accumulate': 4,
                'train__optim_g': {'type': 'RMSprop', 'lr': 1e-3},
            },
            'bf16, activation checkpointing block, channels last, not compiled, batches in 4 parts, RMSprop',
        ),
        (
            PIP,
            {'datasets__train__batch_size_per_gpu': 8, 'train__accumulate': 2, 'formulation': 'plain'},
            'fp32, plain formulation, activation checkpointing none, default layout, not compiled, '
            'batches of 8 in 2 parts, Adam (fused)',
        ),
    ],
    ids=['defaults', 'others', 'ours'],
)
def test_one_line_describes_the_step(
    tmp_path: Path, host_log: pytest.LogCaptureFixture, network: dict[str, Any], changes: dict[str, Any], line: str
) -> None:
    model_with(tmp_path, network, **changes)
    assert {record.message for record in host_log.records if record.message.startswith('Step:')} == {f'Step: {line}.'}


def test_the_line_names_kernels(
    tmp_path: Path, host_log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, 'available', True)
    monkeypatch.setattr(kernels, 'interpreted', True)  # which needs no GPU
    monkeypatch.setattr(kernels, 'enabled', False)
    model_with(tmp_path, PIP, kernels='triton')
    assert 'Step: fp32, fast formulation with triton kernels, activation checkpointing gate' in host_log.text
    assert kernels.enabled
    model_with(tmp_path, PIP)
    assert not kernels.enabled


def test_a_network_that_cannot_be_as_asked_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError) as caught:
        model_with(tmp_path, EDSR, formulation='plain')
    assert caught.value.lines == [
        'formulation: EDSR has no blocks with two formulations, as PromptIR and PIP have. Omit the key.'
    ]
    with pytest.raises(OptionError, match=r'^kernels: the Triton kernels need Triton'):
        model_with(tmp_path, PIP, kernels='triton', num_gpu=0)
    with pytest.raises(OptionError, match=r"^activation_checkpointing: EDSR: 'gate' needs"):
        model_with(tmp_path, EDSR, activation_checkpointing='gate')
