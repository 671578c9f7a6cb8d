"""Say what is wrong with an option: where, what was found, what is allowed, how to mend it."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, TypeGuard


class OptionError(ValueError):
    """One or more mistakes in the options, a line each."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__('\n'.join(self.problems))


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
