"""What a network says it is, read in one place: of built-in networks, BasicSR's and third-party ones.

A network has to declare nothing. What it may declare are these attributes and methods; the rest of the package reads
`NetworkTraits` and never looks for them itself.

| attribute or method | meaning |
|:--|:--|
| `takes_degradation` | whether it is called as `net(x, degradation)`, or `net(x, degradation, strength)` |
| `size_multiple`, `window_size` | what height and width must be multiples of |
| `num_degradations`, `degradations` | how many degradations it distinguishes, and their names |
| `sensor`, `hard_sensor` | finds the degradation where none is given; whether only the likeliest one counts |
| `levels`, `prompts` | names of the levels of prompts; False for a network built without prompts |
| `growable_axes` | of any module: axes of its parameters that count something |
| methods | see the protocols `Conditioned`, `Prompted`, `Sensor`, `PromptHost`, `Contrastive`, `Released` |

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

# Names under which networks of BasicSR and others keep, or are given, the channels of their images.
_CHANNELS_IN = ('inp_channels', 'img_channel', 'num_in_ch', 'in_channels', 'in_chans')
_CHANNELS_OUT = ('out_channels', 'img_channel', 'num_out_ch', 'out_chans')


class Conditioned(Protocol):
    """A network whose prompts take ids, names or mixtures of degradations, such as `ConditionedNetwork`."""

    def prompt_context(self, x: Tensor, degradation: Any = None, strength: Any = 1.0) -> Any:
        """The weights and strengths of all levels for x: (B, C, H, W); ValueError for what is not understood."""

    def degradation_weights(self, x: Tensor, degradation: Any = None) -> Tensor:
        """The weights of the degradations for x: (B, C, H, W), (B, T). None asks the sensor."""

    def sense(self, x: Tensor) -> Tensor:
        """The sensor's probabilities (B, T) for x: (B, C, H, W)."""


class Prompted(Protocol):
    """A network whose prompts can be looked at; either method is enough for what needs only that one."""

    def prompt_weights(self, x: Tensor, degradation: Any = None) -> Mapping[str, Tensor]:
        """How much of each prompt x: (B, C, H, W) is given: level -> (B, K)."""

    def prompt_vectors(self) -> Mapping[str, Tensor]:
        """The prompts of each level as vectors: level -> (K, D)."""


class Sensor(Protocol):
    """A network that classifies degradations and restores nothing."""

    def probabilities(self, x: Tensor) -> Tensor:
        """(B, T) for x: (B, C, H, W); each row has the sum 1."""


