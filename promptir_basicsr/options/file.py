"""Read an option file, apply the replacements of the command line, and keep the line of each option."""

import os
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml

from promptir_basicsr.archs.elsewhere import FOLDER, import_network, is_elsewhere
from promptir_basicsr.core.errors import OptionError, problems_of
from promptir_basicsr.core.messages import did_you_mean, printable, shown
from promptir_basicsr.core.problems import Item, Keys, Problem
from promptir_basicsr.core.yaml_loader import load_yaml, load_yaml_with_places, parse_value
from promptir_basicsr.options.catalogue import find_section
from promptir_basicsr.options.registered import Registered
from promptir_basicsr.options.run import run_schema
from promptir_basicsr.options.section import Section, alternatives, alternatives_of

_LONGEST = 160  # of a replacement, as messages quote it

BASE = 'base'
"""The key that names the option files a file is based on."""

_NOTHING = ('', '~', 'null', 'none')


class Places:
    """The lines of the options of a file, some of which the command line replaces.

    Args:
        path: of the file, as messages show it.
        root: nodes of the file, see `load_yaml_with_places`; not changed.
    """

    def __init__(self, path: str, root: yaml.Node) -> None:
        self.path, self._root, self._own = path, root, root.start_mark.name

    def replace(self, keys: Sequence[str], entry: str) -> None:
        """Record that an entry `--force_yml KEY=VALUE` replaces the options below `keys`."""
        mark = yaml.Mark(entry, 0, 0, 0, None, 0)
        self._root = _replaced(self._root, keys, mark)

    def line(self, *paths: Keys) -> str:
        """Return where an option is, as `my.yml:7` or `--force_yml KEY=VALUE`.

        Args:
            paths: candidates; the first that exists is used. If none exists, the last existing key on the way to the
                first. Tasks of a protocol are changed by name and numbered as in the protocol.
        """
        found = [self._find(path) for path in paths]
        mark = next((mark for mark, complete in found if complete), found[0][0])
        if mark is None:
            return self.path
        if _from_command_line(mark):
            return str(mark.name)
        return f'{self.path if mark.name == self._own else mark.name}:{mark.line + 1}'

    def located(self, problem: Problem) -> str:
        """Return the text of a problem, preceded by the file and line of its option."""
        return printable(f'{self.line(problem.path, *problem.others)}: {problem}')

    def is_replaced(self, path: Keys) -> bool:
        """Return whether an option was set on the command line."""
        mark, complete = self._find(path)
        return complete and mark is not None and _from_command_line(mark)

    def _find(self, path: Keys) -> tuple[yaml.Mark | None, bool]:
        """Return the mark of an option, or of the last existing key on the way to it, and whether it exists."""
        mark: yaml.Mark | None = None
        node: yaml.Node | None = self._root
        for key in path:
            found = _item(node, key)
            if found is None:
                return mark, False
            inner, node = found
            mark = mark if mark is not None and _from_command_line(mark) else inner
        return mark, True


def _from_command_line(mark: yaml.Mark) -> bool:
    return str(mark.name).startswith('--force_yml ')


def _replaced(node: yaml.Node | None, keys: Sequence[str], mark: yaml.Mark) -> yaml.Node:
    """Return a copy of the nodes with one of them replaced; all others are unchanged."""
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


def _item(node: yaml.Node | None, key: str | int) -> tuple[yaml.Mark, yaml.Node] | None:
    """Return the mark and node of an item; of a key that `<<` duplicates, the mapping's own."""
    if isinstance(node, yaml.SequenceNode):
        inside = isinstance(key, int) and key < len(node.value)
        return (node.value[key].start_mark, node.value[key]) if inside else None
    name = key.name if isinstance(key, Item) else str(key)
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return next(((known.start_mark, value) for known, value in reversed(pairs) if known.value == name), None)


def read_options(path: str, force_yml: list[str] | None = None) -> dict[str, Any]:
    """Read an option file and apply replacements; values are parsed as YAML and by the schema, never evaluated.

    Raises:
        OptionError: the file does not exist or is not YAML, or the key of a replacement does not exist.
    """
    return read_option_file(path, force_yml)[0]


def read_option_file(path: str, force_yml: list[str] | None = None) -> tuple[dict[str, Any], Places]:
    """Return the options as `read_options` does, and their places."""
    path = find_option_file(path)
    options, node = _with_base(path, ())
    places = Places(path, node)
    for entry in force_yml or []:
        where = f'--force_yml {printable(entry[:_LONGEST])}{"..." * (len(entry) > _LONGEST)}'
        places.replace(_replace(options, entry, where), where)
    for keys, network in _elsewhere(options, ()):
        try:
            import_network(network['type'], network.get(FOLDER))
        except OptionError as error:
            raise OptionError(problems_of(keys, error), places.located) from error
    return _with_whole_numbers(options), places


