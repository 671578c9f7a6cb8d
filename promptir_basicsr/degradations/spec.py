"""Registry of degradations, their parameters, and compositions from YAML."""

import copy
import functools
import inspect
import json
import math
import numbers
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from promptir_basicsr.core.errors import raise_problems
from promptir_basicsr.core.messages import did_you_mean, meant_by, written_as
from promptir_basicsr.core.problems import Keys, Problem, as_problem, keys, problem

Image = npt.NDArray[np.floating]
Check = Callable[[dict[str, Any]], Iterator[str | Problem]]

DEGRADATIONS: dict[str, 'Degradation'] = {}


class Degrade:
    """One degradation, or several in order, built from the options of an option file.

    `{type: gaussian_noise, sigma: 25}` or a list of such mappings. Any number may be a range `[low, high]`, drawn again
    in every call. The object can be pickled and shared by threads and workers.

    Args:
        spec: The mapping or the list of mappings; not changed.
        where: Place of the option in messages, such as ('datasets', 'train', 'tasks', 1, 'degrade').

    Attributes:
        spec: The list of mappings in canonical form: `type` first, parameters in declaration order, whole numbers as
            int. Parameters that were not set are absent.
        key: One line of JSON that is equal for equal degradations, independent of parameter order, the format of
            numbers, and whether defaults are written out.

    Raises:
        OptionError: Unknown types or parameters, invalid values; lists all problems.

    Examples:
        >>> from promptir_basicsr.degradations import Degrade
        >>> degrade = Degrade([{'type': 'haze', 'beta': 0.1}, {'type': 'gaussian_noise', 'sigma': [5, 15]}])
        >>> degraded = degrade(np.full((16, 16, 3), 0.5, np.float32), np.random.default_rng(0))
        >>> degraded.shape, degrade.describe()
        ((16, 16, 3), 'haze + gaussian_noise')
    """

    def __init__(self, spec: Any, where: str | Keys = 'degrade') -> None:
        entries = list(spec) if isinstance(spec, (list, tuple)) else [spec]
        empty = problem(where, f'an empty list; write {{type: NAME, ...}}.{_known_types()}')
        problems = [] if entries else [empty]
        self._steps: list[tuple[Degradation, dict[str, Any]]] = []
        for index, entry in enumerate(entries):
            path = (*keys(where), index) if isinstance(spec, (list, tuple)) else keys(where)
            step, found = _read_step(entry, path)
            problems += found
            if step is not None:
                self._steps.append(step)
        raise_problems(problems)

    @property
    def spec(self) -> list[dict[str, Any]]:
        return [
            {'type': kind.name} | {name: list(v) if isinstance(v, list) else v for name, v in values.items()}
            for kind, values in self._steps
        ]

    @property
    def key(self) -> str:
        # Without defaults, so that neither an explicit default nor a parameter of a later version changes the key.
        steps = [
            {'type': kind.name} | {name: v for name, v in values.items() if v != kind.parameters[name].default}
            for kind, values in self._steps
        ]
        return json.dumps(steps, sort_keys=True, separators=(',', ':'))

    def __call__(self, image: Image, rng: np.random.Generator) -> Image:
        """Degrade one image.

        Random numbers are drawn step by step; within a step, first its ranges in the declaration order of the
        parameters, then those of the degradation itself.

        Args:
            image: (H, W, 3) RGB or (H, W, 1) grey, float32, [0, 1]; not changed.
            rng: The only source of randomness: the same state results in the same image, bit by bit.

        Returns:
            A new array of the same shape, float32, in [0, 1] (noise with `clip: false` may leave the range).
        """
        return self.apply(image, rng)[0]

    def apply(self, image: Image, rng: np.random.Generator) -> tuple[Image, 'Degrade']:
        """Degrade one image, and return the drawn degradation.

        Args:
            image, rng: As in `__call__`; the image is the same, bit by bit.

        Returns:
            The image, and the degradation with ranges replaced by the drawn numbers. It degrades other images to the
            same extent; random content (noise, streaks, flakes, scene depth, the colour cast of low light) is drawn
            again.

        Examples:
            >>> from promptir_basicsr.degradations import Degrade
            >>> rng, grey = np.random.default_rng(0), np.full((8, 8, 3), 0.5, np.float32)
            >>> degraded, drawn = Degrade({'type': 'gaussian_noise', 'sigma': [5, 50]}).apply(grey, rng)
            >>> round(drawn.spec[0]['sigma'], 2)
            33.66
            >>> other = drawn(grey, rng)
        """
        drawn = []
        for kind, values in self._steps:
            drawn.append((kind, kind.draw(values, rng)))
            image = kind.run(image, rng, drawn[-1][1])
        fixed = copy.copy(self)
        fixed._steps = drawn
        return image, fixed

    def describe(self) -> str:
        """Return a short text for logs and tables: `gaussian_noise(sigma=25, floor)`, or names joined by ` + `."""
        if len(self._steps) > 1:
            return ' + '.join(kind.name for kind, _ in self._steps)
        kind, values = self._steps[0]
        shown = []
        for name, parameter in kind.parameters.items():
            if isinstance(parameter, Choice):
                shown.append(values.get(name, parameter.default))
            elif name in values:
                shown.append(f'{name}={json.dumps(values[name])}')
        return f'{kind.name}({", ".join(shown)})' if shown else kind.name

    def __repr__(self) -> str:
        return f'Degrade({self.spec})'


