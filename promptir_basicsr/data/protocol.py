"""Protocols: training and test data of all-in-one experiments, by name.

A protocol is a YAML file with a training part and a test part; each contains options of a dataset. An option file names
the protocol and may override its options. `docs/protocols.md` lists the protocols and the keys of such a file.
"""

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictStr

from promptir_basicsr.core.errors import OptionError, raise_problems
from promptir_basicsr.core.messages import check_count, did_you_mean, unknown_keys, unknown_name
from promptir_basicsr.core.problems import Keys, Problem, keys, problem
from promptir_basicsr.core.yaml_loader import load_yaml
from promptir_basicsr.options.data import AllInOneOptions, TaskOptions
from promptir_basicsr.options.section import Count, Section, Text, Told, option, told

FOLDER = Path(__file__).with_name('protocols')
CATALOGUE = Path(__file__).with_name('corpora.yml')
FILE_ENDINGS = ('.yml', '.yaml')

# Alternative sources of a task's images; a change to one of them replaces the others.
_SOURCES = {
    'clean': ('lq', 'gt', 'root', 'pairing'),
    'root': ('lq', 'gt', 'clean', 'degrade'),
    'lq': ('root', 'clean', 'degrade'),
    'gt': ('root', 'clean', 'degrade'),
    'list': ('files',),
    'files': ('list',),
}


class ImageCounts(Section):
    """Number of images of a corpus, by part."""

    example = 'such as {train: 200, test: 100}'

    train: Count = option(None, description='of the training part')
    test: Count = option(None, description='of the test part')


class Corpus(Section):
    """A published image set, as described in the catalogue and in protocol files.

    Examples:
        >>> from promptir_basicsr.data import load_protocol
        >>> corpus = load_protocol('3d').corpora[0]
        >>> corpus.name, corpus.images
        ('WED', ImageCounts(train=4744, test=None))
    """

    example = 'such as {holds: ..., url: ...}'

    name: Text = option('', description='its key')
    holds: Text = option('', description='content, required')
    images: ImageCounts = option(None, description='number of images')
    url: Text = option('', description='page of its publication')
    archive: Text = option('', description='download that released programs link to')
    paper: Text = option('', description='paper that introduces it')
    license: Text = option('', description='licence according to its page; empty if the page names none')
    note: Text = option('', description='caveats')


def _by_name(corpora: Any) -> Any:
    if isinstance(corpora, list):
        return dict.fromkeys(map(str, corpora))
    if not isinstance(corpora, Mapping):
        raise told('set a list of names, or `name: {holds: ...}`.')
    return corpora


_Link = Annotated[dict[Literal['title', 'url'], Any], Field(min_length=2)]
_DataSet = Annotated[dict[Any, Any], Told('set options of a dataset, not {found}.')]


class ProtocolFile(Section):
    """The file of a protocol, see `Protocol`."""

    title: Text = option('', description='of the protocol')
    about: Text = option('', description='description')
    extends: Any = option(None, description='base protocol, whose keys are overridden by those of this file')
    sources: Annotated[list[_Link], Told('set a list of {{title: ..., url: ...}}, not {found}.')] = option(
        (), description='papers and programs'
    )
    corpora: Annotated[dict[str, Corpus | None], BeforeValidator(_by_name)] = option(
        None, description='names of the catalogue, or descriptions by name'
    )
    notes: Annotated[list[StrictStr], Told('{found} is not a list of sentences.')] = option(
        (), description='remarks on its results'
    )
    train: _DataSet | None = option(None, description='options of the training dataset, and `samples`')
    test: _DataSet | None = option(None, description='options of the test dataset, and `samples`')


@dataclass(frozen=True)
class Part:
    """The training or the test part of a protocol.

    Attributes:
        options: of the dataset; `tasks` is a list, with paths relative to `dataroot`.
        samples: per epoch, or evaluations of a test, as published; None if that depends on the data.
    """

    options: Mapping[str, Any]
    samples: int | None = None


