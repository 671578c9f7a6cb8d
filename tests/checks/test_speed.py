"""Mistakes in precision, memory and speed are told before anything is created."""

from typing import Any

import pytest
import torch

import promptir_basicsr  # noqa: F401  (prepares BasicSR)
from promptir_basicsr.checks.run import check_options
from tests.checks.test_run import MISSING, measuring, put, training

EDSR = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 2, 'upscale': 1}


def of(place: str, value: Any, options: dict[str, Any] | None = None, **others: Any) -> list[str]:
    options = options or training()
    put(options, place, value)
    for key, other in others.items():
        put(options, key.replace('__', '.'), other)
    return [str(problem) for problem in check_options(options, is_train='train' in options)]


RIGHT: list[tuple[str, Any]] = [
    *(('precision', value) for value in ('fp32', 'bf16', 'fp16', None)),
    *(('val.precision', value) for value in ('fp32', 'bf16', 'fp16', None)),
    *(('formulation', value) for value in ('fast', 'plain', None)),
    *(('activation_checkpointing', value) for value in ('none', 'gate', 'block', None)),
    *(('channels_last', value) for value in (True, False, None)),
    *(('compile', value) for value in (True, False, 'max-autotune', None)),
    *(('val.compile', value) for value in (True, False, None)),
    *(('train.accumulate', value) for value in (1, 2, None)),
    ('train.optim_g.fused', True),
    ('train.optim_g.foreach', True),
]


@pytest.mark.parametrize(('place', 'value'), RIGHT)
def test_what_is_allowed_passes(place: str, value: Any) -> None:
    assert of(place, value) == []
    if not place.startswith('train.'):
        assert of(place, value, measuring()) == []


MISTAKES: list[tuple[str, Any, str]] = [
    ('precission', 'bf16', "options: unknown option 'precission'. Did you mean 'precision'?"),
    ('formulations', 'fast', "options: unknown option 'formulations'. Did you mean 'formulation'?"),
    (
        'activation_checkpoint',
        'gate',
        "unknown option 'activation_checkpoint'. Did you mean 'activation_checkpointing'?",
    ),
    ('channel_last', True, "options: unknown option 'channel_last'. Did you mean 'channels_last'?"),
    ('compiled', True, "options: unknown option 'compiled'. Did you mean 'compile'?"),
    ('val.precison', 'bf16', "val: unknown option 'precison'. Did you mean 'precision'?"),
    ('val.compil', True, "val: unknown option 'compil'. Did you mean 'compile'?"),
    ('train.acumulate', 2, "train: unknown option 'acumulate'. Did you mean 'accumulate'?"),
    ('train.optim_g.fusd', True, "train.optim_g: unknown option 'fusd'. Did you mean 'fused'?"),
    ('precision', 'bf61', "precision: unknown precision 'bf61'. Did you mean 'bf16'? Allowed: bf16, fp16, fp32, tf32."),
    ('precision', 16, "precision: unknown precision '16'."),
    ('precision', ['bf16'], 'precision: unknown precision'),
    ('precision', 'tf32', 'precision: tf32 is a format of GPUs, and this run is on the CPU. Use fp32 or bf16.'),
    ('val.precision', 'float32', "val.precision: unknown precision 'float32'."),
    ('val.precision', 'tf32', 'val.precision: tf32 is a format of GPUs'),
    ('formulation', 'quick', "formulation: unknown choice 'quick'. Allowed: fast, plain."),
    ('activation_checkpointing', True, "activation_checkpointing: unknown choice 'True'. Allowed: block, gate, none."),
    ('activation_checkpointing', 'blocks', "unknown choice 'blocks'. Did you mean 'block'?"),
    ('channels_last', 'yes', "channels_last: 'yes' is neither true nor false."),
    ('kernels', 'tritn', "kernels: unknown choice 'tritn'. Did you mean 'triton'?"),
    ('kernels', 'triton', 'kernels: the Triton kernels need Triton 3.3'),
    ('compile', 'max_autotune', "compile: 'max_autotune'; allowed: false, true, max-autotune."),
    ('compile', 1, 'compile: 1; allowed: false, true, max-autotune.'),
    ('val.compile', 'max-autotune', "val.compile: 'max-autotune' is neither true nor false."),
    ('train.accumulate', 0, 'train.accumulate: 0 is not a whole number of at least 1.'),
    ('train.accumulate', 1.5, 'train.accumulate: 1.5 is not a whole number of at least 1.'),
    ('train.accumulate', 3, '3 does not divide datasets.train.batch_size_per_gpu, 2, into equal parts. Allowed: 1, 2.'),
]


@pytest.mark.parametrize(('place', 'value', 'message'), MISTAKES)
def test_a_mistake_is_reported_once_with_its_place(place: str, value: Any, message: str) -> None:
    (problem,) = of(place, value)
    assert message in problem


@pytest.mark.parametrize(
    ('network', 'place', 'value', 'message'),
    [
        (EDSR, 'formulation', 'fast', 'formulation: EDSR has no blocks with two formulations'),
        (EDSR, 'activation_checkpointing', 'gate', "activation_checkpointing: EDSR: 'gate' needs the Transformer"),
        (
            {**EDSR, 'num_block': 1},
            'activation_checkpointing',
            'block',
            "activation_checkpointing: EDSR: 'block' needs repeated blocks in an nn.Sequential",
        ),
    ],
)
def test_a_network_without_such_blocks_is_reported(
    network: dict[str, Any], place: str, value: str, message: str
) -> None:
    (problem,) = of(place, value, network_g=network, train__prompt_opt=MISSING)
    assert problem.startswith(message)


def test_third_party_networks_may_recompute_their_blocks_and_need_no_choice() -> None:
    assert of('activation_checkpointing', 'block', network_g=EDSR, train__prompt_opt=MISSING) == []
    assert of('activation_checkpointing', 'none', network_g=EDSR, train__prompt_opt=MISSING) == []


def test_the_plain_formulation_recomputes_nothing() -> None:
    (problem,) = of('formulation', 'plain', activation_checkpointing='block')
    assert problem.startswith("activation_checkpointing: 'block' requires `formulation: fast`")


def test_a_sum_over_images_cannot_be_accumulated() -> None:
    assert of('train.pixel_opt.reduction', 'sum') == []
    (problem,) = of('train.pixel_opt.reduction', 'sum', train__accumulate=2)
    assert problem.startswith("train.pixel_opt.reduction: 'sum' is not a mean over images")


@pytest.mark.skipif(torch.cuda.is_available(), reason='the machine has GPUs')
def test_a_missing_gpu_may_exist_where_the_training_runs() -> None:
    options = training()
    put(options, 'precision', 'tf32')
    put(options, 'num_gpu', 'auto')
    (problem,) = check_options(options, is_train=True)
    assert (problem.path, problem.kind) == (('precision',), 'machine')


def test_a_test_has_no_step() -> None:
    assert of('precision', 'tf32', measuring()) == []
    assert len(of('val.precision', 'tf32', measuring())) == 1


def test_several_mistakes_are_reported_at_once() -> None:
    problems = of('precision', 'half', compile='yes', val__precision='single', train__accumulate=5)
    places = {problem.partition(':')[0] for problem in problems}
    assert places == {'precision', 'val.precision', 'compile', 'train.accumulate'}
    assert len(problems) == 4
