"""Sections of the option file: their keys, and checks that report every mistake.

Also the types of option values, each with the message for values that do not fit.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from types import UnionType
from typing import Annotated, Any, ClassVar, Self, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetCoreSchemaHandler, Strict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError, core_schema

from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.core.messages import missing_key, quotes_hint, shown, unknown, unknown_name
from promptir_basicsr.core.problems import Keys, Problem, keys, problem

TOP: Keys = ('options',)
"""How messages show the top of the option file."""

TOLD = 'told'
"""The type of errors that carry a message of this package."""


INSIDE = 'inside'
"""The same for errors whose other options at this place are right."""


def told(sentence: str) -> PydanticCustomError:
    """Return an error with a message of this package, shown after the place of the option."""
    return refused(OptionError(sentence))


def refused(error: OptionError, kind: Any = TOLD) -> PydanticCustomError:
    """Return an error with problems of this package, whose places are relative to the option."""
    return PydanticCustomError(kind, 'wrong', {'problems': error.problems})


class Told:
    """Annotation with the message for any value that does not fit; `{found}` is replaced by the value."""

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
    """Annotation of a Literal: messages about unknown words suggest a known one.

    Args:
        kind: name for the words, as in `unknown mode 'gpu'`.
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


class Parsed(Told):
    """Annotation of values that a function converts; its OptionError reports what does not fit.

    Args:
        parse: the function; places of its problems are relative to the option.
        written: type of the value in YAML, for the JSON schema. Default: the annotated type.
    """

    def __init__(self, parse: Callable[[Any], Any], written: Any = None) -> None:
        self.parse, self.written = parse, written

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        inner = handler(source) if self.written is None else handler.generate_schema(self.written)
        return core_schema.no_info_wrap_validator_function(self._check, inner)

    def _check(self, value: Any, inner: Callable[[Any], Any]) -> Any:
        try:
            return self.parse(value)
        except OptionError as error:
            raise refused(error) from error


UNCHECKED = Parsed(lambda value: value)
"""Annotation of options whose type is documented but not checked here."""


def is_file_name(name: str) -> bool:
    """Return whether a name, joined to a folder, is a file or folder directly in it, on any system."""
    inside = not set(name) & set('/\\\0') and name not in ('.', '..')
    return inside and bool(name.strip()) and name.isprintable() and len(name.encode()) <= 200


def check_file_name(name: str) -> str:
    """Return the name if it is a valid file name.

    Raises:
        PydanticCustomError: `is_file_name` is false.
    """
    if is_file_name(name):
        return name
    if not name.strip() or set(name) & set('/\\\0') or name in ('.', '..'):
        raise told(f'{shown(name)} is not a name without slashes.')
    raise told(f'{shown(name)} is not a file name: at most 200 bytes, printable characters only.')


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
"""numpy accepts 32 bits; BasicSR adds the numbers of processes and workers."""
Port = Annotated[int, Strict(), Field(ge=1, le=65535), Told('{found} is not a port from 1 to 65535.')]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False), Told('{found} is not a number above 0.')]
Text = Annotated[str, Strict(), Told('{found} is not text.')]
FileName = Annotated[
    str, Strict(), Told('{found} is not text. Put a name made of digits in quotes.'), AfterValidator(check_file_name)
]
FileSuffix = Annotated[str, Strict(), Told('{found} is not text.'), AfterValidator(_check_suffix)]
ExistingFile = Annotated[str, Strict(), Told('{found} is not text.'), AfterValidator(_check_file)]
Typed = Annotated[dict[str, Any], Told('must be options with a type, e.g. {{type: ...}}, not {found}.')]


def option(default: Any = ..., *, description: str) -> Any:
    """Declare an option of a section; without a default it is required."""
    return Field(default, description=description)


