"""The reference that speed is measured against, and the benchmarks of speed on tiny networks."""

import argparse
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import memory, profile_step, roofline, speed
from benchmarks.memory import bytes_kept
from benchmarks.reference import Block, CrossBlock, ReferencePIP, ReferencePromptIR
from benchmarks.variants import TINY, Run, Variant, Workload, parse_size, parse_variant, weights_of
from promptir_basicsr.archs import PIPRestormer, PromptIR
from promptir_basicsr.archs.layers.formulation import Formulated, set_formulation
from promptir_basicsr.core.vocabulary import FORMULATIONS
from tests.golden.seeded import seeded_fill, seeded_image

GOLDEN = Path(__file__).parents[1] / 'golden'
CPU = torch.device('cpu')
PAIRS = {'promptir': (PromptIR, ReferencePromptIR), 'pip': (PIPRestormer, ReferencePIP)}


def outputs_and_gradients(net: nn.Module, network: str) -> tuple[Tensor, dict[str, Tensor]]:
    told = [torch.tensor([1, 3])] if network == 'pip' else []
    dtype = next(net.parameters()).dtype
    output = net(seeded_image((2, 3, 32, 40)).to(dtype), *told)
    F.smooth_l1_loss(output, seeded_image((2, 3, 32, 40), 1).to(dtype)).backward()
    return output.detach(), {name: p.grad for name, p in net.named_parameters()}


@pytest.mark.parametrize(('network', 'options'), [
    ('promptir', {}),
    ('pip', {}),  # prompts wider than features
    ('pip', {'prompt_dims': (12, 16, 24)}),  # wider, as wide, narrower
])  # fmt: skip
def test_the_reference_computes_the_same(network: str, options: dict[str, Any]) -> None:
    ours, plain = PAIRS[network]
    net = seeded_fill(ours(**TINY, **options)).double()
    reference = plain(**TINY, **options).double()
    reference.load_state_dict(net.state_dict())
    expected, gradients = outputs_and_gradients(reference, network)
    for formulation in FORMULATIONS:
        set_formulation(net, formulation)
        net.zero_grad()
        output, found = outputs_and_gradients(net, network)
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-10)
        for name, gradient in gradients.items():
            difference = (found[name] - gradient).norm() / gradient.norm().clamp_min(1e-12)
            assert difference < 1e-9, f'{formulation}: {name}'
        assert speed.gradient_difference(found, gradients) < 1e-10


@pytest.mark.parametrize(('network', 'file', 'key', 'labels'), [
    ('promptir', 'promptir_dev', 'y_2x32x48_s1', None),
    ('pip', 'pip_cross_topm_dev', 'y_2x32x48_s1_c0_3', [0, 3]),
])  # fmt: skip
def test_the_reference_gives_the_released_programs_output(network: str, file: str, key: str, labels: Any) -> None:
    with torch.device('meta'):
        net = PAIRS[network][1]()
    seeded_fill(net.to_empty(device='cpu'))
    told = [] if labels is None else [torch.tensor(labels)]
    with np.load(GOLDEN / f'{file}.npz') as golden, torch.no_grad():
        expected = torch.from_numpy(golden[key])
        torch.testing.assert_close(net(seeded_image((2, 3, 32, 48), 1), *told), expected, rtol=0, atol=1e-4)


def test_kept_bytes_count_a_storage_once_and_no_weights() -> None:
    weight = torch.ones(10, 10, requires_grad=True)
    x = torch.ones(10, 10)

    def forward() -> Tensor:
        y = (weight * x).exp()  # keeps x, and its result
        return (y * y.t()).mul(weight).sin().sum()  # two views of it, weight, input of sin

    assert bytes_kept(forward, [weight, x]) == 3 * 100 * 4
    assert bytes_kept(forward, []) == 5 * 100 * 4


def test_peak_memory_of_a_training_step_holds_what_it_keeps() -> None:
    run = Run(Workload('promptir', True, 64, 96, 2, tiny=True), Variant('reference'), CPU, weights=None)
    saved, peak = memory.saved_bytes(run), memory.peak_memory(run)
    assert saved is not None
    assert peak is not None
    assert saved < peak < 2 * saved


def table_of(text: str) -> list[dict[str, str]]:
    """The rows of the last Markdown table, by column; of columns with one name the last."""
    lines = [line.strip('| ') for line in text.split('\n\n')[-1].splitlines() if line.startswith('|')]
    head, _, *rows = [re.split(r' *\| ?', line) for line in lines]
    return [dict(zip(head, row, strict=False)) for row in rows]


def test_speed_writes_a_row_a_variant(capsys: pytest.CaptureFixture[str]) -> None:
    speed.main('--tiny --device cpu --networks pip --sizes 32x40 --precisions fp32 bf16 --rounds 1 --no-memory'.split())
    out = capsys.readouterr().out
    assert f'torch {torch.__version__.partition("+")[0]}' in out
    rows = table_of(out)
    assert len(rows) == 2 * (2 + 4)  # precisions, variants of inference and training
    for row in rows:
        plain = (row['variant'], row['precision']) == ('reference', 'fp32')
        assert float(row['s']) > 0
        assert (row['time'] == '1.00') or not plain
        assert float(row['output']) <= (0 if plain else 1e-4 if row['precision'] == 'fp32' else 1.0)
        if row['mode'] == 'training':
            assert float(row['gradient']) <= (0 if plain else 1e-5 if row['precision'] == 'fp32' else 0.2)


