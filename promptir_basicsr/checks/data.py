"""The data of a check: the tasks of each dataset, and the findings about their images."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from promptir_basicsr.checks.images import (
    LEAST_LIKENESS,
    ImageFacts,
    Wanted,
    find_duplicates,
    inspect_images,
    likeness,
)
from promptir_basicsr.checks.report import ERROR, NOTE, DatasetReport, Duplicates, Finding, TaskReport
from promptir_basicsr.core.problems import Keys, place
from promptir_basicsr.data.images import centre_area, without_border
from promptir_basicsr.data.protocol import expand_protocol
from promptir_basicsr.data.sampling import check_sampling, epoch_shares
from promptir_basicsr.data.sources import Source
from promptir_basicsr.data.stages import by_stage
from promptir_basicsr.data.tasks import Task, TaskSurvey, known_count
from promptir_basicsr.options.data import AllInOneOptions, AllInOneTrainingOptions


@dataclass
class CheckedDataset:
    """An AllInOneDataset of the file: its key in `datasets`, its valid options, and the surveys of its tasks."""

    key: str
    opt: Mapping[str, Any]
    surveys: list[TaskSurvey]

    @classmethod
    def of(cls, key: str, opt: Mapping[str, Any], surveys: list[TaskSurvey]) -> 'CheckedDataset':
        phase = key.split('_')[0]
        expanded = expand_protocol({**opt, 'phase': phase}, ('datasets', key))
        schema = AllInOneTrainingOptions if phase == 'train' else AllInOneOptions
        return cls(key, schema.sound(expanded)[0], surveys)

    @property
    def path(self) -> Keys:
        return ('datasets', self.key)

    @property
    def where(self) -> str:
        """The place in the option file, for messages."""
        return place(self.path)

    @property
    def training(self) -> bool:
        return self.opt['phase'] == 'train'

    def tasks(self) -> list[Task]:
        return [survey.task for survey in self.surveys if survey.task is not None]

    def report(self) -> DatasetReport:
        tasks = self.tasks()
        # If tasks are missing, the others get their share, as in a training without them.
        shares = [] if check_sampling(self.opt, self.where) else epoch_shares(tasks, self.opt)
        share_of = {id(task): share for task, share in zip(tasks, shares, strict=False)}
        rows = []
        for survey in self.surveys:
            task = survey.task
            row = TaskReport(survey.where, survey.name, expected_images=survey.options.expected_images)
            if task is not None:
                row.type, row.label, row.images = task.type, task.label, len(task)
                row.made_by = task.degrade.describe() if task.degrade else 'pairs'
            if id(task) in share_of:
                share = share_of[id(task)]
                row.samples, row.share, row.draws = share.samples, share.share, share.draws
                row.in_batch = share.in_batch
            rows.append(row)
        name = str(self.opt.get('name', ''))
        return DatasetReport(self.where, name, 'AllInOneDataset', True, sum(row.samples for row in rows), rows)


class Images:
    """The images of all tasks. Each file is read once, even if tasks reach it by different folders."""

    def __init__(self) -> None:
        self._sources: list[Source] = []
        self._roots: dict[int, tuple[int, str]] = {}
        self._wanted: dict[str, Wanted] = {}
        self._facts: dict[str, ImageFacts] = {}

    def path(self, source: Source, name: str) -> str:
        """The key of an image: its real path."""
        if id(source) not in self._roots:
            self._roots[id(source)] = len(self._sources), os.path.join(os.path.realpath(source.root), '')
            self._sources.append(source)
        return self._roots[id(source)][1] + name

    def want(self, task: Task, clear: bool, degraded: bool) -> None:
        """Request the images of a task, and whether to compute fingerprints of the clear and the degraded ones."""
        for lq_name, gt_name in task.names:
            self._want(task.lq, lq_name, degraded)
            self._want(task.gt, gt_name, clear)

    def _want(self, source: Source, name: str, fingerprint: bool) -> None:
        path = self.path(source, name)
        if path not in self._wanted or (fingerprint and not self._wanted[path].fingerprint):
            self._wanted[path] = Wanted(self._roots[id(source)][0], name, fingerprint)

    def read(self, decode: bool, workers: int, progress: bool) -> None:
        paths = sorted(self._wanted)
        facts = inspect_images(self._sources, [self._wanted[path] for path in paths], decode, workers, progress)
        self._facts = dict(zip(paths, facts, strict=True))

    def facts(self, source: Source, name: str) -> ImageFacts:
        return self._facts[self.path(source, name)]

    def where(self, path: str) -> str:
        """The path of a requested image, for messages."""
        wanted = self._wanted[path]
        return self._sources[wanted.source].where(wanted.name)

    def clear(self, task: Task) -> dict[str, bytes]:
        """Paths and fingerprints of a task's readable clear images."""
        paths = dict.fromkeys(self.path(task.gt, name) for _, name in task.names)
        found = {path: self._facts[path].fingerprint for path in paths}
        return {path: fingerprint for path, fingerprint in found.items() if fingerprint is not None}


