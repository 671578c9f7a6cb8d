"""Consoles for the output of commands."""

import sys

from rich.console import Console


def plain_console(stderr: bool = False, soft_wrap: bool = True) -> Console:
    """Return a console that prints plain text: no markup, highlighting or emoji; soft_wrap keeps lines whole."""
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=soft_wrap)


def table_console() -> Console:
    """Return a console for tables: as wide as the terminal, 120 columns in a file."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 120)
