"""A task is one degradation of one corpus: its images, its label, how often it is seen in an epoch."""

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
        name: unique within the dataset; rows of tables, folders of pictures and log entries carry it.
        type: a word of the vocabulary of degradations.
        label: its class id.
        copies: how often each image is seen in an epoch.
        weight: its part of the epoch in proportion to the other tasks' weights, if the options give it.
        names: (lq name, gt name) pairs; of a synthesised task both are the clean image's.
        degrade: makes the degraded image from the clean one; None for a paired task.
        expected_images: the published count, if the options give it.
        known_counts: other counts that are met, and what they mean, `what is wrong: more words`.
        channels: of the images, 3 (RGB) or 1 (grey).
        left_out: files of the lq folder that the pairing rule does not speak of.
        notes: sentences on how its list was read.
        crop_border_gt: pixels that the clear images of a paired task lose at each side.
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
        """Images (pairs), copies not counted."""
        return len(self.names)


@dataclass
class TaskSurvey:
    """What the options of one task came to.

    Attributes:
        path: the task's place in the option file.
        name: the task's name, or its type.
        options: the task's; wrong ones have their defaults.
        task: what can be used of it; None where the options do not make a task.
        problems: mistakes in the options.
        gaps: what is missing among the images.
    """

    path: Keys
    name: str
    options: TaskOptions
    task: Task | None = None
    problems: list[Problem] = field(default_factory=list)
    gaps: list[Problem] = field(default_factory=list)

    @property
    def where(self) -> str:
        """The place as it is shown."""
        return place(self.path)

    def __contains__(self, problem: Problem) -> bool:
        """Whether a problem is with this task."""
        return problem.place[: len(self.path)] == self.path


def build_tasks(
    options: Mapping[str, Any], where: str | Keys, surveys: dict[Keys, list[TaskSurvey]] | None = None
) -> list[Task]:
    """The tasks of a dataset.

    Args:
        options: the dataset's options: `tasks`, `dataroot`, `degradations`.
        where: their place in the option file, e.g. ('datasets', 'train').
        surveys: filled at `where` with what each task came to, for those who go on where images are missing.

    Raises:
        OptionError: every mistake found, missing folders and files included.
    """
    options, problems = AllInOneOptions.sound(options, where)
    found, more = survey_tasks(options, where)
    if surveys is not None:
        surveys[keys(where)] = found
    raise_problems([*problems, *more])
    return [survey.task for survey in found if survey.task is not None]


def survey_tasks(options: Mapping[str, Any], where: str | Keys) -> tuple[list[TaskSurvey], list[Problem]]:
    """`build_tasks` that goes on where images are missing: what each task came to, and all problems.

    Args:
        options: as for `build_tasks`, without those that are wrong by themselves.
    """
    where = (*keys(where), 'tasks')
    vocabulary, sources = options.get('degradations') or DEGRADATION_TYPES, _Sources()
    surveys: list[TaskSurvey] = []
    problems: list[Problem] = []
    for position, task in enumerate(options.get('tasks', ())):
        if not isinstance(task, Mapping):
            message = f'give options such as {{type: denoise, clean: ...}}, not {task!r}.'
            problems.append(problem((*where, position), message))
            continue
        name = task.get('name', task.get('type'))
        path = (*where, Item(position, name) if isinstance(name, str) else position)
        survey = _TaskBuilder(task, path, options.get('dataroot'), vocabulary, sources).build()
        surveys.append(survey)
        problems += [*survey.problems, *survey.gaps]
    names = [survey.task.name for survey in surveys if survey.task is not None]
    for name in sorted({name for name in names if names.count(name) > 1}):
        problems.append(problem(where, f"two tasks are called '{name}'. Give each a `name` of its own."))
    return surveys, problems + _same_channels([survey for survey in surveys if not survey.problems], where)


def _same_channels(surveys: Sequence[TaskSurvey], where: Keys) -> list[Problem]:
    """A batch is one tensor, and so are the images of a network."""
    grey, colour = ([survey.name for survey in surveys if survey.options.channels == number] for number in (1, 3))
    if not (grey and colour):
        return []
    message = f'images of 1 channel ({first_few(grey)}) and of 3 ({first_few(colour)}) in one data set.'
    return [problem(where, f'{message} Set the same `channels` in all of its tasks.')]


def known_count(found: int, expected: int | None, known: Mapping[int, str]) -> str:
    """What a number of images is known to mean, or ''.

    `BSD400 missing: 4,744 of 5,144, this is the WED-only variant`, made of `BSD400 missing: this is the WED-only
    variant`.
    """
    if found not in known or found == expected:
        return ''
    counts = f'{found:,}'
    if expected is not None:
        counts += f' {"of" if found < expected else "instead of"} {expected:,}'
    what, _, more = known[found].partition(': ')
    return f'{what}: {counts}' + (f', {more}' if more else '')


