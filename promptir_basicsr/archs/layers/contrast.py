"""Momentum contrast of degradations: crops of one image are positives, crops of earlier images negatives.

Sources: Li, Liu, Hu, Wu, Lv, Peng, "All-In-One Image Restoration for Unknown Corruption", CVPR 2022, for the encoder;
He, Fan, Wu, Xie, Girshick, "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020
(arXiv 1911.05722), equations 1 and 2, for its training. An independent implementation with the parameter names of
released weights.

Shapes: B batch, H W height and width, C features at full size, D = 4 C embedding, K keys in the queue.
"""

import copy
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

logger = logging.getLogger('basicsr')

SLOPE = 0.1  # of all leaky ReLUs


class Encoding(NamedTuple):
    """Outputs of an encoder.

    Attributes:
        feature: (B, D), the mean of the deepest features over all pixels.
        embedding: (B, D), input of the contrastive loss; not normalised yet.
        map: (B, C, H, W), the features of the first block.
    """

    feature: Tensor
    embedding: Tensor
    map: Tensor


class Contrast(NamedTuple):
    """Contrast of a batch of queries with its keys and the queue.

    Attributes:
        feature: (B, D) of the queries.
        logits: (B, 1 + K), cosines over the temperature; first that of the key, then those of the queue.
        labels: (B,) int64, the position of the key: 0.
        map: (B, C, H, W) of the queries.
    """

    feature: Tensor
    logits: Tensor
    labels: Tensor
    map: Tensor


