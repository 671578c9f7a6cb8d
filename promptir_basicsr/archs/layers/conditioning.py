"""Conditioning of networks on degradations, as weights of their prompts.

PIP (arXiv 2312.05038) is conditioned by a user's label or by a sensor that classifies the image. The released program
accepts ids and halves of two ids; here any mixture is possible, and a sensor can replace the label.

Shapes: B batch, H W height and width, T degradations.
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
"""Prefix of the names of a sensor's weights in a network."""


@dataclass(frozen=True)
class PromptContext:
    """Conditioning of the prompts of all levels in one forward pass, computed once.

    Attributes:
        weights: level -> (B, T), rows are >= 0 and sum to 1.
        strength: level -> strength of the degradation-aware prompt in the basic one; 1 as in training.
    """

    weights: Mapping[str, Tensor]
    strength: Mapping[str, float]


class ConditionedNetwork(nn.Module):
    """A network conditioned on the degradations of its images, passed as labels or predicted by a sensor.

    Subclasses name their prompts in `levels`, in the order of the forward pass, and restore in `_restore`. A level such
    as level1 has its prompts in `prompt1`, a `PromptInPrompt`, and a `PromptToFeature` in
    `low_prompt_interaction_level1`, unless the subclass overrides the methods that use them.

    Args:
        num_degradations: T.
        degradations: T names, by id. Default: for T = 5 those of the datasets, otherwise unknown.

    Attributes:
        sensor: used if no degradation is passed. Its method `probabilities` if it exists, else the sensor itself, is
            called with x: (B, 3, H, W) and returns (B, T) probabilities. Initially None; see `attach_sensor`.
        hard_sensor: use only the most likely degradation instead of the probabilities.

    Raises:
        ValueError: an argument is invalid; the message states the allowed values.

    Examples:
        >>> from promptir_basicsr.archs import ConditionedNetwork, PIPNAFNet
        >>> net = PIPNAFNet(width=8, enc_blk_nums=[1, 1, 1, 1], prompt_sizes=[4, 4, 4, 4])
        >>> isinstance(net, ConditionedNetwork), net.degradations
        (True, ('denoise', 'derain', 'dehaze', 'deblur', 'lowlight'))
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
        """Build a sensor as part of this network; its weights are `sensor.*` and are never trained here.

        The random initialisation of everything else is the same as without a sensor.

        Args:
            options: `type` of a registered network with `probabilities`, such as DegradationSensor, and its arguments;
                degradations and channels default to this network's. None: no sensor.
            hard: `hard_sensor`.

        Raises:
            OptionError: the options are invalid, or the sensor has other numbers of degradations or channels.
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
                f'{key} is {options[key]!r}, of the network {value!r}. Omit it in the sensor, which then uses the '
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
            x: (B, 3, H, W), RGB, [0, 1]; H and W divisible by size_multiple, unless this is a `PromptedNetwork` whose
                network pads.
            degradation: for all images an id, a name, {name or id: weight} or (T,) floats; for each image a list of
                these, (B,) ids or (B, T) floats. None uses the sensor, if there is one. This argument and the next two
                are ignored without prompts, and with PromptIR's prompts, which are blind.
            strength: strength of the degradation-aware prompts, 1 as trained and 0 for none; or {'level2': 0.5}, with
                1 for other levels.
            overrides: degradations for single levels, such as {'level3': 'derain'}.

        Returns:
            (B, 3, H, W), RGB, not clamped.

        Raises:
            ValueError: the shape of x is wrong, or the degradation is invalid.
        """
        return self._restore(x, self._context(x, degradation, strength, overrides))

    def prompt_weights(
        self, x: Tensor, degradation: Any = None, overrides: Mapping[str, Any] | None = None
    ) -> dict[str, Tensor]:
        """Return the weights of the degradations' prompts for x by level.

        Args:
            x, degradation, overrides: as for `forward`.

        Returns:
            (B, T) for each of `levels`, in this order; rows are >= 0 and sum to 1. Empty without prompts.

        Raises:
            ValueError: as for `forward`.
        """
        context = self._context(x, degradation, overrides=overrides)
        return dict(context.weights) if context else {}

    def prompt_vectors(self) -> dict[str, Tensor]:
        """Return the degradation-aware prompts of each level, the input of a loss of prompts.

        Returns:
            (T, prompt channels) for each of `levels`, in this order.

        Raises:
            ValueError: the network was built without prompts.
        """
        if not self.takes_degradation:
            raise ValueError(
                f'{type(self).__name__}: built with prompts=False, so a loss of prompts cannot be computed.'
            )
        prompts = {level: getattr(self, level.replace('level', 'prompt')) for level in self.levels}
        return {level: prompt.detask_prompt_param[0].flatten(1) for level, prompt in prompts.items()}

    def _context(self, x: Tensor, *told: Any, **also_told: Any) -> PromptContext | None:
        """Return the `prompt_context` of checked images; None without prompts that use a degradation."""
        self._check(x)
        return self.prompt_context(x, *told, **also_told) if self.takes_degradation else None

    def _check(self, x: Tensor) -> None:
        check_image(type(self).__name__, x, self.inp_channels, self.size_multiple)

    @abstractmethod
    def _restore(self, x: Tensor, context: PromptContext | None) -> Tensor:
        """Restore x: (B, C, H, W), already checked. Returns the same shape."""

    def _modulate(self, level: int, skip: Tensor, context: PromptContext | None) -> Tensor:
        """Modulate the skip of a level: (B, C, H, W), by its prompt; unchanged without prompts."""
        if context is None:
            return skip
        name = f'level{level}'
        prompt = getattr(self, f'prompt{level}')(skip, context.weights[name], context.strength[name])
        return getattr(self, f'low_prompt_interaction_{name}')(skip, prompt)

    def train(self, mode: bool = True) -> 'ConditionedNetwork':
        """Set training or evaluation mode; the sensor stays in evaluation mode."""
        super().train(mode)
        if isinstance(self.sensor, nn.Module) and not any(p.requires_grad for p in self.sensor.parameters()):
            self.sensor.eval()
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Load weights; without weights of a sensor, the sensor is unchanged. PyTorch passes a copy of the mapping."""
        mine = f'{prefix}{SENSOR_PREFIX}'
        if isinstance(self.sensor, nn.Module) and not any(name.startswith(mine) for name in state_dict):
            state_dict.update({mine + name: value for name, value in self.sensor.state_dict().items()})
        super()._load_from_state_dict(state_dict, prefix, *args)

    def degradation_weights(self, x: Tensor, degradation: Any = None) -> Tensor:
        """Return the weights of the T prompts for each image.

        Args:
            x: (B, 3, H, W), the input of the sensor.
            degradation: for all images an id, a name, {name or id: weight} or (T,) floats; for each image a list of
                these, (B,) ids or (B, T) floats. None uses the sensor.

        Returns:
            (B, T), >= 0, with rows that sum to 1, of x's dtype and device.

        Raises:
            ValueError: the degradation is invalid, or None without a sensor.
        """
        return self._weights(x, degradation, f'{type(self).__name__}: degradation')

    def _weights(self, x: Tensor, degradation: Any, where: str) -> Tensor:
        if degradation is not None:
            return weights_of(degradation, x, self.num_degradations, self.degradations, where)
        sensed = self.sense(x)
        where = f'{type(self).__name__}: the output of the sensor'
        sensed = sensed.argmax(dim=1) if self.hard_sensor else sensed
        return weights_of(sensed, x, self.num_degradations, self.degradations, where)

    def sense(self, x: Tensor) -> Tensor:
        """Return the sensor's prediction for x: (B, 3, H, W).

        Returns:
            (B, T) probabilities, regardless of `hard_sensor`.

        Raises:
            ValueError: there is no sensor, or its output has a wrong shape.
        """
        network = type(self).__name__
        if self.sensor is None:
            raise ValueError(
                f'{network}: no degradation is passed and there is no sensor to predict it. Pass `degradation` '
                f'({_allowed_ids(self.num_degradations, self.degradations)}; a mixture as {{name: weight}}), or '
                'attach a sensor: `net.sensor = ...`.'
            )
        sensed = getattr(self.sensor, 'probabilities', self.sensor)(x)
        if sensed.shape != (x.shape[0], self.num_degradations):
            raise ValueError(
                f'{network}: the sensor returned {tuple(sensed.shape)}; it must return '
                f'{(x.shape[0], self.num_degradations)}: the probabilities of the degradations of each image.'
            )
        return sensed

    def prompt_context(
        self,
        x: Tensor,
        degradation: Any = None,
        strength: float | Mapping[str, float] = 1.0,
        overrides: Mapping[str, Any] | None = None,
    ) -> PromptContext:
        """Return the conditioning of the prompts for the images x: (B, 3, H, W).

        Args:
            degradation: as for `degradation_weights`.
            strength: of the degradation-aware prompts, or {level: strength} with 1 for other levels.
            overrides: level -> degradation for this level.

        Raises:
            ValueError: an argument is invalid; all mistakes in level names and strengths are reported together.
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
    """Convert a degradation to weights of T prompts.

    Values of tensors on an accelerator are not checked, because that would synchronise with the device: an id out of
    range becomes NaN there. Everywhere else a mistake is an error.

    Args:
        degradation: for all images an id, a name, {name or id: weight} or (T,) floats; for each image a list of these,
            (B,) ids or (B, T) floats.
        x: (B, ...); its batch size, device and dtype are those of the result.
        num_degradations: T.
        names: T names, by id; None if unknown.
        where: place in messages.

    Returns:
        (B, T), with rows divided by their sums.

    Raises:
        OptionError: reports what was found and what is allowed; for a list, all mistakes.

    Examples:
        >>> from promptir_basicsr.archs import weights_of
        >>> weights_of({'rain': 3, 'haze': 1}, torch.zeros(2, 3, 8, 8), 2, ['rain', 'haze'])
        tensor([[0.7500, 0.2500],
                [0.7500, 0.2500]])
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
            message = f'{len(rows)} are passed for a batch of {len(x)}. Pass one for each image.'
            problems.append(problem(where, message))
    else:
        problems = [_not_understood(where, degradation, num_degradations, names)]
    raise_problems(problems)
    return _shares(torch.tensor(rows, dtype=x.dtype, device=x.device))