def _elsewhere(options: Any, keys: Keys) -> Iterator[tuple[Keys, Mapping[str, Any]]]:
    """Yield the networks that are classes of other repositories, with their keys."""
    for key, value in options.items() if isinstance(options, Mapping) else ():
        if keys or str(key).startswith('network_'):
            if isinstance(value, Mapping) and is_elsewhere(value.get('type')):
                yield (*keys, key), value
            yield from _elsewhere(value, (*keys, key))


def has_base(path: str) -> bool:
    """Return whether an option file is based on others."""
    return BASE in load_yaml(path)


def _with_base(path: str, chain: tuple[str, ...]) -> tuple[dict[str, Any], yaml.Node]:
    """Return the options of a file and their nodes, merged onto those of the files that its key `base` names.

    Args:
        chain: the files that were followed to reach this one.
    """
    chain = (*chain, os.path.realpath(path))
    options, node = load_yaml_with_places(path)
    given = options.pop(BASE, None)
    files = [given] if isinstance(given, str) else given or []
    where = Places(path, node).line((BASE,))
    if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
        raise OptionError(
            f'{where}: {BASE}: must be the name of an option file, or a list of names, not {shown(given)}.'
        )
    merged: tuple[dict[str, Any], yaml.Node] = {}, yaml.MappingNode('tag:yaml.org,2002:map', [], node.start_mark)
    for file in files:
        beside = os.path.join(os.path.dirname(path), os.path.expanduser(file))
        try:
            found = beside if os.path.isfile(beside) else find_option_file(file)
        except OptionError as error:
            raise OptionError(f'{where}: {BASE}: {error}') from error
        if os.path.realpath(found) in chain:
            raise OptionError(f"{where}: {BASE}: '{file}' is based on '{path}', which is based on it.")
        merged = _on_top(*_with_base(found, chain), *merged)
    return _on_top(options, node, *merged)


def _on_top(
    options: Mapping[str, Any], node: yaml.Node, base: Mapping[str, Any], base_node: yaml.Node
) -> tuple[dict[str, Any], yaml.Node]:
    """Merge options onto a base: mappings are merged unless their `type` differs, lists are replaced.

    `~` removes an option of the base.
    """
    result, nodes = dict(base), list(base_node.value)
    for key, value in options.items():
        below = result.get(key)
        pair, pair_below = (
            next((p for p in reversed(n.value) if p[0].value == str(key)), None) for n in (node, base_node)
        )
        if value is None and key in base:
            del result[key]
        elif (
            isinstance(value, dict)
            and isinstance(below, dict)
            and pair
            and pair_below
            and not _is_another(value, below)
        ):
            result[key], merged = _on_top(value, pair[1], below, pair_below[1])
            pair = pair[0], merged
        else:
            result[key] = value
        nodes += [pair] if pair else []
    return result, yaml.MappingNode(node.tag, nodes, node.start_mark)


def _is_another(options: Mapping[str, Any], base: Mapping[str, Any]) -> bool:
    """Return whether options have another `type` (network, loss, dataset, ...) than those of the base."""
    return 'type' in options and options['type'] != base.get('type')


