"""Traits of built-in, BasicSR's and third-party networks, read in one place.

A network does not need to declare anything. It may declare these attributes and methods; the rest of the package
reads only `NetworkTraits`.

| attribute or method | meaning |
|:--|:--|
| `takes_degradation` | whether it is called as `net(x, degradation)`, or `net(x, degradation, strength)` |
| `size_multiple`, `window_size` | height and width must be multiples of it |
| `num_degradations`, `degradations` | number of degradations it distinguishes, and their names |
| `sensor`, `hard_sensor` | predicts the degradation if none is passed; whether only the most likely one is used |
| `levels`, `prompts` | names of the levels of prompts; False for a network built without prompts |
| `growable_axes` | of any module: axes of its parameters that can grow, and what they count |
| methods | see the protocols `Conditioned`, `Prompted`, `Sensor`, `PromptHost`, `Contrastive`, `Encoding`, `Released` |

Shapes: B batch, C channels, H W height and width, T degradations, K prompts of a level.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from promptir_basicsr.archs.layers.arguments import is_whole

# Names of attributes and arguments for image channels in networks of BasicSR and third parties.
_CHANNELS_IN = ('inp_channels', 'img_channel', 'num_in_ch', 'in_channels', 'in_chans')
_CHANNELS_OUT = ('out_channels', 'img_channel', 'num_out_ch', 'out_chans')


class Conditioned(Protocol):
    """A network whose prompts accept ids, names or mixtures of degradations, such as `ConditionedNetwork`."""

    def prompt_context(self, x: Tensor, degradation: Any = None, strength: Any = 1.0) -> Any:
        """Return the weights and strengths of all levels for x: (B, C, H, W); ValueError for invalid values."""

    def degradation_weights(self, x: Tensor, degradation: Any = None) -> Tensor:
        """Return the weights of the degradations, (B, T), for x: (B, C, H, W). None uses the sensor."""

    def sense(self, x: Tensor) -> Tensor:
        """Return the sensor's probabilities (B, T) for x: (B, C, H, W)."""


class Prompted(Protocol):
    """A network whose prompts can be inspected; each method is optional."""

    def prompt_weights(self, x: Tensor, degradation: Any = None) -> Mapping[str, Tensor]:
        """Return the prompt weights for x: (B, C, H, W): level -> (B, K)."""

    def prompt_vectors(self) -> Mapping[str, Tensor]:
        """Return the prompts of each level as vectors: level -> (K, D)."""


class Sensor(Protocol):
    """A network that classifies degradations and restores nothing."""

    def probabilities(self, x: Tensor) -> Tensor:
        """Return (B, T) for x: (B, C, H, W); rows sum to 1."""


