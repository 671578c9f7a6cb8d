"""Where in an option file, or on the command line, a mistake stands."""

import re
from collections.abc import Iterator, Sequence

import yaml

from promptir_basicsr.option_util import printable

_UNKNOWN = re.compile(r": unknown (?:\w+ )*?(?P<kind>\w+) '(?P<found>.*?)'\.")
_WORD = re.compile(r'\w+')
# Of every message, or of nearly every mapping: such a word in a message says nothing of its place.
_COMMON = ('type', 'name')


class Places:
    """The places of the options of a file, some of them replaced on the command line.

    Args:
        path: of the file, as it is shown.
        root: its nodes, see `load_yaml_with_places`; not changed.
    """

    def __init__(self, path: str, root: yaml.Node) -> None:
        self.path, self._root = path, root

    def replace(self, keys: Sequence[str], entry: str) -> None:
        """Note that options below `keys` are not the file's, but those of an entry, `--force_yml KEY=VALUE`."""
        mark = yaml.Mark(entry, 0, 0, 0, None, 0)
        self._root = _replaced(self._root, keys, mark)

    def located(self, problem: str) -> str:
        """A problem, which begins with the place of an option, behind the file and the line of that option."""
        text = problem.removeprefix('options') if problem.startswith('options: ') else problem
        mark = _find(self._root, text, None)
        place = self.path
        if mark is not None:
            place = mark.name if _from_command_line(mark) else f'{self.path}:{mark.line + 1}'
        return type(problem)(printable(f'{place}: {problem}'))


def _from_command_line(mark: yaml.Mark) -> bool:
    return str(mark.name).startswith('--force_yml ')


def _replaced(node: yaml.Node | None, keys: Sequence[str], mark: yaml.Mark) -> yaml.Node:
    """A copy of the nodes with one of them made anew; what is above and beside it stays as it is."""
    if not keys:
        return yaml.ScalarNode('tag:yaml.org,2002:str', '', mark)
    if isinstance(node, yaml.SequenceNode) and keys[0].isdecimal() and int(keys[0]) < len(node.value):
        items = list(node.value)
        items[int(keys[0])] = _replaced(items[int(keys[0])], keys[1:], mark)
        return yaml.SequenceNode(node.tag, items, node.start_mark)
    pairs = list(node.value) if isinstance(node, yaml.MappingNode) else []
    old = next((pair for pair in reversed(pairs) if pair[0].value == keys[0]), None)
    key = yaml.ScalarNode('tag:yaml.org,2002:str', keys[0], mark) if old is None or len(keys) == 1 else old[0]
    pairs = [pair for pair in pairs if pair is not old]
    pairs.append((key, _replaced(old[1] if old else None, keys[1:], mark)))
    return yaml.MappingNode('tag:yaml.org,2002:map', pairs, node.start_mark if node else mark)


def _items(node: yaml.Node | None) -> Iterator[tuple[str, yaml.Mark, yaml.Node]]:
    """Keys of a mapping, where they stand, and what stands there; of a key given twice through `<<` its own first."""
    if isinstance(node, yaml.MappingNode):
        for key, value in reversed(node.value):
            if isinstance(key, yaml.ScalarNode):
                yield key.value, key.start_mark, value


def _find(node: yaml.Node | None, text: str, mark: yaml.Mark | None) -> yaml.Mark | None:
    """Where the option stands that a text speaks of.

    Args:
        node: what the text is about.
        text: a place below the node, then a sentence about it.
        mark: where the node itself stands.
    """
    mark, text, node = _descend(node, text, mark)
    parts = {key: (start, value) for key, start, value in reversed(list(_items(node)))}
    told = _UNKNOWN.match(text)
    if told:
        # `unknown option 'key'` is about a key, `unknown task type 'word'` about the value of one.
        word = next((word for word in (told['found'], told['kind']) if word in parts), None)
        return _nearer(mark, parts[word][0]) if word else mark
    for word in _WORD.finditer(text):
        if word[0] in parts and word[0] not in _COMMON:
            start, value = parts[word[0]]
            return _find(value, text[word.end() :], _nearer(mark, start))
    return mark


def _nearer(mark: yaml.Mark | None, inner: yaml.Mark) -> yaml.Mark:
    """Of the places of an option and of one inside of it: all of a replacement stands on the command line."""
    return mark if mark is not None and _from_command_line(mark) else inner


def _descend(
    node: yaml.Node | None, text: str, mark: yaml.Mark | None
) -> tuple[yaml.Mark | None, str, yaml.Node | None]:
    """Follow a place such as `datasets.train.tasks[1] (derain).copies: ...` as far as it is there.

    Returns:
        Where the last part stands, None for the top; the rest of the text; and what stands there.
    """
    while True:
        found = max(_steps(node, text, mark is None), key=lambda step: len(text) - len(step[1]), default=None)
        if found is None:
            return mark, text, node
        here, text, node = found
        mark = _nearer(mark, here)


def _steps(node: yaml.Node | None, text: str, at_top: bool) -> Iterator[tuple[yaml.Mark, str, yaml.Node]]:
    """The items of a node that a text goes on with."""
    for key, mark, value in _items(node):
        rest = text.removeprefix(key if at_top else f'.{key}')
        if rest != text and rest[:1] in tuple('.:[ '):
            yield mark, rest, value
    place = re.match(r'\[(\d+)\]', text)
    if not place:
        return
    rest = text[place.end() :]
    number = int(place[1])
    if isinstance(node, yaml.SequenceNode) and number < len(node.value):
        item = node.value[number]
        yield item.start_mark, _without_name(rest, item), item
    # Tasks of a protocol are changed by name, and counted as they stand in the protocol.
    for key, mark, value in _items(node):
        if rest.startswith(f' ({key})'):
            yield mark, rest.removeprefix(f' ({key})'), value


def _without_name(text: str, task: yaml.Node) -> str:
    """Tasks are shown with their name, ` (denoise)`."""
    names = {key: value.value for key, _, value in _items(task) if isinstance(value, yaml.ScalarNode)}
    name = f' ({names.get("name", names.get("type"))})'
    return text.removeprefix(name)
