"""Options of a section of the option file: which keys there are, and everything that is wrong with them.

Kinds of values that options have, each with the sentence for what does not fit.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetCoreSchemaHandler, Strict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError, core_schema

from promptir_basicsr.core.messages import missing_key, quotes_hint, shown, unknown, unknown_name
from promptir_basicsr.core.problems import Keys, Problem, keys, problem

TOP: Keys = ('options',)
"""How the top of the option file is shown."""

TOLD = 'told'
"""The type of errors that are in our words already."""


def told(sentence: str) -> PydanticCustomError:
    """An error in our words; the sentence goes behind the place of the option."""
    return PydanticCustomError(TOLD, '{sentence}', {'sentence': sentence})


class Told:
    """Annotation: what is said of a value that does not fit, whatever the reason; `{found}` stands for the value."""

    def __init__(self, sentence: str) -> None:
        self.sentence = sentence

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_wrap_validator_function(self._check, handler(source))

    def _check(self, value: Any, inner: Callable[[Any], Any]) -> Any:
        try:
            return inner(value)
        except ValidationError as error:
            raise told(self.sentence.format(found=shown(value)) + quotes_hint(value)) from error


class OneOf(Told):
    """Annotation of a Literal: a word that is none of them gets a suggestion.

    Args:
        kind: what the words are, as in `unknown mode 'gpu'`.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        self.allowed = [str(word).lower() if isinstance(word, bool) else str(word) for word in get_args(source)]
        return super().__get_pydantic_core_schema__(source, handler)

    def _check(self, value: Any, inner: Callable[[Any], Any]) -> Any:
        try:
            return inner(value)
        except ValidationError as error:
            raise told(unknown_name(self.kind, value, self.allowed)) from error


class CheckedElsewhere:
    """Annotation: the type says what the option looks like; its values are checked where their context is known.

    Args:
        mapping: here it is checked that there are options at all.
    """

    def __init__(self, mapping: bool = False) -> None:
        self.mapping = mapping

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_wrap_validator_function(self._check, handler(source))

    def _check(self, value: Any, _: Callable[[Any], Any]) -> Any:
        if self.mapping and not isinstance(value, Mapping):
            raise told(f'give options `key: value`, not {shown(value)}.')
        return value


def is_file_name(name: str) -> bool:
    """Whether a name is one file or folder below the one that it is joined to, on any system."""
    inside = not set(name) & set('/\\\0') and name not in ('.', '..')
    return inside and bool(name.strip()) and name.isprintable() and len(name.encode()) <= 200


def check_file_name(name: str) -> str:
    """The name, if it is one.

    Raises:
        PydanticCustomError: `is_file_name` is false.
    """
    if is_file_name(name):
        return name
    if not name.strip() or set(name) & set('/\\\0') or name in ('.', '..'):
        raise told(f'{shown(name)} is not a name without slashes.')
    raise told(f'{shown(name)} is not a name for a file: at most 200 bytes, all of them letters that print.')


def _check_suffix(text: str) -> str:
    if text:
        check_file_name(text)
    return text


def _check_file(path: str) -> str:
    if not os.path.isfile(os.path.expanduser(path)):
        raise told(f'the file {shown(path, most=1000)} does not exist.')
    return path


Flag = Annotated[bool, Strict(), Told('{found} is neither true nor false.')]
Count = Annotated[int, Strict(), Field(ge=1), Told('{found} is not a whole number of at least 1.')]
CountFromZero = Annotated[int, Strict(), Field(ge=0), Told('{found} is not a whole number of at least 0.')]
Warmup = Annotated[int, Strict(), Field(ge=-1), Told('{found} is not a whole number of at least -1.')]
Seed = Annotated[
    int, Strict(), Field(ge=0, lt=2**31), Told('{found} is not a whole number of at least 0 and below 2,147,483,648.')
]
"""numpy takes 32 bits; BasicSR adds the numbers of processes and workers."""
Port = Annotated[int, Strict(), Field(ge=1, le=65535), Told('{found} is not a port from 1 to 65535.')]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False), Told('{found} is not a number above 0.')]
Text = Annotated[str, Strict(), Told('{found} is not text.')]
FileName = Annotated[
    str, Strict(), Told('{found} is not text. Put a name made of digits in quotes.'), AfterValidator(check_file_name)
]
FileSuffix = Annotated[str, Strict(), Told('{found} is not text.'), AfterValidator(_check_suffix)]
ExistingFile = Annotated[str, Strict(), Told('{found} is not text.'), AfterValidator(_check_file)]
Typed = Annotated[dict[str, Any], Told('give options with a type, e.g. {{type: ...}}, not {found}.')]


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
    def problems(cls, options: Any, where: str | Keys = ()) -> list[Problem]:
        """What is wrong with the options.

        Args:
            options: as read from YAML; they are not changed.
            where: their place in the option file; () for the whole file.
        """
        try:
            cls.model_validate(dict(options) if isinstance(options, Mapping) else options)
        except ValidationError as error:
            return [cls._problem(keys(where), details) for details in error.errors(include_url=False)]
        return []

    @classmethod
    def _problem(cls, where: Keys, details: Any) -> Problem:
        kind, location, found = details['type'], details['loc'], details['input']
        path, owner = (*where, *location), section_at(cls, location[:-1])
        if kind in ('extra_forbidden', 'invalid_key'):
            key = found if kind == 'invalid_key' else location[-1]
            section = path[:-1] or TOP
            return replace(unknown('', 'option', key, owner.model_fields), path=(*path[:-1], str(key)), shown=section)
        if kind == 'missing':
            # Where unknown keys are told, they come with a suggestion themselves.
            ignores = owner.model_config.get('extra') == 'ignore'
            return missing_key(path, found if ignores else (), owner.model_fields)
        if kind == TOLD:
            return problem(path, details['msg'])
        if kind in ('model_type', 'model_attributes_type', 'dict_type'):
            return Problem(path, f'give options `key: value`, not {shown(found)}.', shown=path or TOP)
        return problem(path, f'{shown(found)} is wrong: {details["msg"]}.')


def section_at(section: type[Section], location: Keys) -> type[Section]:
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