@dataclass(frozen=True)
class Number:
    """A numeric parameter: a number or a range [low, high].

    Args:
        default: A number, a range, or None for required parameters.
        low: Smallest value allowed.
        high: Largest value allowed.
        unit: Text for messages and documentation.
        integer: Whole numbers only; a range then includes both its ends.

    Examples:
        >>> from promptir_basicsr.degradations import Number
        >>> Number((0.2, 0.8), low=0, high=1).allowed
        'a number from 0 to 1'
    """

    default: float | tuple[float, float] | list[float] | None = None
    low: float = -math.inf
    high: float = math.inf
    unit: str = ''
    integer: bool = False

    def __post_init__(self) -> None:
        if self.default is not None:
            object.__setattr__(self, 'default', self.canonical(self.default))

    @property
    def allowed(self) -> str:
        text = 'a whole number' if self.integer else 'a number'
        if math.isfinite(self.low) and math.isfinite(self.high):
            text += f' from {self.low:g} to {self.high:g}'
        elif math.isfinite(self.low):
            text += f' of at least {self.low:g}'
        elif math.isfinite(self.high):
            text += f' of at most {self.high:g}'
        return text + (f' ({self.unit})' if self.unit else '')

    def canonical(self, value: Any) -> float | list[float]:
        """Return the value as int, float or [low, high]; raises ValueError for invalid values."""
        if not isinstance(value, (list, tuple)):
            return self._canonical_number(value)
        if len(value) != 2:
            raise ValueError(f'a range needs two ends, [low, high], found {list(value)}; or use {self.allowed}')
        low, high = (self._canonical_number(end) for end in value)
        if low > high:
            raise ValueError(f'the range {[low, high]} is reversed; use {[high, low]}')
        return [low, high]

    def draw(self, value: Any, rng: np.random.Generator) -> Any:
        """Draw a number from a canonical value. Only ranges consume randomness."""
        if not isinstance(value, list):
            return value
        if self.integer:
            return int(rng.integers(value[0], value[1], endpoint=True))
        return float(rng.uniform(value[0], value[1]))

    def _canonical_number(self, value: Any) -> float:
        expected = f'must be {self.allowed} or a range [low, high]'
        if isinstance(value, str):
            raise ValueError(f'{expected}, found the text {value!r}{_number_hint(value)}')
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
            raise ValueError(f'{expected}, found {value!r}')
        number = int(float(value)) if float(value).is_integer() else float(value)
        if self.integer and not isinstance(number, int):
            raise ValueError(f'{expected}, found {value!r}')
        if not self.low <= number <= self.high:
            raise ValueError(f'{expected}, found {value!r}')
        return number


