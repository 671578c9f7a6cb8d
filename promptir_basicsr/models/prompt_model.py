"""The prompt-aware model: BasicSR's SRModel for all-in-one restoration."""

import json
import logging
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from basicsr.archs import build_network
from basicsr.models.sr_model import SRModel
from basicsr.utils.registry import MODEL_REGISTRY
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from promptir_basicsr.archs.traits import named_weights, traits_of
from promptir_basicsr.checkpoints.folder import atomic_save, remove_older
from promptir_basicsr.checkpoints.matching import with_queue
from promptir_basicsr.checkpoints.pretrained import (
    WEIGHTS,
    check_fit,
    grow,
    load_sensor,
    read_weights,
    with_prompts,
)
from promptir_basicsr.checkpoints.reading import METADATA
from promptir_basicsr.core.arrays import pad_to_multiple
from promptir_basicsr.core.errors import OptionError, SickTraining, Stopped, raise_problems
from promptir_basicsr.core.files import atomic_write
from promptir_basicsr.core.messages import first_few, printable
from promptir_basicsr.core.problems import problem
from promptir_basicsr.core.registry import register
from promptir_basicsr.evaluation.labels import LabelSource
from promptir_basicsr.evaluation.results import read_best
from promptir_basicsr.evaluation.validation import Measurement, Report
from promptir_basicsr.inference.restoring import Settings, restore_images
from promptir_basicsr.models.batch import Batch, image_of, run_network
from promptir_basicsr.models.metadata import operations_of, run_facts
from promptir_basicsr.models.nonfinite import MOST_IN_A_ROW
from promptir_basicsr.models.objective import ImageLosses, Objective
from promptir_basicsr.models.resume import TrainingState, recipe_of
from promptir_basicsr.models.run import Run
from promptir_basicsr.models.step import TrainingStep, arrange, fused, move_average, prepare
from promptir_basicsr.runtime.compilation import compiled_for_any_size, compiling, eagerly
from promptir_basicsr.runtime.precision import autocast, float32_as, widened
from promptir_basicsr.runtime.processes import Share
from promptir_basicsr.runtime.random_state import kept_random_state

logger = logging.getLogger('basicsr')

_LOOKED_AT = 256  # side in pixels of the crop whose prompt weights are logged


