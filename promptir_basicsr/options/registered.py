"""Options of registered classes: their constructors decide on the keys, their docstrings say what these mean."""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY
from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler, Strict, create_model
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import core_schema

from promptir_basicsr.schema.section_util import Section
from promptir_basicsr.schema.value_util import Flag, Text, Told

MARK = 'x-registered'
"""Stands in a JSON schema, until `json_schema_util` puts the options of the registered classes there."""

_OURS = 'promptir_basicsr.'


class Registered:
    """Annotation: options with a `type` that is registered, and the arguments of what is registered under it.

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


def registered(kind: str) -> dict[str, type[Section]]:
    """What this package has of a kind: name -> its options without `type`."""
    from promptir_basicsr.losses.scaler_util import LossScaler
    from promptir_basicsr.models.lr_scheduler_util import SCHEDULERS
    from promptir_basicsr.schema.data_schema import MeasuringSet, TrainingSet

    if kind == 'network':
        return _sections(_ours(ARCH_REGISTRY))
    if kind in ('loss', 'prompt loss'):
        losses = _ours(LOSS_REGISTRY)
        wanted = kind == 'prompt loss'
        return _sections({name: loss for name, loss in losses.items() if _takes_prompts(loss) == wanted})
    if kind == 'metric':
        return _sections(_ours(METRIC_REGISTRY), given=('img', 'img2'))
    if kind == 'schedule':
        return _sections(SCHEDULERS, given=('optimizer', 'last_epoch'), optional=('total_iter',))
    if kind == 'loss scaler':
        return _sections({'LossScaler': LossScaler})
    sets: dict[str, type[Section]] = {'training set': TrainingSet, 'measuring set': MeasuringSet}
    return {'AllInOneDataset': sets[kind]} if kind in sets else {}


def _ours(registry: Any) -> dict[str, Any]:
    found = {name: kind for name, kind in registry if kind.__module__.startswith(_OURS)}
    return {name: found[name] for name in sorted(found)}


def _takes_prompts(loss: Any) -> bool:
    return bool(getattr(loss, 'takes_prompts', False))


def _sections(
    functions: Mapping[str, Callable[..., Any]], given: tuple[str, ...] = (), optional: tuple[str, ...] = ()
) -> dict[str, type[Section]]:
    return {name: section_of(function, given, optional) for name, function in functions.items()}


@cache
def section_of(
    function: Callable[..., Any], given: tuple[str, ...] = (), optional: tuple[str, ...] = ()
) -> type[Section]:
    """The arguments of a function, or of a class's constructor, as options.

    Args:
        given: arguments that do not come from the options.
        optional: arguments that are completed from other options.
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
    """The kind of option that an argument makes; anything for annotations of other kinds."""
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
        return Annotated[dict[str, Any], Told('give options `key: value`, not {found}.')]
    return simple.get(annotation, Any)


def type_problems(where: str, function: Callable[..., Any], arguments: Mapping[str, Any]) -> list[str]:
    """Arguments of a class or function of this package that are of another type than its signature says.

    Unknown and missing ones are left to others, as is everything about classes of others.
    """
    if not function.__module__.startswith(_OURS):
        return []
    known = inspect.signature(function).parameters
    given = tuple(name for name in known if name not in arguments)
    return section_of(function, given).problems({name: arguments[name] for name in arguments if name in known}, where)


def argument_meanings(docstring: str) -> dict[str, str]:
    """What a docstring says of each argument, on one line; `a, b: words` is said of both."""
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


def find_section(kind: str, options: Any) -> type[Section] | None:
    """The options that go with a `type`, or None for one that is not of this package."""
    if kind == 'loss scaler':
        return registered(kind)['LossScaler']
    name = options.get('type') if isinstance(options, Mapping) else None
    return registered(kind).get(name) if isinstance(name, str) else None


def known_names(kind: str) -> list[str]:
    """Names for an editor to suggest: those of this package, then BasicSR's own that are often met."""
    host: Iterable[str] = {
        'loss': ('CharbonnierLoss', 'L1Loss', 'MSELoss'),
        'metric': ('calculate_niqe', 'calculate_psnr', 'calculate_ssim'),
        'schedule': ('CosineAnnealingRestartLR', 'MultiStepLR', 'MultiStepRestartLR'),
        'optimizer': ('Adam', 'AdamW', 'SGD'),
    }.get(kind, ())
    return [*registered(kind), *(name for name in host if name not in registered(kind))]
