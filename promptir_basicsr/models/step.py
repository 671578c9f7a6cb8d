"""The training step: in which precision, with how much memory, how fast; and what is logged of it."""

import inspect
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import Any

import torch
from basicsr.models.sr_model import SRModel
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from promptir_basicsr.archs.fast.kernels import kernel_problems, set_kernels
from promptir_basicsr.archs.layers.formulation import Formulated
from promptir_basicsr.archs.traits import prompts_of, traits_of
from promptir_basicsr.core.errors import OptionError, raise_problems
from promptir_basicsr.core.problems import problem
from promptir_basicsr.losses.loss_scaler import LossScaler
from promptir_basicsr.models.nonfinite import SickSteps, Step, running_statistics
from promptir_basicsr.runtime.compilation import compile_in_place, compiling
from promptir_basicsr.runtime.precision import autocast, device_problems, set_float32, widened
from promptir_basicsr.runtime.recompute import set_blocks

logger = logging.getLogger('basicsr')

NO_MEAN = 'is no mean over images, which `train.accumulate` needs. Take `reduction: mean`, or leave accumulate out.'


class TrainingStep(SRModel):
    """How PromptModel trains on a batch.

    A step is `compute_gradients`, after which the losses and the whole gradient are known and nothing has changed yet,
    `apply_gradients`, and the average of the weights. A step whose loss or gradient is not finite changes nothing, and
    is named in the log. With a fused optimizer on a GPU none of it waits for the device: the optimizer itself leaves
    the step out, and the log hears of it one step later.

    Options:
        precision: of the forward pass, see `precision`; losses, gradients and weights are float32. Default: fp32.
        formulation: 'fast' or 'plain', of networks that have both. Default: fast.
        activation_checkpointing: 'none', 'gate' or 'block', see `recompute`. Default: the network's own.
        channels_last: keep images and convolutions with the channels of a pixel side by side. Default: False.
        compile: torch.compile for the training step, True or 'max-autotune'. Default: False.
        kernels: 'triton' for the kernels of `archs.fast.kernels`. Default: torch's own.
        train.accumulate: in how many parts the batch passes the network; gradients and losses are those of the whole
            batch. Default: 1.
        train.optim_g.fused: one kernel for all weights. Default: where the optimizer has it.
    """

    lq: torch.Tensor
    gt: torch.Tensor | None
    task: Sequence[str] | None
    lq_path: Sequence[str] | None
    degradation: torch.Tensor | None
    output: torch.Tensor
    loss_scaler: LossScaler | None

    def __init__(self, opt: dict[str, Any]) -> None:
        self._sums: dict[str, list[Any]] = {}
        self._compiled = False
        self._loss_scale: torch.Tensor | None = None
        self._unread: Step | None = None
        self._sound: torch.Tensor | None = None  # of the step in hand, where only the device knows: 1, or 0 if not
        self.told_to_stop = False  # the same on all processes
        self.sick = SickSteps(opt['world_size'] if opt['dist'] else 1, opt['rank'] if opt['dist'] else 0)
        super().__init__(opt)

    # before the first step

    def model_to_device(self, net: nn.Module) -> nn.Module:
        """BasicSR's, of a network that computes as the options say.

        Raises:
            OptionError: it or the device cannot.
        """
        problems = device_problems('precision', self.precision, self.device) if self.is_train else []
        val = (self.opt.get('val') or {}).get('precision') or 'fp32'
        problems += device_problems(('val', 'precision'), val, self.device)
        problems += kernel_problems('kernels', self.opt.get('kernels'), self.device)
        raise_problems(problems)
        set_kernels(self.opt.get('kernels'))
        self._arrange(net, trained=self.is_train)
        if self.is_train:
            compile_in_place(net, self.opt.get('compile') or False)
        net = super().model_to_device(net)
        if self.is_train and self.opt.get('compile'):
            if isinstance(net, DataParallel):
                raise OptionError('compile: not for several GPUs of one process. Start one process a GPU (torchrun).')
            if self.opt['dist']:  # its way of splitting a network for the communication knows no recomputation
                torch._dynamo.config.optimize_ddp = False
        return net

    def _arrange(self, net: nn.Module, trained: bool) -> None:
        """Formulation, checkpointing and memory layout of a network."""
        checkpointing = self.opt.get('activation_checkpointing') if trained else None
        raise_problems(set_blocks(net, self.opt.get('formulation'), checkpointing, self.opt.get('kernels')))
        if self.opt.get('channels_last'):
            for tensor in (*net.parameters(), *net.buffers()):
                if tensor.ndim == 4:
                    tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)

    def get_optimizer(self, optim_type: str, params: Any, lr: float, **kwargs: Any) -> torch.optim.Optimizer:
        """BasicSR's, fused where that is possible and neither `fused` nor `foreach` is given."""
        kind: Any = getattr(torch.optim, optim_type, None)
        takes = inspect.signature(kind).parameters if kind else {}
        if 'fused' in takes and not {'fused', 'foreach'} & kwargs.keys():
            try:
                return super().get_optimizer(optim_type, params, lr, fused=True, **kwargs)
            except RuntimeError:  # not on this device, or not with the other arguments
                pass
        return super().get_optimizer(optim_type, params, lr, **kwargs)

    def setup_step(self) -> None:
        """What a step needs besides losses and optimizer; one line about it in the log.

        Raises:
            OptionError: a loss is not the mean over images that `train.accumulate` needs.
        """
        sums = [key for key, loss in self._image_losses().items() if loss is not None and not is_mean(loss)]
        if sums and self.accumulate > 1:
            raise OptionError(problem(('train', key), NO_MEAN) for key in sums)
        set_float32(self.precision)
        if hasattr(self, 'net_g_ema'):
            self._arrange(self.net_g_ema, trained=False)
        self.grad_scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == 'fp16')
        logger.info(f'Step: {", ".join(self._description())}.')

    def _image_losses(self) -> dict[str, nn.Module | None]:
        return {'pixel_opt': self.cri_pix, 'frequency_opt': self.cri_frequency, 'perceptual_opt': self.cri_perceptual}

    @property
    def precision(self) -> str:
        """Of a training step."""
        return self.opt.get('precision') or 'fp32'

    @property
    def accumulate(self) -> int:
        """In how many parts a batch passes the network."""
        return self.opt['train'].get('accumulate') or 1

    def _description(self) -> Iterator[str]:
        blocks = [module for module in self.net_g.modules() if isinstance(module, Formulated)]
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
        size = self.opt['datasets']['train'].get('batch_size_per_gpu')
        if self.accumulate > 1:
            yield f'batches of {size} in {self.accumulate} parts' if size else f'batches in {self.accumulate} parts'
        else:
            yield f'batches of {size} at once' if size else 'batches at once'
        group = self.optimizer_g.param_groups[0]
        way = next((way for way in ('fused', 'foreach') if group.get(way)), '')
        yield f'{type(self.optimizer_g).__name__}{f" ({way})" if way else ""}'

    # the step

    def restore(self, net: nn.Module, lq: torch.Tensor) -> torch.Tensor:
        """Run a network, with labels where it takes them."""
        if self.opt.get('channels_last'):
            lq = lq.contiguous(memory_format=torch.channels_last)
        if traits_of(net).takes_degradation:
            return net(lq, self.degradation)
        return net(lq)

    def optimize_parameters(self, current_iter: int) -> None:
        """One step. What is not finite, on any process, changes neither weights nor averages."""
        statistics = running_statistics(self.net_g)
        before = [buffer.clone() for buffer in statistics]
        losses = self.compute_gradients()
        norm = nn.utils.get_total_norm([p.grad for p in self.net_g.parameters() if p.grad is not None])
        flags = self._flags(losses, norm)
        images = [x for x in (self.lq, self.gt, self.output) if x is not None]
        step = Step(current_iter, flags, losses, norm, images, self._names())
        if not self.knows_at_once:
            self.settle()
            self._unread, self._sound = step, 1 - flags[0]
            for buffer, value in zip(statistics, before, strict=True):
                buffer.copy_(torch.where(self._sound > 0, buffer, value))
        elif self._is_sick(step):
            for buffer, value in zip(statistics, before, strict=True):
                buffer.copy_(value)
            self.grad_scaler.update()
            return
        self.apply_gradients(norm)
        for name, loss in losses.items():
            self._record(name, loss)
        self._record_tasks()
        if self.ema_decay > 0:
            self.model_ema(decay=self.ema_decay)

    @property
    def knows_at_once(self) -> bool:
        """Whether a step is known to be sound before the optimizer steps. On a GPU that means to wait for it."""
        fused = self.optimizer_g.param_groups[0].get('fused')
        return self.device.type == 'cpu' or not fused or self.grad_scaler.is_enabled()

    def asked_to_stop(self) -> bool:
        """Whether this process was."""
        return False

    def _flags(self, losses: Mapping[str, torch.Tensor], norm: torch.Tensor) -> torch.Tensor:
        """(2,) float32, see `Step`."""
        scale = self.grad_scaler.scale(torch.ones_like(norm))
        # fp16's scaler lets the gradient overflow now and then, to find the largest scale.
        sick = ~torch.stack([*losses.values()]).isfinite().all() | (~norm.isfinite() & (scale <= 1))
        flags = torch.stack([sick.float(), torch.full_like(norm, float(self.asked_to_stop()), dtype=torch.float32)])
        if self.opt['dist']:
            torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
        return flags

    def _names(self) -> list[str]:
        """Of the images of the batch, for messages."""
        paths = getattr(self, 'lq_path', None) or [f'image {place} of the batch' for place in range(len(self.lq))]
        return [f'{task}: {path}' for task, path in zip(self.task, paths, strict=True)] if self.task else list(paths)

    def _is_sick(self, step: Step) -> bool:
        """Read what is known of a step, and count it."""
        sick, asked = step.read()
        self.sick.take(step, sick)
        self.told_to_stop |= asked
        return sick

    def settle(self) -> None:
        """Hear of the last step, where that has not happened yet."""
        if self._unread is not None:
            step, self._unread = self._unread, None
            self._is_sick(step)

    def compute_gradients(self) -> dict[str, torch.Tensor]:
        """Forward and backward pass of the batch, part by part.

        Leaves the gradient of the whole batch, without any scaling for fp16, in the weights, and what the network made
        of it in `output`.

        Returns:
            The terms of the loss of the whole batch by their name in the log.
        """
        self.optimizer_g.zero_grad(set_to_none=True)
        losses: dict[str, torch.Tensor] = OrderedDict()
        outputs = []
        for share, is_last in self._parts():
            with nullcontext() if is_last else self._unsynchronised(), self._compilation():
                with autocast(self.precision, self.device):
                    output = self.restore(self.net_g, self.lq)
                self.output = widened(output, self.precision)
                terms = self.losses()
                self.grad_scaler.scale(share * torch.stack([*terms.values()]).sum()).backward()
            outputs.append(self.output.detach())
            for name, loss in terms.items():
                losses[name] = losses.get(name, 0) + share * loss.detach()
        self.output = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
        self._scale_gradient(torch.stack([*losses.values()]).sum())
        # The prompts are the same in all parts and all processes, so that their gradient is added once, in each.
        terms = self.prompt_losses()
        if terms:
            self.grad_scaler.scale(torch.stack([*terms.values()]).sum()).backward()
        self.grad_scaler.unscale_(self.optimizer_g)
        return {**losses, **{name: loss.detach() for name, loss in terms.items()}}

    def apply_gradients(self, norm: torch.Tensor) -> None:
        """Clip the gradient and let the optimizer step.

        fp16's scaler leaves a step out where the gradient is not finite. It has to be updated after every
        `compute_gradients`, with a step or without.

        Args:
            norm: of the whole gradient.
        """
        max_norm = self.opt['train'].get('grad_clip_norm')
        if max_norm:
            nn.utils.clip_grads_with_norm_(self.net_g.parameters(), max_norm, norm)
            if not self.grad_scaler.is_enabled() or norm.isfinite():
                self._record('grad_norm', norm)
        if self._loss_scale is not None:
            self._record('loss_scale', self._loss_scale)
        if self._sound is not None:  # fused optimizers ask for this, so that fp16's scaler need not wait
            self.optimizer_g.grad_scale, self.optimizer_g.found_inf = None, 1 - self._sound
        self.grad_scaler.step(self.optimizer_g)
        if self._sound is not None:
            del self.optimizer_g.grad_scale, self.optimizer_g.found_inf
        self.grad_scaler.update()

    def losses(self) -> dict[str, torch.Tensor]:
        """The terms of the loss of `output` by their name in the log; each a mean over images."""
        losses = OrderedDict()
        if self.cri_pix:
            losses['l_pix'] = self.cri_pix(self.output, self.gt)
        if self.cri_frequency:
            losses['l_freq'] = self.cri_frequency(self.output, self.gt)
        if self.cri_perceptual:
            perceptual, style = self.cri_perceptual(self.output, self.gt)
            losses.update({k: v for k, v in (('l_percep', perceptual), ('l_style', style)) if v is not None})
        return losses

    def prompt_losses(self) -> dict[str, torch.Tensor]:
        """The terms of the loss that no image has a part in."""
        if not self.cri_prompt:
            return {}
        return {'l_prompt': self.cri_prompt(prompts_of(self.net_g))}

    def _parts(self) -> Iterator[tuple[float, bool]]:
        """Let each part of the batch be the batch; its share of the images, and whether it is the last one."""
        names = ('lq', 'gt', 'task', 'degradation')
        whole = {name: getattr(self, name) for name in names}
        count = len(self.lq)
        bounds = sorted({count * part // self.accumulate for part in range(self.accumulate + 1)})
        try:
            for start, end in pairwise(bounds):
                for name, value in whole.items():
                    setattr(self, name, None if value is None else value[start:end])
                yield (end - start) / count, end == count
        finally:
            for name, value in whole.items():
                setattr(self, name, value)

    def _unsynchronised(self) -> Any:
        """Where the gradients of processes are not added up yet."""
        return self.net_g.no_sync() if isinstance(self.net_g, DistributedDataParallel) else nullcontext()

    @contextmanager
    def _compilation(self) -> Iterator[None]:
        """Around what is compiled when it runs for the first time."""
        start = time.perf_counter()
        with compiling('compile', self.opt.get('compile') or False):
            yield
        if self.opt.get('compile') and not self._compiled:
            logger.info(f'Compiled in {time.perf_counter() - start:.1f} s, the first pass included.')
        self._compiled = True

    def _scale_gradient(self, images: torch.Tensor) -> None:
        """Multiply the gradient by what `loss_scaler` makes of the loss of the images."""
        if self.loss_scaler is None:
            return
        self._loss_scale = scale = self.loss_scaler(self._mean_of_processes(images))
        torch._foreach_mul_([p.grad for p in self.net_g.parameters() if p.grad is not None], scale)

    def _mean_of_processes(self, value: torch.Tensor) -> torch.Tensor:
        """What one process with the whole batch would have."""
        value = value.detach().clone()
        if self.opt['dist']:
            torch.distributed.all_reduce(value)
            value /= self.opt['world_size']
        return value

    @torch.no_grad()
    def model_ema(self, decay: float = 0.999) -> None:
        """Move the averaged network: parameters by the decay, buffers as they are (BasicSR leaves buffers behind)."""
        bare = self.get_bare_model(self.net_g)
        averaged, current = list(self.net_g_ema.parameters()), list(bare.parameters())
        if self._sound is None:
            torch._foreach_lerp_(averaged, current, 1 - decay)
        else:
            steps = torch._foreach_sub(current, averaged)
            torch._foreach_mul_(steps, (1 - decay) * self._sound)
            torch._foreach_add_(averaged, steps)
        averaged, current = list(self.net_g_ema.buffers()), list(bare.buffers())
        if averaged:
            torch._foreach_copy_(averaged, current)

    # the log

    def _record(self, name: str, value: torch.Tensor, weight: int = 1) -> None:
        """Add to a running mean, without waiting for the device."""
        entry = self._sums.setdefault(name, [0.0, 0])
        if self._sound is None:
            entry[0] = entry[0] + value * weight
            entry[1] += weight
        else:
            entry[0] = entry[0] + torch.where(self._sound > 0, value * weight, 0)
            entry[1] = entry[1] + weight * self._sound

    @torch.no_grad()
    def _record_tasks(self) -> None:
        """The pixel loss of each task in the batch."""
        if self.task is None or self.gt is None or not self.cri_pix:
            return
        for name, members in self._members().items():
            loss = self.cri_pix(chosen(self.output, members), chosen(self.gt, members))
            self._record(f'l_pix_{name}', loss, len(members))

    def _members(self) -> dict[str, list[int]]:
        """The positions in the batch of each task's images."""
        tasks = self.task or ()
        return {name: [i for i, task in enumerate(tasks) if task == name] for name in sorted(set(tasks))}

    def get_current_log(self) -> dict[str, float]:
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
        self.log_dict = OrderedDict((name, total / count if count else math.nan) for name, total, count in means)
        if self.sick.total:
            self.log_dict['sick_steps'] = self.sick.total
        return self.log_dict


def is_mean(loss: nn.Module) -> bool:
    """Whether a loss of images is, as far as it tells, the mean of those of the images."""
    return getattr(loss, 'reduction', 'mean') != 'sum' and getattr(loss, 'criterion_type', '') != 'fro'


def chosen(x: torch.Tensor, members: Sequence[int]) -> torch.Tensor:
    """The images of x: (B, ...) at some places. A list as an index would be copied to the device, which waits."""
    return x if len(members) == len(x) else torch.cat([x[i : i + 1] for i in members])


@contextmanager
def frozen_in_silence() -> Iterator[None]:
    """BasicSR warns of each parameter that is not optimized; a sensor has dozens."""

    def other(record: logging.LogRecord) -> bool:
        return not (record.levelno == logging.WARNING and 'will not be optimized' in record.getMessage())

    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)
