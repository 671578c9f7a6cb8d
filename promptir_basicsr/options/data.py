"""Options of datasets and their tasks.

Checks that need the images, other tasks or the phase are made where the tasks are built.
"""

import os
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, Strict, StrictInt, StrictStr

from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.core.vocabulary import MAX_PIXELS
from promptir_basicsr.degradations.spec import Degrade
from promptir_basicsr.options.pairing import PairingOptions, PairingRule, pairing_rule
from promptir_basicsr.options.registered import Registered
from promptir_basicsr.options.section import (
    UNCHECKED,
    Count,
    CountFromZero,
    FileName,
    Flag,
    OneOf,
    Parsed,
    Positive,
    Section,
    Text,
    Told,
    is_file_name,
    option,
    told,
)


class LoadedDataset(Section, extra='ignore'):
    """Keys that BasicSR reads of any dataset."""

    name: FileName = option(description='name in logs and results, and of the folder of its images')
    type: Annotated[str, UNCHECKED] = option(
        description='`AllInOneDataset`, or another dataset registered with BasicSR, whose other options are not checked'
    )
    phase: Annotated[str, UNCHECKED] = option('', description='set by BasicSR from the key of the dataset')
    scale: Annotated[int, UNCHECKED] = option(1, description="set by BasicSR to the run's `scale`")
    batch_size_per_gpu: Count = option(1, description='samples per iteration on each GPU or process; training only')
    num_worker_per_gpu: CountFromZero = option(0, description='worker processes of the data loader; training only')
    dataset_enlarge_ratio: Annotated[
        float, Field(strict=True, gt=0, le=1_000_000_000), Told('{found} is not a number above 0.')
    ] = option(1, description='2 uses the whole epoch twice, with new random draws; a fraction uses a random part')
    use_shuffle: Annotated[bool, UNCHECKED] = option(True, description='ignored: training is always shuffled')
    io_backend: Annotated[dict[str, Any], UNCHECKED] = option(
        {}, description='ignored: the path decides whether a source is a folder or an LMDB'
    )
    prefetch_mode: Annotated[Literal['cpu', 'cuda'], OneOf('mode')] | None = option(
        None, description='prefetch batches on the CPU (`cpu`), or copy them to the GPU in advance as well (`cuda`)'
    )
    num_prefetch_queue: Count = option(1, description='batches to prefetch')
    pin_memory: Flag = option(False, description='pin memory for faster copies to the GPU; off without a GPU')
    persistent_workers: Flag = option(False, description='keep worker processes between epochs; training only')


class LoadedTraining(LoadedDataset):
    """Keys that BasicSR reads of a training set; two of them have no default there."""

    batch_size_per_gpu: Count = option(description='samples per iteration on each GPU or process')
    num_worker_per_gpu: CountFromZero = option(
        description='worker processes of the data loader; 0 loads in the main process'
    )


class StageOptions(Section):
    """A stage of training with its own crop size and batch size; see docs/data.md."""

    example = 'such as {until: 92000, gt_size: 128, batch_size_per_gpu: 8}'

    until: Count | None = option(None, description='last iteration of the stage; optional in the last stage')
    gt_size: Count | None = option(None, description="side of the crops in pixels. Default: the dataset's")
    batch_size_per_gpu: Count | None = option(
        None, description="samples per iteration on each GPU or process. Default: the dataset's"
    )


def _in_order(stages: list[StageOptions]) -> list[StageOptions]:
    ends = [stage.until for stage in stages]
    ends = ends[:-1] if ends[-1] is None else ends
    known = [end for end in ends if end is not None]
    if len(known) < len(ends) or known != sorted(set(known)):
        raise told('`until` must increase from stage to stage; only the last stage may omit it.')
    return stages


