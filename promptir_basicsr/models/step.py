"""Training step: mixed precision, gradient accumulation, compilation, logging."""

import inspect
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from promptir_basicsr.archs.fast.kernels import kernel_problems, set_kernels
from promptir_basicsr.archs.layers.formulation import Formulated
from promptir_basicsr.archs.traits import unwrapped
from promptir_basicsr.core.errors import OptionError, raise_problems
from promptir_basicsr.data.stages import by_stage
from promptir_basicsr.losses.loss_scaler import LossScaler
from promptir_basicsr.models.batch import Batch, Output, joined, mapped, tensors_of
from promptir_basicsr.models.nonfinite import SickSteps, Step, moving_state
from promptir_basicsr.models.objective import Objective
from promptir_basicsr.runtime.compilation import compile_in_place, compiling
from promptir_basicsr.runtime.precision import autocast, device_problems, set_float32, widened
from promptir_basicsr.runtime.recompute import set_blocks

logger = logging.getLogger('basicsr')


class TrainingStep:
    """Training step of a network.

    A step consists of `compute_gradients`, which computes the losses and the whole gradient and changes no weights,
    `apply_gradients`, and the update of the averaged weights. A non-finite step changes nothing and is reported in the
    log. With a fused optimizer on a GPU, no part of it synchronises with the device: the optimizer skips the step
    itself, and the log reports it one step later.

    Args:
        opt: the options of the run; those of a step are listed below.
        net: the trained network, with or without wrapper.
        averaged: the averaged (EMA) network, or None.
        optimizer: of its weights.
        objective: the loss.
        asked_to_stop: returns whether this process was asked to stop.

    Options:
        precision: of the forward pass, see `precision`; losses, gradients and weights are float32. Default: fp32.
        formulation: 'fast' or 'plain', for networks that have both. Default: fast.
        activation_checkpointing: 'none', 'gate' or 'block', see `recompute`. Default: the network's own.
        channels_last: store images and convolution weights in the channels-last memory format. Default: False.
        compile: torch.compile for the training step, True or 'max-autotune'. Default: False.
        kernels: 'triton' for the kernels of `archs.fast.kernels`. Default: torch's own.
        train.accumulate: number of micro-batches per batch; gradients and losses are those of the whole batch.
            Default: 1.
        train.optim_g.fused: one kernel for all weights. Default: True if the optimizer supports it.

    Attributes:
        sick: counts the non-finite steps.
        told_to_stop: whether any process was asked to stop; the same on all processes.
        is_whole: whether the weights are those of a complete iteration.

    Raises:
        OptionError: a loss is not a mean over images, which `train.accumulate` needs.

    Examples:
        >>> from promptir_basicsr.models import PromptModel
        >>> train = {'total_iter': 9, 'optim_g': {'type': 'Adam', 'lr': 1e-3}, 'pixel_opt': {'type': 'L1Loss'}}
        >>> opt = {'is_train': True, 'num_gpu': 0, 'dist': False, 'rank': 0, 'datasets': {'train': {}}, 'path': {}}
        >>> network = {'type': 'PIPNAFNet', 'width': 8, 'enc_blk_nums': [1, 1, 1, 1]}
        >>> model = PromptModel({**opt, 'network_g': network, 'train': {**train, 'scheduler': {'type': 'FixedLR'}}})
        >>> image = torch.rand(1, 3, 16, 16)
        >>> model.feed_data({'lq': image, 'gt': image, 'degradation': torch.tensor([0])})
        >>> model.step(model.batch, iteration=1).shape, model.step.is_whole
        (torch.Size([1, 3, 16, 16]), True)
    """

    def __init__(
        self,
        opt: dict[str, Any],
        net: nn.Module,
        averaged: nn.Module | None,
        optimizer: torch.optim.Optimizer,
        objective: Objective,
        asked_to_stop: Callable[[], bool] = bool,
    ) -> None:
        self.opt, self.net, self.averaged, self.optimizer, self.objective = opt, net, averaged, optimizer, objective
        self.asked_to_stop = asked_to_stop
        train = opt['train']
        self.accumulate, self.ema_decay = train.get('accumulate') or 1, train.get('ema_decay') or 0
        scaler = train.get('loss_scaler')
        self.loss_scaler = None if scaler is None else LossScaler(**scaler)
        self.device = next(net.parameters()).device
        self.precision = opt.get('precision') or 'fp32'
        self.grad_scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == 'fp16')
        self.sick = SickSteps(opt['world_size'], opt['rank']) if opt['dist'] else SickSteps()
        self.told_to_stop, self.is_whole = False, True
        self._sums: dict[str, list[Any]] = {}
        self._compiled = False
        self._loss_scale: Tensor | None = None
        self._unread: Step | None = None
        self._sound: Tensor | None = None  # on the device: 1 if the current step is finite, else 0
        if self.accumulate > 1:
            raise_problems(objective.accumulation_problems())
        set_float32(self.precision)
        logger.info(f'Step: {", ".join(self._description())}.')

    def _description(self) -> Iterator[str]:
        blocks = [module for module in self.net.modules() if isinstance(module, Formulated)]
        yield self.precision
        if blocks:
            kernels = self.opt.get('kernels')
            yield f'{blocks[0].formulation} formulation{f" with {kernels} kernels" if kernels else ""}'
        own = blocks[0].checkpointing if blocks and blocks[0].formulation == 'fast' else 'none'
        checkpointing = self.opt.get('activation_checkpointing') or own
        yield f'activation checkpointing {checkpointing}'
        yield 'channels last' if self.opt.get('channels_last') else 'default layout'
        how = self.opt.get('compile') or False
        yield f'compiled ({how})' if isinstance(how, str) else 'compiled' if how else 'not compiled'
        sizes = by_stage(self.opt['datasets']['train'], 'batch_size_per_gpu').values()
        size = ', '.join(map(str, dict.fromkeys(sizes)))
        if self.accumulate > 1:
            yield f'batches of {size} in {self.accumulate} parts' if size else f'batches in {self.accumulate} parts'
        else:
            yield f'batches of {size} at once' if size else 'batches at once'
        group = self.optimizer.param_groups[0]
        way = next((way for way in ('fused', 'foreach') if group.get(way)), '')
        yield f'{type(self.optimizer).__name__}{f" ({way})" if way else ""}'

    def __call__(self, batch: Batch, iteration: int) -> Output:
        """Run one step and return the network's output. A step that is non-finite on any process changes no weight."""
        statistics = moving_state(self.net)
        before = [buffer.clone() for buffer in statistics]
        memory = None if self.loss_scaler is None else self.loss_scaler.losses
        try:
            output, losses = self.compute_gradients(batch)
        except BaseException:  # then the previous iteration is saved
            put_back(statistics, before)
            if self.loss_scaler is not None and memory is not None:
                self.loss_scaler.losses = memory
            raise
        norm = nn.utils.get_total_norm([p.grad for p in self.net.parameters() if p.grad is not None])
        flags = self._flags(losses, norm)
        made = [x for x in tensors_of(output) if x.is_floating_point()]
        step = Step(iteration, flags, losses, norm, batch.images(), made, batch.names())
        if not self.knows_at_once:
            self.settle()
            self._unread, self._sound = step, 1 - flags[0]
            kept = [torch.where(self._sound > 0, *each) for each in zip(statistics, before, strict=True)]
            put_back(statistics, kept)
        elif self._is_sick(step):
            put_back(statistics, before)
            self.grad_scaler.update()
            return output
        self.is_whole = False
        self.apply_gradients(norm)
        for name, loss in losses.items():
            self._record(name, loss)
        self._record_tasks(output, batch)
        if self.averaged is not None and self.ema_decay > 0:
            move_average(self.averaged, self.net, self.ema_decay, self._sound)
        self.is_whole = True
        return output

    @property
    def knows_at_once(self) -> bool:
        """Whether the step is checked before the optimizer steps, which synchronises with a GPU."""
        fused = self.optimizer.param_groups[0].get('fused')
        return self.device.type == 'cpu' or not fused or self.grad_scaler.is_enabled()

    def _flags(self, losses: Mapping[str, Tensor], norm: Tensor) -> Tensor:
        """(2,) float32, see `Step`."""
        scale = self.grad_scaler.scale(torch.ones_like(norm))
        # The fp16 scaler lets the gradient overflow now and then, to find the largest scale.
        sick = ~torch.stack([*losses.values()]).isfinite().all() | (~norm.isfinite() & (scale <= 1))
        flags = torch.stack([sick.float(), torch.full_like(norm, float(self.asked_to_stop()), dtype=torch.float32)])
        if self.opt['dist']:
            torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
        return flags

    def _is_sick(self, step: Step) -> bool:
        """Whether a step is non-finite; also counts it."""
        sick, asked = step.read()
        self.sick.take(step, sick)
        self.told_to_stop |= asked
        return sick

    def settle(self) -> None:
        """Read the result of the last step, if it is still pending."""
        if self._unread is not None:
            step, self._unread = self._unread, None
            self._is_sick(step)

    def compute_gradients(self, batch: Batch) -> tuple[Output, dict[str, Tensor]]:
        """Run the forward and backward pass of the batch, one micro-batch at a time.

        The weights' gradients are then those of the whole batch, without fp16 scaling.

        Returns:
            The network's output, and the terms of the loss by their names in the log.
        """
        self.optimizer.zero_grad(set_to_none=True)
        losses: dict[str, Tensor] = OrderedDict()
        outputs, parts = [], list(batch.parts(self.accumulate))
        for part in parts:
            share = len(part) / len(batch)
            with nullcontext() if part is parts[-1] else self._unsynchronised(), self._compilation():
                with autocast(self.precision, self.device):
                    output = self.objective.run(self.net, part)
                output = mapped(partial(widened, precision=self.precision), output)
                terms = self.objective.of_images(output, part)
                self.grad_scaler.scale(share * torch.stack([*terms.values()]).sum()).backward()
            outputs.append(mapped(Tensor.detach, output))
            for name, loss in terms.items():
                losses[name] = losses.get(name, 0) + share * loss.detach()
        self._scale_gradient(torch.stack([*losses.values()]).sum())
        # The prompts are the same in all micro-batches and processes, so each process adds their gradient once.
        terms = self.objective.of_network(self.net)
        if terms:
            self.grad_scaler.scale(torch.stack([*terms.values()]).sum()).backward()
        self.grad_scaler.unscale_(self.optimizer)
        losses.update({name: loss.detach() for name, loss in terms.items()})
        return joined(outputs), losses

    def apply_gradients(self, norm: Tensor) -> None:
        """Clip the gradient and run the optimizer step.

        The fp16 scaler skips the step if the gradient is not finite. It must be updated after every
        `compute_gradients`, with or without a step.

        Args:
            norm: of the whole gradient.
        """
        max_norm = self.opt['train'].get('grad_clip_norm')
        if max_norm:
            nn.utils.clip_grads_with_norm_(self.net.parameters(), max_norm, norm)
            if not self.grad_scaler.is_enabled() or norm.isfinite():
                self._record('grad_norm', norm)
        if self._loss_scale is not None:
            self._record('loss_scale', self._loss_scale)
        optimizer: Any = self.optimizer
        if self._sound is not None:  # fused optimizers read these on the device, without synchronisation
            optimizer.grad_scale, optimizer.found_inf = None, 1 - self._sound
        self.grad_scaler.step(optimizer)
        if self._sound is not None:
            del optimizer.grad_scale, optimizer.found_inf
        self.grad_scaler.update()

    def _unsynchronised(self) -> Any:
        """Context without gradient synchronisation between processes."""
        return self.net.no_sync() if isinstance(self.net, DistributedDataParallel) else nullcontext()

    @contextmanager
    def _compilation(self) -> Iterator[None]:
        """Context for the compiled pass; logs the compilation time of the first one."""
        start = time.perf_counter()
        with compiling('compile', self.opt.get('compile') or False):
            yield
        if self.opt.get('compile') and not self._compiled:
            logger.info(f'Compiled in {time.perf_counter() - start:.1f} s, including the first pass.')
        self._compiled = True

    def _scale_gradient(self, images: Tensor) -> None:
        """Multiply the gradient by the factor that `loss_scaler` returns for the image losses."""
        if self.loss_scaler is None:
            return
        mean = images.detach().clone()
        if self.opt['dist']:  # as in one process with the whole batch
            torch.distributed.all_reduce(mean)
            mean /= self.opt['world_size']
        self._loss_scale = scale = self.loss_scaler(mean)
        torch._foreach_mul_([p.grad for p in self.net.parameters() if p.grad is not None], scale)

    # the log

    def _record(self, name: str, value: Tensor, weight: int = 1) -> None:
        """Add to a running mean without synchronising with the device."""
        entry = self._sums.setdefault(name, [0.0, 0])
        if self._sound is None:
            entry[0] = entry[0] + value * weight
            entry[1] += weight
        else:
            entry[0] = entry[0] + torch.where(self._sound > 0, value * weight, 0)
            entry[1] = entry[1] + weight * self._sound

    @torch.no_grad()
    def _record_tasks(self, output: Output, batch: Batch) -> None:
        for name, mean, images in self.objective.of_tasks(output, batch):
            self._record(name, mean, images)

    def log(self) -> dict[str, float]:
        """Means of the losses since the last call, over all processes; a task's loss over its own samples."""
        self.settle()
        sums = {name: (float(total), float(count)) for name, (total, count) in self._sums.items()}
        if (sums or self.sick.row) and self.grad_scaler.is_enabled():
            sums['grad_scale'] = (self.grad_scaler.get_scale(), 1)
        self._sums = {}
        if self.opt['dist']:
            gathered: list[Any] = [None] * self.opt['world_size']
            torch.distributed.all_gather_object(gathered, sums)
            sums = {}
            for name, (total, count) in (item for part in gathered for item in part.items()):
                before = sums.get(name, (0.0, 0))
                sums[name] = (before[0] + total, before[1] + count)
        order = sorted(sums, key=lambda name: (not name.startswith('l_'), name))
        means = ((name, *sums[name]) for name in order)
        log = OrderedDict((name, total / count if count else math.nan) for name, total, count in means)
        if self.sick.total:
            log['sick_steps'] = self.sick.total
        return log

    # state in a training state file

    def state_dict(self) -> dict[str, Any]:
        """The scalers and the number of non-finite steps; the same on all processes."""
        state: dict[str, Any] = {}
        if self.loss_scaler is not None:
            state['loss_scaler'] = self.loss_scaler.state_dict()
        if self.grad_scaler.is_enabled():
            state['grad_scaler'] = self.grad_scaler.state_dict()
        return {**state, 'sick_steps': self.sick.total}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load `state_dict()`; entries that an older or another state lacks restart."""
        if self.loss_scaler is not None and 'loss_scaler' in state:
            self.loss_scaler.load_state_dict(state['loss_scaler'])
        if self.grad_scaler.is_enabled() and 'grad_scaler' in state:
            self.grad_scaler.load_state_dict(state['grad_scaler'])
        self.sick.total = state.get('sick_steps', 0)

    @property
    def sums(self) -> dict[str, list[Any]]:
        """Sums of this process for the means of the log, on the CPU."""
        return {
            name: [value.detach().cpu() if torch.is_tensor(value) else value for value in entry]
            for name, entry in self._sums.items()
        }

    @sums.setter
    def sums(self, sums: Mapping[str, list[Any]]) -> None:
        self._sums = {
            name: [value.to(self.device) if torch.is_tensor(value) else value for value in entry]
            for name, entry in sums.items()
        }


def arrange(net: nn.Module, opt: Mapping[str, Any], trained: bool) -> None:
    """Set formulation, activation checkpointing and memory layout of a network by the options of a run.

    Raises:
        OptionError: the network does not support them.
    """
    checkpointing = opt.get('activation_checkpointing') if trained else None
    raise_problems(set_blocks(net, opt.get('formulation'), checkpointing, opt.get('kernels')))
    if opt.get('channels_last'):
        for tensor in (*net.parameters(), *net.buffers()):
            if tensor.ndim == 4:
                tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)


def prepare(net: nn.Module, opt: Mapping[str, Any], device: torch.device, to_device: Callable[..., Any]) -> Any:
    """Set up a network by the options of a run, and move it to its device by BasicSR's `to_device`.

    Raises:
        OptionError: the network or the device does not support the options.
    """
    trained, compiled = opt['is_train'], opt.get('compile') or False
    problems = device_problems('precision', opt.get('precision') or 'fp32', device) if trained else []
    val = (opt.get('val') or {}).get('precision') or 'fp32'
    problems += device_problems(('val', 'precision'), val, device)
    problems += kernel_problems('kernels', opt.get('kernels'), device)
    raise_problems(problems)
    set_kernels(opt.get('kernels'))
    arrange(net, opt, trained)
    if trained:
        compile_in_place(net, compiled)
    net = to_device(net)
    if trained and compiled:
        if isinstance(net, DataParallel):
            raise OptionError('compile: not for several GPUs of one process. Start one process per GPU (torchrun).')
        if opt['dist']:  # DDPOptimizer does not support recomputation
            torch._dynamo.config.optimize_ddp = False
    return net


@torch.no_grad()
def put_back(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Write values into tensors."""
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