@dataclass(frozen=True)
class Protocol:
    """A published experiment.

    Attributes:
        name: of the protocol, or the path of a user's file.
        sources: title and URL of the papers and programs that define it.
        notes: remarks on its results.
        train, test: None if it has no such part.

    Examples:
        >>> from promptir_basicsr.data import load_protocol
        >>> protocol = load_protocol('3d')
        >>> protocol.train.samples, [corpus.name for corpus in protocol.corpora][:2]
        (142431, ['WED', 'BSD400'])
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
    """Names of the built-in protocols, sorted.

    Examples:
        >>> from promptir_basicsr.data import protocol_names
        >>> '3d' in protocol_names()
        True
    """
    return sorted(path.stem for path in FOLDER.glob('*.yml'))


def load_protocol(name: str, where: str | Keys = 'protocol') -> Protocol:
    """Load a protocol.

    Args:
        name: one of `protocol_names()`, or the path of a YAML file.
        where: place of the option, for messages.

    Raises:
        OptionError: unknown protocol, or invalid file.

    Examples:
        >>> from promptir_basicsr.data import load_protocol
        >>> [task['name'] for task in load_protocol('3d').test.options['tasks']]
        ['SOTS', 'Rain100L', 'CBSD68_15', 'CBSD68_25', 'CBSD68_50']
    """
    return _load(name, keys(where), '', Path(), ())


def expand_protocol(opt: Mapping[str, Any], where: str | Keys) -> dict[str, Any]:
    """Merge options of a dataset with those of its protocol; `opt` is not changed.

    The phase `train` (also the default) uses the training part, other phases the test part. Keys set in `opt` override
    the protocol, `~` removes a key. `tasks` as a list replaces all tasks; a mapping changes tasks by name: options are
    merged into the task's, `~` removes a task, a new name adds one.

    Args:
        opt: options of an AllInOneDataset, with or without `protocol`.
        where: their place in the option file, e.g. ('datasets', 'train').

    Returns:
        New options without `protocol`.

    Raises:
        OptionError: all problems found.

    Examples:
        >>> from promptir_basicsr.data import expand_protocol
        >>> options = {'protocol': '3d', 'phase': 'train', 'tasks': {'dehaze': None, 'derain': {'copies': 60}}}
        >>> {task['name']: task['copies'] for task in expand_protocol(options, 'datasets.train')['tasks']}
        {'denoise_15': 3, 'denoise_25': 3, 'denoise_50': 3, 'derain': 60}
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
    """`datasets` of an option file: a protocol's training part as `train` and its test part as `val`.

    Args:
        name: as for `load_protocol`.
        dataroot: root folder of the protocol's paths.

    Raises:
        OptionError: unknown protocol, or invalid file.
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
    """Options of a dataset after a change, and its problems."""
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
            message = f'set options to change, or ~ to remove the task, not {options!r}.'
            problems.append(problem((*where, name), message))
        else:
            message = unknown_name('task', name, [str(task['name']) for task in base])
            message += ' A new task needs `type` and its images: '
            message += '`clean` and `degrade`, `lq` and `gt`, or `root` and `pairing`.'
            problems.append(problem(where, message, (name,)))
    if not tasks and not problems:
        problems.append(problem(where, 'all tasks are removed. Keep at least one.'))
    return list(tasks.values()), problems


def _changed_task(task: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    replaced = {other for key in change for other in _SOURCES.get(key, ()) if other not in change}
    kept = {key: value for key, value in task.items() if key not in replaced}
    return {key: value for key, value in {**kept, **change}.items() if value is not None}


def _is_complete(options: Mapping[str, Any]) -> bool:
    ways = ({'clean', 'degrade'}, {'lq', 'gt'}, {'root', 'pairing'})
    return 'type' in options and any(way <= options.keys() for way in ways)


def _load(name: object, where: Keys, asked_by: str, folder: Path, chain: tuple[Path, ...]) -> Protocol:
    """Load a protocol.

    Args:
        where: the option that names the protocol; problems of files are reported there.
        asked_by: the file that extends the protocol, '' for the option file.
        folder: root of relative paths.
        chain: the files that extend this one, directly or indirectly.
    """
    try:
        path = _find(name, folder)
        if path.resolve() in chain:
            raise OptionError(f"'{name}' extends itself, directly or indirectly.")
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
    protocol, problems = _read(str(name), content, base)
    if problems:
        raise OptionError(replace(each.said_by(str(path)), path=where) for each in problems)
    return protocol


def _find(name: object, folder: Path) -> Path:
    """The file of a protocol; a path is relative to `folder`."""
    names = protocol_names()
    if not isinstance(name, str) or not name:
        raise OptionError(f'{name!r} is not the name of a protocol or a path. One of: {", ".join(names)}.')
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


def _read(name: str, content: Mapping[str, Any], base: Protocol) -> tuple[Protocol, list[Problem]]:
    """The protocol of a file that extends `base`, and its problems."""
    written, problems = ProtocolFile.parse(content)
    given = {key: getattr(written, key) for key in written.model_fields_set if key != 'extends'}
    if written.corpora is not None:
        given['corpora'], found = _corpora(written.corpora)
        problems += found
    for key in ('train', 'test'):
        if given.get(key) is not None:
            given[key], found = _part(key, given[key], getattr(base, key))
            problems += found
    protocol = replace(base, **{'name': name, 'title': name, 'about': '', **given})
    if protocol.train is None and protocol.test is None and not problems:
        problems.append(problem('', 'has no `train` or `test` part.'))
    return protocol, problems


def _corpora(given: Mapping[str, Corpus | None]) -> tuple[list[Corpus], list[Problem]]:
    """Corpora of the catalogue by name, and those that the file describes."""
    catalogue, problems = load_yaml(str(CATALOGUE)), []
    corpora = []
    for name, own in given.items():
        corpora.append(own or Corpus(**catalogue.get(name, {})))
        corpora[-1].name = name
        if own is None and name not in catalogue:
            advice = 'Describe a new one as `name: {holds: ..., url: ...}`.'
            problems.append(problem('corpora', f'{unknown_name("corpus", name, catalogue)} {advice}'))
        elif not corpora[-1].holds:
            problems.append(problem(('corpora', name, 'holds'), 'is missing. Describe the content of the corpus.'))
    return corpora, problems


def _part(key: str, given: Mapping[str, Any], base: Part | None) -> tuple[Part, list[Problem]]:
    allowed = [*(name for name in AllInOneOptions.model_fields if name != 'protocol'), 'samples']
    problems = unknown_keys(key, given, allowed)
    change = {name: value for name, value in given.items() if name != 'samples'}
    options, found = _changed(base.options if base else {}, change, (key,))
    problems += found or _task_problems(options['tasks'], (key, 'tasks'))
    samples = given.get('samples')
    if samples is not None and not problems:
        problems += _samples_problems((key, 'samples'), samples, options['tasks'], key == 'train')
    return Part(options, samples), problems


def _task_problems(tasks: object, where: Keys) -> list[Problem]:
    """Problems that can be found without the images."""
    if not isinstance(tasks, Sequence) or isinstance(tasks, str) or not tasks:
        return [problem(where, f'set tasks, `name: {{type: ..., ...}}`, not {tasks!r}.')]
    problems: list[Problem] = []
    for position, task in enumerate(tasks):
        if not isinstance(task, Mapping) or not isinstance(task.get('name'), str):
            problems.append(problem((*where, position), f'set options with a `name`, not {task!r}.'))
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
    return [] if total == samples else [problem(where, f'is {samples:,}, but the tasks have {total:,}.')]