class PromptHost(Protocol):
    """A network that accepts the weights of the network that it adds prompts to."""

    def with_prompts(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Complete weights of the plain network by this network's prompts; return others unchanged."""


class Contrastive(Protocol):
    """A network with contrastive training: in training `net(x, key=crops)` returns `airnet_arch.Contrasted`.

    Attributes:
        queue_length: number of keys of earlier images that it stores.
    """

    queue_length: int

    def with_queue(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Adapt weights with a queue of any length, or none, to this network; return others unchanged."""


class Encoding(Protocol):
    """A network that computes a representation of the degradation from the image."""

    def encodings(self, x: Tensor) -> Mapping[str, Tensor]:
        """Return representations of x: (B, C, H, W) by name: vectors (B, D) or maps (B, D, H', W')."""


class Released(Protocol):
    """A network whose authors have published weights."""

    def released_state_dict(self) -> dict[str, Tensor]:
        """Return the weights with the published names and shapes; ValueError for unpublished configurations."""


@dataclass(frozen=True)
class NetworkTraits:
    """Traits of a network.

    Attributes:
        declared: whether it has `takes_degradation`, as networks written for this package do. Checks of options run
            only the constructors of such networks.
        takes_degradation: whether the second argument of `forward` is the degradation.
        conditioned: whether it accepts degradations and is a `Conditioned`.
        num_degradations: T; 0 where unknown.
        degradations: T names by id; None where unknown.
        is_sensor: whether it is a `Sensor`.
        holds_sensor: whether it has a sensor, which predicts the degradation if none is passed.
        hard_sensor: whether only the most likely degradation is used instead of the probabilities.
        has_prompt_weights, has_prompt_vectors: whether it has this method of `Prompted`.
        levels: names of the levels of prompts, in the order of the forward pass; () for a network built without
            prompts, None if unknown.
        adds_prompts: whether it is a `PromptHost`.
        contrastive: whether it is a `Contrastive`.
        has_encodings: whether it is an `Encoding`.
        released: whether it is a `Released`.
        declared_multiple: its `size_multiple`; None if it has none.
        window_size: side of its windows, in pixels of the image unless its features are reduced; None if unknown.
        channels_in, channels_out: channels of the input and output image; None if unknown.
        compiled: whether calls run code of torch.compile.

    Examples:
        >>> from promptir_basicsr.archs import PIPRestormer, traits_of
        >>> traits_of(PIPRestormer, {'num_degradations': 2}).num_degradations
        2
    """

    declared: bool
    takes_degradation: bool
    conditioned: bool
    num_degradations: int
    degradations: tuple[str, ...] | None
    is_sensor: bool
    holds_sensor: bool
    hard_sensor: bool
    has_prompt_weights: bool
    has_prompt_vectors: bool
    levels: tuple[str, ...] | None
    adds_prompts: bool
    contrastive: bool
    has_encodings: bool
    released: bool
    declared_multiple: int | None
    window_size: int | None
    channels_in: int | None
    channels_out: int | None
    compiled: bool

    @property
    def size_multiple(self) -> int:
        """Multiple to pad height and width to: its `size_multiple`, or `window_size`, or 1."""
        return self.declared_multiple or self.window_size or 1

    @property
    def image_channels(self) -> int:
        """Channels of the images to run it on: its `channels_in`, or 3 if unknown."""
        return self.channels_in or 3

    @property
    def labels(self) -> tuple[str, ...]:
        """The degradations by name, or by id if names are unknown."""
        return self.degradations or tuple(map(str, range(self.num_degradations)))

    @property
    def needs_degradation(self) -> bool:
        """Whether the degradation must be passed because there is no sensor."""
        return self.takes_degradation and not self.holds_sensor


def traits_of(network: nn.Module | Callable[..., nn.Module], options: Mapping[str, Any] | None = None) -> NetworkTraits:
    """Return the traits of a network, or of a registered class before it is built.

    Traits can change, for example when a sensor is attached. Call this again instead of storing the result.

    Args:
        network: a network, also inside DataParallel, DistributedDataParallel or torch.compile's module; or a
            registered class or function, for which only class attributes and arguments are known.
        options: arguments that the network is built with, used where attributes are missing; others have their
            defaults. Default: unknown for a network, the defaults for a class.

    Examples:
        >>> from promptir_basicsr.archs import PromptIR, traits_of
        >>> traits = traits_of(PromptIR)
        >>> traits.size_multiple, traits.takes_degradation
        (8, False)
    """
    bare = unwrapped(network)
    arguments = _arguments(bare, options)

    def said(name: str) -> Any:
        return getattr(bare, name, arguments.get(name))

    def count(*names: str) -> int | None:
        return next((value for value in map(said, names) if is_whole(value, least=1)), None)

    is_sensor = hasattr(bare, 'probabilities')
    takes_degradation = bool(getattr(bare, 'takes_degradation', False))
    multiple = getattr(bare, 'size_multiple', None)
    return NetworkTraits(
        declared=hasattr(bare, 'takes_degradation'),
        takes_degradation=takes_degradation,
        conditioned=takes_degradation and hasattr(bare, 'prompt_context'),
        num_degradations=count('num_degradations') or 0,
        degradations=_names(said('degradations')),
        is_sensor=is_sensor,
        holds_sensor=said('sensor') is not None,
        hard_sensor=bool(said('hard_sensor')),
        has_prompt_weights=hasattr(bare, 'prompt_weights'),
        has_prompt_vectors=hasattr(bare, 'prompt_vectors'),
        levels=() if said('prompts') is False else _names(said('levels')),
        adds_prompts=hasattr(bare, 'with_prompts'),
        contrastive=hasattr(bare, 'with_queue'),
        has_encodings=hasattr(bare, 'encodings'),
        released=hasattr(bare, 'released_state_dict'),
        declared_multiple=multiple if is_whole(multiple, least=1) else None,
        window_size=count('window_size'),
        channels_in=count(*_CHANNELS_IN),
        channels_out=None if is_sensor else count(*_CHANNELS_OUT),
        # The function that `net.compile()` leaves in the network, or the module that `torch.compile(net)` returns.
        compiled=bool(getattr(bare, '_compiled_call_impl', None)) or any(map(_compiled_module, _layers(network))),
    )


def channel_options(network: Callable[..., nn.Module]) -> list[str]:
    """Return the arguments of a registered network that set its image channels, from its signature."""
    return [
        name for name in dict.fromkeys(_CHANNELS_IN + _CHANNELS_OUT) if name in inspect.signature(network).parameters
    ]


def unwrapped(network: Any) -> Any:
    """Return the network inside DataParallel, DistributedDataParallel and torch.compile's module, in any order."""
    *_, bare = _layers(network)
    return bare


def names_of(wanted: Callable[[NetworkTraits], bool]) -> list[str]:
    """Return the sorted names of registered networks whose classes have some traits."""
    return sorted(name for name, kind in ARCH_REGISTRY if wanted(traits_of(kind)))


def growable_axes(net: nn.Module) -> dict[str, tuple[str, int]]:
    """Return, for each parameter that can grow, what the growable axis counts and its index."""
    return {
        f'{prefix}.{name}'.lstrip('.'): (counted, axis)
        for prefix, module in net.named_modules()
        for counted, axes in getattr(module, 'growable_axes', {}).items()
        for name, axis in axes.items()
    }


def prompts_of(network: nn.Module) -> list[Tensor]:
    """Return the prompts of a network as input of a loss of prompts, (K, D) per level.

    Raises:
        ValueError: it has none, or a level has a single prompt, so there is nothing to compare.
    """
    net: Prompted = unwrapped(network)
    name = type(net).__name__
    if not traits_of(network).has_prompt_vectors:
        raise ValueError(no_prompts(name))
    levels = net.prompt_vectors()
    single = [level for level, prompts in levels.items() if len(prompts) < 2]
    if single:
        raise ValueError(
            f'{name}: a single prompt at {", ".join(single)}. The loss compares the prompts of a level with each '
            'other; use two or more, or omit prompt_opt.'
        )
    return list(levels.values())


def named_weights(network: nn.Module, x: Tensor, degradation: Any = None) -> dict[str, dict[str, float]]:
    """Return the prompt weights of an image: level -> prompt -> weight.

    Args:
        network: has `prompt_weights`.
        x: (1, C, H, W), sides multiples of its `size_multiple`.
        degradation: for a network that accepts it.
    """
    net: Prompted = unwrapped(network)
    traits = traits_of(network)
    found = net.prompt_weights(x, degradation) if traits.takes_degradation else net.prompt_weights(x)
    shares = {}
    for level, values in found.items():
        each = values[0].float().tolist()
        known = traits.labels if len(traits.labels) == len(each) else [f'prompt {n}' for n in range(1, len(each) + 1)]
        shares[level] = dict(zip(known, each, strict=True))
    return shares


def no_prompts(network: str) -> str:
    """Return the error message for a network without prompts."""
    known = ', '.join(names_of(lambda traits: traits.has_prompt_vectors))
    return f'{network}: has no prompts. Use a network with prompts ({known}), or omit prompt_opt.'


def _layers(network: Any) -> Iterator[Any]:
    """Yield a network's wrappers from the outside to the inside, then the network."""
    yield network
    if isinstance(network, DataParallel | DistributedDataParallel):
        yield from _layers(network.module)
    elif _compiled_module(network):
        yield from _layers(network._orig_mod)


def _compiled_module(network: Any) -> bool:
    # Its class is in torch._dynamo, which needs a second to import.
    return isinstance(network, nn.Module) and '_orig_mod' in network._modules


def _arguments(bare: Any, options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the arguments that a network is built with, as far as known."""
    is_built = isinstance(bare, nn.Module)
    if is_built and options is None:
        return {}
    parameters = inspect.signature(type(bare) if is_built else bare).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not each.empty} | dict(options or {})


def _names(value: object) -> tuple[str, ...] | None:
    """Return a list of words; None for anything else."""
    listed = value if isinstance(value, Sequence) and not isinstance(value, str) else ()
    return tuple(listed) if listed and all(isinstance(name, str) for name in listed) else None