def check_names(network: str, num_degradations: int, names: Sequence[str] | None) -> tuple[str, ...] | None:
    """Return the names of T degradations, by id; None if unknown.

    Raises:
        OptionError: T is not a whole number above 0, or there are not T different names.
    """
    check_whole(network, 'num_degradations', num_degradations, 1, '. The released program uses 5.')
    if names is None:
        return DEGRADATION_TYPES if num_degradations == len(DEGRADATION_TYPES) else None
    found = list(names) if isinstance(names, Sequence) and not isinstance(names, str) else []
    words = {name for name in found if isinstance(name, str) and name}
    if not len(words) == len(found) == num_degradations:
        what = f'a list of num_degradations = {num_degradations} different names, by id.'
        raise must_be(network, 'degradations', names, what)
    return tuple(found)


def check_sensor(where: str | Keys, options: object) -> list[Problem]:
    """Return problems with the options of a sensor before it is built. None means no sensor."""
    if options is None:
        return []
    if not isinstance(options, Mapping) or 'type' not in options:
        return [problem(where, f'must be options with a type, e.g. {{type: DegradationSensor}}, not {options!r}.')]
    type_key = (*keys(where), 'type')
    problems = check_registered(type_key, 'network', options['type'], ARCH_REGISTRY)
    if problems:
        return problems
    kind = find_registered(ARCH_REGISTRY, options['type'])
    if not traits_of(kind).is_sensor:
        sensors = ', '.join(names_of(lambda traits: traits.is_sensor))
        message = f"'{options['type']}' is not a sensor: it has no `probabilities`. Allowed: {sensors}."
        return [problem(type_key, message)]
    return unknown_keys(where, options, ('type', *inspect.signature(kind).parameters))


