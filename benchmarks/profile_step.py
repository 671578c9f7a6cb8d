"""Where the time of a training step and of inference goes, and what an iteration does beside them.

    python -m benchmarks.profile_step [--network pip] [--size 128] [--batch 1] [--variants reference fast+gate]

Writes two Markdown tables. The first has the time of each kind of operation, from torch.profiler: on a CPU what
operators take themselves, on a GPU what their kernels take. Convolutions are told apart by their weights. Sums and
products belong to the module or the autograd function in which they happen, those of the backward pass to the ones
whose gradient they compute; where that says nothing they are 'sums, products, others'. A kernel that convolves and
gates is a convolution. 'Dispatch' is what autograd, Python and operators without numbers (views) take on a CPU.

The second is a real run of `basicsr train` in a temporary folder: options/promptir_allinone.yml with an averaged
network, on photographs in the sizes and file formats of the paper's corpora, decoded by one worker. It logs every
iteration, a hundred times as often as the file says, so the share of logging is an upper bound.
"""

import argparse
import functools
import re
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import yaml
from torch import nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

import promptir_basicsr  # noqa: F401  (registers)

# isort: split
import basicsr.train
from basicsr.data.prefetch_dataloader import CPUPrefetcher
from basicsr.utils.logger import MessageLogger

from benchmarks.data_loading import options_of, write_corpora
from benchmarks.hardware import hardware
from benchmarks.speed import add_common_arguments, device_of
from benchmarks.variants import NETWORKS, TINY, Run, Variant, Workload, parse_size, parse_variant
from promptir_basicsr.archs.layers.formulation import Formulated
from promptir_basicsr.core.vocabulary import PRECISIONS
from promptir_basicsr.core.yaml_loader import load_yaml
from promptir_basicsr.models import PromptModel, step
from tests.test_extending import ROOT, merged

DISPATCH, OTHERS = 'dispatch', 'sums, products, others'
KINDS = (
    'matrix products, 1x1 convolutions',
    'depthwise 3x3 convolutions',
    '3x3 convolutions',
    'normalisation',
    'gate',
    'attention, without its products',
    'copies, layout',
    OTHERS,
    DISPATCH,
)
PRODUCTS, DEPTHWISE, CONV3X3, NORM, GATE, ATTENTION, COPIES = KINDS[:7]
MODULE = 'module '
"""In front of the class of a module, in the names of events."""

OPERATORS = {
    PRODUCTS: r'mm|addmm|bmm|baddbmm|addbmm|dot|mv|linear.*|.*gemm.*',
    NORM: r'var|var_mean|std|native_layer_norm.*|rsqrt_?',
    GATE: r'gelu.*|erf.*|sigmoid.*',
    ATTENTION: r'_softmax.*|topk|scatter.*|gather|where|linalg_vector_norm|clamp_min.*|masked_fill_?',
    COPIES: r'copy_|cat|.*_shuffle|.*unshuffle|constant_pad_nd|fill_|zero_|slice_backward|index.*|.*transpose_copy',
    DISPATCH: r'empty.*|.*view.*|.*reshape.*|as_strided.*|expand|select|slice|narrow|t|transpose|permute|resolve_.*|'
    r'unsqueeze|squeeze|detach|resize_|set_|split.*|chunk|to|lift_fresh|alias|result_type|contiguous|clone|_to_copy|'
    r'conv2d|einsum|matmul|softmax|ones_like|zeros_like|empty_like|zeros|ones|new_.*',
}
"""What tells by its name alone what it is."""

PLACES = {
    NORM: r'norm',
    DEPTHWISE: r'depthwise',
    GATE: r'gate|gelu|ffn|feedforward|gdfn',
    ATTENTION: r'attention|attn|mdta|gram',
}
"""Words in the name of a module or an autograd function, for sums and products in it."""

PARTS = ('network and loss', 'data', 'optimizer', 'averaging (EMA)', 'logging')
TASKS = ('noise', 'rain', 'haze')
SKIPPED = 2  # iterations at the start


def times_of(run: Run) -> dict[str, float]:
    """Milliseconds of one step by kind of operation."""
    run.step()
    run.clear()
    activities = [ProfilerActivity.CPU]
    if run.device.type == 'cuda':
        activities.append(ProfilerActivity.CUDA)
        torch.cuda.synchronize()
    with named_modules(run.net), profile(activities=activities, record_shapes=True) as profiler:
        run.step()
        if run.device.type == 'cuda':
            torch.cuda.synchronize()
    run.clear()
    events = [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CPU]
    # An operator has the number that the node of its gradient gets; of several with the same, the last made the node.
    forward = {event.sequence_nr: event for event in events if event.sequence_nr >= 0 and not _is_backward(event)}
    times: dict[str, float] = defaultdict(float)
    for event in events:
        spent = event.self_device_time_total if run.device.type == 'cuda' else event.self_cpu_time_total
        if spent:
            times[kind_of(event, forward)] += spent / 1000
    return dict(times)


