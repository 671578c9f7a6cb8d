"""What a network is told of the degradations of its images, as weights of its prompts.

PIP (arXiv 2312.05038) is steered by a person or by a sensor that looks at the image. The released program takes ids and
halves of two ids; here every mixture can be said, and a sensor can stand in for the person.

Shapes: B batch, H W height and width, T degradations that a network tells apart.
"""

import inspect
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from promptir_basicsr.archs.layers.arguments import check_image, check_whole, must_be
from promptir_basicsr.archs.traits import names_of, traits_of
from promptir_basicsr.core.errors import OptionError, raise_problems
from promptir_basicsr.core.messages import first_few, is_number, unknown, unknown_keys
from promptir_basicsr.core.problems import Keys, Problem, keys, place, problem
from promptir_basicsr.core.registry import build, check_registered, find_registered
from promptir_basicsr.core.vocabulary import DEGRADATION_TYPES

SENSOR_PREFIX = 'sensor.'
"""Of the names of a sensor's weights in a network that has one."""


@dataclass(frozen=True)
class PromptContext:
    """What the prompts of all levels are told in one forward pass; worked out once.

    Attributes:
        weights: level -> (B, T), each row >= 0 and of sum 1.
        strength: level -> how much of the degradation-aware prompt goes into the basic one; 1 as it was trained.
    """

    weights: Mapping[str, Tensor]
    strength: Mapping[str, float]