def _with_whole_numbers(value: Any, key: object = None) -> Any:
    """Convert floats without a fraction, such as `!!float 5e3`, to whole numbers where options are whole numbers."""
    if isinstance(value, dict):  # arguments of networks, losses, ... stay as they are
        return {name: inner if name in _OTHERS else _with_whole_numbers(inner, name) for name, inner in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() and key in _WHOLE else value


def _sections(section: type[Section]) -> Iterator[type[Section]]:
    yield section
    for further in section.__subclasses__():
        yield from _sections(further)


_WHOLE = {
    name
    for section in _sections(Section)
    for name, field in section.model_fields.items()
    if {kind for kind, _ in alternatives_of(field)} & {int, float} == {int}
}
_OTHERS = ('network_g', 'network_d', 'optim_g', 'optim_d', 'scheduler', 'metrics')


def find_option_file(path: str) -> str:
    """Return the path of an existing option file, or of one that this package ships, found by its bare name.

    Raises:
        OptionError: there is no such file.
    """
    if os.path.isfile(path):
        return path
    shipped = {file.name: file for file in shipped_option_files()}
    if path in shipped:
        return str(shipped[path])
    close = get_close_matches(os.path.basename(path), shipped, n=1, cutoff=0.8)
    hint = f" '{close[0]}' comes with promptir_basicsr and is found by that name." if close else ''
    raise OptionError(f"the option file '{path}' does not exist. Paths are relative to the current folder.{hint}")


def shipped_option_files() -> list[Path]:
    """Return the option files of this package, sorted by name."""
    package = Path(__file__).parents[1]
    installed, source_tree = package / 'option_files', package.parent / 'options'
    folder = source_tree if (package.parent / 'pyproject.toml').is_file() else installed
    return sorted(folder.glob('*.yml'))


def _replace(options: Any, entry: str, where: str) -> list[str]:
    """Replace an option and return its keys."""
    keys, separator, text = entry.partition('=')
    if not separator:
        raise OptionError(f"{where}: must be KEY=VALUE, with ':' between the levels of the key.")
    *parents, last = levels = [key.strip() for key in keys.split(':')]
    place, of_protocol = options, False
    for key in parents:
        # Tasks of a protocol are in the protocol's file; unknown names are reported when it is read.
        of_protocol |= isinstance(place, dict) and 'protocol' in place and key == 'tasks'
        if of_protocol and isinstance(place, dict) and place.get(key) is None:
            place[key] = {}
        place = _step(place, key, where)
    value = typed(options, levels, text.strip(), parse_value(text.strip(), where))
    if isinstance(place, list):
        _step(place, last, where)
        place[int(last)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise OptionError(f"{where}: '{parents[-1]}' is a value without keys, so '{last}' cannot be set.")
    return levels


def _step(place: Any, key: str, where: str) -> Any:
    if isinstance(place, list) and key.isdecimal() and int(key) < len(place):
        return place[int(key)]
    if isinstance(place, dict) and key in place:
        return place[key]
    allowed = range(len(place)) if isinstance(place, list) else place if isinstance(place, dict) else ()
    raise OptionError(f"{where}: '{key}' does not exist.{did_you_mean(key, map(str, allowed))}")


def typed(options: Mapping[str, Any], keys: Sequence[str], text: str, value: Any) -> Any:
    """Convert a replacement to the type of its option: digits stay text where text is expected, as in `name=123`.

    Args:
        options: of the whole file.
        keys: of the option, from the top.
        text: as it was typed.
        value: as YAML parses it.
    """
    if isinstance(value, (str, dict, list)):
        return value
    section = run_schema(options.get('model_type'), 'train' in options)
    kinds = set(_kinds_in(section, options, list(keys)))
    if str not in kinds or kinds & {bool, int, float, Any}:
        return value
    if value is None and text.lower() in _NOTHING and not ('needed' in kinds and text):
        return None
    return text


def _kinds_in(section: type[Section], options: Any, keys: list[str]) -> Iterator[Any]:
    """Yield the types that an option of a section may have, and the word 'needed' if it is required."""
    field = section.field_of(keys[0])
    if field is None:
        return
    value = options.get(keys[0]) if isinstance(options, Mapping) else None
    for kind, metadata in alternatives_of(field):
        yield from _kinds(kind, metadata, value, keys[1:])
    if field.is_required() and len(keys) == 1:
        yield 'needed'


def _kinds(kind: Any, metadata: Sequence[Any], value: Any, keys: list[str]) -> Iterator[Any]:
    registered = next((part for part in metadata if isinstance(part, Registered)), None)
    if registered is not None and keys:
        section = find_section(registered.kind, value)
        if keys == ['type']:
            yield str
        elif section is not None:
            yield from _kinds_in(section, value, keys)
    elif isinstance(kind, type) and issubclass(kind, Section):
        if keys:
            yield from _kinds_in(kind, value, keys)
    elif keys:
        yield from _kinds_of_items(kind, value, keys)
    elif get_origin(kind) is Literal:
        yield from {type(word) for word in get_args(kind)}
    else:
        yield kind


def _kinds_of_items(kind: Any, value: Any, keys: list[str]) -> Iterator[Any]:
    """Yield the types of the items of a list or a mapping."""
    if not get_args(kind):
        return
    item = value.get(keys[0]) if isinstance(value, Mapping) else None
    if isinstance(value, list) and keys[0].isdecimal() and int(keys[0]) < len(value):
        item = value[int(keys[0])]
    by_key = issubclass(get_origin(kind), Mapping)
    if by_key or keys[0].isdecimal():
        for part, metadata in alternatives(get_args(kind)[1 if by_key else 0]):
            yield from _kinds(part, metadata, item, keys[1:])
