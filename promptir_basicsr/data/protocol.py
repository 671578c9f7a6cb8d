"""Protocols as data: what an all-in-one experiment trains on and is measured on, by name.

A protocol is a YAML file with a training part and a test part; each holds options of a data set. An option file names
the protocol and changes what it likes. `docs/protocols.md` lists the protocols and the keys of such a file.
"""

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from promptir_basicsr.core.errors import OptionError, raise_problems
from promptir_basicsr.core.messages import check_count, did_you_mean, unknown_keys, unknown_name
from promptir_basicsr.core.problems import Keys, Problem, keys, problem
from promptir_basicsr.core.yaml_loader import load_yaml
from promptir_basicsr.options.data import AllInOneOptions, TaskOptions

FOLDER = Path(__file__).with_name('protocols')
CATALOGUE = Path(__file__).with_name('corpora.yml')
FILE_ENDINGS = ('.yml', '.yaml')

PROTOCOL_KEYS = ('title', 'about', 'extends', 'sources', 'corpora', 'notes', 'train', 'test')
CORPUS_KEYS = ('holds', 'images', 'url', 'archive', 'paper', 'license', 'note')
# Ways to say where the images of a task are; a change to one of them takes the place of the others.
_SOURCES = {
    'clean': ('lq', 'gt', 'root', 'pairing'),
    'root': ('lq', 'gt', 'clean', 'degrade'),
    'lq': ('root', 'clean', 'degrade'),
    'gt': ('root', 'clean', 'degrade'),
    'list': ('files',),
    'files': ('list',),
}


@dataclass(frozen=True)
class Corpus:
    """A published set of images.

    Attributes:
        holds: what it is.
        images: how many, by part (`train`, `test`).
        url: where it is published.
        archive: the download that released programs link.
        paper: that introduces it.
        license: as its page says; empty where the page says nothing.
        note: what to look out for.
    """

    name: str
    holds: str
    images: Mapping[str, int] = field(default_factory=dict)
    url: str = ''
    archive: str = ''
    paper: str = ''
    license: str = ''
    note: str = ''


@dataclass(frozen=True)
class Part:
    """The training or the test part of a protocol.

    Attributes:
        options: of the data set; `tasks` is a list, its paths start at `dataroot`.
        samples: of an epoch, or evaluations of a test, as published; None where that depends on the data.
    """

    options: Mapping[str, Any]
    samples: int | None = None


@dataclass(frozen=True)
class Protocol:
    """An experiment of the literature.

    Attributes:
        name: to refer to it by; the path, if it is a file of the user's.
        sources: title and address of the papers and programs that it is taken from.
        notes: what to know about its numbers.
        train, test: None where it has no such part.
    """

    name: str
    title: str
    about: str = ''
    sources: Sequence[Mapping[str, str]] = ()
    corpora: Sequence[Corpus] = ()
    notes: Sequence[str] = ()
    train: Part | None = None
    test: Part | None = None


def protocol_names() -> list[str]:
    """The protocols of this package, sorted."""
    return sorted(path.stem for path in FOLDER.glob('*.yml'))


def load_protocol(name: str, where: str | Keys = 'protocol') -> Protocol:
    """A protocol.

    Args:
        name: one of `protocol_names()`, or the path of a YAML file.
        where: who asks, for messages.

    Raises:
        OptionError: there is none, or its file has mistakes.
    """
    return _load(name, keys(where), '', Path(), ())


def expand_protocol(opt: Mapping[str, Any], where: str | Keys) -> dict[str, Any]:
    """Options of a data set with their protocol written out; `opt` stays as it is.

    The data set takes the training part in the phase `train` (also where there is no `phase`), the test part in every
    other. Keys beside `protocol` replace the protocol's, `~` takes a key away. `tasks` as a list replaces all tasks; a
    mapping changes tasks by name: options merge into the task's, `~` leaves it out, a new name adds a task.

    Args:
        opt: options of an AllInOneDataset, with or without `protocol`.
        where: their place in the option file, e.g. ('datasets', 'train').

    Returns:
        New options without `protocol`.

    Raises:
        OptionError: every mistake found.
    """
    given = copy.deepcopy({key: value for key, value in opt.items() if key != 'protocol'})
    name = opt.get('protocol')
    if name is None:
        return given
    place = (*keys(where), 'protocol')
    protocol = load_protocol(name, place)
    key = 'train' if opt.get('phase', 'train') == 'train' else 'test'
    part: Part | None = getattr(protocol, key)
    if part is None:
        raise OptionError(problem(place, f"'{name}' has no {key} part."))
    options, problems = _changed(part.options, given, keys(where))
    raise_problems(problems)
    return options


def protocol_datasets(name: str, dataroot: str) -> dict[str, dict[str, Any]]:
    """`datasets` of an option file: a protocol's training part as `train` and its test part as `val`, written out.

    Args:
        name: as for `load_protocol`.
        dataroot: folder that the protocol's paths start from.

    Raises:
        OptionError: there is no such protocol, or its file has mistakes.
    """
    protocol = load_protocol(name)
    stem = Path(name).stem
    return {
        key: {'name': f'{stem}_{ending}', 'type': 'AllInOneDataset', 'dataroot': dataroot, **_copy(part.options)}
        for key, ending, part in (('train', 'train', protocol.train), ('val', 'test', protocol.test))
        if part is not None
    }