def fused(optim_type: str, build: Callable[..., torch.optim.Optimizer], **options: Any) -> torch.optim.Optimizer:
    """Build an optimizer; fused if possible, unless `fused` or `foreach` is set."""
    kind: Any = getattr(torch.optim, optim_type, None)
    takes = inspect.signature(kind).parameters if kind else {}
    if 'fused' in takes and not {'fused', 'foreach'} & options.keys():
        try:
            return build(fused=True, **options)
        except RuntimeError:  # not on this device, or not with the other arguments
            pass
    return build(**options)


@torch.no_grad()
def move_average(averaged: nn.Module, net: nn.Module, decay: float, sound: Tensor | None = None) -> None:
    """Update an averaged network: parameters by the decay, buffers by copy (BasicSR does not update buffers).

    Args:
        net: the network to average, with or without wrapper.
        sound: 1, or 0 for a step that changes nothing; None is the same as 1.
    """
    bare = unwrapped(net)
    averages: list[Tensor] = list(averaged.parameters())
    current: list[Tensor] = list(bare.parameters())
    if sound is None:
        torch._foreach_lerp_(averages, current, 1 - decay)
    else:
        steps = torch._foreach_sub(current, averages)
        torch._foreach_mul_(steps, (1 - decay) * sound)
        torch._foreach_add_(averages, steps)
    averages, current = list(averaged.buffers()), list(bare.buffers())
    if averages:
        torch._foreach_copy_(averages, current)
