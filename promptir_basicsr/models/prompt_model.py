"""The prompt-aware model: BasicSR's SRModel for all-in-one restoration."""

import json
import logging
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from basicsr.losses import build_loss
from basicsr.utils.registry import MODEL_REGISTRY
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from promptir_basicsr.archs.traits import prompts_of, traits_of
from promptir_basicsr.checkpoints.pretrained import WEIGHTS, check_fit, grow, load_sensor, read_weights, with_prompts
from promptir_basicsr.core.errors import OptionError, problems_of
from promptir_basicsr.core.files import atomic_write, read_json
from promptir_basicsr.core.registry import register
from promptir_basicsr.evaluation.labels import LabelSource
from promptir_basicsr.evaluation.validation import Measurement, Report
from promptir_basicsr.inference.restoring import Settings, restore_images
from promptir_basicsr.losses.loss_scaler import LossScaler
from promptir_basicsr.models.resume import Resumable
from promptir_basicsr.models.step import frozen_in_silence
from promptir_basicsr.runtime.compilation import compiled_for_any_size, compiling, eagerly
from promptir_basicsr.runtime.precision import autocast, float32_as, widened
from promptir_basicsr.runtime.processes import Share

logger = logging.getLogger('basicsr')


@register(MODEL_REGISTRY)
class PromptModel(Resumable):
    """Trains and measures a restoration network on several degradations.

    Works with every BasicSR network that keeps the image size; a network with `takes_degradation` is given the labels.
    A network's `size_multiple` (or its option `window_size`) is met by padding, so images of any size can be restored.

    Options beside BasicSR's own and those of `TrainingStep` and `Resumable`:
        path.grow_g: start from weights with fewer prompts or labels; see `pretrained`. Default: False.
        path.pretrain_network_sensor: weights of the network's sensor, which is not trained here; see `pretrained`.
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
        val.precision: of the network, see `precision`. Default: fp32, with which papers' numbers are comparable.
        val.compile: torch.compile for the network, for images of any size. Default: False.
        val.tile, val.tile_overlap, val.tile_statistics, val.tile_passes, val.ensemble: see `restoring.Settings`.

    A validation writes a row a task and their average to the log, to TensorBoard, to `metrics.csv` and `results.md`.
    """

    report_class: type[Report] = Report
    measurement_class: type[Measurement] = Measurement

    def __init__(self, opt: dict[str, Any]) -> None:
        self._for_any_size: dict[nn.Module, nn.Module] = {}
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
            OptionError: there is a loss of prompts, and the network has none; or a step cannot be as the options say.
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
                prompts_of(self.net_g)
            except ValueError as error:
                raise OptionError(problems_of(('train', 'prompt_opt'), error)) from error
        scaler = train.get('loss_scaler')
        self.loss_scaler = None if scaler is None else LossScaler(**scaler)
        self.setup_step()

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
        """Take a batch: lq and gt (B, 3, H, W), optionally task (B names), lq_path (B) and degradation (B,) labels."""
        self.lq = data['lq'].to(self.device, non_blocking=True)
        self.gt = data['gt'].to(self.device, non_blocking=True) if 'gt' in data else None
        self.task, self.lq_path = data.get('task'), data.get('lq_path')
        degradation = data.get('degradation')
        if degradation is not None:
            degradation = torch.as_tensor(degradation).to(self.device, non_blocking=True)
        self.degradation = degradation

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
        resuming = paths.get('resume_state') and 'network_g' not in (paths.get('ignore_resume_networks') or ())
        where = ('path', 'resume_state') if resuming else WEIGHTS
        weights, key = read_weights(load_path, (param_key, paths.get('param_key_g')), bare, where)
        logger.info(f'Loading {type(bare).__name__} model from {load_path} ({key or "a bare state dict"}).')
        # What the file does not have is the trained network's, so that the averaged one gets the same.
        weights = with_prompts(weights, self.get_bare_model(self.net_g))
        found = check_fit(weights, bare, load_path, paths, bool(resuming))
        weights = grow(weights, self.get_bare_model(self.net_g).state_dict(), found)
        for difference in found:
            logger.info(f'  {difference}: {difference.before} {difference.counted} kept, the others are new')
        if not strict:
            self._print_different_keys_loading(bare, weights, strict)
        bare.load_state_dict(weights, strict=strict)

    # restoring and measuring

    @property
    def size_multiple(self) -> int:
        """What the sides of the network's input must be multiples of."""
        given = (self.opt.get('val') or {}).get('size_multiple')
        return given or traits_of(self.net_g, self.opt['network_g']).size_multiple

    def test(self) -> None:
        """Restore `lq` of any size into `output`, with the averaged weights where there are any."""
        lq = self.lq
        if self.opt.get('channels_last'):
            lq = lq.contiguous(memory_format=torch.channels_last)
        with self._measuring() as net:
            self.output = restore_images(net, lq, self.inference_settings, self.degradation)

    @property
    def inference_settings(self) -> Settings:
        """How images are restored, by `val`."""
        val = self.opt.get('val') or {}
        names = ('tile', 'tile_overlap', 'tile_statistics', 'tile_passes', 'ensemble', 'precision')
        given = {name.removeprefix('tile_'): val[name] for name in names if val.get(name) is not None}
        return Settings(**given, size_multiple=self.size_multiple)

    def infer(self, lq: torch.Tensor) -> torch.Tensor:
        """What the network makes of lq as it is, with the averaged weights where there are any."""
        precision = self.inference_settings.precision
        with self._measuring() as net, torch.no_grad(), float32_as(precision), autocast(precision, self.device):
            return widened(self.restore(net, lq), precision)

    def _measured(self) -> nn.Module:
        """The network that is validated; bare, since a distributed wrapper would wait for the other processes."""
        use_ema = hasattr(self, 'net_g_ema') and (self.opt.get('val') or {}).get('use_ema', True)
        return self.net_g_ema if use_ema else self.get_bare_model(self.net_g)

    @contextmanager
    def _measuring(self) -> Iterator[nn.Module]:
        """The network that is validated in evaluation mode, compiled or not, whatever it is in training."""
        net = self._measured()
        training, compiled = net.training, bool((self.opt.get('val') or {}).get('compile'))
        net.eval()
        # The step is compiled for one size; images of a validation would have it compiled again and again.
        with compiling('val.compile', compiled), eagerly(not compiled and bool(self.opt.get('compile'))):
            if compiled and net not in self._for_any_size:
                self._for_any_size[net] = compiled_for_any_size(net)
            try:
                yield self._for_any_size[net] if compiled else net
            finally:
                net.train(training)

    def nondist_validation(
        self, dataloader: DataLoader, current_iter: int | str, tb_logger: Any, save_img: bool
    ) -> None:
        """Measure one data set; after the last one of `datasets`, report all of them."""
        self._validate(dataloader, current_iter, tb_logger, save_img, Share())

    def dist_validation(self, dataloader: DataLoader, current_iter: int | str, tb_logger: Any, save_img: bool) -> None:
        """The same, with the images shared by all processes; the first one writes what a single process would."""
        share = Share(self.opt['rank'], self.opt['world_size'])
        self._validate(dataloader, current_iter, tb_logger, save_img, share)

    def _validate(
        self, dataloader: DataLoader, current_iter: int | str, tb_logger: Any, save_img: bool, share: Share
    ) -> None:
        # BasicSR counts one iteration too many after the training, and repeats the last validation there.
        iteration = self.opt['train']['total_iter'] if self._ended else current_iter
        name: str = dataloader.dataset.opt['name']  # type: ignore[attr-defined]
        if self._ended and self.report.validated == iteration:
            if name == self.report.datasets[-1]:
                self.report.tell_files()
            return
        measurement = self.measurement_class(self.report, name, iteration, save_img)
        val = self.opt.get('val') or {}
        labels = LabelSource(self.net_g, val.get('labels', True), name)
        share.equalize(self._measured())
        silent = not val.get('pbar', False) or share.rank > 0
        with share.failing_together():
            for data in tqdm(share.of(dataloader), f'Validation {name}', leave=False, unit='image', disable=silent):
                self.stop_if_asked()
                self.feed_data(data)
                self.degradation = labels.give(self.lq, data, self.degradation)
                self.test()
                measurement.add(self.get_current_visuals(), data)
                del self.lq, self.output, self.gt  # before the next image is restored
        measurement.complete(share)
        labels.complete(share)
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
            self.report.best = best
            ema = hasattr(self, 'net_g_ema')
            nets, keys = ([self.net_g, self.net_g_ema], ['params', 'params_ema']) if ema else (self.net_g, 'params')
            self.save_network(nets, 'net_g', 'best', keys)
            if self.opt['rank'] == 0:
                atomic_write(json.dumps(best), self._best_file)
        return self.report.best