class SamplingOptions(Section):
    """`sampling` of a training set; see docs/sampling.md."""

    example = 'such as {temperature: 2, fixed_shares: true}'

    temperature: Annotated[float, Field(strict=True, gt=0), Told('{found} is not a number above 0.')] | None = option(
        None,
        description='T: shares are proportional to (images x copies)^(1/T); 1 changes nothing, `.inf` makes them equal',
    )
    fixed_shares: Flag | None = option(
        None, description='every batch has the same number of samples of each task. Default: false'
    )
    epoch_size: Count | None = option(
        None, description='samples per epoch. Default: the sum of images x copies over the tasks'
    )


def _path(path: Any) -> Any:
    return '.' if path is None or path == '' else os.fspath(path) if isinstance(path, os.PathLike) else path


def _number(value: Any) -> Any:
    if isinstance(value, bool):  # True == 1
        raise ValueError
    return value


def _distinct(words: list[str]) -> list[str]:
    if len(set(words)) != len(words):
        raise ValueError
    return words


def _check_tasks(tasks: Any) -> Any:
    if not isinstance(tasks, list | tuple) or not tasks:
        raise OptionError(f'must be a list with at least one task, not {tasks!r}.')
    return tasks


Degradation = Annotated[dict[str, Any], Registered('degradation')]
Folder = Annotated[str, Field(strict=True, min_length=1), Told('{found} is not a folder.')]
DataRoot = Annotated[str, Strict(), BeforeValidator(_path), Told('{found} is not a folder.')]
Channels = Annotated[Literal[1, 3], BeforeValidator(_number), Told('{found} is neither 1 (grey) nor 3 (RGB).')]
Names = Annotated[
    tuple[Annotated[str, BeforeValidator(str)], ...], Field(min_length=1), Told('must be a list of at least one name.')
]
Vocabulary = Annotated[
    list[StrictStr], AfterValidator(_distinct), Told('must be a list of different words, not {found}.')
]


def _nullable(schema: dict[str, Any]) -> None:
    """Allow `~`, which removes a key of the protocol's task."""
    for key, value in schema['properties'].items():
        kind = {name: part for name, part in value.items() if name not in ('description', 'title', 'default')}
        schema['properties'][key] = {'anyOf': [kind, {'type': 'null'}], 'description': value['description']}


def _check_task_name(name: str) -> str:
    if ' ' in name or not is_file_name(name):
        raise ValueError
    return name


class TaskOptions(Section, json_schema_extra={'required': ['type']}):
    """One degradation of one dataset."""

    name: Annotated[
        str, Strict(), AfterValidator(_check_task_name), Told('{found} is not a name without spaces and slashes.')
    ] = option(None, description='unique in the dataset, without spaces and slashes. Default: the `type`')
    type: Text = option(None, description='degradation: a word of `degradations` of the dataset')
    label: CountFromZero | None = option(
        None, description="class id for networks that accept one. Default: the word's position in `degradations`"
    )
    copies: Count = option(1, description='how many times an epoch contains each image; training only')
    weight: Positive | None = option(None, description='share of the epoch instead of `copies`; training only')
    expected_images: Count | None = option(
        None, description='published number of images; the log reports a different number'
    )
    known_counts: (
        Annotated[dict[StrictInt, StrictStr], Told('must be `number: what it means`, not {found}.')] | None
    ) = option(None, description='`{number: words}`: other numbers of images that occur, and their meaning')
    channels: Channels = option(
        3, description='3 for RGB; 1 for grey, the full-range luma of BT.601, computed before `degrade`'
    )
    clean: Folder = option(None, description='synthesised tasks: folder or LMDB of clean images; needs `degrade`')
    degrade: Annotated[Degrade, Parsed(partial(Degrade, where=()), Degradation | list[Degradation])] = option(
        None, description='synthesised tasks: one degradation, or a list applied in order; see degradations.md'
    )
    lq: Folder = option(None, description='paired tasks: folder or LMDB of degraded images; needs `gt`')
    gt: Folder = option(None, description='paired tasks: folder or LMDB of ground truth; needs `lq`')
    root: Folder = option(
        None, description='paired tasks: folder or LMDB of both, instead of `lq` and `gt`; needs `pairing`'
    )
    pairing: Annotated[PairingRule, Parsed(pairing_rule, str | PairingOptions)] = option(
        'same_name', description='paired tasks: name of a rule in data.md, or templates; required with `root`'
    )
    crop_border_gt: CountFromZero = option(
        0, description='paired tasks: pixels cut from each side of the ground truth; 10 for SOTS indoor as published'
    )
    list: Text = option(None, description='text file with one name per line: the images to use. Default: all')
    files: Names = option(None, description='names of the images to use, as a list in the option file')


