"""What `basicsr check` found."""

from dataclasses import asdict, dataclass, field
from typing import Any

from promptir_basicsr.optim.rates import RatePoint

ERROR, NOTE = 'error', 'note'
SCHEMA = 1


@dataclass
class Finding:
    """Something to know about the options or the data.

    Attributes:
        severity: `error` where training would be wrong, else `note`.
        kind: a word for programs, see docs/check.md.
        where: place in the option file: of a task, of a data set, or '' for anything else.
        message: for people; begins with the place.
        items: what it is about, each with a name and a detail.
    """

    severity: str
    kind: str
    where: str
    message: str
    items: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class TaskReport:
    """A task as found; `images` is 0 and `draws` and `share` are None where its options do not make a task.

    Attributes:
        where: place in the option file.
        images: images, or pairs, that are there.
        expected_images: the published count, if the options give it.
        samples: of an epoch, before `dataset_enlarge_ratio`.
        share: samples over those of the epoch, 0 to 1.
        draws: samples over images.
        in_batch: samples in every batch; 0 where batches are mixed at random.
        made_by: how its degraded images are made; `pairs` where they are files.
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
    """A data set of the file; `checked` is false for one of another type, which is not looked into."""

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
        iterations: of an epoch.
        epochs: that its iterations amount to.
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
        samples: of an epoch, over all processes.
        batch: over all processes and GPUs, in the first stage.
        iterations: of an epoch, in the first stage.
        epochs: that total_iter amounts to.
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
    """Clear images that a task of training and a task of a test set have in common, as (test, training) paths.

    Attributes:
        test_images: how many clear images the test task has.
    """

    training_task: str
    test_dataset: str
    test_task: str
    test_images: int
    pairs: list[tuple[str, str]]


@dataclass
class Report:
    """All of it. `duplicates` and `learning_rate` are None where they could not be looked at."""

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
