"""Lists of options in docstrings, which Markdown would run together, as lists of Markdown.

A list has a line of its own that begins with 'Options' and ends with a colon, and below it `key: meaning`, four spaces
in; meanings go on eight spaces in.
"""

import re
from typing import Any

from griffe import Extension, Object

_LIST = re.compile(r'^(Options\b.*:)\n((?: {4}.*(?:\n|\Z))+)', re.M)
_ENTRY = re.compile(r'^ {4}(\S[^:\n]*): ', re.M)


class OptionLists(Extension):
    """For the API pages."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Rewrite the docstring of an object."""
        if obj.docstring:
            obj.docstring.value = _LIST.sub(_as_markdown, obj.docstring.value)


def _as_markdown(match: re.Match) -> str:
    return f'{match[1]}\n\n' + _ENTRY.sub(lambda entry: f'- **`{entry[1]}`** – ', match[2])