@contextmanager
def named_modules(net: nn.Module) -> Iterator[None]:
    """The modules' classes appear among the profiler's events.

    Not those inside fast blocks, which hooks would have computed plainly; their autograd functions have names.
    """
    blocks = [block for block in net.modules() if isinstance(block, Formulated) and block.fast]
    inside = {module for block in blocks for child in block.children() for module in child.modules()}
    handles = []
    for module in (module for module in net.modules() if module not in inside):
        running: list[record_function] = []

        def enter(module: nn.Module, _: object, running: list[record_function] = running) -> None:
            running.append(record_function(MODULE + type(module).__name__))
            running[-1].__enter__()

        def leave(_: nn.Module, __: object, ___: object, running: list[record_function] = running) -> None:
            running.pop().__exit__(None, None, None)

        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def kind_of(event: FunctionEvent, forward: dict[int, FunctionEvent]) -> str:
    """One of KINDS.

    Args:
        forward: the operator of the forward pass by the number of the node of its gradient.
    """
    name = event.name.partition('::')[2] if event.name.startswith('aten::') else ''
    if 'conv' in name:
        return _convolution(event)
    for kind, pattern in OPERATORS.items():
        if name and re.fullmatch(pattern, name):
            return kind
    if not name and (event.name.startswith((MODULE, 'autograd::')) or event.name.endswith('Backward0')):
        return DISPATCH
    for place in _places(event, forward):
        for kind, pattern in PLACES.items():
            if re.search(pattern, place.lower()):
                return kind
    return OTHERS


def _convolution(event: FunctionEvent) -> str:
    weight = event.input_shapes[2 if 'backward' in event.name else 1] if len(event.input_shapes) > 2 else []
    if len(weight) != 4:
        return DISPATCH
    if weight[2:] == [1, 1]:
        return PRODUCTS
    return DEPTHWISE if weight[1] == 1 else CONV3X3


def _places(event: FunctionEvent, forward: dict[int, FunctionEvent]) -> Iterator[str]:
    """Names of what the event happens in, innermost first; then of what the operator differentiated happened in."""
    node = None
    parent: FunctionEvent | None = event
    while parent is not None:
        if not parent.name.startswith('aten::'):
            yield parent.name
        if _is_backward(parent):
            node = parent
        parent = parent.cpu_parent
    if node is not None and node.sequence_nr in forward:
        yield from _places(forward[node.sequence_nr], {})


def _is_backward(event: FunctionEvent) -> bool:
    return 'Backward' in event.name


def kind_table(given: argparse.Namespace, device: torch.device) -> list[str]:
    """The lines of the first table."""
    columns: dict[str, dict[str, float]] = {}
    for training in (True, False):
        workload = Workload(given.network, training, *given.size, given.batch, given.tiny)
        for name in given.variants:
            variant = Variant(name, given.precision)
            columns[f'{workload.mode}, {name}'] = times_of(Run(workload, variant, device, weights=None))
    lines = [f'| {given.network}, ms | {" | ".join(f"{name} | " for name in columns)} |']
    lines.append('|:--|' + '--:|' * 2 * len(columns))
    for kind in KINDS:
        lines.append(_line(kind, [(times.get(kind, 0), sum(times.values())) for times in columns.values()]))
    return [*lines, _line('together', [(sum(times.values()), sum(times.values())) for times in columns.values()])]


def _line(name: str, cells: list[tuple[float, float]]) -> str:
    shown = (f'{value:,.1f} | {100 * value / total:.1f} %' for value, total in cells)
    return f'| {name} | {" | ".join(shown)} |'


class Stopwatch:
    """Seconds of the parts of each iteration; an iteration starts where its data are asked for."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.iterations: list[dict[str, float]] = []
        self._parts: dict[str, float] = defaultdict(float)
        self._start: float | None = None

    def timed(self, part: str, function: Callable[..., Any], first: bool = False) -> Callable[..., Any]:
        """The function with its time added to a part; `first` for what begins an iteration."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            start = self._now()
            if first:
                self._begin(start)
            try:
                return function(*args, **kwargs)
            finally:
                self._parts[part] += self._now() - start

        return call

    def _now(self) -> float:
        if self.device.type == 'cuda':
            torch.cuda.synchronize()
        return time.perf_counter()

    def _begin(self, now: float) -> None:
        if self._start is not None:
            rest = now - self._start - sum(self._parts.values())
            self.iterations.append({**self._parts, PARTS[0]: rest})
        self._start, self._parts = now, defaultdict(float)


