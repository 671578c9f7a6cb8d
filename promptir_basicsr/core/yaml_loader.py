"""YAML as users mean it: safe, `1e-4` is a number, a date is text, a key given twice is a mistake."""

import re
from typing import Any, TextIO

import yaml

from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.core.messages import printable, shown

_TAG = 'tag:yaml.org,2002:'
_MOST_VALUES = 1_000_000  # of a file with its aliases written out
_LARGEST = 2**63 - 1  # what torch and numpy take


class OptionLoader(yaml.SafeLoader):
    """PyYAML's safe loader with YAML 1.2's floats, without dates, sets and bytes, and without silent duplicates.

    Merge keys are resolved here, so that an option file means the same with every release of PyYAML.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Here and not where the mapping is made: by then PyYAML has put merged keys (<<) among its own.
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if (key.tag, key.value) in lines:
                first = lines[key.tag, key.value]
                hint = '; merge several mappings with <<: [*a, *b]' if key.tag == f'{_TAG}merge' else ''
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key.value}' stands in lines {first} and {line}{hint}", key.start_mark
                )
            lines[key.tag, key.value] = line
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Put merged keys (`<<`) before the mapping's own, which override them; of a list the first mapping wins.

        That is what YAML's merge key specifies. PyYAML's own method is not used: which mapping of a list wins and what
        remains of a chain of merges has changed between its releases.
        """
        merged: list[tuple[yaml.Node, yaml.Node]] = []
        own = []
        for key, value in node.value:
            if key.tag != f'{_TAG}merge':
                own.append((key, value))
                continue
            for source in reversed(value.value if isinstance(value, yaml.SequenceNode) else [value]):
                if not isinstance(source, yaml.MappingNode):
                    raise yaml.constructor.ConstructorError(
                        None, None, 'expected a mapping or a list of mappings after <<', source.start_mark
                    )
                self.flatten_mapping(source)
                merged.extend(source.value)
        node.value = merged + own

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, AttributeError, IndexError) as error:  # `!!float x`, `!!bool x`, `!!int ''`
            kind = node.tag.rpartition(':')[2]
            raise yaml.constructor.ConstructorError(
                None, None, f'{shown(node.value)} is no {kind}', node.start_mark
            ) from error

    def construct_yaml_str(self, node: yaml.ScalarNode) -> str:
        text = super().construct_yaml_str(node)
        text.encode()  # half a character, as "\\ud800" is, can be in no file and in no name of one
        return text

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        number = super().construct_yaml_int(node)
        if abs(number) > _LARGEST:
            raise yaml.constructor.ConstructorError(
                None, None, f'a whole number beyond {_LARGEST:,}, which is too large', node.start_mark
            )
        return number


# YAML 1.1, which PyYAML speaks, reads `1e-4` as text: it wants a dot and a sign. And it knows kinds of values that no
# option has.
_KINDS = {f'{_TAG}{kind}' for kind in ('null', 'bool', 'int', 'float', 'str', 'seq', 'map')}
OptionLoader.yaml_constructors = {
    tag: constructor for tag, constructor in yaml.SafeLoader.yaml_constructors.items() if tag is None or tag in _KINDS
}
OptionLoader.add_constructor(f'{_TAG}int', OptionLoader.construct_yaml_int)
OptionLoader.add_constructor(f'{_TAG}str', OptionLoader.construct_yaml_str)
OptionLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in {*_KINDS, f'{_TAG}merge'}]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
OptionLoader.add_implicit_resolver(
    f'{_TAG}float', re.compile(r'[-+]?([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9]+)[eE][-+]?[0-9]+\Z'), list('-+.0123456789')
)


def load_yaml(path: str) -> dict[str, Any]:
    """The mapping in a YAML file. An anchor used several times gives values that can be changed one by one.

    Raises:
        OptionError: not YAML, not a mapping, or a key given twice; says the line.
    """
    return load_yaml_with_places(path)[0]


def load_yaml_with_places(path: str) -> tuple[dict[str, Any], yaml.Node]:
    """`load_yaml`, and the nodes of the file, which know their lines."""
    try:
        with open(path, encoding='utf-8') as file:
            options, node = _load(file, path)
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f'{path}: cannot be read as text ({error}).') from error
    if not isinstance(options, dict) or node is None:
        raise OptionError(f'{path}: holds {type(options).__name__}, not options `key: value`.')
    return options, node


def parse_value(text: str, where: str) -> Any:
    """One YAML value, e.g. of the command line; BasicSR's `!!float1e-4` and `none` are understood as well.

    Raises:
        OptionError: it is no YAML.
    """
    if text.startswith('!!float'):
        text = '!!float ' + text[len('!!float') :]
    if text.lower() == 'none':
        return None
    return _load(text, where)[0]


def _load(source: str | TextIO, where: str) -> tuple[Any, yaml.Node | None]:
    try:
        loader = OptionLoader(source)  # a subclass of SafeLoader
        node = loader.get_single_node()
        if node is None:
            return None, None
        _check_size(node, {})
        return _unshared(loader.construct_document(node)), node
    except yaml.YAMLError as error:
        raise OptionError(f'{where}: {_one_line(error)}') from error
    except RecursionError as error:
        raise OptionError(f'{where}: too deep.') from error


def _check_size(node: yaml.Node, sizes: dict[int, int | None]) -> int:
    """How many values a node holds with aliases written out.

    Args:
        sizes: of nodes that were met, by their identity; None for those that are being counted.

    Raises:
        ConstructorError: too many, or without end.
    """
    if id(node) in sizes:
        known = sizes[id(node)]
        if known is None:
            message = 'an alias (*) inside of what it stands for'
            raise yaml.constructor.ConstructorError(None, None, message, node.start_mark)
        return known
    sizes[id(node)] = None
    parts: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        parts = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        parts = node.value
    size = 1 + sum(_check_size(part, sizes) for part in parts)
    if size > _MOST_VALUES:
        message = f'more than {_MOST_VALUES:,} values, aliases (*) written out'
        raise yaml.constructor.ConstructorError(None, None, message, node.start_mark)
    sizes[id(node)] = size
    return size


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
    return printable(f'{place}{problem}{f" ({context})" if context else ""}.')