@dataclass(frozen=True)
class Choice:
    """A parameter that is one of several words.

    Examples:
        >>> from promptir_basicsr.degradations import Choice
        >>> Choice('all', ('all', 'red')).allowed
        'one of all, red'
    """

    default: str
    options: tuple[str, ...]

    @property
    def allowed(self) -> str:
        return 'one of ' + ', '.join(self.options)

    def canonical(self, value: Any) -> str:
        """Return the word; words of digits may be numbers in YAML. Raises ValueError for unknown words."""
        text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
        if not isinstance(text, str) or text not in self.options:
            raise ValueError(f'must be {self.allowed}, found {value!r}.{did_you_mean(value, self.options)}')
        return text

    def draw(self, value: Any, rng: np.random.Generator) -> Any:
        return value


@dataclass(frozen=True)
class Switch:
    """A parameter that is true or false."""

    default: bool

    @property
    def allowed(self) -> str:
        return 'true or false'

    def canonical(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValueError(f'must be {self.allowed}, found {value!r}')
        return value

    def draw(self, value: Any, rng: np.random.Generator) -> Any:
        return value


Parameter = Number | Choice | Switch


class Degradation:
    """A registered degradation function with its parameters.

    A call `kind(image, rng, sigma=25)` checks the values, fills in defaults and draws ranges.

    Args:
        function: f(image, rng, **parameters) -> image.
        parameters: In the order in which ranges are drawn.
        check: Generator of messages, or of problems with the place of a parameter, about incompatible values; it
            receives all values including defaults, with ranges as lists.
    """

    def __init__(self, function: Callable[..., Image], parameters: dict[str, Parameter], check: Check | None) -> None:
        functools.update_wrapper(self, function)
        self.name = function.__name__
        self.function = function
        self.parameters = parameters
        self.check = check

    def __call__(self, image: Image, rng: np.random.Generator, **values: Any) -> Image:
        canonical, problems = self.validate(values, self.name)
        raise_problems(problems)
        return self.apply(image, rng, canonical)

    def apply(self, image: Image, rng: np.random.Generator, values: dict[str, Any]) -> Image:
        """Draw ranges and degrade, without checking the values again."""
        return self.run(image, rng, self.draw(values, rng))

    def draw(self, values: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Return one value per parameter: those set or the defaults, with ranges drawn."""
        return {name: kind.draw(values.get(name, kind.default), rng) for name, kind in self.parameters.items()}

    def run(self, image: Image, rng: np.random.Generator, drawn: Mapping[str, Any]) -> Image:
        """Degrade with values from `draw`."""
        if image.dtype != np.float32 or image.ndim != 3 or image.shape[2] not in (1, 3) or image.size == 0:
            found = f'{image.dtype} {image.shape}'
            raise ValueError(f'{self.name} needs a float32 image (H, W, 3) or (H, W, 1), found {found}')
        degraded = self.function(image, rng, **drawn)
        if degraded.shape != image.shape:  # OpenCV drops the axis of a single channel
            raise ValueError(
                f'{self.name} returned an image {degraded.shape} for an input {image.shape}; the shape must not change'
            )
        return degraded

    def validate(self, given: Mapping[str, Any], where: str | Keys) -> tuple[dict[str, Any], list[Problem]]:
        """Return the given values in canonical form and order, and all problems."""
        problems: list[Problem] = []
        values: dict[str, Any] = {}
        for name in given:
            if name not in self.parameters:
                hint = did_you_mean(name, self.parameters)
                allowed = ', '.join(self.parameters) or 'none'
                message = f'{self.name} has no parameter of this name.{hint} Allowed: {allowed}'
                problems.append(problem((*keys(where), name), message))
        for name, parameter in self.parameters.items():
            if name in given:
                try:
                    values[name] = parameter.canonical(given[name])
                except ValueError as error:
                    problems.append(problem((*keys(where), name), str(error)))
            elif parameter.default is None:
                problems.append(problem(where, f'{self.name} needs {name}, {parameter.allowed}', (name,)))
        if self.check is not None and not problems:
            defaults = {name: parameter.default for name, parameter in self.parameters.items()}
            problems = [as_problem(found).below(where) for found in self.check(defaults | values)]
        return values, problems

    def __reduce__(self) -> str:
        # Pickled by name: a worker imports the module, which registers the degradation there as well.
        return self.__qualname__

    __qualname__: str


@overload
def degradation(function: Callable[..., Image], /) -> Degradation: ...


@overload
def degradation(
    *, check: Check | None = None, **parameters: Parameter
) -> Callable[[Callable[..., Image]], Degradation]: ...


def degradation(
    function: Callable[..., Image] | None = None, /, *, check: Check | None = None, **parameters: Parameter
) -> Degradation | Callable[[Callable[..., Image]], Degradation]:
    """Function decorator that registers a degradation under the function's name.

    `@degradation(strength=Number(0.5, low=0, high=1))` declares defaults and bounds. Undeclared parameters whose
    Python default is a number or a bool become a Number without bounds (whole if annotated int) or a Switch, so a
    bare `@degradation` is enough for simple functions.

    Raises:
        TypeError: A parameter is neither declared nor has such a default, or a declared parameter does not exist.
        ValueError: Another module has registered this name.

    Examples:
        >>> from promptir_basicsr.degradations import Degrade, Number, degradation
        >>> @degradation(strength=Number(0.5, low=0, high=1))
        ... def fade(image, rng, strength):
        ...     return image * (1 - strength)
        >>> Degrade({'type': 'fade', 'strength': 0.25}).describe()
        'fade(strength=0.25)'
    """

    def register(function: Callable[..., Image]) -> Degradation:
        known = DEGRADATIONS.get(function.__name__)
        if known is not None and known.__module__ != function.__module__:
            raise ValueError(f'{function.__module__}: {known.__module__} has already registered {function.__name__!r}')
        kind = Degradation(function, _parameter_table(function, parameters), check)
        DEGRADATIONS[kind.name] = kind
        return kind

    return register if function is None else register(function)


def _parameter_table(function: Callable[..., Image], declared: dict[str, Parameter]) -> dict[str, Parameter]:
    """Return declared and inferred parameters in the order of the function's signature."""
    table: dict[str, Parameter] = {}
    for name, argument in list(inspect.signature(function).parameters.items())[2:]:
        if name in declared:
            table[name] = declared[name]
        elif isinstance(argument.default, bool):
            table[name] = Switch(argument.default)
        elif isinstance(argument.default, (int, float)):
            table[name] = Number(argument.default, integer=argument.annotation in (int, 'int'))
        else:
            raise TypeError(f'{function.__name__}: declare {name}, as in @degradation({name}=Number(...))')
    if 'type' in table or declared.keys() - table.keys():
        wrong = sorted((declared.keys() - table.keys()) | ({'type'} & table.keys()))
        raise TypeError(f'{function.__name__}(image, rng, ...) cannot have the declared parameters {wrong}')
    return table


def _read_step(entry: Any, where: Keys) -> tuple[tuple[Degradation, dict[str, Any]] | None, list[Problem]]:
    """Parse one mapping of a specification to (degradation, values), and return its problems."""
    if not isinstance(entry, Mapping):
        return None, [problem(where, f'must be a mapping {{type: NAME, ...}}, found {entry!r}.{_known_types()}')]
    if 'type' not in entry:
        meant = meant_by('type', entry)
        message = f'type is missing.{written_as(meant)}{_known_types()}'
        return None, [problem(where, message, (meant or 'type',))]
    name = entry['type']
    if not isinstance(name, str) or name not in DEGRADATIONS:
        message = f'unknown degradation {name!r}.{did_you_mean(name, DEGRADATIONS)}{_known_types()}'
        return None, [problem(where, message, ('type',))]
    kind = DEGRADATIONS[name]
    values, problems = kind.validate({str(k): v for k, v in entry.items() if k != 'type'}, where)
    return (None if problems else (kind, values)), problems


def _known_types() -> str:
    return f' Allowed types: {", ".join(sorted(DEGRADATIONS))}'


def _number_hint(text: str) -> str:
    """Return a hint for text that looks like a number. YAML 1.1 reads 1e-4 as text: it requires 1.0e-4."""
    try:
        number = float(text)
    except ValueError:
        return ''
    if not math.isfinite(number):
        return ''
    mantissa, _, exponent = text.strip().lower().partition('e')
    return f'; write {float(mantissa)}e{int(exponent):+d}' if exponent else f'; write {number:g} without quotes'
