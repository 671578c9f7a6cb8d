"""Check a training, or a test, before it starts. `docs/check.md` lists what is checked."""

from collections.abc import Mapping, Sequence
from typing import Any

from promptir_basicsr.checks.data import (
    CheckedDataset,
    Images,
    count_findings,
    duplicate_findings,
    duplicates_of,
    extra_findings,
    image_findings,
    list_findings,
)
from promptir_basicsr.checks.rehearsal import rehearse
from promptir_basicsr.checks.report import ERROR, NOTE, DatasetReport, EpochReport, Finding, Report, StageReport
from promptir_basicsr.checks.run import averaged_tasks, check_options
from promptir_basicsr.core.problems import Keys, Problem
from promptir_basicsr.data.allinone_dataset import forget_tasks
from promptir_basicsr.data.sampler import plan_epochs
from promptir_basicsr.data.stages import stages_of
from promptir_basicsr.data.tasks import TaskSurvey
from promptir_basicsr.optim.rates import rate_curve
from promptir_basicsr.options.file import Places, read_option_file
from promptir_basicsr.options.run import run_schema


def check_file(
    path: str,
    force_yml: list[str] | None = None,
    *,
    decode: bool = True,
    workers: int = 0,
    processes: int = 1,
    allow_counts: bool = False,
    progress: bool = False,
) -> Report:
    """Check an option file and its data. A file with the section `train` is checked as a training.

    Args:
        force_yml: overrides, as in `basicsr train --force_yml`.
        decode: decode every image once; otherwise read only the file headers, and do not search for duplicates.
        workers: processes that read images; 0 or 1 for the current process.
        processes: number of processes of the training.
        allow_counts: report a number of images other than `expected_images` as a note, not as an error.
        progress: show a progress bar on standard error if that is a terminal.

    Raises:
        OptionError: the file cannot be read as options.
        ImageError: a worker process died, or an image changed during the check.

    Examples:
        >>> from promptir_basicsr.checks import check_file
        >>> report = check_file('mine.yml', ['train:total_iter=100'])
        >>> report.right
        True
    """
    options, places = read_option_file(path, force_yml)
    sets = options['datasets'] if isinstance(options.get('datasets'), Mapping) else {}
    training = 'train' in options or 'train' in sets
    surveys: dict[Keys, list[TaskSurvey]] = {}
    problems = check_options(options, training, processes, surveys)

    sound = run_schema(options.get('model_type'), training).sound(options)[0]
    ours = [
        CheckedDataset.of(str(key), given, surveys[found])
        for key, given in sound.get('datasets', {}).items()
        if (found := ('datasets', str(key))) in surveys
    ]
    images = Images()
    for dataset in ours:
        for task in dataset.tasks():
            images.want(task, decode and (training or task.paired), decode and task.paired)
    images.read(decode, workers, progress)

    report = Report(path, training, decode)
    report.findings = [_told(problem, ours, places) for problem in problems]
    for dataset in ours:
        for survey in dataset.surveys:
            report.findings += list_findings(survey) + count_findings(survey, allow_counts)
            report.findings += image_findings(survey, dataset, images)
    tested = {dataset.where: [task.name for task in dataset.tasks()] for dataset in ours if not dataset.training}
    for where, warning in averaged_tasks(options.get('model_type'), tested).items():
        report.findings.append(Finding(NOTE, 'averaged', where, f'{where}: {warning}'))
    report.findings += extra_findings(ours)
    for key, dataset_options in sets.items():
        where = f'datasets.{key}'
        matching = [dataset for dataset in ours if dataset.where == where]
        report.datasets.append(matching[0].report() if matching else _foreign(where, dataset_options, report))
    if decode and training:
        report.duplicates = duplicates_of(ours, images)
        report.findings += duplicate_findings(report.duplicates, ours)
    if decode and report.right:
        report.findings += [_told(problem, ours, places) for problem in rehearse(options, training, keep=False)]
    forget_tasks()
    if training:
        report.epoch = _epoch(sound, ours, processes)
        _add_rates(report, sound, problems)
    return report


def _told(problem: Problem, ours: Sequence[CheckedDataset], places: Places) -> Finding:
    """A problem as `basicsr train` reports it, with the task or dataset that it belongs to."""
    if problem.kind == 'machine':
        return Finding(NOTE, problem.kind, '', f'This machine: {problem}')
    if problem.kind == 'short' and places.is_replaced(('train', 'total_iter')):
        return Finding(NOTE, problem.kind, '', places.located(problem))
    where = next((dataset.where for dataset in ours if problem.place[:-1][:2] == dataset.path), '')
    where = next((survey.where for dataset in ours for survey in dataset.surveys if problem in survey), where)
    return Finding(ERROR, problem.kind, where, places.located(problem), list(problem.items))


def _foreign(where: str, options: object, report: Report) -> DatasetReport:
    """A third-party dataset: listed, but not checked."""
    options = options if isinstance(options, Mapping) else {}
    kind = str(options.get('type', ''))
    if kind not in ('', 'AllInOneDataset'):
        told = f'{where}: {kind} is not an AllInOneDataset; its images are not checked.'
        report.findings.append(Finding(NOTE, 'not_checked', where, told))
    return DatasetReport(where, str(options.get('name', '')), kind, False)


def _epoch(options: Mapping[str, Any], ours: Sequence[CheckedDataset], processes: int) -> EpochReport | None:
    """The length of an epoch and of the run, if the options define it."""
    dataset = next((dataset for dataset in ours if dataset.training), None)
    samples = dataset.report().samples if dataset else 0
    if dataset is None or not samples or 'batch_size_per_gpu' not in dataset.opt or 'train' not in options:
        return None
    total, stages, total_samples = options['train'].get('total_iter'), [], 0
    for stage in stages_of(dataset.opt):
        opt = {**dataset.opt, 'batch_size_per_gpu': stage.batch}
        plan = plan_epochs({**options, 'datasets': {'train': opt}}, samples, processes)
        if plan is None or not plan.iterations:
            return None
        end, drawn = int(min(stage.until, total)), plan.samples
        if (count := end - stage.begin) > 0:
            epochs = count / plan.iterations
            stages.append(StageReport(end, stage.gt_size, plan.batch, plan.iterations, epochs))
            total_samples += count * plan.batch
    first, epochs = stages[0], sum(stage.epochs for stage in stages)
    given = stages if dataset.opt.get('stages') else []
    return EpochReport(drawn, first.batch, first.iterations, total, epochs, total_samples, processes, given)


_RATE_OPTIONS = ('total_iter', 'warmup_iter', 'optim_g', 'scheduler')


def _add_rates(report: Report, options: Mapping[str, Any], problems: Sequence[Problem]) -> None:
    """Add the learning rate, if the options of the schedule are valid."""
    train = options.get('train', {})
    if {'optim_g', 'scheduler', 'total_iter'} <= train.keys() and not any(map(_is_of_rate, problems)):
        report.schedule, report.learning_rate = train['scheduler']['type'], rate_curve(train)


def _is_of_rate(problem: Problem) -> bool:
    """Whether a problem affects the learning rate: an option that it depends on, or all of `train`."""
    return problem.place == ('train',) or (problem.place[:1] == ('train',) and problem.place[1] in _RATE_OPTIONS)
