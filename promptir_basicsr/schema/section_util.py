"""Options of a section of the option file: which keys there are, and everything that is wrong with them."""

from collections.abc import Iterator, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from promptir_basicsr.option_util import meant_by, shown, unknown
from promptir_basicsr.schema.value_util import TOLD


def option(default: Any = ..., *, description: str) -> Any:
    """An option of a section; without a default it is needed."""
    return Field(default, description=description)


class Section(BaseModel):
    """Options `key: value`. Subclasses are what decides on the keys that there are.

    `extra='ignore'` in a subclass passes over keys that are none of ours.
    """

    model_config = ConfigDict(extra='forbid')

    @classmethod
    def field_of(cls, key: str) -> FieldInfo | None:
        """The field that an option is checked by."""
        return cls.model_fields.get(key)

    @classmethod
    def problems(cls, options: Any, where: str = '') -> list[str]:
        """What is wrong with the options, a line each; each begins with the place of the option.

        Args:
            options: as read from YAML; they are not changed.
            where: their place in the option file; '' for the whole file.
        """
        try:
            cls.model_validate(dict(options) if isinstance(options, Mapping) else options)
        except ValidationError as error:
            return [cls._problem(where, details) for details in error.errors(include_url=False)]
        return []

    @classmethod
    def _problem(cls, where: str, details: Any) -> str:
        kind, location, found = details['type'], details['loc'], details['input']
        if kind in ('extra_forbidden', 'invalid_key'):
            section = section_at(cls, location[:-1])
            key = found if kind == 'invalid_key' else location[-1]
            return unknown(place(where, location[:-1]) or 'options', 'option', key, section.model_fields)
        spot = place(where, location)
        if kind == 'missing':
            # Where unknown keys are told, they come with a suggestion themselves.
            owner = section_at(cls, location[:-1])
            ignores = owner.model_config.get('extra') == 'ignore'
            return f'{spot}: is missing.' + (meant_by(str(location[-1]), found, owner.model_fields) if ignores else '')
        if kind == TOLD:
            return f'{spot}: {details["msg"]}'
        if kind in ('model_type', 'model_attributes_type', 'dict_type'):
            return f'{spot or "options"}: give options `key: value`, not {shown(found)}.'
        return f'{spot}: {shown(found)} is wrong: {details["msg"]}.'


def place(where: str, location: Sequence[str | int]) -> str:
    """`datasets.train` and (`tasks`, 1, `copies`) as `datasets.train.tasks[1].copies`."""
    for key in location:
        where += f'[{key}]' if isinstance(key, int) else f'.{key}' if where else str(key)
    return where


def section_at(section: type[Section], location: Sequence[str | int]) -> type[Section]:
    """The section that options at a place below another one belong to."""
    for key in location:
        field = section.field_of(str(key))
        section = next(sections_in(field.annotation), section) if field else section
    return section


def sections_in(annotation: Any) -> Iterator[type[Section]]:
    """The sections that an annotation speaks of."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for part in get_args(annotation):
        yield from sections_in(part)


def alternatives_of(field: FieldInfo) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """`alternatives` of a field, of which pydantic keeps the metadata apart."""
    for part, metadata in alternatives(field.annotation):
        yield part, (*field.metadata, *metadata)


def alternatives(annotation: Any) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """The types of a union, each with the metadata that it is annotated with."""
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        for part, more in alternatives(inner):
            yield part, (*metadata, *more)
    elif get_origin(annotation) in (Union, UnionType):
        for part in get_args(annotation):
            yield from alternatives(part)
    else:
        yield annotation, ()
