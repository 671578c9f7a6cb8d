"""The model that trains a restorer together with the contrastive encoder that steers it."""

import logging
from typing import Any

from basicsr.utils.registry import MODEL_REGISTRY
from torch import nn
from torch.nn.parallel import DataParallel
from torch.utils.data import DataLoader

from promptir_basicsr.archs.layers.contrast import ContrastiveEncoder
from promptir_basicsr.archs.traits import traits_of
from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.core.problems import problem
from promptir_basicsr.core.registry import register
from promptir_basicsr.models.objective import ContrastiveLosses, ImageLosses, Objective
from promptir_basicsr.models.prompt_model import PromptModel

logger = logging.getLogger('basicsr')


@register(MODEL_REGISTRY)
class ContrastiveModel(PromptModel):
    """Trains and measures a network with a contrastive encoder, such as AirNet.

    Up to iteration `encoder_iter` the encoder alone is trained, by contrast: it finds the second crop of an image
    (`lq_key`) among crops of earlier images. After it, everything is trained, by the losses of images and a part of the
    contrastive loss. One optimizer goes through both; it passes over weights that have no gradient yet. Queue, pointer
    and key encoder are tensors of the network, and so are in its checkpoints; a step that is not finite leaves them as
    they were.

    The log has `l_contrast` with its weight, as all losses, and `contrast_accuracy`: how often the second crop was
    likelier than every key of the queue.

    Several processes gather their keys, so that each holds the same queue of all keys. Batch statistics are those of a
    process.

    Options beside PromptModel's, but for `prompt_opt` and `loss_scaler`:
        train.encoder_iter: last iteration of the encoder alone; validations begin after it. Default: 0.
        train.contrast_weight: of the contrastive loss beside those of images. Default: 0.1.
    """

    def model_to_device(self, net: nn.Module) -> nn.Module:
        """PromptModel's, of a network with a contrastive encoder.

        Raises:
            OptionError: it has none, or is to run on several GPUs of one process.
        """
        if self.is_train and not traits_of(net).contrastive:
            raise OptionError(problem(('network_g', 'type'), f'{type(net).__name__} has no contrastive encoder.'))
        for module in net.modules():
            if isinstance(module, ContrastiveEncoder):
                module.shares_keys = bool(self.opt['dist'])
        if self.opt['dist'] and self.encoder_iter:  # the restorer has no gradient at first
            self.opt['find_unused_parameters'] = True
        wrapped = super().model_to_device(net)
        if self.is_train and isinstance(wrapped, DataParallel):
            message = 'several GPUs of one process do not share a queue of keys. Start one process a GPU (torchrun).'
            raise OptionError(problem('num_gpu', message))
        return wrapped

    @property
    def encoder_iter(self) -> int:
        """The last iteration of the encoder alone."""
        return (self.opt.get('train') or {}).get('encoder_iter') or 0

    def build_objective(self) -> Objective:
        train = self.opt['train']
        weight = train.get('contrast_weight')
        images = ImageLosses.of(train, self.net_g, self.device)
        self.losses = ContrastiveLosses(images, 0.1 if weight is None else weight)
        return self.losses

    def optimize_parameters(self, current_iter: int) -> None:
        """One step of the stage that the iteration belongs to; see PromptModel."""
        self.losses.restores = current_iter > self.encoder_iter
        if self.encoder_iter and current_iter == 1:
            logger.info(f'Up to iteration {self.encoder_iter:,} the encoder alone is trained.')
        elif self.encoder_iter and current_iter == self.encoder_iter + 1:
            logger.info('From here on the restorer is trained with the encoder.')
        super().optimize_parameters(current_iter)

    def validation(self, dataloader: DataLoader, current_iter: int | str, tb_logger: Any, save_img: bool) -> None:
        """PromptModel's, once the restorer is trained."""
        if self.is_train and isinstance(current_iter, int) and self.state.iteration <= self.encoder_iter:
            logger.info(f'No validation: the encoder alone is trained up to iteration {self.encoder_iter:,}.')
            return
        super().validation(dataloader, current_iter, tb_logger, save_img)
