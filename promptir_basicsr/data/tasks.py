"""Tasks: a task is one degradation of one corpus, with images, label and number of copies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from promptir_basicsr.core.errors import raise_problems
from promptir_basicsr.core.messages import first_few, unknown_name
from promptir_basicsr.core.problems import Item, Keys, Problem, keys, place, problem
from promptir_basicsr.core.vocabulary import DEGRADATION_TYPES
from promptir_basicsr.data.lists import Clear, Entry, Names, find_names, read_list
from promptir_basicsr.data.pairing import PairFinder, find_pairs
from promptir_basicsr.data.sources import Source, open_source, resolve
from promptir_basicsr.degradations.spec import Degrade
from promptir_basicsr.options.data import AllInOneOptions, TaskOptions
from promptir_basicsr.options.pairing import PAIRING_RULES


@dataclass(frozen=True)
class Task:
    """One degradation of one corpus.

    Attributes:
        name: unique within the dataset; used in tables, image folders and logs.
        type: a word of the vocabulary of degradations.
        label: its class index.
        copies: number of times each image is drawn per epoch.
        weight: its part of the epoch relative to the other tasks' weights, if the options set it.
        names: (lq name, gt name) pairs; for a synthesised task both are the clean image's.
        degrade: makes the degraded image from the clean one; None for a paired task.
        expected_images: the published count, if the options set it.
        known_counts: other common counts and their meanings, `problem: explanation`.
        channels: of the images, 3 (RGB) or 1 (grey).
        left_out: files of the lq folder that do not match the pairing rule.
        notes: messages about how its list was read.
        crop_border_gt: border in pixels that is cropped from each side of a paired task's clear images.

    Examples:
        >>> from promptir_basicsr.data import build_tasks
        >>> (task,) = build_tasks({'tasks': [{'type': 'derain', 'lq': 'rainy', 'gt': 'clear'}]}, 'datasets.val')
        >>> task.name, task.label, task.names
        ('derain', 1, [('1.png', '1.png'), ('2.png', '2.png')])
    """

    name: str
    type: str
    label: int
    copies: int
    lq: Source
    gt: Source
    names: Sequence[tuple[str, str]]
    degrade: Degrade | None = None
    expected_images: int | None = None
    left_out: Sequence[str] = ()
    weight: float | None = None
    known_counts: Mapping[int, str] = field(default_factory=dict)
    channels: int = 3
    notes: Sequence[str] = ()
    crop_border_gt: int = 0

    @property
    def paired(self) -> bool:
        return self.degrade is None

    def __len__(self) -> int:
        """Number of images (pairs), without copies."""
        return len(self.names)


@dataclass
class TaskSurvey:
    """The result of checking the options of one task.

    Attributes:
        path: the task's place in the option file.
        name: the task's name, or its type.
        options: the task's options; invalid ones have their defaults.
        task: the usable part of the task; None if the options do not define one.
        problems: problems of the options.
        gaps: missing images.
    """

    path: Keys
    name: str
    options: TaskOptions
    task: Task | None = None
    problems: list[Problem] = field(default_factory=list)
    gaps: list[Problem] = field(default_factory=list)

    @property
    def where(self) -> str:
        """The place in the option file, for messages."""
        return place(self.path)

    def __contains__(self, problem: Problem) -> bool:
        """Whether a problem belongs to this task."""
        return problem.place[: len(self.path)] == self.path


def build_tasks(
    options: Mapping[str, Any], where: str | Keys, surveys: dict[Keys, list[TaskSurvey]] | None = None
) -> list[Task]:
    """Build the tasks of a dataset.

    Args:
        options: the dataset's options: `tasks`, `dataroot`, `degradations`.
        where: their place in the option file, e.g. ('datasets', 'train').
        surveys: filled at `where` with the survey of each task, for callers that continue if images are missing.

    Raises:
        OptionError: all problems found, including missing folders and files.

    Examples:
        >>> from promptir_basicsr.data import build_tasks
        >>> noise = {'type': 'denoise', 'clean': 'skimage://', 'files': ['coffee.png'], 'degrade': {'type': 'jpeg'}}
        >>> [task.type for task in build_tasks({'tasks': [noise]}, ('datasets', 'train'))]
        ['denoise']
    """
    options, problems = AllInOneOptions.sound(options, where)
    found, more = survey_tasks(options, where)
    if surveys is not None:
        surveys[keys(where)] = found
    raise_problems([*problems, *more])
    return [survey.task for survey in found if survey.task is not None]


def survey_tasks(options: Mapping[str, Any], where: str | Keys) -> tuple[list[TaskSurvey], list[Problem]]:
    """Build tasks as `build_tasks`, but continue if images are missing; return surveys and all problems.

    Args:
        options: as for `build_tasks`, without invalid ones.
    """
    where = (*keys(where), 'tasks')
    vocabulary, sources = options.get('degradations') or DEGRADATION_TYPES, _Sources()
    surveys: list[TaskSurvey] = []
    problems: list[Problem] = []
    for position, task in enumerate(options.get('tasks', ())):
        if not isinstance(task, Mapping):
            message = f'set options such as {{type: denoise, clean: ...}}, not {task!r}.'
            problems.append(problem((*where, position), message))
            continue
        name = task.get('name', task.get('type'))
        path = (*where, Item(position, name) if isinstance(name, str) else position)
        survey = _TaskBuilder(task, path, options.get('dataroot'), vocabulary, sources).build()
        surveys.append(survey)
        problems += [*survey.problems, *survey.gaps]
    names = [survey.task.name for survey in surveys if survey.task is not None]
    for name in sorted({name for name in names if names.count(name) > 1}):
        problems.append(problem(where, f"two tasks have the name '{name}'. Set a unique `name` for each."))
    return surveys, problems + _same_channels([survey for survey in surveys if not survey.problems], where)


def _same_channels(surveys: Sequence[TaskSurvey], where: Keys) -> list[Problem]:
    """Check that all tasks have the same number of channels, because a batch is one tensor."""
    grey, colour = ([survey.name for survey in surveys if survey.options.channels == number] for number in (1, 3))
    if not (grey and colour):
        return []
    message = f'images with 1 channel ({first_few(grey)}) and with 3 ({first_few(colour)}) in one dataset.'
    return [problem(where, f'{message} Set the same `channels` in all of its tasks.')]


def known_count(found: int, expected: int | None, known: Mapping[int, str]) -> str:
    """The known meaning of a number of images, or ''.

    For example, `BSD400 missing: this is the WED-only variant` becomes `BSD400 missing: 4,744 of 5,144, this is the
    WED-only variant`.
    """
    if found not in known or found == expected:
        return ''
    counts = f'{found:,}'
    if expected is not None:
        counts += f' {"of" if found < expected else "instead of"} {expected:,}'
    what, _, more = known[found].partition(': ')
    return f'{what}: {counts}' + (f', {more}' if more else '')


class _Sources:
    """Sources by path, each listed only once, because tasks share folders."""

    def __init__(self) -> None:
        self._sources: dict[Path, Source] = {}
        self._names: dict[Path, list[str]] = {}

    def open(self, path: Path) -> Source:
        if path not in self._sources:
            self._sources[path] = open_source(path)
        return self._sources[path]

    def names(self, source: Source) -> list[str]:
        if source.root not in self._names:
            self._names[source.root] = source.names()
        return self._names[source.root]


class _TaskBuilder:
    """Builds a task and its survey from its options."""

    def __init__(
        self,
        options: Mapping[str, Any],
        path: Keys,
        dataroot: str | None,
        vocabulary: Sequence[str],
        sources: _Sources,
    ) -> None:
        self.given, self.dataroot, self.vocabulary, self.sources = options.keys(), dataroot, vocabulary, sources
        self.options, problems = TaskOptions.parse(options, path)
        self.survey = TaskSurvey(path, str(options.get('name', options.get('type'))), self.options, problems=problems)
        self.left_out: Sequence[str] = ()
        self.notes: list[str] = []

    def _wrong(self, place: str, message: str, *others: Keys) -> None:
        """Add a problem of an option of the task."""
        path = self.survey.path
        self.survey.problems.append(Problem((*path, place), message, others=others))

    def _lacks(self, message: str, *options: str) -> None:
        """Add a problem of the whole task, whose message names options in this order."""
        self.survey.problems.append(problem(self.survey.path, message, *((key,) for key in options)))

    def build(self) -> TaskSurvey:
        options, label = self.options, self._label()
        if 'clean' in self.given:
            self._check_degrade()
            lq = gt = self._source('clean')
            names = [(name, name) for name in self._names('clean', lq)]
        else:
            if 'degrade' in self.given:
                self._wrong('degrade', 'needs `clean`, the folder of images to degrade.')
            lq, gt, names = self._pairs()
        if not self.survey.problems and lq is not None and gt is not None and names:
            self.survey.task = Task(
                name=options.name or options.type,
                type=options.type,
                label=label,
                copies=options.copies,
                lq=lq,
                gt=gt,
                names=names,
                degrade=options.degrade,
                expected_images=options.expected_images,
                left_out=self.left_out,
                weight=options.weight,
                known_counts=options.known_counts or {},
                channels=options.channels,
                notes=self.notes,
                crop_border_gt=options.crop_border_gt,
            )
        return self.survey

    def _label(self) -> int:
        kind, label = self.options.type, self.options.label
        if 'type' not in self.given:
            self._lacks(f'`type` is missing. One of: {", ".join(self.vocabulary)}.', 'type')
        elif kind is not None and kind not in self.vocabulary:
            advice = ' To add a new degradation, set `degradations` of the dataset.'
            self._lacks(unknown_name('task type', kind, self.vocabulary) + advice, 'type')
        elif kind is not None and label is None:
            return self.vocabulary.index(kind)
        return label or 0

    def _check_degrade(self) -> None:
        for key in ('root', 'lq', 'gt', 'pairing', 'crop_border_gt'):
            if key in self.given:
                self._wrong(key, 'only for paired tasks; this one is synthesised from `clean`.')
        if 'degrade' not in self.given:
            self._lacks(
                '`degrade` is missing. Set how to degrade the clean images, e.g. {type: gaussian_noise, sigma: 25}.',
                'degrade',
                'clean',
            )

    def _pairs(self) -> tuple[Source | None, Source | None, list[tuple[str, str]]]:
        given, ruled = self.given, 'pairing' in self.options.model_fields_set
        rule = self.options.pairing if ruled else PAIRING_RULES['same_name']
        apart = 'lq' in given or 'gt' in given
        if apart == ('root' in given) or (apart and not ('lq' in given and 'gt' in given)):
            self._lacks(
                'set `lq` and `gt` (two folders), or `root` (one folder with both), or `clean` and `degrade`.',
                *('lq', 'gt', 'root', 'clean', 'degrade'),
            )
            return None, None, []
        lq = self._source('lq' if apart else 'root')
        gt = self._source('gt') if apart else lq
        if 'pairing' not in given and not apart:
            self._lacks(f'`pairing` is missing. One of: {", ".join(PAIRING_RULES)}.', 'pairing')
            return None, None, []
        if ('pairing' in given and not ruled) or lq is None or gt is None:
            return None, None, []
        if rule.lq == rule.gt and not apart:
            self._wrong('pairing', 'equal names need two folders. Set `lq` and `gt`, not `root`.')
            return None, None, []
        listed = 'list' in given or 'files' in given
        rule = rule.without_folder() if apart and rule in PAIRING_RULES.values() else rule
        gt_names = self.sources.names(gt)
        finder = PairFinder(rule, gt_names)
        clear = Clear(Names(gt_names, gt.root), lambda name: finder.gt_of(name)[0])
        pairing = find_pairs(
            self.survey.path,
            rule,
            self._names('lq' if apart else 'root', lq, clear),
            gt_names,
            listed=listed,
            one_folder=not apart,
        )
        self.survey.gaps += pairing.problems
        if not apart:  # the folder also contains clear images, which do not match the rule
            return lq, gt, pairing.pairs
        self.left_out = pairing.unmatched
        return lq, gt, self._without_own(pairing.pairs, lq, gt, listed)

    def _without_own(self, names: list[tuple[str, str]], lq: Source, gt: Source, listed: bool) -> list[tuple[str, str]]:
        """Remove clear images from the degraded ones if the lq folder contains the gt folder."""
        lq_root, gt_root = lq.root.resolve(), gt.root.resolve()
        others = [(lq_name, gt_name) for lq_name, gt_name in names if f'{lq_root}/{lq_name}' != f'{gt_root}/{gt_name}']
        own = len(names) - len(others)
        if own and (listed or not others):
            self._lacks(
                f'{own:,} of {len(names):,} degraded images are their own clear image. '
                f"Fix `lq` ('{lq.root}'), `gt` ('{gt.root}') or the pairing rule.",
                *('lq', 'gt', 'pairing'),
            )
        return others

    def _source(self, key: str) -> Source | None:
        value: str | None = getattr(self.options, key)
        if value is None:
            return None
        try:
            return self.sources.open(resolve(value, self.dataroot))
        except ValueError as error:
            self._wrong(key, f'{error}{self._expectation()}', self._dataroot)
            return None

    @property
    def _dataroot(self) -> Keys:
        """The other option that may cause a wrong folder; for tasks of a protocol, the only one."""
        return (*self.survey.path[:-2], 'dataroot')

    def _expectation(self) -> str:
        parts, rule = [], self.options.pairing
        if self.options.expected_images is not None:
            parts.append(f'{self.options.expected_images:,} images')
        if 'pairing' in self.options.model_fields_set and rule in PAIRING_RULES.values():
            parts.append(f"laid out as '{rule.lq}' with '{rule.gt}'")
        expected = f' Expected there: {", ".join(parts)}.' if parts else ''
        return f'{expected} Fix the path, or `dataroot` of the dataset (now {self.dataroot or "."!r}).'

    def _names(self, key: str, source: Source | None, clear: Clear | None = None) -> list[str]:
        """The names to use: from `list`, from `files`, or all in the folder."""
        if 'list' in self.given and 'files' in self.given:
            self._lacks('set `list` (a text file) or `files` (names), not both.', 'list')
        if source is None:
            return []
        if 'list' in self.given or 'files' in self.given:
            return self._listed('list' if 'list' in self.given else 'files', source, clear)
        names = self.sources.names(source)
        if not names:
            message = f"no images in '{source.root}'.{self._expectation()}"
            path = (*self.survey.path, key)
            self.survey.gaps.append(Problem(path, message, 'missing', others=(self._dataroot,)))
        return names

    def _listed(self, key: str, source: Source, clear: Clear | None) -> list[str]:
        """The names of `list` or `files` that exist."""
        given: str | Sequence[str] | None = getattr(self.options, key)
        if not given:
            if given is not None:
                self._wrong(key, 'contains no names.')
            return []
        present = Names(self.sources.names(source), source.root)
        if isinstance(given, str):
            path = resolve(given, self.dataroot)
            try:
                listing = read_list(path, present, clear)
            except (OSError, ValueError) as error:  # missing, not text, or not a file name
                self._wrong(key, f"'{path}' cannot be read as text ({error}).")
                return []
        else:
            listing = find_names([Entry(text) for text in given], present, clear)
        self.notes += listing.notes
        if not listing.entries:
            self._wrong(key, 'contains no names.')
        for mistake in listing.mistakes:
            self._wrong(key, mistake)
        if listing.missing:
            total = listing.entries
            meaning = known_count(total - len(listing.missing), total, self.options.known_counts or {})
            several = ((entry, f', possibly {" or ".join(like)}' if like else '') for entry, like in listing.missing)
            example = next(iter(self.sources.names(source)), '') if not listing.names else ''
            message = (
                f"{len(listing.missing):,} of {total:,} entries are not in '{source.root}': "
                f'{first_few(f"{entry}{like}" for entry, like in several)}. {meaning}{". " if meaning else ""}'
                + (f"Images there have names such as '{example}'. " if example else '')
                + (
                    'Use the exact names of the files.'
                    if all(like for _, like in listing.missing)
                    else 'Add the files, or remove the names from the list.'
                )
            )
            items = tuple((entry.text, entry.place) for entry, _ in listing.missing)
            self.survey.gaps.append(Problem((*self.survey.path, key), message, 'missing', items))
        return listing.names