def _copy(options: Mapping[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(dict(options))


def _changed(base: Mapping[str, Any], change: Mapping[str, Any], where: Keys) -> tuple[dict[str, Any], list[Problem]]:
    """Options of a data set after a change, and the mistakes in it."""
    tasks, problems = _changed_tasks(base.get('tasks', []), change.get('tasks'), (*where, 'tasks'))
    options = {**_copy(base), **change, 'tasks': tasks}
    return {key: value for key, value in options.items() if value is not None or key not in base}, problems


def _changed_tasks(base: Sequence[Mapping[str, Any]], change: object, where: Keys) -> tuple[Any, list[Problem]]:
    if change is None:
        return [_copy(task) for task in base], []
    if not isinstance(change, Mapping):
        return change, []  # a list of the user's own, checked as such
    problems: list[Problem] = []
    tasks = {str(task['name']): _copy(task) for task in base}
    for key, options in change.items():
        name = str(key)
        if options is None and name in tasks:
            del tasks[name]
        elif isinstance(options, Mapping) and name in tasks:
            tasks[name] = _changed_task(tasks[name], options)
        elif isinstance(options, Mapping) and _is_complete(options):
            tasks[name] = {'name': name, **options}
        elif name in tasks:
            message = f'give options to change, or ~ to leave the task out, not {options!r}.'
            problems.append(problem((*where, name), message))
        else:
            message = unknown_name('task', name, [str(task['name']) for task in base])
            message += ' A task of your own needs `type` and its images: '
            message += '`clean` and `degrade`, `lq` and `gt`, or `root` and `pairing`.'
            problems.append(problem(where, message, (name,)))
    if not tasks and not problems:
        problems.append(problem(where, 'every task is left out. Keep at least one.'))
    return list(tasks.values()), problems


def _changed_task(task: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    replaced = {other for key in change for other in _SOURCES.get(key, ()) if other not in change}
    kept = {key: value for key, value in task.items() if key not in replaced}
    return {key: value for key, value in {**kept, **change}.items() if value is not None}


def _is_complete(options: Mapping[str, Any]) -> bool:
    ways = ({'clean', 'degrade'}, {'lq', 'gt'}, {'root', 'pairing'})
    return 'type' in options and any(way <= options.keys() for way in ways)


def _load(name: object, where: Keys, asked_by: str, folder: Path, chain: tuple[Path, ...]) -> Protocol:
    """A protocol.

    Args:
        where: the option that names the protocol; the problems of files are its problems.
        asked_by: the file that extends the protocol, '' for the option file.
        folder: where paths start.
        chain: the files that have led here.
    """
    try:
        path = _find(name, folder)
        if path.resolve() in chain:
            raise OptionError(f"'{name}' comes back to itself through `extends`.")
    except OptionError as error:
        raise OptionError(
            replace(each.below('extends').said_by(asked_by), path=where) if asked_by else each.below(where)
            for each in error.problems
        ) from error
    try:
        content = load_yaml(str(path))
    except OptionError as error:
        raise OptionError(replace(each, path=where, shown=()) for each in error.problems) from error
    base = Protocol('', '')
    if content.get('extends') is not None:
        base = _load(content['extends'], where, str(path), path.parent, (*chain, path.resolve()))
    reader = _Reader(content, base)
    protocol = reader.read(str(name))
    if reader.problems:
        raise OptionError(replace(each.said_by(str(path)), path=where) for each in reader.problems)
    return protocol


def _find(name: object, folder: Path) -> Path:
    """The file of a protocol; a path starts at `folder`."""
    names = protocol_names()
    if not isinstance(name, str) or not name:
        raise OptionError(f'{name!r} is neither the name of a protocol nor a path. One of: {", ".join(names)}.')
    if name.endswith(FILE_ENDINGS):
        path = folder / os.path.expanduser(name)
        if not os.path.isfile(path):
            raise OptionError(f"the file '{path}' does not exist.{did_you_mean(Path(name).stem, names)}")
        return path
    if name not in names:
        family = [other for other in names if other.startswith(name)]
        meant = f' Did you mean {", ".join(family)}?' if len(family) > 1 else did_you_mean(name, names)
        allowed = f'Allowed: {", ".join(names)}, or the path of a .yml file.'
        raise OptionError(f"unknown protocol '{name}'.{meant} {allowed}")
    return FOLDER / f'{name}.yml'


class _Reader:
    """Reads a protocol's file and collects its mistakes."""

    def __init__(self, content: Mapping[str, Any], base: Protocol) -> None:
        self.content, self.base = content, base
        self.problems = unknown_keys('', content, PROTOCOL_KEYS)

    def _wrong(self, where: str | Keys, message: str) -> None:
        self.problems.append(problem(where, message))

    def read(self, name: str) -> Protocol:
        train, test = self._part('train'), self._part('test')
        if train is None and test is None:
            self._wrong('', 'has neither a `train` nor a `test` part.')
        return Protocol(
            name=name,
            title=self._text('title', name),
            about=self._text('about', ''),
            sources=self._sources(),
            corpora=self._corpora(),
            notes=self._notes(),
            train=train,
            test=test,
        )

    def _text(self, key: str, default: str) -> str:
        value = self.content.get(key, default)
        if not isinstance(value, str):
            self._wrong(key, f'{value!r} is not text.')
        return value

    def _notes(self) -> Sequence[str]:
        notes = self.content.get('notes', self.base.notes)
        if isinstance(notes, str) or not isinstance(notes, Sequence) or not all(isinstance(n, str) for n in notes):
            self._wrong('notes', f'{notes!r} is not a list of sentences.')
            return ()
        return notes

    def _sources(self) -> Sequence[Mapping[str, str]]:
        sources = self.content.get('sources', self.base.sources)
        sound = isinstance(sources, Sequence) and not isinstance(sources, str)
        if not sound or not all(isinstance(source, Mapping) and set(source) == {'title', 'url'} for source in sources):
            self._wrong('sources', f'give a list of {{title: ..., url: ...}}, not {sources!r}.')
            return ()
        return sources

    def _corpora(self) -> Sequence[Corpus]:
        """Names of the catalogue, or a mapping that describes those which are not in it."""
        if 'corpora' not in self.content:
            return self.base.corpora
        corpora = self.content['corpora']
        if isinstance(corpora, Sequence) and not isinstance(corpora, str):
            corpora = dict.fromkeys(map(str, corpora))
        if not isinstance(corpora, Mapping):
            self._wrong('corpora', 'give a list of names, or `name: {holds: ...}`.')
            return ()
        catalogue = load_yaml(str(CATALOGUE))
        found = []
        for name, options in corpora.items():
            options = catalogue.get(name) if options is None else options
            if options is None:
                advice = ' Describe one of your own as `name: {holds: ..., url: ...}`.'
                self._wrong('corpora', unknown_name('corpus', name, catalogue) + advice)
                continue
            problems = _corpus_problems(('corpora', str(name)), options)
            self.problems += problems
            if not problems:
                found.append(Corpus(str(name), **options))
        return found

    def _part(self, key: str) -> Part | None:
        base: Part | None = getattr(self.base, key)
        if key not in self.content:
            return base
        given, where = self.content[key], (key,)
        if given is None:
            return None
        if not isinstance(given, Mapping):
            self._wrong(where, f'give options of a data set, not {given!r}.')
            return None
        allowed = [*(name for name in tuple(AllInOneOptions.model_fields) if name != 'protocol'), 'samples']
        self.problems += unknown_keys(where, given, allowed)
        change = {name: value for name, value in given.items() if name != 'samples'}
        options, problems = _changed(base.options if base else {}, change, where)
        self.problems += problems or _task_problems(options['tasks'], (*where, 'tasks'))
        samples = given.get('samples')
        if samples is not None and not self.problems:
            self.problems += _samples_problems((*where, 'samples'), samples, options['tasks'], key == 'train')
        return Part(options, samples)


def _corpus_problems(where: Keys, options: object) -> list[Problem]:
    if not isinstance(options, Mapping):
        return [problem(where, f'give `holds`, `url` and so on, not {options!r}.')]
    problems = unknown_keys(where, options, CORPUS_KEYS)
    if 'holds' not in options:
        problems.append(problem((*where, 'holds'), 'is missing: what the corpus is, in words.'))
    for key, value in options.items():
        if key == 'images':
            if not isinstance(value, Mapping) or not set(value) <= {'train', 'test'}:
                problems.append(problem((*where, 'images'), f'give {{train: ..., test: ...}}, not {value!r}.'))
                continue
            for part, number in value.items():
                problems += check_count((*where, 'images', part), number)
        elif not isinstance(value, str):
            problems.append(problem((*where, str(key)), f'{value!r} is not text.'))
    return problems


def _task_problems(tasks: object, where: Keys) -> list[Problem]:
    """Mistakes that show without the images."""
    if not isinstance(tasks, Sequence) or isinstance(tasks, str) or not tasks:
        return [problem(where, f'give tasks, `name: {{type: ..., ...}}`, not {tasks!r}.')]
    problems: list[Problem] = []
    for position, task in enumerate(tasks):
        if not isinstance(task, Mapping) or not isinstance(task.get('name'), str):
            problems.append(problem((*where, position), f'give options with a `name`, not {task!r}.'))
            continue
        problems += TaskOptions.problems(task, (*where, task['name']))
    return problems


def _samples_problems(
    where: Keys, samples: object, tasks: Sequence[Mapping[str, Any]], training: bool
) -> list[Problem]:
    problems = check_count(where, samples)
    if problems or not all('expected_images' in task for task in tasks):
        return problems
    total = sum(task['expected_images'] * (task.get('copies', 1) if training else 1) for task in tasks)
    return [] if total == samples else [problem(where, f'{samples:,} stated, the tasks have {total:,}.')]
