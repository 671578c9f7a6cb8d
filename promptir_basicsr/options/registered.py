"""Options of registered classes: keys come from their constructors, descriptions from their docstrings."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler, Strict, create_model
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import core_schema

from promptir_basicsr.core.problems import Keys, Problem
from promptir_basicsr.options.section import Flag, Section, Text, Told

MARK = 'x-registered'
"""Placeholder in a JSON schema that `json_schema` replaces by the options of the registered classes."""

OURS = 'promptir_basicsr.'


class Registered:
    """Annotation of options with a registered `type` and the arguments of that class or function.

    Args:
        kind: one of the keys of `registered`.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return handler(source)

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {**handler(schema), MARK: self.kind}


@cache
def section_of(
    function: Callable[..., Any], given: tuple[str, ...] = (), optional: tuple[str, ...] = ()
) -> type[Section]:
    """Return the arguments of a function or a class's constructor as a section.

    Args:
        given: arguments that do not come from the options.
        optional: arguments that default to other options.
    """
    meanings, fields = argument_meanings(inspect.getdoc(function) or ''), {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in given or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        annotation = _strict(parameter.annotation)
        default = parameter.default
        if parameter.default is parameter.empty:
            default = None if parameter.name in optional else ...
        meaning = meanings.get(parameter.name)
        fields[parameter.name] = (annotation, Field(default, description=meaning))
    section: type[Section] = create_model(function.__name__, __base__=Section, **fields)  # type: ignore[call-overload]
    section.__doc__ = (inspect.getdoc(function) or '').split('\n\n')[0].replace('\n', ' ')
    return section


_WORDS = {bool: 'flags', int: 'whole numbers', float: 'numbers', str: 'text'}


def _strict(annotation: Any) -> Any:
    """Return the option type for an argument's annotation; anything for annotations not known here."""
    simple = {
        bool: Flag,
        int: Annotated[int, Strict(), Told('{found} is not a whole number.')],
        float: Annotated[float, Strict(), Told('{found} is not a number.')],
        str: Text,
        type(None): None,
    }
    if get_origin(annotation) in (Union, UnionType):
        return Union[tuple(_strict(part) for part in get_args(annotation))]  # noqa: UP007  (made of a tuple)
    if get_origin(annotation) is Sequence:
        item = get_args(annotation)[0]
        sentence = Told(f'{{found}} is not a list of {_WORDS.get(item, "such values")}.')
        return Annotated[Sequence[_strict(item)], sentence]  # type: ignore[misc]
    if get_origin(annotation) is Mapping:
        return Annotated[dict[str, Any], Told('must be options `key: value`, not {found}.')]
    return simple.get(annotation, Any)


def type_problems(where: str | Keys, function: Callable[..., Any], arguments: Mapping[str, Any]) -> list[Problem]:
    """Return a problem for each argument whose type contradicts the signature of a class or function of this package.

    Unknown and missing arguments, and third-party classes, are not checked here.
    """
    if not function.__module__.startswith(OURS):
        return []
    known = inspect.signature(function).parameters
    given = tuple(name for name in known if name not in arguments)
    return section_of(function, given).problems({name: arguments[name] for name in arguments if name in known}, where)


def argument_meanings(docstring: str) -> dict[str, str]:
    """Return the description of each argument in a docstring, on one line; `a, b: words` describes both."""
    block = re.search(r'^Args:\n((?:    .*\n?|\n)+)', docstring, re.M)
    meanings: dict[str, str] = {}
    names: Sequence[str] = ()
    for line in block.group(1).splitlines() if block else ():
        entry = re.match(r'    (\w+(?:, \w+)*): (.*)', line)
        if entry:
            names = entry.group(1).split(', ')
            meanings.update(dict.fromkeys(names, entry.group(2)))
        elif line.strip():
            meanings.update({name: f'{meanings[name]} {line.strip()}' for name in names})
    return {name: text.removesuffix('.') if '. ' not in text else text for name, text in meanings.items()}