def options(root: Path, given: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Those of the paper's experiment, on photographs below `root`."""
    data = {**options_of(root / 'data', list(TASKS)), 'gt_size': given.size[0]}
    loader = {'batch_size_per_gpu': given.batch, 'num_worker_per_gpu': 1, 'persistent_workers': True}
    changes = {
        'name': 'profile',
        'num_gpu': 0 if device.type == 'cpu' else 1,
        'network_g': {name: list(value) if isinstance(value, tuple) else value for name, value in TINY.items()},
        'train': {'total_iter': given.iterations, 'ema_decay': 0.999},
        'logger': {'print_freq': 1, 'save_checkpoint_freq': 10 * given.iterations},
    }
    if not given.tiny:
        del changes['network_g']
    read = merged(load_yaml(str(ROOT / 'options' / 'promptir_allinone.yml')), changes)
    del read['val'], read['dist_params']
    return {**read, 'datasets': {'train': {**data, **loader, 'pin_memory': device.type == 'cuda'}}}


def iterations(given: argparse.Namespace, device: torch.device) -> list[dict[str, float]]:
    """Seconds of the parts of the iterations of a run of `basicsr train`."""
    watch = Stopwatch(device)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        root = Path(folder)
        write_corpora(root / 'data', given.images, TASKS)
        file = root / 'profile.yml'
        chosen = options(root, given, device)
        file.write_text(yaml.safe_dump(chosen), encoding='utf-8')
        optimizer = getattr(torch.optim, chosen['train']['optim_g']['type'])
        stack.enter_context(patch.object(CPUPrefetcher, 'next', watch.timed('data', CPUPrefetcher.next, first=True)))
        for part, owner, name in (
            ('data', PromptModel, 'feed_data'),
            ('optimizer', optimizer, 'step'),
            ('optimizer', optimizer, 'zero_grad'),
            ('optimizer', PromptModel, 'update_learning_rate'),
            ('averaging (EMA)', step, 'move_average'),
            ('logging', step.TrainingStep, '_record_tasks'),
            ('logging', PromptModel, 'get_current_log'),
            ('logging', MessageLogger, '__call__'),
        ):
            stack.enter_context(patch.object(owner, name, watch.timed(part, getattr(owner, name))))
        stack.enter_context(patch.object(sys, 'argv', ['basicsr train', '-opt', str(file)]))
        stack.enter_context(redirect_stdout(sys.stderr))  # the tables' is for the tables
        basicsr.train.train_pipeline(folder)
    return watch.iterations[SKIPPED:]


def part_table(found: list[dict[str, float]]) -> list[str]:
    """The lines of the second table: means over iterations."""
    means = {part: sum(iteration.get(part, 0.0) for iteration in found) / len(found) for part in PARTS}
    total = sum(means.values())
    lines = ['| part of an iteration | ms | share |', '|:--|--:|--:|']
    lines += [_line(part, [(1000 * seconds, 1000 * total)]) for part, seconds in means.items()]
    return [*lines, _line('all but the network and its loss', [(1000 * (total - means[PARTS[0]]), 1000 * total)])]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog='python -m benchmarks.profile_step')
    parser.add_argument('--network', choices=NETWORKS, default='promptir', help='of the first table')
    parser.add_argument('--size', type=parse_size, default=(128, 128), metavar='HxW')
    parser.add_argument('--batch', type=int, default=1)
    parser.add_argument('--precision', choices=PRECISIONS, default='fp32', help='of the first table')
    parser.add_argument('--variants', nargs='+', type=parse_variant, default=['reference', 'fast'])
    parser.add_argument('--iterations', type=int, default=12, help='of the run for the second table')
    parser.add_argument('--images', type=int, default=12, help='photographs a task')
    add_common_arguments(parser)
    given = parser.parse_args(arguments)
    if given.iterations <= SKIPPED:
        parser.error(f'--iterations {given.iterations}: the first {SKIPPED} are not counted; give more.')
    device = device_of(given.device)
    lines = [*kind_table(given, device), '', *part_table(iterations(given, device)), '', hardware(('torch',), device)]
    sys.stdout.write('\n'.join(lines) + '\n')


if __name__ == '__main__':
    main()
