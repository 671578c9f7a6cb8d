"""YAML as users mean it: safe, `1e-4` is a number, a key given twice is a mistake."""

import re
from typing import Any

import yaml

from promptir_basicsr.option_util import OptionError


class OptionLoader(yaml.SafeLoader):
    """PyYAML's safe loader with YAML 1.2's floats and without silent duplicates."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == 'tag:yaml.org,2002:merge':
                continue
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if key in lines:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key}' stands in lines {lines[key]} and {line}", key_node.start_mark
                )
            lines[key] = line
        return super().construct_mapping(node, deep)


# YAML 1.1, which PyYAML speaks, reads `1e-4` as text: it wants a dot and a sign.
OptionLoader.yaml_implicit_resolvers = {
    first: list(resolvers) for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
OptionLoader.add_implicit_resolver(
    'tag:yaml.org,2002:float', re.compile(r'[-+]?([0-9][0-9_]*)(\.[0-9_]*)?[eE][-+]?[0-9]+\Z'), list('-+0123456789')
)


def load_yaml(path: str) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        OptionError: not YAML, not a mapping, or a key given twice; says the line.
    """
    try:
        with open(path, encoding='utf-8') as file:
            options = yaml.load(file, Loader=OptionLoader)  # a subclass of SafeLoader
    except yaml.YAMLError as error:
        raise OptionError([f'{path}: {_one_line(error)}']) from error
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError([f'{path}: cannot be read as text ({error}).']) from error
    if not isinstance(options, dict):
        raise OptionError([f'{path}: holds {type(options).__name__}, not options `key: value`.'])
    return options


def parse_value(text: str, where: str) -> Any:
    """One YAML value, e.g. of the command line; BasicSR's `!!float1e-4` and `none` are understood as well."""
    if text.startswith('!!float'):
        text = text[len('!!float') :]
    if text.lower() == 'none':
        return None
    try:
        return yaml.load(text, Loader=OptionLoader)
    except yaml.YAMLError as error:
        raise OptionError([f'{where}: {_one_line(error)}']) from error


def _one_line(error: yaml.YAMLError) -> str:
    mark = getattr(error, 'problem_mark', None)
    problem = getattr(error, 'problem', None) or str(error).splitlines()[0]
    context = getattr(error, 'context', None)
    place = f'line {mark.line + 1}, column {mark.column + 1}: ' if mark else ''
    return f'{place}{problem}{f" ({context})" if context else ""}.'