class PromptHost(Protocol):
    """A network that accepts the weights of the network that it adds prompts to."""

    def with_prompts(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of the plain network, completed by this network's prompts; others unchanged."""


class Contrastive(Protocol):
    """A network that is trained by contrast: in training `net(x, key=crops)` returns `airnet_arch.Contrasted`.

    Attributes:
        queue_length: how many keys of earlier images it keeps.
    """

    queue_length: int

    def with_queue(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights with a queue of any length, or none, as weights of this network; others unchanged."""


class Released(Protocol):
    """A network whose authors have published weights."""

    def released_state_dict(self) -> dict[str, Tensor]:
        """The weights with the published names and shapes; ValueError where this configuration was not published."""


@dataclass(frozen=True)
class NetworkTraits:
    """What a network says it is.

    Attributes:
        declared: whether it has `takes_degradation`, as networks written for this package do. Only their constructors
            are run to check options.
        takes_degradation: whether `forward` takes the degradation as its second argument.
        conditioned: whether it takes degradations and is a `Conditioned`.
        num_degradations: T; 0 where unknown.
        degradations: T names by id; None where unknown.
        is_sensor: whether it is a `Sensor`.
        holds_sensor: whether it has a sensor, which finds the degradation where none is given.
        hard_sensor: whether only the likeliest degradation counts, not the probabilities.
        has_prompt_weights, has_prompt_vectors: whether it has this method of `Prompted`.
        levels: names of the levels of prompts, in the order in which features meet them; () for a network that was
            built without prompts, None where unknown.
        adds_prompts: whether it is a `PromptHost`.
        contrastive: whether it is a `Contrastive`.
        released: whether it is a `Released`.
        declared_multiple: its `size_multiple`; None where it has none.
        window_size: side of its windows, in pixels of the image unless its features are reduced; None where unknown.
        channels_in, channels_out: of the image that it takes and of the image that it makes; None where unknown.
        compiled: whether calling it runs code of torch.compile.
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
    released: bool
    declared_multiple: int | None
    window_size: int | None
    channels_in: int | None
    channels_out: int | None
    compiled: bool

    @property
    def size_multiple(self) -> int:
        """What to pad height and width to multiples of: its `size_multiple`, or `window_size`, or 1."""
        return self.declared_multiple or self.window_size or 1

    @property
    def image_channels(self) -> int:
        """Channels of the images to run it on: its `channels_in`, or 3 where unknown."""
        return self.channels_in or 3

    @property
    def labels(self) -> tuple[str, ...]:
        """The degradations by name, or by id where names are unknown."""
        return self.degradations or tuple(map(str, range(self.num_degradations)))

    @property
    def needs_degradation(self) -> bool:
        """Whether it has to be given the degradation, because it has no sensor to find it."""
        return self.takes_degradation and not self.holds_sensor


def traits_of(network: nn.Module | Callable[..., nn.Module], options: Mapping[str, Any] | None = None) -> NetworkTraits:
    """The traits of a network, or of a registered class before a network is built.

    Traits can change: a sensor may be attached later. Ask again instead of keeping them.

    Args:
        network: a network, also inside DataParallel, DistributedDataParallel or torch.compile's module; or what is
            registered under a network's name, which knows only what holds for all its networks and what the
            arguments say.
        options: arguments that the network is built with, consulted for what its attributes do not say; others have
            their defaults. Default: for a network unknown, for a class the defaults.
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
        released=hasattr(bare, 'released_state_dict'),
        declared_multiple=multiple if is_whole(multiple, least=1) else None,
        window_size=count('window_size'),
        channels_in=count(*_CHANNELS_IN),
        channels_out=None if is_sensor else count(*_CHANNELS_OUT),
        # The function that `net.compile()` leaves in the network, or the module that `torch.compile(net)` returns.
        compiled=bool(getattr(bare, '_compiled_call_impl', None)) or any(map(_compiled_module, _layers(network))),
    )


def channel_options(network: Callable[..., nn.Module]) -> list[str]:
    """The arguments of a registered network that set the channels of its images, by its signature."""
    return [
        name for name in dict.fromkeys(_CHANNELS_IN + _CHANNELS_OUT) if name in inspect.signature(network).parameters
    ]


def unwrapped(network: Any) -> Any:
    """The network inside DataParallel, DistributedDataParallel and torch.compile's module, in any order."""
    *_, bare = _layers(network)
    return bare


def names_of(wanted: Callable[[NetworkTraits], bool]) -> list[str]:
    """Names of the registered networks whose classes have some traits, sorted."""
    return sorted(name for name, kind in ARCH_REGISTRY if wanted(traits_of(kind)))


def growable_axes(net: nn.Module) -> dict[str, tuple[str, int]]:
    """For each parameter that may grow: what an axis of it counts, and which axis that is."""
    return {
        f'{prefix}.{name}'.lstrip('.'): (counted, axis)
        for prefix, module in net.named_modules()
        for counted, axes in getattr(module, 'growable_axes', {}).items()
        for name, axis in axes.items()
    }


def prompts_of(network: nn.Module) -> list[Tensor]:
    """The prompts of a network as a loss of prompts takes them, (K, D) a level.

    Raises:
        ValueError: it has none, or a level has a single prompt, which there is nothing to compare with.
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
            'other; give the network two or more, or leave prompt_opt out.'
        )
    return list(levels.values())


def named_weights(network: nn.Module, x: Tensor, degradation: Any = None) -> dict[str, dict[str, float]]:
    """How much of each prompt an image is given: level -> prompt -> weight.

    Args:
        network: has `prompt_weights`.
        x: (1, C, H, W), sides multiples of its `size_multiple`.
        degradation: for a network that takes it.
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
    """The error message for a network without prompts."""
    known = ', '.join(names_of(lambda traits: traits.has_prompt_vectors))
    return f'{network}: has no prompts. Take a network that has ({known}), or leave prompt_opt out.'


def _layers(network: Any) -> Iterator[Any]:
    """A network's wrappers from the outside to the inside, then the network."""
    yield network
    if isinstance(network, DataParallel | DistributedDataParallel):
        yield from _layers(network.module)
    elif _compiled_module(network):
        yield from _layers(network._orig_mod)


def _compiled_module(network: Any) -> bool:
    # Its class is in torch._dynamo, which takes a second to import.
    return isinstance(network, nn.Module) and '_orig_mod' in network._modules


def _arguments(bare: Any, options: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a network is built with, as far as it is known."""
    is_built = isinstance(bare, nn.Module)
    if is_built and options is None:
        return {}
    parameters = inspect.signature(type(bare) if is_built else bare).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not each.empty} | dict(options or {})


def _names(value: object) -> tuple[str, ...] | None:
    """A list of words; None for anything else."""
    listed = value if isinstance(value, Sequence) and not isinstance(value, str) else ()
    return tuple(listed) if listed and all(isinstance(name, str) for name in listed) else None