@register(MODEL_REGISTRY)
class PromptModel(SRModel):
    """Trains and validates a restoration network on several degradations.

    Works with every BasicSR network that keeps the image size; a network with `takes_degradation` gets the labels.
    Inputs are padded to the network's `size_multiple` (or its option `window_size`), so images may have any size.

    Options in addition to BasicSR's own and those of `TrainingStep`:
        path.grow_g: start from weights with fewer prompts or labels; see `pretrained`. Default: False.
        path.pretrain_network_sensor: pretrained weights of the network's sensor, which stays frozen; see `pretrained`.
        train.grad_clip_norm: largest norm of the whole gradient. Default: no clipping.
        train.frequency_opt: a second image loss, such as FrequencyLoss; alone or in addition to `pixel_opt`.
        train.prompt_opt: a loss of the network's prompts, which `prompt_vectors()` of the network returns.
        train.loss_scaler: arguments of LossScaler, which scales down the gradient of the image losses if they are far
            above their recent minimum. Default: none.
        train.max_sick_steps: number of consecutive non-finite steps that ends the training. Default: 10.
        logger.keep_last: number of checkpoints to keep, in addition to `net_g_best.pth`. Default: all.
        logger.stop_signals: signals that stop a training, in addition to SIGTERM and SIGINT.
        val.metrics: name -> {type: ...}. Metrics with `wants_float` get the unrounded RGB image in [0, 1], others
            BasicSR's rounded 8-bit BGR image.
        val.best_metric: metric whose average over tasks selects `net_g_best.pth`. Default: the first one.
        val.comparisons: largest number of images per task that `save_img` writes in a validation. Default: all.
        val.contact_sheet: write `contact_sheet.png`, one row per task. Default: False.
        val.size_multiple: overrides the network's.
        val.use_ema: validate the averaged (EMA) weights if there are any. Default: True.
        val.labels: labels for a network that takes them: the data's (True), those of its sensor ('sensor'), or the
            same mixture for every image ({name: weight}). Default: True.
        val.precision: of the network, see `precision`. Default: fp32, which makes results comparable with papers.
        val.compile: torch.compile for the network, for images of any size. Default: False.
        val.tile, val.tile_overlap, val.tile_statistics, val.tile_passes, val.ensemble: see `restoring.Settings`.

    A validation writes a row per task and their average to the log, TensorBoard, `metrics.csv` and `results.md`.

    Attributes:
        batch: the current batch, from `feed_data`.
        output: the network's output for it.
        run: the training that drives this model.
        step: the training step.
        state: progress of the training, and what is saved of it.
        report: report of the validations.

    Examples:
        >>> from promptir_basicsr.models import PromptModel
        >>> network = {'type': 'PIPNAFNet', 'width': 8, 'enc_blk_nums': [1, 1, 1, 1]}
        >>> model = PromptModel({'is_train': False, 'num_gpu': 0, 'dist': False, 'network_g': network, 'path': {}})
        >>> model.feed_data({'lq': torch.rand(1, 3, 20, 30), 'degradation': torch.tensor([0])})
        >>> model.test()
        >>> model.output.shape
        torch.Size([1, 3, 20, 30])
    """

    report_class: type[Report] = Report
    measurement_class: type[Measurement] = Measurement

    batch: Batch
    output: torch.Tensor

    def __init__(self, opt: dict[str, Any]) -> None:
        self.run, self.is_measuring = Run(), False
        self._for_any_size: dict[nn.Module, nn.Module] = {}
        self._origin: dict[str, Any] = {}
        super().__init__(opt)
        self.load_sensor()
        self.report = self.report_class(opt)
        given = {**opt, 'train': {**opt['train'], **self._recipe}} if self.is_train else opt
        self.report.facts = run_facts(given, self.get_bare_model(self.net_g), self.device, self._origin)
        self._best_file = os.path.join(opt['path'].get('models') or '', 'net_g_best.json')
        if self.is_train:
            if opt['path'].get('resume_state'):
                self.report.best = read_best(self._best_file)
            self.state = TrainingState(opt, self.step, self.report, self.optimizers, self.schedulers, self._recipe)

    def load_sensor(self) -> None:
        """Read the weights of the network's sensor, if it has one; see `pretrained.load_sensor`."""
        nets = [self.net_g, self.net_g_ema] if hasattr(self, 'net_g_ema') else [self.net_g]
        load_sensor([self.get_bare_model(net) for net in nets], self.opt['path'])

    def print_network(self, net: nn.Module) -> None:
        """Log the number of parameters, in total and by module."""
        bare = self.get_bare_model(net)
        total = sum(p.numel() for p in bare.parameters())
        logger.info(f'Network: {type(bare).__name__}, {total:,} parameters')
        for name, part in bare.named_children():
            logger.info(f'  {name}: {sum(p.numel() for p in part.parameters()):,}')

    # training

    def model_to_device(self, net: nn.Module) -> nn.Module:
        """Prepare a network by the options, and move it to the device as BasicSR does.

        Raises:
            OptionError: the network or the device does not support the options.
        """
        return prepare(net, self.opt, self.device, super().model_to_device)

    def init_training_settings(self) -> None:
        """Set up the averaged network, losses, optimizers, schedules and the training step.

        Raises:
            ValueError: no image loss is set.
            OptionError: a prompt loss is set, but the network has no prompts; or options of the step do not fit.
        """
        self._recipe = recipe_of(self.opt['train'])  # BasicSR removes the types
        self.net_g.train()
        if self.opt['train'].get('ema_decay'):
            self.net_g_ema = build_network(self.opt['network_g']).to(self.device)
            path = self.opt['path'].get('pretrain_network_g')
            if path:
                self.load_network(self.net_g_ema, path, self.opt['path'].get('strict_load_g', True), 'params_ema')
            else:
                self.model_ema(0)
            self.net_g_ema.eval()
            arrange(self.net_g_ema, self.opt, trained=False)
        objective = self.build_objective()
        self.setup_optimizers()
        self.setup_schedulers()
        self.setup_step(objective)

    def build_objective(self) -> Objective:
        """The objective: the losses of the section `train`."""
        return ImageLosses.of(self.opt['train'], self.net_g, self.device)

    def setup_optimizers(self) -> None:
        """Set up one optimizer, `train.optim_g`, for all trained weights; log the frozen ones."""
        options = dict(self.opt['train']['optim_g'])
        trained = [p for p in self.net_g.parameters() if p.requires_grad]
        self.optimizer_g = self.get_optimizer(options.pop('type'), trained, **options)
        self.optimizers.append(self.optimizer_g)
        groups = self.optimizer_g.param_groups
        if len(groups) > 1:
            parts = [f'{_counted(group["params"])} at {group["lr"]:g}' for group in groups]
            logger.info(f'Learning rates of {type(self.optimizer_g).__name__}: {"; ".join(parts)}.')
        frozen = [p for p in self.net_g.parameters() if not p.requires_grad]
        if frozen:
            logger.info(f'Not trained: {_counted(frozen)}.')

    def get_optimizer(self, optim_type: str, params: Any, lr: float, **kwargs: Any) -> torch.optim.Optimizer:
        """BasicSR's optimizer; fused if possible, unless `fused` or `foreach` is set."""
        return fused(optim_type, partial(super().get_optimizer, optim_type, params, lr), **kwargs)

    def setup_step(self, objective: Objective) -> None:
        """Create `step` from the current networks, optimizer and options."""
        averaged = getattr(self, 'net_g_ema', None)
        self.step = TrainingStep(self.opt, self.net_g, averaged, self.optimizer_g, objective, self._is_asked_to_stop)

    def model_ema(self, decay: float = 0.999) -> None:
        """Update the averaged network: parameters by the decay, buffers by copy."""
        move_average(self.net_g_ema, self.net_g, decay)

    def feed_data(self, data: Mapping[str, Any]) -> None:
        """Set the batch: lq and gt (B, 3, H, W), optionally task (B names), lq_path (B), degradation (B,) labels."""
        self.batch = Batch.of(data, self.device, bool(self.opt.get('channels_last')))

    def optimize_parameters(self, current_iter: int) -> None:
        """Run one training step.

        Raises:
            Stopped: a signal requested it; the state is saved.
            SickTraining: too many consecutive non-finite steps; the state is saved, with the weights before them.
        """
        output = self.step(self.batch, current_iter)
        image = image_of(output)
        self.output = self.batch.lq if image is None else image
        self.state.complete(current_iter)
        most = self.opt['train'].get('max_sick_steps') or MOST_IN_A_ROW
        if self.step.sick.row >= most:
            self.save_progress(keep_all=True)
            raise SickTraining(
                f'Training ended at iteration {current_iter}: {self.step.sick.row} non-finite steps in a row '
                '(train.max_sick_steps). The weights before them are saved as the state of this iteration. '
                'Check the images that the log names, and lower the learning rate; set `path: {resume_state: FILE}` '
                'to resume from an earlier state.'
            )
        if self.step.told_to_stop:
            self._stop()
        self.stop_if_asked()

    def get_current_log(self) -> dict[str, float]:
        """Means of the losses since the last call, over all processes; a task's loss over its own samples."""
        self.log_dict = self.step.log()
        if self.run.tb_logger:
            for number, rate in enumerate(self.get_current_learning_rate()):
                self.run.tb_logger.add_scalar(f'learning_rate{f"_{number}" * (number > 0)}', rate, self.state.iteration)
        return self.log_dict

    # stopping

    def _is_asked_to_stop(self) -> bool:
        return self.run.signals.asked is not None

    def stop_if_asked(self) -> None:
        """End the training between two iterations, or between two images of a validation.

        Several processes end only after an iteration, where they synchronise anyway.

        Raises:
            Stopped: a signal requested it; the state is saved.
        """
        if self.is_train and self._is_asked_to_stop() and not self.opt['dist']:
            self._stop()

    def _stop(self) -> None:
        name = self.run.signals.asked or 'Another process'
        if self.state.ended:
            logger.warning(f'{name}: stopped in the validation after the training. The weights are saved.')
        else:
            self.save_progress()
            logger.warning(f'{name}: stopped after iteration {self.state.iteration}. The state is saved.')
        logger.warning('Resume with --auto_resume.')
        raise Stopped

    # files

    def save(self, epoch: int, current_iter: int, keep_all: bool = False) -> None:
        """Save as BasicSR does, and remove older checkpoints; `current_iter` -1 is the end of the training.

        Raises:
            SaveError: a file could not be written; files written before it are complete.
        """
        self.step.settle()
        self.state.ended |= current_iter == -1
        super().save(epoch, current_iter)
        if current_iter == -1:
            return
        self.state.iteration = self.state.saved = current_iter
        keep = (self.opt.get('logger') or {}).get('keep_last')
        if keep and not keep_all and self.opt['rank'] == 0:
            paths = self.opt['path']
            removed = remove_older(paths['models'], paths['training_states'], current_iter, keep)
            if removed:
                logger.info(f'Removed the checkpoints of {first_few(map(str, removed))}; the last {keep} are kept.')

    def save_progress(self, keep_all: bool = False) -> None:
        """Save the last iteration, unless it is saved already or a step was interrupted."""
        sampler = self.run.sampler
        if self.state.saved != self.state.iteration and sampler is not None and self.step.is_whole:
            logger.info('Saving models and training states.')
            self.save(sampler.epoch, self.state.iteration, keep_all)

    def save_network(self, net: Any, net_label: str, current_iter: int | str, param_key: Any = 'params') -> None:
        """Write `NET_ITER.pth` atomically; BasicSR writes in place and ignores failures.

        The file also contains metadata, see `metadata`.

        Raises:
            SaveError: the file could not be written; an older file of this name is unchanged.
        """
        if self.opt['rank'] != 0:
            return
        nets = net if isinstance(net, list) else [net]
        keys = param_key if isinstance(param_key, list) else [param_key]
        content = {
            key: {name: value.cpu() for name, value in self.get_bare_model(part).state_dict().items()}
            for part, key in zip(nets, keys, strict=True)
        }
        if net_label == 'net_g':
            content[METADATA] = self.state.metadata(self.get_bare_model(self.net_g), current_iter, self.run)
        name = f'{net_label}_{"latest" if current_iter == -1 else current_iter}.pth'
        atomic_save(content, os.path.join(self.opt['path']['models'], name))

    def save_training_state(self, epoch: int, current_iter: int) -> None:
        """Write `ITER.state`, see `TrainingState`.

        Raises:
            SaveError: the file could not be written.
        """
        if current_iter != -1:
            self.state.write(epoch, current_iter, self.run, self.get_bare_model(self.net_g))

    def resume_training(self, resume_state: Mapping[str, Any]) -> None:
        """Resume from a training state with the current options, see `TrainingState`.

        Raises:
            OptionError: the state has another optimizer, a network of other sizes, more iterations than `total_iter`,
                or invalid content.
        """
        warmup = self.opt['train'].get('warmup_iter', -1)
        try:
            raise_problems(self.state.problems(resume_state, self.get_bare_model(self.net_g)))
            self.state.load(resume_state, partial(self.update_learning_rate, warmup_iter=warmup))
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            if isinstance(error, OptionError):
                raise
            what = printable(f'{type(error).__name__}: {error}'.partition('\n')[0])
            message = f"'{self.opt['path']['resume_state']}' has invalid content ({what}). Use another state."
            raise OptionError(problem(('path', 'resume_state'), message)) from error

    def load_network(
        self, net: nn.Module, load_path: str, strict: bool = True, param_key: str | None = 'params'
    ) -> None:
        """Load weights, and grow them if `path.grow_g` allows it.

        The averaged network loads `params_ema` if the file has it, else the other weights.

        Raises:
            OptionError: the file cannot be read or does not fit the network.
        """
        bare, paths = self.get_bare_model(net), self.opt['path']
        resuming = paths.get('resume_state') and 'network_g' not in (paths.get('ignore_resume_networks') or ())
        where = ('path', 'resume_state') if resuming else WEIGHTS
        weights, key, self._origin = read_weights(load_path, (param_key, paths.get('param_key_g')), bare, where)
        logger.info(f'Loading {type(bare).__name__} model from {load_path} ({key or "a bare state dict"}).')
        # Weights that the file lacks come from the trained network, so both networks have the same ones.
        weights = with_prompts(weights, self.get_bare_model(self.net_g))
        complete = weights if resuming else with_queue(weights, bare)
        for name in (name for name, value in complete.items() if value is not weights.get(name)):
            logger.info(f'  {name}: not in the file with this length, newly initialised.')
        weights = complete
        found = check_fit(weights, bare, load_path, paths, bool(resuming))
        weights = grow(weights, self.get_bare_model(self.net_g).state_dict(), found)
        for difference in found:
            logger.info(f'  {difference}: {difference.before} {difference.counted} loaded, the others are new')
        if not strict:
            self._print_different_keys_loading(bare, weights, strict)
        bare.load_state_dict(weights, strict=strict)

    # inference and validation

    @property
    def size_multiple(self) -> int:
        """Number that both sides of the network's input must be multiples of."""
        given = (self.opt.get('val') or {}).get('size_multiple')
        return given or traits_of(self.net_g, self.opt['network_g']).size_multiple

    def test(self) -> None:
        """Restore `lq` of any size into `output`, with the averaged weights if there are any."""
        with self._measuring() as net:
            self.output = restore_images(net, self.batch.lq, self.inference_settings, self.batch.degradation)

    @property
    def inference_settings(self) -> Settings:
        """Inference settings of the section `val`."""
        val = self.opt.get('val') or {}
        names = ('tile', 'tile_overlap', 'tile_statistics', 'tile_passes', 'ensemble', 'precision')
        given = {name.removeprefix('tile_'): val[name] for name in names if val.get(name) is not None}
        return Settings(**given, size_multiple=self.size_multiple)

    def infer(self) -> torch.Tensor:
        """Run the network on the batch without padding or tiles, with the averaged weights if there are any."""
        precision = self.inference_settings.precision
        with self._measuring() as net, torch.no_grad(), float32_as(precision), autocast(precision, self.device):
            return widened(run_network(net, self.batch), precision)

    def _measured(self) -> nn.Module:
        """The network to validate; without a distributed wrapper, which would wait for the other processes."""
        use_ema = hasattr(self, 'net_g_ema') and (self.opt.get('val') or {}).get('use_ema', True)
        return self.net_g_ema if use_ema else self.get_bare_model(self.net_g)

    @contextmanager
    def _measuring(self) -> Iterator[nn.Module]:
        """The network to validate, in evaluation mode, compiled as `val.compile` says."""
        net = self._measured()
        training, compiled = net.training, bool((self.opt.get('val') or {}).get('compile'))
        net.eval()
        # The step is compiled for one size; validation images would recompile it for each size.
        with compiling('val.compile', compiled), eagerly(not compiled and bool(self.opt.get('compile'))):
            if compiled and net not in self._for_any_size:
                self._for_any_size[net] = compiled_for_any_size(net)
            try:
                yield self._for_any_size[net] if compiled else net
            finally:
                net.train(training)

    def validation(self, dataloader: DataLoader, current_iter: int | str, tb_logger: Any, save_img: bool) -> None:
        """Validate as BasicSR does, without an effect on the training."""
        self.is_measuring = True  # stays True if an error ends the validation
        with kept_random_state():
            super().validation(dataloader, current_iter, tb_logger, save_img)
        self.is_measuring = False

    def nondist_validation(
        self, dataloader: DataLoader, current_iter: int | str, tb_logger: Any, save_img: bool
    ) -> None:
        """Validate one dataset; after the last one of `datasets`, report all of them."""
        self._validate(dataloader, current_iter, tb_logger, save_img, Share())

    def dist_validation(self, dataloader: DataLoader, current_iter: int | str, tb_logger: Any, save_img: bool) -> None:
        """Validate with the images split over all processes; rank 0 writes the same files as a single process."""
        share = Share(self.opt['rank'], self.opt['world_size'])
        self._validate(dataloader, current_iter, tb_logger, save_img, share)

    def _validate(
        self, dataloader: DataLoader, current_iter: int | str, tb_logger: Any, save_img: bool, share: Share
    ) -> None:
        # BasicSR counts one iteration too many after the training, and repeats the last validation there.
        ended = self.is_train and self.state.ended
        iteration = self.opt['train']['total_iter'] if ended else current_iter
        name: str = dataloader.dataset.opt['name']  # type: ignore[attr-defined]
        if ended and self.report.validated == iteration:
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
                labelled = labels.give(self.batch.lq, data, self.batch.degradation)
                self.batch = replace(self.batch, degradation=labelled)
                self.test()
                if tb_logger and measurement.begins(data):
                    self._log_prompts('/'.join(('prompts', name, *data.get('task', ())[:1])), iteration, tb_logger)
                measurement.add(self.get_current_visuals(), data)
                del self.batch, self.output  # before the next image is restored
        measurement.complete(share)
        labels.complete(share)
        made_by = getattr(dataloader.dataset, 'made_by', {})
        self.report.made_by |= {(name, task): words for task, words in made_by.items()}
        self.report.remarks[name] = [*getattr(dataloader.dataset, 'remarks', ()), *labels.lines()]
        labels.write(iteration, tb_logger)
        if not self.report.add(name, measurement.rows()):
            return
        if not self.opt['rank'] and (operations := operations_of(self.opt['network_g'])) is not None:
            self.report.facts['gigaops_256'] = round(operations, 2)
        self.report.write(iteration, tb_logger, self._keep_best(iteration) if self.is_train else None)
        if ended or not self.is_train:
            self.report.tell_files()

    def _log_prompts(self, place: str, iteration: int | str, tb_logger: Any) -> None:
        """Log the prompt weights of the current image, or of its centre if it is large."""
        net = self._measured()
        traits = traits_of(net, self.opt['network_g'])
        lq, degradation = self.batch.lq, self.batch.degradation
        if not traits.has_prompt_weights or traits.levels == () or (traits.needs_degradation and degradation is None):
            return
        top, left = (max(0, side - _LOOKED_AT) // 2 for side in lq.shape[-2:])
        part = lq[..., top : top + _LOOKED_AT, left : left + _LOOKED_AT]
        with torch.no_grad():
            shares = named_weights(net, pad_to_multiple(part, traits.size_multiple), degradation)
        for level, weights in shares.items():
            for prompt, share in weights.items():
                tb_logger.add_scalar(f'{place}/{level}/{prompt}', share, iteration)

    def get_current_visuals(self) -> dict[str, torch.Tensor]:
        """lq, result and, if available, gt: (1, 3, H, W) on the CPU."""
        visuals = {'lq': self.batch.lq, 'result': self.output, 'gt': self.batch.gt}
        return OrderedDict((key, x.detach().float().cpu()) for key, x in visuals.items() if x is not None)

    def _keep_best(self, iteration: int | str) -> dict[str, Any] | None:
        """Save the weights of the best average as `net_g_best.pth`; return its metric, value and iteration."""
        best = self.report.better_than_best(iteration)
        if best is not None:
            self.report.best = best
            ema = hasattr(self, 'net_g_ema')
            nets, keys = ([self.net_g, self.net_g_ema], ['params', 'params_ema']) if ema else (self.net_g, 'params')
            self.save_network(nets, 'net_g', 'best', keys)
            if self.opt['rank'] == 0:
                atomic_write(json.dumps(best), self._best_file)
        return self.report.best


def _counted(tensors: Sequence[torch.Tensor]) -> str:
    return f'{len(tensors):,} tensors, {sum(tensor.numel() for tensor in tensors):,} parameters'