def count_findings(survey: TaskSurvey, allowed: bool) -> list[Finding]:
    """Report a number of images that differs from the protocol's."""
    task = survey.task
    if task is None:
        return []
    expected = task.expected_images or len(task)
    meaning = known_count(len(task), task.expected_images, task.known_counts)
    if expected == len(task):
        return [Finding(NOTE, 'count', survey.where, f'{survey.where}: {meaning}.')] if meaning else []
    sentence = meaning or f'has {len(task):,} images, the protocol has {expected:,}'
    told = f'{survey.where}: {sentence}. Results will not be comparable with published ones.'
    return [Finding(NOTE if allowed else ERROR, 'count', survey.where, told)]


def list_findings(survey: TaskSurvey) -> list[Finding]:
    """Report how a list was read if its entries are not exactly the names in the folder."""
    notes = survey.task.notes if survey.task else ()
    return [Finding(NOTE, 'list', survey.where, f'{survey.where}: {note}.') for note in notes]


def image_findings(survey: TaskSurvey, dataset: CheckedDataset, images: Images) -> list[Finding]:
    """Report images of a task that cannot be used, differ in size, are small or do not match."""
    task = survey.task
    if task is None:
        return []
    unreadable: dict[str, str] = {}
    differing, small, unlike, distinct = [], [], [], set()
    patch = max(by_stage(dataset.opt, 'gt_size').values(), default=None) if dataset.training else None
    multiple: int = dataset.opt.get('crop_multiple', 1)
    for lq_name, gt_name in task.names:
        facts = [images.facts(task.lq, lq_name), images.facts(task.gt, gt_name)]
        for fact, path in zip(facts, (task.lq.where(lq_name), task.gt.where(gt_name)), strict=True):
            distinct.add(path)
            if fact.problem:
                unreadable[path] = fact.problem
        lq, gt = facts[0].size, facts[1].size
        gt = gt and without_border(gt, task.crop_border_gt)
        if lq is not None and gt is not None and lq != gt:
            differing.append((task.lq.where(lq_name), f'{_size(lq)}, clear {_size(gt)}'))
        elif gt is not None and patch and min(centre_area(gt, multiple)[2:]) < patch:
            small.append((task.lq.where(lq_name), _size(gt)))
        prints = [fact.fingerprint for fact in facts if fact.fingerprint is not None]
        if task.paired and lq == gt and len(prints) == 2 and likeness(*prints) < LEAST_LIKENESS:
            unlike.append((task.lq.where(lq_name), f'clear {task.gt.where(gt_name)}'))

    def finding(severity: str, kind: str, items: list[tuple[str, str]], sentence: str) -> list[Finding]:
        told = f'{survey.where}: {len(items):,} {sentence}'
        return [Finding(severity, kind, survey.where, told, items)] if items else []

    told = f'of {len(distinct):,} images cannot be read. Replace the files, or remove them from the list.'
    found = finding(ERROR, 'unreadable', list(unreadable.items()), told)
    message = (
        f'of {len(task):,} pairs differ in size. '
        'Check the pairing rule, crop both to the same area, or set `crop_border_gt`.'
    )
    found += finding(ERROR, 'different_size', differing, message)
    told = f'of {len(task):,} images are smaller than the {patch} pixel crop; they are padded by reflection.'
    found += finding(NOTE, 'smaller_than_patch', small, told)
    message = f'of {len(task):,} pairs are not alike. Compare the images: they may show different scenes.'
    return found + finding(NOTE, 'unlike', unlike, message)


