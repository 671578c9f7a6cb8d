"""Training objectives: terms of the loss, by their names in the log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from basicsr.losses import build_loss
from torch import Tensor, nn

from promptir_basicsr.archs.airnet_arch import Contrasted
from promptir_basicsr.archs.traits import prompts_of
from promptir_basicsr.core.errors import OptionError, problems_of
from promptir_basicsr.core.problems import Problem, problem
from promptir_basicsr.models.batch import Batch, chosen, run_network

NO_MEAN = 'is not a mean over images, which `train.accumulate` needs. Use `reduction: mean`, or remove accumulate.'


class Objective(Protocol):
    """The loss of a training step.

    Outputs are what `run` returns for a batch or a micro-batch.
    """

    def run(self, net: nn.Module, batch: Batch) -> Any:
        """Run the network on a batch, in a single call, as DistributedDataParallel needs it."""

    def of_images(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        """Terms that are means over the images of a batch."""

    def of_network(self, net: nn.Module) -> dict[str, Tensor]:
        """Terms that do not depend on images."""

    def of_tasks(self, output: Any, batch: Batch) -> Iterator[tuple[str, Tensor, int]]:
        """Additional entries of the log: name, mean, number of images."""

    def accumulation_problems(self) -> list[Problem]:
        """Problems of terms that are not means over images, which do not allow splitting a batch."""


@dataclass
class ImageLosses:
    """Losses of a restoration network; None for unused ones.

    Attributes:
        pixel, frequency: losses of output and target, (B, 3, H, W) each.
        perceptual: BasicSR's, which returns a perceptual and a style loss.
        prompt: loss of the network's prompt vectors.
    """

    pixel: nn.Module | None = None
    frequency: nn.Module | None = None
    perceptual: nn.Module | None = None
    prompt: nn.Module | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any], net: nn.Module, device: torch.device) -> ImageLosses:
        """The losses of the section `train`.

        Raises:
            ValueError: no image loss is set.
            OptionError: a prompt loss is set, but the network has no prompts.
        """
        keys = ('pixel_opt', 'frequency_opt', 'perceptual_opt', 'prompt_opt')
        losses = [build_loss(options[key]).to(device) if options.get(key) else None for key in keys]
        if not any(losses[:3]):
            raise ValueError(f'train: no image loss, all of {", ".join(keys[:3])} are None. Set one of them.')
        if losses[3]:
            try:
                prompts_of(net)
            except ValueError as error:
                raise OptionError(problems_of(('train', 'prompt_opt'), error)) from error
        return cls(*losses)

    def run(self, net: nn.Module, batch: Batch) -> Tensor:
        return run_network(net, batch)

    def of_images(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        losses = {}
        if self.pixel:
            losses['l_pix'] = self.pixel(output, batch.gt)
        if self.frequency:
            losses['l_freq'] = self.frequency(output, batch.gt)
        if self.perceptual:
            perceptual, style = self.perceptual(output, batch.gt)
            losses.update({k: v for k, v in (('l_percep', perceptual), ('l_style', style)) if v is not None})
        return losses

    def of_network(self, net: nn.Module) -> dict[str, Tensor]:
        return {'l_prompt': self.prompt(prompts_of(net))} if self.prompt else {}

    def of_tasks(self, output: Tensor, batch: Batch) -> Iterator[tuple[str, Tensor, int]]:
        if self.pixel and batch.gt is not None:
            for name, members in batch.members().items():
                loss = self.pixel(chosen(output, members), chosen(batch.gt, members))
                yield f'l_pix_{name}', loss, len(members)

    def accumulation_problems(self) -> list[Problem]:
        losses = {'pixel_opt': self.pixel, 'frequency_opt': self.frequency, 'perceptual_opt': self.perceptual}
        return [problem(('train', key), NO_MEAN) for key, loss in losses.items() if loss and not is_mean(loss)]


@dataclass(frozen=True)
class CrossEntropy:
    """Cross entropy, the loss of a sensor.

    Attributes:
        smoothing: label smoothing, the part of each label that is spread over all degradations.
    """

    smoothing: float = 0.0

    def run(self, net: nn.Module, batch: Batch) -> Tensor:
        return run_network(net, batch)

    def of_images(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        return {'l_ce': self._loss(output, batch.degradation)}

    def of_network(self, net: nn.Module) -> dict[str, Tensor]:
        return {}

    def of_tasks(self, output: Tensor, batch: Batch) -> Iterator[tuple[str, Tensor, int]]:
        right = (output.argmax(dim=1) == batch.degradation).float()
        yield 'accuracy', right.mean(), len(right)
        for name, members in batch.members().items():
            yield f'l_ce_{name}', self._loss(chosen(output, members), chosen(batch.degradation, members)), len(members)

    def accumulation_problems(self) -> list[Problem]:
        return []

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=self.smoothing)


@dataclass
class ContrastiveLosses:
    """Losses of a restorer and its contrastive encoder.

    Attributes:
        images: losses of the restored images.
        weight: of the contrastive loss, the cross entropy of finding each image's key among earlier keys.
        restores: whether the restorer is trained; False trains only the encoder, by the contrastive loss.
    """

    images: ImageLosses
    weight: float = 0.1
    restores: bool = True

    def run(self, net: nn.Module, batch: Batch) -> Contrasted:
        """Run the network. Raises ValueError if the batch has no keys."""
        if batch.key is None:
            raise ValueError('ContrastiveModel: the samples have no `lq_key`. Set `second_crop: true` in the dataset.')
        return net(batch.lq, key=batch.key, restore=self.restores)

    def of_images(self, output: Contrasted, batch: Batch) -> dict[str, Tensor]:
        contrast = F.cross_entropy(output.logits, output.labels)
        if output.restored is None:
            return {'l_contrast': contrast}
        return {**self.images.of_images(output.restored, batch), 'l_contrast': self.weight * contrast}

    def of_network(self, net: nn.Module) -> dict[str, Tensor]:
        return {}

    def of_tasks(self, output: Contrasted, batch: Batch) -> Iterator[tuple[str, Tensor, int]]:
        right = (output.logits.argmax(dim=1) == output.labels).float()
        yield 'contrast_accuracy', right.mean(), len(right)
        if output.restored is not None:
            yield from self.images.of_tasks(output.restored, batch)

    def accumulation_problems(self) -> list[Problem]:
        return self.images.accumulation_problems()


def is_mean(loss: nn.Module) -> bool:
    """Whether an image loss is a mean over images, as far as its attributes show."""
    return getattr(loss, 'reduction', 'mean') != 'sum' and getattr(loss, 'criterion_type', '') != 'fro'
