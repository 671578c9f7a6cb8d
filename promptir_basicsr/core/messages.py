"""Wording: where, what was found, what is allowed, how to mend it."""

import logging
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from difflib import get_close_matches
from typing import Any, TypeGuard

_PACKAGE = os.path.join(os.path.dirname(os.path.dirname(__file__)), '')
_NUMBER = re.compile(r'[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?')


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


def printable(text: object, keep: str = '') -> str:
    """A text on one line, with escapes for characters that do not print: line breaks, control characters, halves of
    surrogates. Every name of a file and every text of other people passes through it on its way to a terminal or log.

    Args:
        keep: characters that stay as they are.
    """
    text = str(text)
    if text.isprintable():
        return text
    return ''.join(c if c.isprintable() or c in keep else repr(c)[1:-1] for c in text)


class Printable(logging.Filter):
    """Makes records of a log printable; those of other packages may have several lines."""

    def filter(self, record: logging.LogRecord) -> bool:
        keep = '' if record.pathname.startswith(_PACKAGE) else '\n\t'
        with suppress(TypeError, ValueError):  # arguments that do not fit, which the handlers of the log report
            record.msg, record.args = printable(record.getMessage(), keep), ()
        return True


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


def error_lines(where: str, error: Exception) -> list[str]:
    """What an error says, a problem a line."""
    return [f'{where}: {line}' for line in (str(error) or type(error).__name__).splitlines()]
