"""Consoles for what verbs print."""

import sys

from rich.console import Console


def plain_console(stderr: bool = False, soft_wrap: bool = True) -> Console:
    """A console that prints text as it is: no markup, no highlighting, no emoji; with soft_wrap, lines stay whole."""
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=soft_wrap)


def table_console() -> Console:
    """A console for tables: as wide as the terminal, 120 columns in a file."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 120)
