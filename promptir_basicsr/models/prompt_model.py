"""The prompt-aware model: BasicSR's SRModel for all-in-one restoration."""

import json
import logging
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from basicsr.losses import build_loss
from basicsr.models.sr_model import SRModel
from basicsr.utils.registry import MODEL_REGISTRY
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from promptir_basicsr.host import register
from promptir_basicsr.losses.prompt_loss import prompts_of
from promptir_basicsr.losses.scaler_util import LossScaler
from promptir_basicsr.models.checkpoint_util import atomic_save, atomic_write, read_json, read_weights
from promptir_basicsr.models.grow_util import check_fit, grow, state_problems, with_prompts
from promptir_basicsr.models.padding_util import pad_to_multiple
from promptir_basicsr.models.sensor_util import LabelSource, frozen_in_silence, load_sensor
from promptir_basicsr.models.validation_util import Measurement, Report
from promptir_basicsr.option_util import OptionError

logger = logging.getLogger('basicsr')


@register(MODEL_REGISTRY)
class PromptModel(SRModel):
    """Trains and measures a restoration network on several degradations.

    Works with every BasicSR network that keeps the image size; a network with `takes_degradation` is given the labels.
    A network's `size_multiple` (or its option `window_size`) is met by padding, so images of any size can be restored.

    Options beside BasicSR's own:
        path.grow_g: start from weights with fewer prompts or labels; see `grow_util`. Default: False.
        path.pretrain_network_sensor: weights of the network's sensor, which is not trained here; see `sensor_util`.
        train.grad_clip_norm: largest norm of the whole gradient. Default: no clipping.
        train.frequency_opt: a second loss of the images, such as FrequencyLoss; alone or beside `pixel_opt`.
        train.prompt_opt: a loss of the network's prompts; the network shows them by `prompt_vectors()`.
        train.loss_scaler: arguments of LossScaler, which scales the gradient of the losses of images down where they
            are far above the smallest of late. Default: none.
        val.metrics: name -> {type: ...}. Metrics with `wants_float` get the unrounded RGB image in [0, 1], others
            BasicSR's rounded 8-bit BGR image.
        val.best_metric: the metric whose average over tasks decides on `net_g_best.pth`. Default: the first one.
        val.comparisons: most pictures a task that `save_img` writes in a validation. Default: all.
        val.contact_sheet: write `contact_sheet.png`, one row a task. Default: False.
        val.size_multiple: overrides the network's.
        val.use_ema: measure the averaged weights where there are any. Default: True.
        val.labels: whether a network that takes labels gets the data's (True), those of its sensor ('sensor') or the
            same mixture for every image ({name: weight}).
            Default: True.

    A validation writes a row a task and their average to the log, to TensorBoard, to `metrics.csv` and `results.md`.
    """

    report_class: type[Report] = Report
    measurement_class: type[Measurement] = Measurement

    def __init__(self, opt: dict[str, Any]) -> None:
        self._sums: dict[str, list[Any]] = {}
        self._ended = False
        super().__init__(opt)
        nets = [self.net_g, self.net_g_ema] if hasattr(self, 'net_g_ema') else [self.net_g]
        load_sensor([self.get_bare_model(net) for net in nets], opt['path'])
        self.report = self.report_class(opt)
        self._best_file = os.path.join(opt['path'].get('models') or '', 'net_g_best.json')
        if self.is_train and opt['path'].get('resume_state'):
            self.report.best = read_json(self._best_file)

    def print_network(self, net: nn.Module) -> None:
        """The number of parameters, whole and by part."""
        bare = self.get_bare_model(net)
        total = sum(p.numel() for p in bare.parameters())
        logger.info(f'Network: {type(bare).__name__}, {total:,} parameters')
        for name, part in bare.named_children():
            logger.info(f'  {name}: {sum(p.numel() for p in part.parameters()):,}')

    # training

    def init_training_settings(self) -> None:
        """BasicSR's, and the losses that it does not know.

        Raises:
            OptionError: there is a loss of prompts, and the network has none.
        """
        train = self.opt['train']
        frequency_alone = train.get('frequency_opt') and not (train.get('pixel_opt') or train.get('perceptual_opt'))
        if frequency_alone:  # BasicSR ends without one of the two that it knows
            self.opt['train'] = {**train, 'pixel_opt': train['frequency_opt']}
        super().init_training_settings()
        self.opt['train'] = train
        if frequency_alone:
            self.cri_pix, self.cri_frequency = None, self.cri_pix
        else:
            self.cri_frequency = self._build_loss('frequency_opt')
        self.cri_prompt = self._build_loss('prompt_opt')
        if self.cri_prompt:
            try:
                prompts_of(self.get_bare_model(self.net_g))
            except ValueError as error:
                raise OptionError([f'train.prompt_opt: {error}']) from error
        scaler = train.get('loss_scaler')
        self.loss_scaler = None if scaler is None else LossScaler(**scaler)

    def setup_optimizers(self) -> None:
        """BasicSR's, and one line about what is not trained instead of one for each parameter."""
        with frozen_in_silence():
            super().setup_optimizers()
        frozen = [p for p in self.net_g.parameters() if not p.requires_grad]
        if frozen:
            logger.info(f'Not trained: {len(frozen):,} tensors, {sum(p.numel() for p in frozen):,} parameters.')

    def _build_loss(self, key: str) -> nn.Module | None:
        options = self.opt['train'].get(key)
        return build_loss(options).to(self.device) if options else None

    def feed_data(self, data: Mapping[str, Any]) -> None:
        """Take a batch: lq and gt (B, 3, H, W), optionally task (B names) and degradation (B,) labels."""
        self.lq: torch.Tensor = data['lq'].to(self.device, non_blocking=True)
        self.gt: torch.Tensor | None = data['gt'].to(self.device, non_blocking=True) if 'gt' in data else None
        self.task: Sequence[str] | None = data.get('task')
        degradation = data.get('degradation')
        self.degradation = None if degradation is None else torch.as_tensor(degradation, device=self.device)

    def restore(self, net: nn.Module, lq: torch.Tensor) -> torch.Tensor:
        """Run a network, with labels where it takes them."""
        if getattr(self.get_bare_model(net), 'takes_degradation', False):
            return net(lq, self.degradation)
        return net(lq)

    def optimize_parameters(self, current_iter: int) -> None:
        """One step."""
        self.optimizer_g.zero_grad(set_to_none=True)
        self.output = self.restore(self.net_g, self.lq)
        losses = self.losses()
        self._total(losses).backward()
        max_norm = self.opt['train'].get('grad_clip_norm')
        if max_norm:
            self._record('grad_norm', nn.utils.clip_grad_norm_(self.net_g.parameters(), max_norm))
        self.optimizer_g.step()
        for name, loss in losses.items():
            self._record(name, loss.detach())
        self._record_tasks()
        if self.ema_decay > 0:
            self.model_ema(decay=self.ema_decay)

    def losses(self) -> dict[str, torch.Tensor]:
        """The terms of the loss by their name in the log."""
        losses = OrderedDict()
        if self.cri_pix:
            losses['l_pix'] = self.cri_pix(self.output, self.gt)
        if self.cri_frequency:
            losses['l_freq'] = self.cri_frequency(self.output, self.gt)
        if self.cri_perceptual:
            perceptual, style = self.cri_perceptual(self.output, self.gt)
            losses.update({k: v for k, v in (('l_percep', perceptual), ('l_style', style)) if v is not None})
        if self.cri_prompt:
            losses['l_prompt'] = self.cri_prompt(prompts_of(self.get_bare_model(self.net_g)))
        return losses

    def _total(self, losses: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The sum of the terms; those of the images, not that of the prompts, are what `loss_scaler` scales."""
        images = torch.stack([loss for name, loss in losses.items() if name != 'l_prompt']).sum()
        if self.loss_scaler is not None:
            scale = self.loss_scaler(self._mean_of_processes(images))
            self._record('loss_scale', scale)
            images = scale * images
        return images + losses['l_prompt'] if 'l_prompt' in losses else images

    def _mean_of_processes(self, value: torch.Tensor) -> torch.Tensor:
        """What one process with the whole batch would have."""
        value = value.detach().clone()
        if self.opt['dist']:
            torch.distributed.all_reduce(value)
            value /= self.opt['world_size']
        return value

    def _record(self, name: str, value: torch.Tensor, weight: int = 1) -> None:
        """Add to a running mean, without waiting for the device."""
        entry = self._sums.setdefault(name, [0.0, 0])
        entry[0] = entry[0] + value * weight
        entry[1] += weight

    @torch.no_grad()
    def _record_tasks(self) -> None:
        """The pixel loss of each task in the batch."""
        if self.task is None or self.gt is None or not self.cri_pix:
            return
        output = self.output.detach()
        for name, members in self._members().items():
            loss = self.cri_pix(output[members], self.gt[members])
            self._record(f'l_pix_{name}', loss, len(members))

    def _members(self) -> dict[str, list[int]]:
        """The positions in the batch of each task's images."""
        tasks = self.task or ()
        return {name: [i for i, task in enumerate(tasks) if task == name] for name in sorted(set(tasks))}

    def get_current_log(self) -> dict[str, float]:
        """Means of the losses since the last call, over all processes; a task's loss over its own samples."""
        sums = {name: (float(total), count) for name, (total, count) in self._sums.items()}
        self._sums = {}
        if self.opt['dist']:
            gathered: list[Any] = [None] * self.opt['world_size']
            torch.distributed.all_gather_object(gathered, sums)
            sums = {}
            for name, (total, count) in (item for part in gathered for item in part.items()):
                before = sums.get(name, (0.0, 0))
                sums[name] = (before[0] + total, before[1] + count)
        order = sorted(sums, key=lambda name: (not name.startswith('l_'), name))
        self.log_dict = OrderedDict((name, sums[name][0] / sums[name][1]) for name in order)
        return self.log_dict

    @torch.no_grad()
    def model_ema(self, decay: float = 0.999) -> None:
        """Move the averaged network: parameters by the decay, buffers as they are (BasicSR leaves buffers behind)."""
        bare = self.get_bare_model(self.net_g)
        for averaged, current in zip(self.net_g_ema.parameters(), bare.parameters(), strict=True):
            averaged.lerp_(current, 1 - decay)
        for averaged, current in zip(self.net_g_ema.buffers(), bare.buffers(), strict=True):
            averaged.copy_(current)

    # files

    def load_network(
        self, net: nn.Module, load_path: str, strict: bool = True, param_key: str | None = 'params'
    ) -> None:
        """Read weights, and grow them where `path.grow_g` allows it.

        The averaged network takes what it can get: BasicSR looks for `params_ema` in a bare state dict, too.

        Raises:
            OptionError: the file cannot be read or does not fit the network.
        """
        bare, paths = self.get_bare_model(net), self.opt['path']
        weights, key = read_weights(load_path, (param_key, paths.get('param_key_g')))
        logger.info(f'Loading {type(bare).__name__} model from {load_path} ({key or "a bare state dict"}).')
        resuming = paths.get('resume_state') and 'network_g' not in (paths.get('ignore_resume_networks') or ())
        # What the file does not have is the trained network's, so that the averaged one gets the same.
        weights = with_prompts(weights, self.get_bare_model(self.net_g))
        found = check_fit(weights, bare, load_path, paths, bool(resuming))
        weights = grow(weights, self.get_bare_model(self.net_g).state_dict(), found)
        for difference in found:
            logger.info(f'  {difference}: {difference.before} {difference.counted} kept, the others are new')
        if not strict:
            self._print_different_keys_loading(bare, weights, strict)
        bare.load_state_dict(weights, strict=strict)

    def resume_training(self, resume_state: Mapping[str, Any]) -> None:
        """BasicSR's, which notices a state of other sizes in the first step only, and the loss scaler's history.

        Raises:
            OptionError: the state belongs to a network of other sizes.
        """
        problems = state_problems(resume_state['optimizers'], self.optimizers, self.get_bare_model(self.net_g))
        if problems:
            raise OptionError(problems)
        super().resume_training(resume_state)
        if self.loss_scaler is not None and 'loss_scaler' in resume_state:
            self.loss_scaler.load_state_dict(resume_state['loss_scaler'])

    def save(self, epoch: int, current_iter: int) -> None:
        """BasicSR's save; `current_iter` -1 is the end of the training."""
        self._ended = self._ended or current_iter == -1
        super().save(epoch, current_iter)

    def save_network(self, net: Any, net_label: str, current_iter: int | str, param_key: Any = 'params') -> None:
        """Write `NET_ITER.pth` whole or not at all; BasicSR writes in place and goes on after a failure.

        Raises:
            OSError, RuntimeError: the file could not be written; an older one of the same name is untouched.
        """
        if self.opt['rank'] != 0:
            return
        nets = net if isinstance(net, list) else [net]
        keys = param_key if isinstance(param_key, list) else [param_key]
        content = {
            key: {name: value.cpu() for name, value in self.get_bare_model(part).state_dict().items()}
            for part, key in zip(nets, keys, strict=True)
        }
        name = f'{net_label}_{"latest" if current_iter == -1 else current_iter}.pth'
        atomic_save(content, os.path.join(self.opt['path']['models'], name))

    def save_training_state(self, epoch: int, current_iter: int) -> None:
        """Write `ITER.state` whole or not at all."""
        if self.opt['rank'] != 0 or current_iter == -1:
            return
        state = {
            'epoch': epoch,
            'iter': current_iter,
            'optimizers': [optimizer.state_dict() for optimizer in self.optimizers],
            'schedulers': [scheduler.state_dict() for scheduler in self.schedulers],
        }
        if self.loss_scaler is not None:
            state['loss_scaler'] = self.loss_scaler.state_dict()
        atomic_save(state, os.path.join(self.opt['path']['training_states'], f'{current_iter}.state'))

    # restoring and measuring

    @property
    def size_multiple(self) -> int:
        """What the sides of the network's input must be multiples of."""
        own = getattr(self.get_bare_model(self.net_g), 'size_multiple', None)
        given = (self.opt.get('val') or {}).get('size_multiple')
        return given or own or self.opt['network_g'].get('window_size') or 1

    def test(self) -> None:
        """Restore `lq` of any size into `output`, with the averaged weights where there are any."""
        height, width = self.lq.shape[-2:]
        self.output = self.infer(pad_to_multiple(self.lq, self.size_multiple))[..., :height, :width]

    def infer(self, lq: torch.Tensor) -> torch.Tensor:
        """What the network makes of lq, with the averaged weights where there are any."""
        use_ema = hasattr(self, 'net_g_ema') and (self.opt.get('val') or {}).get('use_ema', True)
        # The bare network: a distributed wrapper would wait for processes that do not validate.
        net = self.net_g_ema if use_ema else self.get_bare_model(self.net_g)
        training = net.training
        net.eval()
        with torch.no_grad():
            output = self.restore(net, lq)
        net.train(training)
        return output

    def nondist_validation(
        self, dataloader: DataLoader, current_iter: int | str, tb_logger: Any, save_img: bool
    ) -> None:
        """Measure one data set; after the last one of `datasets`, report all of them."""
        # BasicSR counts one iteration too many after the training, and repeats the last validation there.
        iteration = self.opt['train']['total_iter'] if self._ended else current_iter
        name: str = dataloader.dataset.opt['name']  # type: ignore[attr-defined]
        if self._ended and self.report.validated == iteration:
            if name == self.report.datasets[-1]:
                self.report.tell_files()
            return
        measurement = self.measurement_class(self.report, name, iteration, save_img)
        val = self.opt.get('val') or {}
        labels = LabelSource(self.get_bare_model(self.net_g), val.get('labels', True), name)
        pbar = val.get('pbar', False)
        for data in tqdm(dataloader, desc=f'Validation {name}', unit='image', leave=False, disable=not pbar):
            self.feed_data(data)
            self.degradation = labels.give(self.lq, data, self.degradation)
            self.test()
            measurement.add(self.get_current_visuals(), data)
            del self.lq, self.output, self.gt  # before the next image is restored
        self.report.remarks[name] = labels.lines()
        labels.write(iteration, tb_logger)
        if not self.report.add(name, measurement.rows()):
            return
        self.report.write(iteration, tb_logger, self._keep_best(iteration) if self.is_train else None)
        if self._ended or not self.is_train:
            self.report.tell_files()

    def get_current_visuals(self) -> dict[str, torch.Tensor]:
        """lq, result and, where there is one, gt: (1, 3, H, W) on the CPU."""
        visuals = {'lq': self.lq, 'result': self.output, 'gt': self.gt}
        return OrderedDict((key, x.detach().float().cpu()) for key, x in visuals.items() if x is not None)

    def _keep_best(self, iteration: int | str) -> dict[str, Any] | None:
        """Keep the weights of the best average as `net_g_best.pth`; what is known of them."""
        best = self.report.better_than_best(iteration)
        if best is not None:
            ema = hasattr(self, 'net_g_ema')
            nets, keys = ([self.net_g, self.net_g_ema], ['params', 'params_ema']) if ema else (self.net_g, 'params')
            self.save_network(nets, 'net_g', 'best', keys)
            atomic_write(json.dumps(best), self._best_file)
            self.report.best = best
        return self.report.best