def test_too_little_memory_is_reported_in_a_row() -> None:
    def work() -> None:
        raise torch.OutOfMemoryError('CUDA out of memory')

    workload = Workload('promptir', True, 128, 128, 32)
    baseline = speed.Result(Variant('reference'), [1.0, 1.0])
    result = speed.Result(Variant('fast', 'bf16'), [0.5])
    assert speed._attempt(result, work) is None
    assert 'fast | bf16 | out of memory |' in speed.row(workload, result, baseline)
    assert speed._attempt(result, lambda: 1) is None  # it is not tried again
    whole = speed.Result(Variant('fast', 'bf16'), [0.5])
    assert '| 0.5 | 64 |  |' in speed.row(workload, whole, result)


def test_half_precision_scales_its_gradients_back() -> None:
    workload = Workload('promptir', True, 32, 32, tiny=True)
    runs = [Run(workload, Variant('reference', p), CPU, weights_of(workload)) for p in ('fp32', 'fp16')]
    for run in runs:
        run.step()
    assert speed.gradient_difference(runs[1].gradients(), runs[0].gradients()) < 0.1


@pytest.mark.parametrize('text', ['slow', 'fast+fusion', 'none', 'fast+'])
def test_an_unknown_variant_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"unknown variant.*'reference', 'fast' or 'plain'"):
        parse_variant(text)


@pytest.mark.parametrize('text', ['130', '128x', 'x', '0', '64x64x64', 'big'])
def test_an_impossible_size_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match='multiples of 8'):
        parse_size(text)


@pytest.mark.slow
def test_a_profile_has_every_kind_and_the_parts_of_a_real_run(capsys: pytest.CaptureFixture[str]) -> None:
    profile_step.main('--tiny --device cpu --size 32 --iterations 4 --images 1 --network pip'.split())
    kinds, parts, hardware = capsys.readouterr().out.split('\n\n')
    assert kinds.startswith('| pip, ms |')
    rows = {row['pip, ms']: row for row in table_of(kinds)}
    assert list(rows) == [*profile_step.KINDS, 'together']
    assert all(float(row['training, reference'].replace(',', '')) > 0 for row in rows.values())
    shares = {row['part of an iteration']: float(row['share'].rstrip(' %')) for row in table_of(parts)}
    assert sum(shares[part] for part in profile_step.PARTS) == pytest.approx(100, abs=0.5)
    assert all(share > 0 for share in shares.values())
    assert 'thread' in hardware


def test_the_profile_leaves_fast_blocks_fast() -> None:
    run = Run(Workload('promptir', True, 32, 32, tiny=True), Variant('fast'), CPU, weights=None)
    blocks = [module for module in run.net.modules() if isinstance(module, Formulated)]
    with profile_step.named_modules(run.net):
        assert len(blocks) > 8
        assert all(block.fast for block in blocks)


def test_the_profile_separates_convolutions_and_sums_the_backward_pass() -> None:
    class LayerNorm(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = LayerNorm()
            self.parts = nn.ModuleList([
                nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 16, 3),
            ])  # fmt: skip

        def forward(self, x: Tensor) -> Tensor:
            for part in self.parts:
                x = part(x)
            return self.norm(x)

    run = Run(Workload('promptir', True, 64, 64, tiny=True), Variant('reference'), CPU, weights=None)
    run.net, run.input, run.target = Net(), (torch.rand(1, 16, 64, 64),), torch.rand(1, 16, 60, 60)
    times = profile_step.times_of(run)
    assert {profile_step.PRODUCTS, profile_step.DEPTHWISE, profile_step.CONV3X3, profile_step.NORM} <= times.keys()
    assert not {profile_step.GATE, profile_step.ATTENTION} & times.keys()


@pytest.mark.parametrize(('side', 'macs'), [(128, 43.2e9), (256, 172.7e9)])
def test_operations_are_those_of_the_released_network(side: int, macs: float) -> None:
    cost = roofline.cost_of(Workload('promptir', False, side, side))
    assert cost.operations == pytest.approx(2 * macs, rel=2e-3)
    assert cost.parameters == 35_376_967
    operations, moved = cost.of(Workload('promptir', True, side, side, batch=32), 'bf16')
    assert operations == 3 * 32 * cost.operations
    assert moved == 2 * 32 * (cost.forward + cost.backward) + 8 * cost.parameters


def test_bytes_of_a_block() -> None:
    x, prompt = torch.empty(1, 8, 4, 4), torch.empty(1, 12, 4, 4)
    one, wide = x.numel(), prompt.numel()
    assert roofline.traffic(Block(8, 2, 2.0), (x,), x) == (7 * one, 8 * one)
    forward = (one + wide) + wide + (one + wide) + one + 2 * one  # in, v; in, v, out; the other half
    backward = (one + wide + one) + (one + wide + one) + (one + wide) + 3 * one
    assert roofline.traffic(CrossBlock(8, 12, 2.0), (x, prompt), x) == (forward, backward)


@pytest.mark.slow
def test_the_roofline_is_a_share_of_given_peaks(capsys: pytest.CaptureFixture[str]) -> None:
    roofline.main(
        '--tiny --device cpu --networks promptir pip --sizes 32 --rounds 1 --peak-flops 1e12 --bandwidth 1e9'.split()
    )
    rows = table_of(capsys.readouterr().out)
    assert len(rows) == 2 * 2 * 2
    for row in rows:
        least = max(float(row['operations, ms']), float(row['bytes, ms']))
        assert float(row['bytes, ms']) == pytest.approx(1000 * float(row['GB']), rel=0.1, abs=5)
        assert float(row['share'].rstrip(' %')) == pytest.approx(100 * least / float(row['step, ms']), rel=0.05)