def _from_tensor(
    where: Keys, degradation: Tensor, x: Tensor, num_degradations: int, names: Sequence[str] | None
) -> Tensor:
    """Convert ids () or (B,), or weights (T,) or (B, T), to weights (B, T)."""
    is_weights = degradation.is_floating_point()
    if not is_weights and (degradation.dtype == torch.bool or degradation.is_complex()):
        raise OptionError(_not_understood(where, degradation, num_degradations, names))
    one, each = ((num_degradations,), (x.shape[0], num_degradations)) if is_weights else ((), (x.shape[0],))
    shape = tuple(degradation.shape)
    if shape not in (one, each):
        raise ValueError(
            f'{place(where)} is {"weights" if is_weights else "ids"} of shape {shape}; for a batch of {len(x)} and '
            f'{num_degradations} degradations it must be {each}, or {one} for all images.'
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
    """Return the weights of one image, and their problems."""
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
        message = 'no weight is above 0. At least one must be; the weights are divided by their sum.'
        problems.append(problem(where, message))
    return row, problems


def _is_word(value: object) -> bool:
    return isinstance(value, str | Integral) and not isinstance(value, bool)


def _id_of(where: Keys, word: Any, num_degradations: int, names: Sequence[str] | None) -> tuple[int, list[Problem]]:
    """Return the id of a name or an id, and its problems."""
    if not _is_word(word):
        return 0, [_not_understood(where, word, num_degradations, names)]
    if not isinstance(word, str):
        message = f'unknown id {word}. Allowed: {_allowed_ids(num_degradations, names)}.'
        return int(word), [] if 0 <= word < num_degradations else [problem(where, message, (str(word),))]
    if names is None:
        message = (
            f"'{word}' is a name, but the network has no names. Use {_allowed_ids(num_degradations, names)}, "
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
        f'{{name: weight}}; a list of these, one per image; or a tensor of ids (B,) or of float weights '
        f'(B, {num_degradations}).'
    )
    return Problem(where, message, shown=())
