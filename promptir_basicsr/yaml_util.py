"""YAML as users mean it: safe, `1e-4` is a number, a key given twice is a mistake."""

import re
from typing import Any, TextIO

import yaml

from promptir_basicsr.option_util import OptionError


class OptionLoader(yaml.SafeLoader):
    """PyYAML's safe loader with YAML 1.2's floats and without silent duplicates."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Here and not where the mapping is made: by then PyYAML has put merged keys (<<) among its own.
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == 'tag:yaml.org,2002:merge':
                continue
            line = key.start_mark.line + 1
            if (key.tag, key.value) in lines:
                first = lines[key.tag, key.value]
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key.value}' stands in lines {first} and {line}", key.start_mark
                )
            lines[key.tag, key.value] = line
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, AttributeError) as error:  # `!!float x`, `!!bool x`, `!!timestamp x`
            raise yaml.constructor.ConstructorError(
                None, None, f'{node.value!r} is no {node.tag.rpartition(":")[2]}', node.start_mark
            ) from error


# YAML 1.1, which PyYAML speaks, reads `1e-4` as text: it wants a dot and a sign.
OptionLoader.yaml_implicit_resolvers = {
    first: list(resolvers) for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
OptionLoader.add_implicit_resolver(
    'tag:yaml.org,2002:float',
    re.compile(r'[-+]?([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9]+)[eE][-+]?[0-9]+\Z'),
    list('-+.0123456789'),
)


def load_yaml(path: str) -> dict[str, Any]:
    """The mapping in a YAML file. An anchor used several times gives values that can be changed one by one.

    Raises:
        OptionError: not YAML, not a mapping, or a key given twice; says the line.
    """
    try:
        with open(path, encoding='utf-8') as file:
            options = _load(file, path)
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError([f'{path}: cannot be read as text ({error}).']) from error
    if not isinstance(options, dict):
        raise OptionError([f'{path}: holds {type(options).__name__}, not options `key: value`.'])
    return options


def parse_value(text: str, where: str) -> Any:
    """One YAML value, e.g. of the command line; BasicSR's `!!float1e-4` and `none` are understood as well."""
    if text.startswith('!!float'):
        text = '!!float ' + text[len('!!float') :]
    if text.lower() == 'none':
        return None
    return _load(text, where)


def _load(source: str | TextIO, where: str) -> Any:
    try:
        return _unshared(yaml.load(source, Loader=OptionLoader))  # a subclass of SafeLoader
    except yaml.YAMLError as error:
        raise OptionError([f'{where}: {_one_line(error)}']) from error
    except RecursionError as error:
        raise OptionError([f'{where}: too deep, or an alias (*) inside of what it stands for.']) from error


def _unshared(value: Any) -> Any:
    """A copy in which no two places hold the same object, as they do after `*alias`."""
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_unshared(item) for item in value]
    return value


def _one_line(error: yaml.YAMLError) -> str:
    mark = getattr(error, 'problem_mark', None)
    problem = getattr(error, 'problem', None) or str(error).splitlines()[0]
    context = getattr(error, 'context', None)
    place = f'line {mark.line + 1}, column {mark.column + 1}: ' if mark else ''
    return f'{place}{problem}{f" ({context})" if context else ""}.'
