"""Safe YAML loader in which `1e-4` is a number, a date is text, and a duplicate key is an error."""

import re
from typing import Any, TextIO

import yaml

from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.core.messages import printable, shown

_TAG = 'tag:yaml.org,2002:'
_MOST_VALUES = 1_000_000  # of a file with aliases expanded
_LARGEST = 2**63 - 1  # limit of torch and numpy


class OptionLoader(yaml.SafeLoader):
    """PyYAML's safe loader with YAML 1.2's floats, without dates, sets and bytes, and without silent duplicates.

    Merge keys are resolved here, so option files mean the same with every release of PyYAML.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Checked here because PyYAML later mixes merged keys (<<) with the mapping's own.
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
                    None, None, f"duplicate key '{key.value}' in lines {first} and {line}{hint}", key.start_mark
                )
            lines[key.tag, key.value] = line
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Put merged keys (`<<`) before the mapping's own, which override them, as earlier mappings of a list do.

        This follows YAML's merge key specification. PyYAML's own method is not used because the priority in lists and
        chained merges changed between its releases.
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
                None, None, f'{shown(node.value)} is not a valid {kind}', node.start_mark
            ) from error

    def construct_yaml_str(self, node: yaml.ScalarNode) -> str:
        text = super().construct_yaml_str(node)
        text.encode()  # a lone surrogate such as "\\ud800" cannot be encoded
        return text

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        number = super().construct_yaml_int(node)
        if abs(number) > _LARGEST:
            raise yaml.constructor.ConstructorError(
                None, None, f'whole numbers must not exceed {_LARGEST:,}', node.start_mark
            )
        return number


# YAML 1.1, which PyYAML implements, reads `1e-4` as text: it requires a dot and a sign. It also has types that no
# option uses.
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
    """Return the mapping in a YAML file. Every use of an anchor is a separate copy.

    Raises:
        OptionError: not YAML, not a mapping, or a duplicate key; the message contains the line.

    Examples:
        >>> from promptir_basicsr.options import load_yaml
        >>> load_yaml('mine.yml')['name']
        'mine'
    """
    return load_yaml_with_places(path)[0]


def load_yaml_with_places(path: str) -> tuple[dict[str, Any], yaml.Node]:
    """Return the mapping as `load_yaml` does, and the nodes of the file, which have line numbers."""
    try:
        with open(path, encoding='utf-8') as file:
            options, node = _load(file, path)
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f'{path}: cannot be read as text ({error}).') from error
    if not isinstance(options, dict) or node is None:
        raise OptionError(f'{path}: contains {type(options).__name__}, must be options `key: value`.')
    return options, node


def parse_value(text: str, where: str) -> Any:
    """Parse one YAML value, e.g. of the command line; BasicSR's `!!float1e-4` and `none` are supported as well.

    Raises:
        OptionError: the text is not valid YAML.
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
        raise OptionError(f'{where}: nested too deeply.') from error


def _check_size(node: yaml.Node, sizes: dict[int, int | None]) -> int:
    """Return the number of values of a node with aliases expanded.

    Args:
        sizes: of visited nodes, by identity; None while a node is being counted.

    Raises:
        ConstructorError: too many values, or a cycle.
    """
    if id(node) in sizes:
        known = sizes[id(node)]
        if known is None:
            message = 'an alias (*) refers to a value that contains it'
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
        message = f'more than {_MOST_VALUES:,} values with aliases (*) expanded'
        raise yaml.constructor.ConstructorError(None, None, message, node.start_mark)
    sizes[id(node)] = size
    return size


def _unshared(value: Any) -> Any:
    """Return a copy in which no object is shared, as objects are after `*alias`."""
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