class TaskChange(TaskOptions, json_schema_extra=_nullable):
    """Changes to a task of a protocol: keys set here replace the protocol's, `~` removes them."""


class AllInOneOptions(Section, extra='ignore'):
    """Options of AllInOneDataset; see docs/data.md."""

    protocol: Text = option(
        None, description='name or file of a published protocol; keys set here override the protocol. See protocols.md'
    )
    dataroot: DataRoot = option(
        None, description='folder that relative paths of the tasks start from. Default: the current folder'
    )
    tasks: Annotated[list[Any], Parsed(_check_tasks, list[TaskOptions] | dict[str, TaskChange | None])] = option(
        description='list of tasks; with `protocol`, optionally a mapping that changes its tasks by name'
    )
    degradations: Vocabulary | None = option(
        None, description='vocabulary of degradations; the position of a word is its label. Default: five words'
    )
    sampling: SamplingOptions | None = option(
        None, description='shares of the tasks by other rules than `copies`; training only'
    )
    gt_size: Count | None = option(
        None, description='side of the square random crop in pixels; required in training. Validation uses whole images'
    )
    crop_multiple: Count = option(
        1, description='first crop images at the centre to multiples of this; 16 in the published protocols'
    )
    use_hflip: Flag = option(False, description='random horizontal flips')
    use_rot: Flag = option(
        False,
        description='random vertical flips and quarter turns; with `use_hflip` all 8 symmetries of the square',
    )
    augment_identity: Flag = option(
        True,
        description='include the unchanged crop among the flips and rotations; the released programs never draw it',
    )
    max_pixels: Count = option(
        MAX_PIXELS, description='larger images are rejected before decoding, with their name in the message'
    )
    seed: CountFromZero | None = option(
        None, description='seed of all random draws. Default: `manual_seed` in training, 0 in validation and test'
    )


class AllInOneTrainingOptions(AllInOneOptions):
    """Options of AllInOneDataset in training, where the size of the crops is required."""

    gt_size: Count = option(description='side of the square random crop in pixels')
    second_crop: Flag = option(
        False,
        description='add `lq_key` to samples: another crop of the same image with the same degradation, for '
        'ContrastiveModel; `lq` and `gt` do not change',
    )
    stages: Annotated[list[StageOptions], Field(min_length=1), AfterValidator(_in_order)] | None = option(
        None, description='list of stages that change `gt_size` and `batch_size_per_gpu` during training; see data.md'
    )


def _needs_tasks(schema: dict[str, Any]) -> None:
    """Require either `protocol`, or the tasks and the crop size that it supplies."""
    needed = [key for key in ('tasks', 'gt_size') if key == 'tasks' or key in schema['required']]
    schema['required'] = [key for key in schema['required'] if key not in needed]
    schema['anyOf'] = [{'required': ['protocol']}, {'required': needed}]


class TrainingSet(AllInOneTrainingOptions, LoadedTraining, extra='forbid', json_schema_extra=_needs_tasks):
    """`datasets.train` of type AllInOneDataset."""


class MeasuringSet(AllInOneOptions, LoadedDataset, extra='forbid', json_schema_extra=_needs_tasks):
    """`datasets.val`, `datasets.test` and more of them, of type AllInOneDataset."""
