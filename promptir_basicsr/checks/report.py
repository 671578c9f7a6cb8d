"""The report of `basicsr check`."""

from dataclasses import asdict, dataclass, field
from typing import Any

from promptir_basicsr.optim.rates import RatePoint

ERROR, NOTE = 'error', 'note'
SCHEMA = 1


@dataclass
class Finding:
    """An error or a note about the options or the data.

    Attributes:
        severity: `error` if training would fail or be wrong, else `note`.
        kind: a keyword for programs, see docs/check.md.
        where: place in the option file of a task or a dataset, or ''.
        message: text that starts with the place.
        items: the files concerned, as pairs of name and detail.

    Examples:
        >>> from promptir_basicsr.checks import Finding, Report
        >>> report = Report('mine.yml', training=True, decoded=True)
        >>> report.findings.append(Finding('error', 'size', 'datasets.train', 'datasets.train: 2 pairs differ.'))
        >>> report.right
        False
    """

    severity: str
    kind: str
    where: str
    message: str
    items: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class TaskReport:
    """A task of a dataset; with invalid options `images` is 0 and `draws` and `share` are None.

    Attributes:
        where: place in the option file.
        images: number of images or pairs found.
        expected_images: the published count, if the options set it.
        samples: per epoch, before `dataset_enlarge_ratio`.
        share: fraction of the epoch's samples, 0 to 1.
        draws: samples per image.
        in_batch: samples in every batch; 0 if batches are mixed at random.
        made_by: how its degraded images are made; `pairs` if they are files.
    """

    where: str
    name: str
    type: str = ''
    label: int | None = None
    images: int = 0
    expected_images: int | None = None
    samples: int = 0
    share: float | None = None
    draws: float | None = None
    in_batch: int = 0
    made_by: str = ''


@dataclass
class DatasetReport:
    """A dataset of the file; `checked` is false for other types than AllInOneDataset."""

    where: str
    name: str
    type: str
    checked: bool
    samples: int = 0
    tasks: list[TaskReport] = field(default_factory=list)


@dataclass
class StageReport:
    """A stage of the run.

    Attributes:
        until: its last iteration.
        gt_size: side of the crops.
        batch: over all processes and GPUs.
        iterations: per epoch.
        epochs: length of the stage in epochs.
    """

    until: int
    gt_size: int
    batch: int
    iterations: int
    epochs: float


@dataclass
class EpochReport:
    """The length of the run.

    Attributes:
        samples: per epoch, over all processes.
        batch: over all processes and GPUs, in the first stage.
        iterations: per epoch, in the first stage.
        epochs: length of the run in epochs.
        stages: empty without the option.
    """

    samples: int
    batch: int
    iterations: int
    total_iter: int
    epochs: float
    total_samples: int
    processes: int
    stages: list[StageReport] = field(default_factory=list)


@dataclass
class Duplicates:
    """Clear images that a training task and a test task share, as (test, training) paths.

    Attributes:
        test_images: number of clear images of the test task.
    """

    training_task: str
    test_dataset: str
    test_task: str
    test_images: int
    pairs: list[tuple[str, str]]


@dataclass
class Report:
    """The whole report. `duplicates` and `learning_rate` are None if they were not checked.

    Examples:
        >>> from promptir_basicsr.checks import check_file
        >>> report = check_file('mine.yml', decode=False)
        >>> [(task.name, task.images) for task in report.datasets[0].tasks]
        [('denoise', 1)]
    """

    file: str
    training: bool
    decoded: bool
    datasets: list[DatasetReport] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    epoch: EpochReport | None = None
    schedule: str = ''
    learning_rate: list[RatePoint] | None = None
    duplicates: list[Duplicates] | None = None

    def of(self, severity: str) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == severity]

    @property
    def right(self) -> bool:
        return not self.of(ERROR)

    def as_json(self) -> dict[str, Any]:
        """The document that `--json` prints."""
        rates = self.learning_rate
        return {
            'schema': SCHEMA,
            'file': self.file,
            'right': self.right,
            'training': self.training,
            'decoded': self.decoded,
            'datasets': [
                {**vars(dataset), 'tasks': [vars(task) for task in dataset.tasks]} for dataset in self.datasets
            ],
            'findings': [
                {**vars(finding), 'items': [{'name': name, 'detail': detail} for name, detail in finding.items]}
                for finding in self.findings
            ],
            'epoch': asdict(self.epoch) if self.epoch else None,
            'schedule': self.schedule,
            'learning_rate': None if rates is None else [point._asdict() for point in rates],
            'duplicates': None
            if self.duplicates is None
            else [
                {**vars(found), 'pairs': [{'test': test, 'training': training} for test, training in found.pairs]}
                for found in self.duplicates
            ],
        }
