"""Samples of each task, and observation of a network's prompts or encodings, for `basicsr explain`.

Shapes: B batch, C feature channels, H W height and width, K prompts of a level, T degradations, D prompt channels,
S prompt size.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from promptir_basicsr.archs.layers.prompts import PromptGenBlock, PromptInPrompt
from promptir_basicsr.archs.traits import Conditioned, Encoding, Prompted, names_of, traits_of, unwrapped
from promptir_basicsr.core.arrays import pad_to_multiple
from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.data.allinone_dataset import AllInOneDataset
from promptir_basicsr.explain.scores import in_their_span
from promptir_basicsr.inference.restoring import Settings, restore_images
from promptir_basicsr.metrics.paper_metric import psnr

Change = Callable[[Tensor], Tensor]
"""Maps the prompt weights of a level, (B, K), to those to use instead."""


@dataclass(frozen=True, eq=False)
class Sample:
    """An image of a task, cropped at its centre.

    Attributes:
        task: name of the task.
        name: of the image, within its task.
        label: of the degradation.
        lq, gt: degraded and clear image: (3, H, W) RGB or (1, H, W) grey, [0, 1].
    """

    task: str
    name: str
    label: int
    lq: Tensor
    gt: Tensor


def choose_samples(dataset: AllInOneDataset, images: int, seed: int, size: int, multiple: int) -> list[Sample]:
    """Draw up to a number of images of each task, in the order of the dataset.

    Tasks with the same number of images get the same positions, so tasks made from the same photographs differ only in
    the degradation.

    Args:
        dataset: of a validation or test.
        images: largest number of images of each task.
        seed: of the draw.
        size: longest side in pixels; larger images are cropped at their centre.
        multiple: sides are multiples of it, if the image is large enough.

    Raises:
        ImageError: an image cannot be read.
    """
    samples, start = [], 0
    for task in dataset.tasks:
        drawn = np.random.default_rng(seed).permutation(len(task))[:images]
        for position in sorted(drawn):
            data = dataset[start + int(position)]
            lq, gt = (_cut(data[key], size, multiple) for key in ('lq', 'gt'))
            samples.append(Sample(task.name, data['name'], task.label, lq, gt))
        start += len(task)
    return samples


def quality(x: Tensor, target: Tensor) -> float:
    """PSNR in dB of an image (C, H, W), clamped to [0, 1], as floats; infinite for the target itself."""
    return psnr(x.clamp(0, 1).numpy().transpose(1, 2, 0), target.numpy().transpose(1, 2, 0))


def _cut(x: Tensor, size: int, multiple: int) -> Tensor:
    """Crop (C, H, W) at its centre to sides of at most `size`, and to multiples if possible."""
    height, width = (min(side, size) for side in x.shape[-2:])
    height, width = (side // multiple * multiple or side for side in (height, width))
    top, left = (x.shape[-2] - height) // 2, (x.shape[-1] - width) // 2
    return x[:, top : top + height, left : left + width].contiguous()


class PromptedNet:
    """A network with prompts, with access to the prompts of each level; or with encodings, such as AirNet.

    Args:
        net: in evaluation mode.
        device: device of the network.

    Attributes:
        levels: names of the levels -> their prompt modules, in the order of the forward pass; {} for a network with
            encodings.
        encodes: whether it has encodings instead of prompts.
        told: whether it gets the degradation as a label (PIP) or computes weights from the image (PromptIR).
        degradations: names of the T degradations of a network with labels, by label.
        sensing: whether it has a sensor.
        channels: of the images.

    Raises:
        OptionError: the network has neither prompts nor encodings; the message lists networks that have.

    Examples:
        >>> from promptir_basicsr.checkpoints import build, read_checkpoint
        >>> from promptir_basicsr.explain import PromptedNet
        >>> prompted = PromptedNet(build(read_checkpoint('net_g_latest.pth')))
        >>> {level: prompts.shape for level, prompts in prompted.vectors().items()}
        {'level3': (5, 832), 'level2': (5, 320), 'level1': (5, 192)}
    """

    def __init__(self, net: nn.Module, device: torch.device | str = 'cpu') -> None:
        self.net, self.device = net.to(device).eval(), torch.device(device)
        self.prompts: Prompted = unwrapped(net)
        traits = traits_of(net)
        self.told, self.multiple = traits.takes_degradation, traits.size_multiple
        self.channels = traits.image_channels
        self.sensing = self.told and traits.holds_sensor
        self.degradations = traits.labels if self.told else ()
        self.encodes = traits.has_encodings and not traits.has_prompt_weights
        self.levels = {} if self.encodes else self._find()

    def _find(self) -> dict[str, PromptGenBlock | PromptInPrompt]:
        """Find the prompt modules by the order of their calls, which is the order of the levels."""
        kind = type(self.net).__name__
        known = names_of(lambda traits: traits.has_prompt_weights or traits.has_encodings)
        advice = f'Networks to explain: {", ".join(known)}.'
        if not traits_of(self.net).has_prompt_weights:
            raise OptionError(f'{kind} has no prompts to explain. {advice}')
        side = -(-64 // self.multiple) * self.multiple
        x = torch.zeros(1, self.channels, side, side, device=self.device)
        called: list[Any] = []
        with torch.no_grad(), self._listening(lambda module, *_: called.append(module)):
            try:
                names = list(self.prompts.prompt_weights(x, 0 if self.told else None))
            except ValueError as error:
                raise OptionError(f'{error} {advice}') from error
            called.clear()
            self.net(x, 0 if self.told else None)
        if not names:
            raise OptionError(f'{kind}: built without prompts to explain. {advice}')
        if len(names) != len(called):
            raise OptionError(f'{kind}: {len(names)} levels of weights, but {len(called)} prompt modules. {advice}')
        return dict(zip(names, called, strict=True))

    @contextmanager
    def _listening(self, hook: Callable[..., Any]) -> Iterator[None]:
        """Call hook(module, inputs, output) after each prompt module."""
        with ExitStack() as stack:
            for module in self.net.modules():
                if isinstance(module, PromptGenBlock | PromptInPrompt):
                    stack.enter_context(module.register_forward_hook(hook))
            yield

    def vectors(self) -> dict[str, np.ndarray]:
        """The prompts that distinguish degradations, as one vector each, by level: (K, length)."""
        return {} if self.encodes else {level: _array(x) for level, x in self.prompts.prompt_vectors().items()}

    def pictures(self) -> dict[str, np.ndarray]:
        """The prompts that are images: (N, D, S, S), N for PromptIR, and one basic prompt for PIP."""
        return {
            level: _array(module.prompt_param[0] if isinstance(module, PromptGenBlock) else module.low_prompt_param)
            for level, module in self.levels.items()
        }

    def restore(self, x: Tensor, degradation: Any = None, strength: float = 1.0) -> Tensor:
        """Restore x: (C, H, W) of any size; the result is on the CPU and not clamped."""
        settings = Settings(size_multiple=self.multiple)
        return restore_images(self.net, x[None], settings, degradation if self.told else None, strength)[0]

    def psnr(self, sample: Sample, degradation: Any = None, strength: float = 1.0) -> float:
        """PSNR in dB of a restored sample; floats, not rounded."""
        return quality(self.restore(sample.lq, degradation, strength), sample.gt)

    def sense(self, sample: Sample) -> np.ndarray:
        """Predict the degradation of a sample by the sensor: (T,) probabilities."""
        with torch.no_grad():
            net: Conditioned = unwrapped(self.net)
            return _array(net.sense(sample.lq[None].to(self.device)))[0]

    @contextmanager
    def changed(self, changes: Mapping[str, Change]) -> Iterator[None]:
        """Context with other prompt weights in some levels, in either formulation.

        Args:
            changes: level -> change of its weights. Only for prompts whose weights are computed from the image.
        """
        with ExitStack() as stack:
            for level, change in changes.items():
                stack.enter_context(_changed_weights(self.levels[level], change))
            yield


@contextmanager
def _changed_weights(module: nn.Module, change: Change) -> Iterator[None]:
    """Override `weights`, which both formulations of a PromptGenBlock call, on the instance."""
    assert isinstance(module, PromptGenBlock)
    own, before = module.weights, module.__dict__.get('weights')
    module.__dict__['weights'] = lambda x: change(own(x))
    try:
        yield
    finally:
        if before is None:
            del module.__dict__['weights']
        else:
            module.__dict__['weights'] = before


def fixed(weights: Sequence[float] | np.ndarray) -> Change:
    """A change to the same (K,) weights for all images.

    Examples:
        >>> from promptir_basicsr.checkpoints import build, read_checkpoint
        >>> from promptir_basicsr.explain import PromptedNet, fixed
        >>> prompted = PromptedNet(build(read_checkpoint('net_g_latest.pth')))
        >>> with prompted.changed({level: fixed([1, 0, 0, 0, 0]) for level in prompted.levels}):
        ...     restored = prompted.restore(torch.rand(3, 32, 32))
    """
    row = torch.as_tensor(np.asarray(weights))
    return lambda x: row.to(x).expand_as(x)


def without(prompt: int) -> Change:
    """A change that removes one prompt and keeps the proportions of the others; equal weights if it had all."""

    def change(x: Tensor) -> Tensor:
        kept = x.clone()
        kept[:, prompt] = 0
        total = kept.sum(dim=1, keepdim=True)
        equal = torch.ones_like(x) / (x.shape[1] - 1)
        equal[:, prompt] = 0
        return torch.where(total > 0, kept / total.where(total > 0, torch.ones_like(total)), equal)

    return change


@dataclass(frozen=True)
class Observation:
    """Observed weights, features and prompts of a network for n samples, by level; encodings by their names.

    Attributes:
        weights: (n, K).
        features: (n, 2 C), mean and standard deviation over the pixels of the input features of the prompt modules, or
            of an encoding that is a map; (n, D) of an encoding that is a vector.
        prompts: for PromptIR the weighted prompt in coordinates of the space of the prompts, (n, K); for PIP mean and
            standard deviation over the pixels of the prompt that the module returns, (n, 2 D).
    """

    weights: dict[str, np.ndarray]
    features: dict[str, np.ndarray]
    prompts: dict[str, np.ndarray]


def observe(prompted: PromptedNet, samples: Sequence[Sample], seen: Callable[[], Any] = lambda: None) -> Observation:
    """Observe prompts and features, one image at a time.

    A network with labels gets the true label for weights and prompts, and the equal mixture of all labels for the
    features, so the features contain no label.

    Args:
        seen: called after each image.
    """
    if prompted.encodes:
        return Observation({}, _encodings(prompted, samples, seen), {})
    net, levels = prompted.net, list(prompted.levels)
    rows: dict[str, dict[str, list[np.ndarray]]] = {
        kind: {level: [] for level in levels} for kind in ('weights', 'features', 'prompts')
    }
    names = {module: level for level, module in prompted.levels.items()}
    equal = torch.full((len(prompted.degradations),), 1.0)

    for sample in samples:
        x = pad_to_multiple(sample.lq[None].to(prompted.device), prompted.multiple)
        heard: dict[str, tuple[Tensor, Tensor]] = {}

        def listen(module: nn.Module, inputs: Any, output: Tensor, heard: dict[str, Any] = heard) -> None:
            heard[names[cast(Any, module)]] = (_moments(inputs[0]), _moments(output))

        with torch.no_grad(), prompted._listening(listen):
            if prompted.told:
                weights = prompted.prompts.prompt_weights(x, sample.label)
                net(x, equal)
                features = {level: heard[level][0] for level in levels}
                net(x, sample.label)
            else:
                weights = prompted.prompts.prompt_weights(x)
                if len(heard) < len(levels):  # a network may compute weights without computing prompts
                    net(x)
                features = {level: heard[level][0] for level in levels}
        for level in levels:
            rows['weights'][level].append(_array(weights[level])[0])
            rows['features'][level].append(_array(features[level])[0])
            if prompted.told:
                rows['prompts'][level].append(_array(heard[level][1])[0])
        seen()

    found = {kind: {level: np.array(each) for level, each in rows[kind].items()} for kind in rows}
    if not prompted.told:
        vectors = prompted.vectors()
        found['prompts'] = {level: found['weights'][level] @ in_their_span(vectors[level]) for level in levels}
    return Observation(**found)


@torch.no_grad()
def _encodings(prompted: PromptedNet, samples: Sequence[Sample], seen: Callable[[], Any]) -> dict[str, np.ndarray]:
    net: Encoding = unwrapped(prompted.net)
    found: dict[str, list[np.ndarray]] = {}
    for sample in samples:
        x = pad_to_multiple(sample.lq[None].to(prompted.device), prompted.multiple)
        for name, value in net.encodings(x).items():
            found.setdefault(name, []).append(_array(_moments(value) if value.ndim == 4 else value)[0])
        seen()
    return {name: np.array(each) for name, each in found.items()}


def _moments(x: Tensor) -> Tensor:
    """Mean and standard deviation over the pixels: (B, C, H, W) -> (B, 2 C)."""
    variance, mean = torch.var_mean(x.float(), dim=(-2, -1), correction=0)
    return torch.cat([mean, variance.sqrt()], dim=1)


def _array(x: Tensor) -> np.ndarray:
    return x.detach().double().cpu().numpy()
