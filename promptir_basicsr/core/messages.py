"""Say what is wrong with an option: where, what was found, what is allowed, how to mend it."""

import importlib.util
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any, TypeGuard

_NUMBER = re.compile(r'[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?')


_INSTALLED_AS = {'sklearn': 'scikit-learn'}


class OptionError(ValueError):
    """One or more mistakes in the options, a line each."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__('\n'.join(self.problems))


class MachineProblem(str):
    """A problem that this machine has with the options; they may be right for the one that trains."""


def did_you_mean(found: object, allowed: Iterable[str]) -> str:
    """` Did you mean 'x'?` or nothing."""
    close = get_close_matches(str(found), list(allowed), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ''


def unknown(where: str, kind: str, found: object, allowed: Iterable[str]) -> str:
    """The sentence for a name that is not in the list of names."""
    allowed = sorted(map(str, allowed))
    return f"{where}: unknown {kind} '{found}'.{did_you_mean(found, allowed)} Allowed: {', '.join(allowed)}."


def unknown_keys(where: str, options: Mapping[str, Any], allowed: Iterable[str]) -> list[str]:
    """One problem for each key of `options` that is not allowed."""
    allowed = list(allowed)
    return [unknown(where, 'option', key, allowed) for key in options if key not in allowed]


def shown(value: object, most: int = 160) -> str:
    """A value as it is quoted in a message; what is long is cut."""
    text = repr(value)
    return text if len(text) <= most else f'{text[:most]}...'


def printable(text: str) -> str:
    """A text on one line, with escapes for what does not print."""
    return text if text.isprintable() else ''.join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def quotes_hint(value: object) -> str:
    """What to do about text that looks like a number, or nothing."""
    return ' Leave the quotes out.' if isinstance(value, str) and _NUMBER.fullmatch(value) else ''


def is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value


def check_count(where: str, value: object, least: int = 1) -> list[str]:
    """A whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        return [f'{where}: {value!r} is not a whole number of at least {least}.']
    return []


def first_few(names: Iterable[str], most: int = 3) -> str:
    """`a, b, c and 7 more`."""
    names = list(names)
    more = f' and {len(names) - most:,} more' if len(names) > most else ''
    return ', '.join(names[:most]) + more


def missing(where: str, options: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    """One problem for each key that has to be in `options` and is not."""
    place = where + '.' if where else ''
    return [f'{place}{key}: is missing.{meant_by(key, options)}' for key in keys if key not in options]


def meant_by(key: str, options: Iterable[object], known: Iterable[str] = ()) -> str:
    """` Did you write it as 'typpe'?` of a key that is missing, or nothing.

    Args:
        options: the keys that are there.
        known: those of them that are right.
    """
    close = get_close_matches(key, [str(other) for other in options if other not in set(known)], n=1, cutoff=0.7)
    return f" Did you write it as '{close[0]}'?" if close else ''


def check_registered(where: str, kind: str, name: object, registry: Any) -> list[str]:
    """A name of something that is registered with BasicSR."""
    # BasicSR's registry also tries the name with its own suffix.
    if not isinstance(name, str):
        return [f'{where}: {name!r} is not the name of a {kind}.']
    if name in registry or f'{name}_basicsr' in registry:
        return []
    return [unknown(where, kind, name, registry.keys())]


def find_registered(registry: Any, name: str) -> Callable[..., Any]:
    """What `check_registered` found to be there."""
    return registry.get(name if name in registry else f'{name}_basicsr')


def check_arguments(
    where: str, function: Callable[..., Any], arguments: Mapping[str, Any], given: Iterable[str] = ()
) -> list[str]:
    """Arguments a function does not know, or misses.

    Args:
        given: names that the caller supplies besides `arguments`.
    """
    parameters = inspect.signature(function).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    allowed = [p.name for p in named if p.name not in given]
    problems = unknown_keys(where, arguments, allowed) if not _open_ended(function) else []
    needed = [p.name for p in named if p.default is p.empty and p.name not in arguments and p.name not in given]
    return problems + missing(where, {}, needed)


def _open_ended(function: Callable[..., Any]) -> bool:
    """Takes **kwargs and means it. BasicSR's losses and metrics have them only to swallow what they do not know."""
    swallows = getattr(function, '__module__', '').startswith(('basicsr.metrics', 'basicsr.losses'))
    parameters = inspect.signature(function).parameters.values()
    return any(p.kind is p.VAR_KEYWORD for p in parameters) and not swallows


def need_extra(what: str, modules: Iterable[str], extra: str) -> None:
    """Raise OptionError where modules of one of this package's extras are not installed; says how to get them."""
    absent = [_INSTALLED_AS.get(name, name) for name in modules if importlib.util.find_spec(name) is None]
    if absent:
        raise OptionError([f"{what} needs {' and '.join(absent)}: pip install 'promptir_basicsr[{extra}]'"])


def error_lines(where: str, error: Exception) -> list[str]:
    """What an error says, a problem a line."""
    return [f'{where}: {line}' for line in (str(error) or type(error).__name__).splitlines()]
