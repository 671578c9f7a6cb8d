"""Parts of messages: where, what was found, what is allowed, how to fix it."""

import logging
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from difflib import get_close_matches
from typing import Any, TypeGuard

from promptir_basicsr.core.problems import Keys, Problem, keys, problem

_PACKAGE = os.path.join(os.path.dirname(os.path.dirname(__file__)), '')
_NUMBER = re.compile(r'[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?')


def did_you_mean(found: object, allowed: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?`, or an empty text."""
    spelling, lower = {name.lower(): name for name in allowed}, str(found).lower()
    same_letters = [spelling[name] for name in get_close_matches(lower, spelling, n=1, cutoff=0.75)]
    close = same_letters or get_close_matches(str(found), spelling.values(), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ''


def unknown_name(kind: str, found: object, allowed: Iterable[str]) -> str:
    """Return the message for a name that is not among the allowed ones."""
    allowed = sorted(map(str, allowed))
    return f"unknown {kind} '{found}'.{did_you_mean(found, allowed)} Allowed: {', '.join(allowed)}."


def unknown(where: str | Keys, kind: str, found: object, allowed: Iterable[str], *options: Keys) -> Problem:
    """Return the problem for a name that is not among the allowed ones; for `options` see `problem`."""
    return problem(where, unknown_name(kind, found, allowed), *options)


def unknown_keys(where: str | Keys, options: Mapping[str, Any], allowed: Iterable[str]) -> list[Problem]:
    """Return a problem for each key of `options` that is not allowed."""
    allowed = list(allowed)
    return [unknown(where, 'option', key, allowed, (str(key),)) for key in options if key not in allowed]


def shown(value: object, most: int = 160) -> str:
    """Return the representation of a value for a message; long ones are cut."""
    text = repr(value)
    return text if len(text) <= most else f'{text[:most]}...'


def printable(text: object, keep: str = '') -> str:
    """Escape characters that do not print: line breaks, control characters, lone surrogates. Applied to all file names
    and third-party texts before they reach a terminal or a log.

    Args:
        keep: characters that are not escaped.
    """
    text = str(text)
    if text.isprintable():
        return text
    return ''.join(c if c.isprintable() or c in keep else repr(c)[1:-1] for c in text)


class Printable(logging.Filter):
    """Logging filter that makes records printable; those of other packages may have several lines."""

    def filter(self, record: logging.LogRecord) -> bool:
        keep = '' if record.pathname.startswith(_PACKAGE) else '\n\t'
        with suppress(TypeError, ValueError):  # arguments that do not match; the log handlers report them
            record.msg, record.args = printable(record.getMessage(), keep), ()
        return True


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, printable; the class name if it is empty."""
    return printable(str(error).strip().partition('\n')[0]) or type(error).__name__


def quotes_hint(value: object) -> str:
    """Return a hint for text that looks like a number, or an empty text."""
    return ' Remove the quotes.' if isinstance(value, str) and _NUMBER.fullmatch(value) else ''


def is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value


def check_count(where: str | Keys, value: object, least: int = 1) -> list[Problem]:
    """A whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        return [problem(where, f'{value!r} is not a whole number of at least {least}.')]
    return []


def first_few(names: Iterable[str], most: int = 3) -> str:
    """Return the first names, as `a, b, c and 7 more`."""
    names = list(names)
    more = f' and {len(names) - most:,} more' if len(names) > most else ''
    return ', '.join(names[:most]) + more


def missing(where: str | Keys, options: Mapping[str, Any], needed: Iterable[str]) -> list[Problem]:
    """Return a problem for each required key that is missing in `options`."""
    return [missing_key((*keys(where), key), options) for key in needed if key not in options]


def missing_key(path: Keys, options: Iterable[object], known: Iterable[str] = ()) -> Problem:
    """Return the problem of a missing key; its place is that of its probable misspelling, if any.

    Args:
        path: of the missing key.
        options: the existing keys.
        known: the valid keys among them.
    """
    meant = meant_by(str(path[-1]), options, known)
    written = (*path[:-1], meant) if meant else path
    return Problem(written, f'is missing.{written_as(meant)}', shown=path)


def meant_by(key: str, options: Iterable[object], known: Iterable[str] = ()) -> str:
    """Return the probable misspelling of a missing key, or ''; see `missing_key`."""
    close = get_close_matches(key, [str(other) for other in options if other not in set(known)], n=1, cutoff=0.7)
    return close[0] if close else ''


def written_as(key: str) -> str:
    """Return ` Did you write it as 'typpe'?`, or an empty text."""
    return f" Did you write it as '{key}'?" if key else ''