class ConditionedNetwork(nn.Module):
    """A network that is told the degradations of its images, or has a sensor find them.

    Subclasses name their prompts in `levels`, in the order in which features meet them, and restore in `_restore`. A
    level such as level1 has its prompts in `prompt1`, a `PromptInPrompt`, and a `PromptToFeature` in
    `low_prompt_interaction_level1`, or the subclass has methods of its own for what needs them.

    Args:
        num_degradations: T.
        degradations: T names, by id. Default: for five, those of the data sets; otherwise none are known.

    Attributes:
        sensor: asked where no degradation is given, through its `probabilities` if it has them, else called, with
            x: (B, 3, H, W); returns (B, T) probabilities. None at first; see `attach_sensor`.
        hard_sensor: take the likeliest degradation alone instead of the probabilities as they are.

    Raises:
        ValueError: an argument is not allowed; the message says what is.
    """

    takes_degradation = True
    levels: tuple[str, ...] = ()
    size_multiple: int
    inp_channels: int

    def __init__(self, num_degradations: int, degradations: Sequence[str] | None = None) -> None:
        super().__init__()
        self.degradations = check_names(type(self).__name__, num_degradations, degradations)
        self.num_degradations = num_degradations
        self.sensor: Callable[[Tensor], Tensor] | None = None
        self.hard_sensor = False

    def attach_sensor(self, options: Mapping[str, Any] | None, hard: bool = False) -> None:
        """Build a sensor as a part of this network: its weights are `sensor.*`, and they are never trained here.

        The random numbers of everything else stay as they are without a sensor.

        Args:
            options: `type` of a registered network with `probabilities`, such as DegradationSensor, and its arguments;
                it is given this network's degradations and channels. None: no sensor.
            hard: `hard_sensor`.

        Raises:
            OptionError: the options are not understood, or the sensor is of another number of degradations or channels.
        """
        name = type(self).__name__
        problems = [each.said_by(name) for each in check_sensor('sensor', options)]
        if not isinstance(hard, bool):
            problems += must_be(name, 'hard_sensor', hard, 'true or false.').problems
        raise_problems(problems)
        self.hard_sensor = hard
        if options is None:
            return
        known = {'num_degradations': self.num_degradations, 'degradations': self.degradations}
        if channels := traits_of(self).channels_in:
            known['inp_channels'] = channels
        given = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
        problems = [
            problem(
                'sensor',
                f'{key} is {options[key]!r}, of the network {value!r}. Leave it out of the sensor, which then has the '
                'same.',
                (key,),
            ).said_by(name)
            for key, value in known.items()
            if given.get(key, value) != value
        ]
        raise_problems(problems)
        kind = find_registered(ARCH_REGISTRY, options['type'])
        known = {name: value for name, value in known.items() if name in inspect.signature(kind).parameters}
        with torch.random.fork_rng(devices=[]):
            sensor = build(ARCH_REGISTRY, {**known, **options})
        self.sensor = sensor.requires_grad_(False).eval()

    def forward(
        self,
        x: Tensor,
        degradation: Any = None,
        strength: float | Mapping[str, float] = 1.0,
        overrides: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """Restore x.

        Args:
            x: (B, 3, H, W), RGB, [0, 1]; H and W divisible by size_multiple, unless a `PromptedNetwork` holds a network
                that pads.
            degradation: of all images an id, a name, {name or id: weight} or (T,) floats; of each image a list of
                these, (B,) ids or (B, T) floats. None asks the sensor, if the network has one. This and what follows
                is ignored without prompts, and with PromptIR's, which are blind.
            strength: how much of the degradation-aware prompts is used, 1 as trained and 0 for none; or
                {'level2': 0.5}, with 1 for levels that are not named.
            overrides: a degradation for one level alone, such as {'level3': 'derain'}.

        Returns:
            (B, 3, H, W), RGB, not clamped.

        Raises:
            ValueError: x has another shape, or what is said of the degradation is not understood.
        """
        return self._restore(x, self._context(x, degradation, strength, overrides))

    def prompt_weights(
        self, x: Tensor, degradation: Any = None, overrides: Mapping[str, Any] | None = None
    ) -> dict[str, Tensor]:
        """How much of each degradation's prompt x is given, level by level.

        Args:
            x, degradation, overrides: as for `forward`.

        Returns:
            (B, T) for each of `levels`, in this order; each row is >= 0 and of sum 1. Nothing without prompts.

        Raises:
            ValueError: as for `forward`.
        """
        context = self._context(x, degradation, overrides=overrides)
        return dict(context.weights) if context else {}

    def prompt_vectors(self) -> dict[str, Tensor]:
        """The degradation-aware prompts themselves, level by level: what a loss of prompts acts on.

        Returns:
            (T, prompt channels) for each of `levels`, in this order.

        Raises:
            ValueError: the network was built without prompts.
        """
        if not self.takes_degradation:
            raise ValueError(
                f'{type(self).__name__}: built with prompts=False; a loss of prompts has nothing to act on.'
            )
        prompts = {level: getattr(self, level.replace('level', 'prompt')) for level in self.levels}
        return {level: prompt.detask_prompt_param[0].flatten(1) for level, prompt in prompts.items()}

    def _context(self, x: Tensor, *told: Any, **also_told: Any) -> PromptContext | None:
        """The `prompt_context` of an image that was found to be one; None without prompts that take a degradation."""
        self._check(x)
        return self.prompt_context(x, *told, **also_told) if self.takes_degradation else None

    def _check(self, x: Tensor) -> None:
        check_image(type(self).__name__, x, self.inp_channels, self.size_multiple)

    @abstractmethod
    def _restore(self, x: Tensor, context: PromptContext | None) -> Tensor:
        """The restored image of x: (B, C, H, W), already checked; of the same shape."""

    def _modulate(self, level: int, skip: Tensor, context: PromptContext | None) -> Tensor:
        """The skip of a level: (B, C, H, W), as its prompt modulates it for the decoder; itself without prompts."""
        if context is None:
            return skip
        name = f'level{level}'
        prompt = getattr(self, f'prompt{level}')(skip, context.weights[name], context.strength[name])
        return getattr(self, f'low_prompt_interaction_{name}')(skip, prompt)

    def train(self, mode: bool = True) -> 'ConditionedNetwork':
        """As of any network; a sensor that is not trained here stays in evaluation mode."""
        super().train(mode)
        if isinstance(self.sensor, nn.Module) and not any(p.requires_grad for p in self.sensor.parameters()):
            self.sensor.eval()
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Weights of the network alone leave its sensor as it is; PyTorch hands a copy of the caller's mapping down."""
        mine = f'{prefix}{SENSOR_PREFIX}'
        if isinstance(self.sensor, nn.Module) and not any(name.startswith(mine) for name in state_dict):
            state_dict.update({mine + name: value for name, value in self.sensor.state_dict().items()})
        super()._load_from_state_dict(state_dict, prefix, *args)

    def degradation_weights(self, x: Tensor, degradation: Any = None) -> Tensor:
        """The weights of the T prompts for each image.

        Args:
            x: (B, 3, H, W); the sensor looks at it.
            degradation: of all images an id, a name, {name or id: weight} or (T,) floats; of each image a list of
                these, (B,) ids or (B, T) floats. None asks the sensor.

        Returns:
            (B, T), >= 0, each row of sum 1, of x's type and device.

        Raises:
            ValueError: the degradation is not understood, or None and there is no sensor.
        """
        return self._weights(x, degradation, f'{type(self).__name__}: degradation')

    def _weights(self, x: Tensor, degradation: Any, where: str) -> Tensor:
        if degradation is not None:
            return weights_of(degradation, x, self.num_degradations, self.degradations, where)
        sensed = self.sense(x)
        where = f'{type(self).__name__}: what the sensor gave'
        sensed = sensed.argmax(dim=1) if self.hard_sensor else sensed
        return weights_of(sensed, x, self.num_degradations, self.degradations, where)

    def sense(self, x: Tensor) -> Tensor:
        """What the sensor says of x: (B, 3, H, W).

        Returns:
            (B, T) probabilities, whatever `hard_sensor` is.

        Raises:
            ValueError: there is no sensor, or it gives something of another shape.
        """
        network = type(self).__name__
        if self.sensor is None:
            raise ValueError(
                f'{network}: it is not told the degradation and has no sensor to find it. Give `degradation` '
                f'({_allowed_ids(self.num_degradations, self.degradations)}; a mixture as {{name: weight}}), or '
                'attach a sensor: `net.sensor = ...`.'
            )
        sensed = getattr(self.sensor, 'probabilities', self.sensor)(x)
        if sensed.shape != (x.shape[0], self.num_degradations):
            raise ValueError(
                f'{network}: the sensor gave {tuple(sensed.shape)}; it must give '
                f'{(x.shape[0], self.num_degradations)}: for each image a probability of each degradation.'
            )
        return sensed

    def prompt_context(
        self,
        x: Tensor,
        degradation: Any = None,
        strength: float | Mapping[str, float] = 1.0,
        overrides: Mapping[str, Any] | None = None,
    ) -> PromptContext:
        """What the prompts are told of the images x: (B, 3, H, W).

        Args:
            degradation: as for `degradation_weights`.
            strength: of the degradation-aware prompts, or {level: strength} with 1 for levels that are not named.
            overrides: level -> a degradation for this level alone.

        Raises:
            ValueError: what is given is not understood; all mistakes of level names and strengths are told at once.
        """
        network, overrides = type(self).__name__, overrides or {}
        strengths = strength if isinstance(strength, Mapping) else dict.fromkeys(self.levels, strength)
        problems = [
            unknown(f'{network}: {where}', 'level', level, self.levels)
            for where, given in (('strength', strengths), ('overrides', overrides))
            for level in given
            if level not in self.levels
        ]
        problems += [
            problem(network, f'the strength of {level} is {value!r}; it must be a finite number. As trained: 1.')
            for level, value in strengths.items()
            if not is_number(value) or math.isinf(value)
        ]
        raise_problems(problems)
        weights = {
            level: self._weights(x, given, f'{network}: overrides.{level}') for level, given in overrides.items()
        }
        if len(weights) < len(self.levels):
            shared = self.degradation_weights(x, degradation)
            weights = {level: weights.get(level, shared) for level in self.levels}
        return PromptContext(weights, {level: strengths.get(level, 1.0) for level in self.levels})


def weights_of(
    degradation: Any,
    x: Tensor,
    num_degradations: int,
    names: Sequence[str] | None = None,
    where: str | Keys = 'degradation',
) -> Tensor:
    """A degradation as weights of T prompts.

    Values of tensors on an accelerator are not looked at, because that would wait for the device: an id out of range
    becomes NaN there. Everywhere else a mistake is an error.

    Args:
        degradation: of all images an id, a name, {name or id: weight} or (T,) floats; of each image a list of these,
            (B,) ids or (B, T) floats.
        x: (B, ...), whose batch, device and type the weights get.
        num_degradations: T.
        names: T names, by id; None if they are not known.
        where: what messages call it.

    Returns:
        (B, T), each row divided by its sum.

    Raises:
        OptionError: says what was found and what is allowed; of a list, all mistakes.
    """
    where = keys(where)
    if isinstance(degradation, Tensor):
        return _from_tensor(where, degradation, x, num_degradations, names)
    if isinstance(degradation, str | Mapping | Integral):
        row, problems = _row(where, degradation, num_degradations, names)
        rows = [row] * len(x)
    elif isinstance(degradation, Sequence):
        found = [_row((*where, i), one, num_degradations, names) for i, one in enumerate(degradation)]
        rows, problems = [row for row, _ in found], [each for _, mine in found for each in mine]
        if len(rows) != len(x):
            message = f'{len(rows)} are given for a batch of {len(x)}. Give one for each image.'
            problems.append(problem(where, message))
    else:
        problems = [_not_understood(where, degradation, num_degradations, names)]
    raise_problems(problems)
    return _shares(torch.tensor(rows, dtype=x.dtype, device=x.device))


def check_names(network: str, num_degradations: int, names: Sequence[str] | None) -> tuple[str, ...] | None:
    """The names of T degradations, by id; None if they are not known.

    Raises:
        OptionError: T is no whole number above 0, or the names are not T different ones.
    """
    check_whole(network, 'num_degradations', num_degradations, 1, '. The released program has 5.')
    if names is None:
        return DEGRADATION_TYPES if num_degradations == len(DEGRADATION_TYPES) else None
    found = list(names) if isinstance(names, Sequence) and not isinstance(names, str) else []
    words = {name for name in found if isinstance(name, str) and name}
    if not len(words) == len(found) == num_degradations:
        what = f'a list of num_degradations = {num_degradations} different names, by id.'
        raise must_be(network, 'degradations', names, what)
    return tuple(found)


def check_sensor(where: str | Keys, options: object) -> list[Problem]:
    """What is wrong with the options of a sensor, found before it is built. None is no sensor."""
    if options is None:
        return []
    if not isinstance(options, Mapping) or 'type' not in options:
        return [problem(where, f'give options with a type, e.g. {{type: DegradationSensor}}, not {options!r}.')]
    type_key = (*keys(where), 'type')
    problems = check_registered(type_key, 'network', options['type'], ARCH_REGISTRY)
    if problems:
        return problems
    kind = find_registered(ARCH_REGISTRY, options['type'])
    if not traits_of(kind).is_sensor:
        sensors = ', '.join(names_of(lambda traits: traits.is_sensor))
        message = f"'{options['type']}' is no sensor, it has no `probabilities`. Allowed: {sensors}."
        return [problem(type_key, message)]
    return unknown_keys(where, options, ('type', *inspect.signature(kind).parameters))


def _from_tensor(
    where: Keys, degradation: Tensor, x: Tensor, num_degradations: int, names: Sequence[str] | None
) -> Tensor:
    """Ids () or (B,), weights (T,) or (B, T), as weights (B, T)."""
    is_weights = degradation.is_floating_point()
    if not is_weights and (degradation.dtype == torch.bool or degradation.is_complex()):
        raise OptionError(_not_understood(where, degradation, num_degradations, names))
    one, each = ((num_degradations,), (x.shape[0], num_degradations)) if is_weights else ((), (x.shape[0],))
    shape = tuple(degradation.shape)
    if shape not in (one, each):
        raise ValueError(
            f'{place(where)} is {"weights" if is_weights else "ids"} of shape {shape}; for a batch of {len(x)} and '
            f'{num_degradations} degradations it must be {each}, or {one} for all images alike.'
        )
    if degradation.device.type == 'cpu' and not torch.compiler.is_compiling():
        rows = degradation.reshape(-1, num_degradations) if is_weights else degradation.reshape(-1)
        problems: list[Problem] = []
        for i, value in enumerate(rows.tolist()):
            mixture = dict(enumerate(value)) if is_weights else value
            problems += _row(where if shape == one else (*where, i), mixture, num_degradations, names)[1]
        raise_problems(problems)
    degradation = degradation.to(x.device)
    if not is_weights:
        degradation = degradation[..., None] == torch.arange(num_degradations, device=x.device)
    return _shares(degradation.to(x.dtype).expand(each if is_weights else (x.shape[0], num_degradations)))


def _row(
    where: Keys, degradation: Any, num_degradations: int, names: Sequence[str] | None
) -> tuple[list[float], list[Problem]]:
    """The weights of one image, and what is wrong with them."""
    mixture = degradation if isinstance(degradation, Mapping) else {degradation: 1.0} if _is_word(degradation) else None
    if mixture is None:
        return [], [_not_understood(where, degradation, num_degradations, names)]
    row = [0.0] * num_degradations
    problems: list[Problem] = []
    for word, weight in mixture.items():
        number, wrong = _id_of(where, word, num_degradations, names)
        problems += wrong
        if not is_number(weight) or math.isinf(weight) or weight < 0:
            message = f'the weight of {word!r} is {weight!r}; it must be a number of at least 0.'
            problems.append(problem(where, message, (str(word),)))
        elif not wrong:
            row[number] += weight
    if not problems and not sum(row):
        message = 'no weight is above 0. Give one that is; the weights are divided by their sum.'
        problems.append(problem(where, message))
    return row, problems


def _is_word(value: object) -> bool:
    return isinstance(value, str | Integral) and not isinstance(value, bool)


def _id_of(where: Keys, word: Any, num_degradations: int, names: Sequence[str] | None) -> tuple[int, list[Problem]]:
    """The id of a name or an id, and what is wrong with it."""
    if not _is_word(word):
        return 0, [_not_understood(where, word, num_degradations, names)]
    if not isinstance(word, str):
        message = f'there is no id {word}. Allowed: {_allowed_ids(num_degradations, names)}.'
        return int(word), [] if 0 <= word < num_degradations else [problem(where, message, (str(word),))]
    if names is None:
        message = (
            f"'{word}' is a name, and the network knows none. Give {_allowed_ids(num_degradations, names)}, "
            f'or build the network with `degradations`, a list of {num_degradations} names.'
        )
        return 0, [problem(where, message, (word,))]
    return (names.index(word), []) if word in names else (0, [unknown(where, 'degradation', word, names, (word,))])


def _shares(weights: Tensor) -> Tensor:
    return weights / weights.sum(dim=1, keepdim=True)


def _allowed_ids(num_degradations: int, names: Sequence[str] | None) -> str:
    if names is None:
        return f'an id from 0 to {num_degradations - 1}'
    return 'an id or a name: ' + first_few((f'{number} {name}' for number, name in enumerate(names)), most=12)


def _not_understood(where: Keys, found: object, num_degradations: int, names: Sequence[str] | None) -> Problem:
    kind = f'a tensor of {found.dtype}' if isinstance(found, Tensor) else repr(found)
    message = (
        f'{place(where)} is {kind}; it must be {_allowed_ids(num_degradations, names)}; a mixture '
        f'{{name: weight}}; a list of these, one an image; or a tensor of ids (B,) or of float weights '
        f'(B, {num_degradations}).'
    )
    return Problem(where, message, shown=())