def _size(size: tuple[int, int]) -> str:
    return f'{size[1]}x{size[0]}'


def extra_findings(ours: Sequence[CheckedDataset]) -> list[Finding]:
    """Report images in the folders of the tasks that no task uses."""
    sources: dict[str, Source] = {}
    used: set[str] = set()
    unfit: set[str] = set()
    for task in (task for dataset in ours for task in dataset.tasks()):
        roots = [os.path.join(os.path.realpath(source.root), '') for source in (task.lq, task.gt)]
        sources |= dict(zip(roots, (task.lq, task.gt), strict=True))
        for lq_name, gt_name in task.names:
            used |= {roots[0] + lq_name, roots[1] + gt_name}
        unfit.update(roots[0] + name for name in task.left_out)
    findings = []
    for root in sorted(sources):
        names = sources[root].names()
        findings += [Finding(NOTE, 'unread', '', line) for line in sources[root].unread]
        extra = [name for name in names if root + name not in used]
        inner = tuple(other for other in sources if other != root and other.startswith(root))
        extra = [name for name in extra if not inner or not (root + name).startswith(inner)]
        items = [(name, 'does not fit the pairing rule' if root + name in unfit else '') for name in extra]
        if items:
            told = f'{len(items):,} of {len(names):,} images in {sources[root].root} are not used by any task.'
            findings.append(Finding(NOTE, 'extra', '', told, items))
    return findings


def duplicates_of(ours: Sequence[CheckedDataset], images: Images) -> list[Duplicates]:
    """Clear images that training and test sets share, for each pair of tasks."""
    clear = [(dataset, task, images.clear(task)) for dataset in ours for task in dataset.tasks()]
    first = {path: found for dataset, _, known in clear for path, found in known.items() if dataset.training}
    second = {path: found for dataset, _, known in clear for path, found in known.items() if not dataset.training}
    training_paths, test_paths = list(first), list(second)
    same: dict[str, list[str]] = {path: [path] for path in test_paths if path in first}
    for one, other in find_duplicates(list(first.values()), list(second.values())):
        if training_paths[one] != test_paths[other]:
            same.setdefault(test_paths[other], []).append(training_paths[one])

    found = []
    for _, training_task, training_images in (entry for entry in clear if entry[0].training):
        for dataset, test_task, test_images in (entry for entry in clear if not entry[0].training):
            pairs = [
                (images.where(path), images.where(copy))
                for path in test_images
                for copy in same.get(path, [])
                if copy in training_images
            ]
            if pairs:
                found.append(Duplicates(training_task.name, dataset.where, test_task.name, len(test_images), pairs))
    return found


_KNOWN_LEAK = (75, 100)
_THE_LEAK, _SUCH_A_LEAK = 'This is the leak of the published protocol', 'The published protocol has such a leak'
_LEAK = 'BSD400 holds the clear images of 75 of the 100 test pairs of Rain100L'


def duplicate_findings(duplicates: Sequence[Duplicates], ours: Sequence[CheckedDataset]) -> list[Finding]:
    """One note for each set of shared images, with all tasks that share it."""
    groups: dict[tuple[Any, ...], list[Duplicates]] = {}
    for found in duplicates:
        groups.setdefault((found.test_dataset, *found.pairs), []).append(found)
    types = {(dataset.where, task.name): task.type for dataset in ours for task in dataset.tasks()}
    findings = []
    for group in groups.values():
        training, tests = (
            list(dict.fromkeys(names))
            for names in ([found.training_task for found in group], [found.test_task for found in group])
        )
        where, shared = group[0].test_dataset, len({test for test, _ in group[0].pairs})
        told = (
            f'{where}: {shared:,} of the {group[0].test_images:,} clear images of {", ".join(tests)} are training '
            f'images of {", ".join(training)}.'
        )
        denoise = any(types['datasets.train', name] == 'denoise' for name in training)
        if denoise and any(types[where, name] == 'derain' for name in tests):
            exact = (shared, group[0].test_images) == _KNOWN_LEAK
            told += f' {_THE_LEAK if exact else _SUCH_A_LEAK}: {_LEAK}; published numbers include it.'
        findings.append(Finding(NOTE, 'duplicates', '', told, list(group[0].pairs)))
    return findings
