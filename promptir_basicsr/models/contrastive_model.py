"""Model for training a restorer together with its contrastive encoder."""

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
    """Trains and validates a network with a contrastive encoder, such as AirNet.

    Up to iteration `encoder_iter` only the encoder is trained, by contrast: it finds the second crop of an image
    (`lq_key`) among crops of earlier images. After that, the whole network is trained by the image losses and the
    weighted contrastive loss. One optimizer serves both stages; it skips weights without a gradient. Queue, pointer and
    key encoder are tensors of the network, so checkpoints contain them; a non-finite step leaves them unchanged.

    The log has the weighted `l_contrast`, like all losses, and `contrast_accuracy`: how often the second crop was more
    likely than every key of the queue.

    Several processes gather their keys, so each has the same queue of all keys. Batch statistics are per process.

    Options in addition to PromptModel's, except `prompt_opt` and `loss_scaler`:
        train.encoder_iter: last iteration that trains only the encoder; validations start after it. Default: 0.
        train.contrast_weight: weight of the contrastive loss next to the image losses. Default: 0.1.

    Examples:
        >>> from promptir_basicsr.models import ContrastiveModel
        >>> network = {'type': 'AirNet', 'dim': 8, 'num_groups': 1, 'num_blocks': 1, 'queue_length': 16}
        >>> model = ContrastiveModel({'is_train': False, 'num_gpu': 0, 'dist': False, 'network_g': network, 'path': {}})
        >>> model.feed_data({'lq': torch.rand(1, 3, 20, 30)})
        >>> model.test()
        >>> model.output.shape
        torch.Size([1, 3, 20, 30])
    """

    def model_to_device(self, net: nn.Module) -> nn.Module:
        """Move a network with a contrastive encoder to the device, see PromptModel.

        Raises:
            OptionError: no contrastive encoder, or several GPUs in one process.
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
            message = 'several GPUs of one process cannot share a queue of keys. Start one process per GPU (torchrun).'
            raise OptionError(problem('num_gpu', message))
        return wrapped

    @property
    def encoder_iter(self) -> int:
        """The last iteration that trains only the encoder."""
        return (self.opt.get('train') or {}).get('encoder_iter') or 0

    def build_objective(self) -> Objective:
        train = self.opt['train']
        weight = train.get('contrast_weight')
        images = ImageLosses.of(train, self.net_g, self.device)
        self.losses = ContrastiveLosses(images, 0.1 if weight is None else weight)
        return self.losses

    def optimize_parameters(self, current_iter: int) -> None:
        """One step of the iteration's stage; see PromptModel."""
        self.losses.restores = current_iter > self.encoder_iter
        if self.encoder_iter and current_iter == 1:
            logger.info(f'Training only the encoder up to iteration {self.encoder_iter:,}.')
        elif self.encoder_iter and current_iter == self.encoder_iter + 1:
            logger.info('Training the restorer and the encoder from here on.')
        super().optimize_parameters(current_iter)

    def validation(self, dataloader: DataLoader, current_iter: int | str, tb_logger: Any, save_img: bool) -> None:
        """Validate as PromptModel does; skipped while only the encoder is trained."""
        if self.is_train and isinstance(current_iter, int) and self.state.iteration <= self.encoder_iter:
            logger.info(f'Validation skipped: only the encoder is trained up to iteration {self.encoder_iter:,}.')
            return
        super().validation(dataloader, current_iter, tb_logger, save_img)
