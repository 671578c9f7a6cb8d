"""What type an option has that the command line replaces."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from promptir_basicsr.schema.registered_util import Registered, find_section
from promptir_basicsr.schema.run_schema import run_schema
from promptir_basicsr.schema.section_util import Section, alternatives, alternatives_of

_NOTHING = ('', '~', 'null', 'none')


def typed(options: Mapping[str, Any], keys: Sequence[str], text: str, value: Any) -> Any:
    """A replacement as the option at its place takes it: digits stay text where text is wanted, as in `name=123`.

    Args:
        options: of the whole file.
        keys: the place, from the top.
        text: as it was typed.
        value: what YAML makes of it.
    """
    if isinstance(value, (str, dict, list)):
        return value
    section = run_schema(options.get('model_type'), 'train' in options)
    kinds = set(_kinds_in(section, options, list(keys)))
    if str not in kinds or kinds & {bool, int, float, Any}:
        return value
    if value is None and text.lower() in _NOTHING and not ('needed' in kinds and text):
        return None
    return text


def _kinds_in(section: type[Section], options: Any, keys: list[str]) -> Iterator[Any]:
    """The types that an option below a section may have, and the word 'needed' where it must be there."""
    field = section.field_of(keys[0])
    if field is None:
        return
    value = options.get(keys[0]) if isinstance(options, Mapping) else None
    for kind, metadata in alternatives_of(field):
        yield from _kinds(kind, metadata, value, keys[1:])
    if field.is_required() and len(keys) == 1:
        yield 'needed'


def _kinds(kind: Any, metadata: Sequence[Any], value: Any, keys: list[str]) -> Iterator[Any]:
    registered = next((part for part in metadata if isinstance(part, Registered)), None)
    if registered is not None and keys:
        section = find_section(registered.kind, value)
        if keys == ['type']:
            yield str
        elif section is not None:
            yield from _kinds_in(section, value, keys)
    elif isinstance(kind, type) and issubclass(kind, Section):
        if keys:
            yield from _kinds_in(kind, value, keys)
    elif keys:
        yield from _kinds_of_items(kind, value, keys)
    elif get_origin(kind) is Literal:
        yield from {type(word) for word in get_args(kind)}
    else:
        yield kind


def _kinds_of_items(kind: Any, value: Any, keys: list[str]) -> Iterator[Any]:
    """Of a list's or a mapping's items."""
    if not get_args(kind):
        return
    item = value.get(keys[0]) if isinstance(value, Mapping) else None
    if isinstance(value, list) and keys[0].isdecimal() and int(keys[0]) < len(value):
        item = value[int(keys[0])]
    by_key = issubclass(get_origin(kind), Mapping)
    if by_key or keys[0].isdecimal():
        for part, metadata in alternatives(get_args(kind)[1 if by_key else 0]):
            yield from _kinds(part, metadata, item, keys[1:])