class ContrastiveEncoder(nn.Module):
    """An encoder of degradations trained without labels, its momentum copy, and the queue of negatives.

    In training the copy moves towards the encoder by `momentum` and encodes the keys, which then replace the oldest
    keys of the queue. The queue, its pointer and the copy change in the forward pass; `moving_state` lists them.

    Args:
        inp_channels: channels of the images.
        dim: C.
        queue_length: K.
        momentum: weight of the old copy in an update.
        temperature: divisor of the cosines.

    Attributes:
        shares_keys: whether processes of torch.distributed gather their keys, so that all have the same queue. Set by
            ContrastiveModel.

    Examples:
        >>> from promptir_basicsr.archs import ContrastiveEncoder
        >>> encoder = ContrastiveEncoder(dim=8, queue_length=16)
        >>> contrast = encoder(torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16))  # two crops of each image
        >>> contrast.logits.shape, contrast.labels
        (torch.Size([2, 17]), tensor([0, 0]))
    """

    shares_keys = False
    queue: Tensor
    queue_ptr: Tensor

    def __init__(
        self,
        inp_channels: int = 3,
        dim: int = 64,
        queue_length: int = 1280,
        momentum: float = 0.999,
        temperature: float = 0.07,
    ) -> None:
        super().__init__()
        self.momentum, self.temperature = momentum, temperature
        self.register_buffer('queue', F.normalize(torch.randn(4 * dim, queue_length), dim=0))
        self.register_buffer('queue_ptr', torch.zeros(1, dtype=torch.long))
        self.encoder_q = ResidualEncoder(inp_channels, dim)
        self.encoder_k = copy.deepcopy(self.encoder_q).requires_grad_(False)

    def forward(self, x: Tensor, key: Tensor) -> Contrast:
        """Contrast queries with keys, and update the copy and the queue.

        Args:
            x: (B, 3, H, W), RGB, [0, 1].
            key: other crops of the same images, like x; at most K over all processes.
        """
        found = self.encoder_q(x)
        query = _unit(found.embedding)
        with torch.no_grad():
            self._move_copy()
            keys = _unit(self.encoder_k(key).embedding)
            queue = self.queue.clone()  # the backward pass reads it after the update
            self._enqueue(_of_all_processes(keys) if self.shares_keys else keys)
        with torch.autocast(x.device.type, enabled=False):  # cosines are divided by a small temperature
            alike = (query * keys).sum(dim=1, keepdim=True)
            logits = torch.cat([alike, query @ queue], dim=1) / self.temperature
        return Contrast(found.feature, logits, logits.new_zeros(len(logits), dtype=torch.long), found.map)

    def moving_state(self) -> list[Tensor]:
        """Tensors that a forward pass changes in training, except running statistics of batch normalisation."""
        return [self.queue, self.queue_ptr, *self.encoder_k.parameters()]

    @torch.no_grad()
    def _move_copy(self) -> None:
        slow: list[Tensor] = list(self.encoder_k.parameters())
        fast: list[Tensor] = list(self.encoder_q.parameters())
        torch._foreach_lerp_(slow, fast, 1 - self.momentum)

    def _enqueue(self, keys: Tensor) -> None:
        """Write keys (N, D) after the newest ones, without synchronising with the device."""
        number, length = len(keys), self.queue.shape[1]
        if number > length:
            message = f'the queue has room for {length:,} keys, and a training step has {number:,}.'
            raise ValueError(f'{message} Raise queue_length or lower the batch size.')
        columns = (self.queue_ptr + torch.arange(number, device=keys.device)) % length
        self.queue.index_copy_(1, columns, keys.T)
        self.queue_ptr.add_(number).remainder_(length)

    def with_queue(self, weights: Mapping[str, Tensor], prefix: str = '') -> dict[str, Tensor]:
        """Return weights with a queue of this network's length; a missing or different queue is replaced by a new one.

        Args:
            weights: name -> tensor.
            prefix: of the names of this module.
        """
        name, completed = f'{prefix}queue', dict(weights)
        found = weights.get(name)
        own = any(each.startswith(prefix) for each in weights)
        if own and (found is None or found.shape != self.queue.shape) and (found is None or _is_queue(found, self)):
            draw = torch.Generator().manual_seed(0)
            fresh = torch.randn(tuple(self.queue.shape), generator=draw, device='cpu')
            completed[name] = F.normalize(fresh, dim=0).to(self.queue.dtype)
            completed[f'{name}_ptr'] = torch.zeros(1, dtype=torch.long, device='cpu')
        return completed

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Load weights, also of trainings with another batch size."""
        before = state_dict.get(f'{prefix}queue')
        state_dict.update(self.with_queue(state_dict, prefix))
        if state_dict.get(f'{prefix}queue') is not before:
            logger.info(fresh_queue(before, self.queue.shape[1]))
        super()._load_from_state_dict(state_dict, prefix, *args)


class ResidualEncoder(nn.Module):
    """Three residual blocks, the mean over all pixels, and a small network that computes the embedding.

    Args:
        inp_channels: channels of the images.
        dim: C; 2 C and 4 C features at half and a quarter of the size.
    """

    def __init__(self, inp_channels: int, dim: int) -> None:
        super().__init__()
        width = 4 * dim
        self.E_pre = ResidualBlock(inp_channels, dim)
        # Not nn.Sequential: activation checkpointing searches blocks there, and these must not process a batch twice.
        self.E = nn.ModuleDict({'0': ResidualBlock(dim, 2 * dim, 2), '1': ResidualBlock(2 * dim, width, 2)})
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.LeakyReLU(SLOPE), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Encoding:
        """Encode x: (B, 3, H, W), RGB, [0, 1], of any size."""
        first = self.E_pre(x)
        deepest = first
        for block in self.E.values():
            deepest = block(deepest)
        feature = deepest.mean(dim=(-2, -1))
        return Encoding(feature, self.mlp(feature), first)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a parallel 1x1 convolution, each with batch normalisation.

    Args:
        inp: channels of the input.
        out: channels of the output.
        stride: of the first convolutions.
    """

    def __init__(self, inp: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(inp, out, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(out),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(out, out, 3, padding=1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.shortcut = nn.Sequential(nn.Conv2d(inp, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, inp, H, W). Returns (B, out, ceil(H / stride), ceil(W / stride))."""
        return F.leaky_relu(self.backbone(x) + self.shortcut(x), SLOPE)


def fresh_queue(before: Tensor | None, length: int) -> str:
    """Return the log line about a queue that starts from scratch."""
    found = 'no queue of keys' if before is None else f'a queue of {before.shape[1]:,} keys'
    return f'The weights have {found}, the network has one of {length:,}: it starts from scratch.'


def _is_queue(found: Tensor, encoder: ContrastiveEncoder) -> bool:
    """Return whether a tensor is a queue, possibly of another length; another width means another network."""
    return found.ndim == 2 and found.shape[0] == encoder.queue.shape[0]


def _unit(embedding: Tensor) -> Tensor:
    """Normalise (B, D) to unit length, in float32 also under autocast."""
    return F.normalize(embedding.to(torch.promote_types(embedding.dtype, torch.float32)), dim=1)


def _of_all_processes(keys: Tensor) -> Tensor:
    """Gather the keys (B, D) of all processes, in rank order, in each process."""
    gathered = [torch.empty_like(keys) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(gathered, keys.contiguous())
    return torch.cat(gathered)