class _Sources:
    """Sources by path, each listed once: tasks share folders."""

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
    """Makes a task, and what there is to say of it, of its options."""

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
        """Note a problem with an option of the task."""
        path = self.survey.path
        self.survey.problems.append(Problem((*path, place), message, others=others))

    def _lacks(self, message: str, *options: str) -> None:
        """Note a problem with the task as a whole, whose message names options in this order."""
        self.survey.problems.append(problem(self.survey.path, message, *((key,) for key in options)))

    def build(self) -> TaskSurvey:
        options, label = self.options, self._label()
        if 'clean' in self.given:
            self._check_degrade()
            lq = gt = self._source('clean')
            names = [(name, name) for name in self._names('clean', lq)]
        else:
            if 'degrade' in self.given:
                self._wrong('degrade', 'goes with `clean`, the folder of images to degrade.')
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
            advice = ' A degradation of your own joins the vocabulary through `degradations` of the dataset.'
            self._lacks(unknown_name('task type', kind, self.vocabulary) + advice, 'type')
        elif kind is not None and label is None:
            return self.vocabulary.index(kind)
        return label or 0

    def _check_degrade(self) -> None:
        for key in ('root', 'lq', 'gt', 'pairing', 'crop_border_gt'):
            if key in self.given:
                self._wrong(key, 'belongs to paired tasks; this one is made from `clean`.')
        if 'degrade' not in self.given:
            self._lacks(
                '`degrade` is missing, e.g. {type: gaussian_noise, sigma: 25}: '
                'it says how the clean images are degraded.',
                'degrade',
                'clean',
            )

    def _pairs(self) -> tuple[Source | None, Source | None, list[tuple[str, str]]]:
        given, ruled = self.given, 'pairing' in self.options.model_fields_set
        rule = self.options.pairing if ruled else PAIRING_RULES['same_name']
        apart = 'lq' in given or 'gt' in given
        if apart == ('root' in given) or (apart and not ('lq' in given and 'gt' in given)):
            self._lacks(
                'give `lq` and `gt` (two folders), or `root` (one folder that holds both), or `clean` and `degrade`.',
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
            self._wrong('pairing', 'equal names need two folders; give `lq` and `gt`, not `root`.')
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
        if not apart:  # the folder holds clear images as well, of which the rule does not speak
            return lq, gt, pairing.pairs
        self.left_out = pairing.unmatched
        return lq, gt, self._without_own(pairing.pairs, lq, gt, listed)

    def _without_own(self, names: list[tuple[str, str]], lq: Source, gt: Source, listed: bool) -> list[tuple[str, str]]:
        """Where the lq folder holds the gt folder, the clear images in it are no degraded ones."""
        lq_root, gt_root = lq.root.resolve(), gt.root.resolve()
        others = [(lq_name, gt_name) for lq_name, gt_name in names if f'{lq_root}/{lq_name}' != f'{gt_root}/{gt_name}']
        own = len(names) - len(others)
        if own and (listed or not others):
            self._lacks(
                f'{own:,} of {len(names):,} degraded images are their own clear image. '
                f"Mend `lq` ('{lq.root}'), `gt` ('{gt.root}') or the pairing rule.",
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
        """The option of the data set that is the other cause of a wrong folder: of a protocol's task, the only one."""
        return (*self.survey.path[:-2], 'dataroot')

    def _expectation(self) -> str:
        parts, rule = [], self.options.pairing
        if self.options.expected_images is not None:
            parts.append(f'{self.options.expected_images:,} images')
        if 'pairing' in self.options.model_fields_set and rule in PAIRING_RULES.values():
            parts.append(f"laid out as '{rule.lq}' with '{rule.gt}'")
        expected = f' Expected there: {", ".join(parts)}.' if parts else ''
        return f'{expected} Mend the path, or `dataroot` of the dataset (now {self.dataroot or "."!r}).'

    def _names(self, key: str, source: Source | None, clear: Clear | None = None) -> list[str]:
        """The names to use: the list's, the option's, or all in the folder."""
        if 'list' in self.given and 'files' in self.given:
            self._lacks('give `list` (a text file) or `files` (names), not both.', 'list')
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
                self._wrong(key, 'no names in it.')
            return []
        present = Names(self.sources.names(source), source.root)
        if isinstance(given, str):
            path = resolve(given, self.dataroot)
            try:
                listing = read_list(path, present, clear)
            except (OSError, ValueError) as error:  # not there, not text, no name of a file
                self._wrong(key, f"'{path}' cannot be read as text ({error}).")
                return []
        else:
            listing = find_names([Entry(text) for text in given], present, clear)
        self.notes += listing.notes
        if not listing.entries:
            self._wrong(key, 'no names in it.')
        for mistake in listing.mistakes:
            self._wrong(key, mistake)
        if listing.missing:
            total = listing.entries
            meaning = known_count(total - len(listing.missing), total, self.options.known_counts or {})
            several = (
                (entry, f', which may be {" or ".join(like)}' if like else '') for entry, like in listing.missing
            )
            example = next(iter(self.sources.names(source)), '') if not listing.names else ''
            message = (
                f"{len(listing.missing):,} of {total:,} entries are not in '{source.root}': "
                f'{first_few(f"{entry}{like}" for entry, like in several)}. {meaning}{". " if meaning else ""}'
                + (f"Images there have names such as '{example}'. " if example else '')
                + (
                    'Write the names as those of the files are.'
                    if all(like for _, like in listing.missing)
                    else 'Complete the folder, or take the names out of the list.'
                )
            )
            items = tuple((entry.text, entry.place) for entry, _ in listing.missing)
            self.survey.gaps.append(Problem((*self.survey.path, key), message, 'missing', items))
        return listing.names