class Section(BaseModel):
    """Options `key: value`. Subclasses define the allowed keys.

    With `extra='ignore'`, a subclass ignores keys that it does not define.
    """

    model_config = ConfigDict(extra='forbid', arbitrary_types_allowed=True)

    example: ClassVar[str] = '`key: value`'
    """An example for messages about a value that is not a section."""

    @classmethod
    def field_of(cls, key: str) -> FieldInfo | None:
        """Return the field that checks an option."""
        return cls.model_fields.get(key)

    @classmethod
    def problems(cls, options: Any, where: str | Keys = ()) -> list[Problem]:
        """Return the mistakes in the options.

        Args:
            options: as read from YAML; not changed.
            where: their place in the option file; () for the whole file.
        """
        return cls.sound(options, where)[1]

    @classmethod
    def sound(cls, options: Any, where: str | Keys = ()) -> tuple[dict[str, Any], list[Problem]]:
        """Return the valid options, and the mistakes in the others; see `problems`."""
        problems: list[Problem] = []
        sound = dict(options) if isinstance(options, Mapping) else {}
        try:
            cls.model_validate(dict(options) if isinstance(options, Mapping) else options)
        except ValidationError as error:
            for details in error.errors(include_url=False):
                found = cls._problems(keys(where), details)
                problems += found
                # Values that a function rejects are dropped as a whole.
                whole = details['type'] == TOLD
                for path in [details['loc']] if whole else [each.path[len(keys(where)) :] for each in found]:
                    sound = _without(sound, path)
        return sound, problems

    @classmethod
    def parse(cls, options: Any, where: str | Keys = ()) -> tuple[Self, list[Problem]]:
        """Return the options as an object with defaults for invalid ones, and the mistakes; see `problems`.

        For sections without required options.
        """
        options, problems = cls.sound(options, where)
        return cls.model_validate(options), problems

    @classmethod
    def _problems(cls, where: Keys, details: Any) -> list[Problem]:
        kind, location, found = details['type'], details['loc'], details['input']
        path, owner = (*where, *location), section_at(cls, location[:-1])
        if kind in (TOLD, INSIDE):
            found = details['ctx']['problems']
            return [replace(each, shown=() if each.shown == TOP else each.shown).below(path) for each in found]
        if kind in ('extra_forbidden', 'invalid_key'):
            key = found if kind == 'invalid_key' else location[-1]
            section = path[:-1] or TOP
            return [replace(unknown('', 'option', key, owner.model_fields), path=(*path[:-1], str(key)), shown=section)]
        if kind == 'missing':
            # Reports about unknown keys already contain a suggestion.
            ignores = owner.model_config.get('extra') == 'ignore'
            return [missing_key(path, found if ignores else (), owner.model_fields)]
        if kind in ('model_type', 'model_attributes_type', 'dict_type'):
            message = f'must be options {section_at(cls, location).example}, not {shown(found)}.'
            return [Problem(path, message, shown=path or TOP)]
        return [problem(path, f'{shown(found)} is wrong: {details["msg"]}.')]


def _without(options: Any, path: Keys) -> Any:
    """Return a copy without the option at a place; for items of a list, without the option that holds the list."""
    key, *inner = path or ('',)
    rest = {name: value for name, value in options.items() if str(name) != str(key)}
    at = next((name for name in options if str(name) == str(key)), None)
    if inner and isinstance(options.get(at), Mapping):
        rest[at] = _without(options[at], tuple(inner))
    return rest


def section_at(section: type[Section], location: Keys) -> type[Section]:
    """Return the section of options at a place inside another section."""
    for key in location:
        field = section.field_of(str(key))
        section = next(sections_in(field.annotation), section) if field else section
    return section


def sections_in(annotation: Any) -> Iterator[type[Section]]:
    """Yield the sections in an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for part in get_args(annotation):
        yield from sections_in(part)


def alternatives_of(field: FieldInfo) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Yield `alternatives` of a field as written in YAML; pydantic stores the metadata separately."""
    parsed = (part.written for part in field.metadata if isinstance(part, Parsed) and part.written is not None)
    for part, metadata in alternatives(next(parsed, field.annotation)):
        yield part, (*field.metadata, *metadata)


def alternatives(annotation: Any) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Yield the types of a union, each with its metadata."""
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        for part, more in alternatives(inner):
            yield part, (*metadata, *more)
    elif get_origin(annotation) in (Union, UnionType):
        for part in get_args(annotation):
            yield from alternatives(part)
    else:
        yield annotation, ()
