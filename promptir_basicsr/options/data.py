"""Options of data sets and of their tasks.

What needs the images, other tasks or the phase is checked where the tasks are built.
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
    """Keys of any data set that BasicSR reads."""

    name: FileName = option(description='in logs and results; folder of its pictures')
    type: Annotated[str, UNCHECKED] = option(
        description='`AllInOneDataset`, or another data set registered with BasicSR, whose other options pass untouched'
    )
    phase: Annotated[str, UNCHECKED] = option('', description='set by BasicSR from the key of the data set')
    scale: Annotated[int, UNCHECKED] = option(1, description="set by BasicSR to the run's")
    batch_size_per_gpu: Count = option(1, description='samples of an iteration, of each GPU or process; training only')
    num_worker_per_gpu: CountFromZero = option(0, description='processes that read images; training only')
    dataset_enlarge_ratio: Annotated[
        float, Field(strict=True, gt=0, le=1_000_000_000), Told('{found} is not a number above 0.')
    ] = option(1, description='2 takes the whole epoch twice, with other random draws; a fraction takes a random part')
    use_shuffle: Annotated[bool, UNCHECKED] = option(
        True, description='without meaning here: training is always shuffled'
    )
    io_backend: Annotated[dict[str, Any], UNCHECKED] = option(
        {}, description='without meaning here: whether a source is a folder or an LMDB shows in its path'
    )
    prefetch_mode: Annotated[Literal['cpu', 'cuda'], OneOf('mode')] | None = option(
        None, description='BasicSR reads batches ahead on the CPU, or copies them to the GPU ahead (`cuda`)'
    )
    num_prefetch_queue: Count = option(1, description='batches that are read ahead')
    pin_memory: Flag = option(False, description='faster copies to a GPU; switched off where there is none')
    persistent_workers: Flag = option(False, description='workers live on from epoch to epoch; training only')


class LoadedTraining(LoadedDataset):
    """Of a training set BasicSR reads two keys without a default."""

    batch_size_per_gpu: Count = option(description='samples of an iteration, of each GPU or process')
    num_worker_per_gpu: CountFromZero = option(description='processes that read images; 0 reads in the main process')


class StageOptions(Section):
    """A part of a training with crops and batches of its own; see docs/data.md."""

    example = 'such as {until: 92000, gt_size: 128, batch_size_per_gpu: 8}'

    until: Count | None = option(None, description='its last iteration; the last stage may leave it out')
    gt_size: Count | None = option(None, description="side of the crops in pixels; default: the data set's")
    batch_size_per_gpu: Count | None = option(None, description="samples of an iteration; default: the data set's")


def _in_order(stages: list[StageOptions]) -> list[StageOptions]:
    ends = [stage.until for stage in stages]
    ends = ends[:-1] if ends[-1] is None else ends
    known = [end for end in ends if end is not None]
    if len(known) < len(ends) or known != sorted(set(known)):
        raise told('`until` must rise from stage to stage; only the last one may leave it out.')
    return stages


class SamplingOptions(Section):
    """`sampling` of a training set; see docs/sampling.md."""

    example = 'such as {temperature: 2, fixed_shares: true}'

    temperature: Annotated[float, Field(strict=True, gt=0), Told('{found} is not a number above 0.')] | None = option(
        None, description='T: shares in proportion to (images x copies)^(1/T); 1 changes nothing, `.inf` is equal'
    )
    fixed_shares: Flag | None = option(
        None, description='every batch holds the same number of samples of each task; left out: false'
    )
    epoch_size: Count | None = option(
        None, description='samples an epoch; left out, the sum over the tasks of images x copies'
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
        raise OptionError(f'give a list with at least one task, not {tasks!r}.')
    return tasks


Degradation = Annotated[dict[str, Any], Registered('degradation')]
Folder = Annotated[str, Field(strict=True, min_length=1), Told('{found} is not a folder.')]
DataRoot = Annotated[str, Strict(), BeforeValidator(_path), Told('{found} is not a folder.')]
Channels = Annotated[Literal[1, 3], BeforeValidator(_number), Told('{found} is neither 1 (grey) nor 3 (RGB).')]
Names = Annotated[tuple[Annotated[str, BeforeValidator(str)], ...], Field(min_length=1), Told('no names in it.')]
Vocabulary = Annotated[list[StrictStr], AfterValidator(_distinct), Told('give a list of different words, not {found}.')]


def _nullable(schema: dict[str, Any]) -> None:
    """`~` takes a key of the protocol's task away."""
    for key, value in schema['properties'].items():
        kind = {name: part for name, part in value.items() if name not in ('description', 'title', 'default')}
        schema['properties'][key] = {'anyOf': [kind, {'type': 'null'}], 'description': value['description']}


def _check_task_name(name: str) -> str:
    if ' ' in name or not is_file_name(name):
        raise ValueError
    return name


class TaskOptions(Section, json_schema_extra={'required': ['type']}):
    """One degradation of one corpus."""

    name: Annotated[
        str, Strict(), AfterValidator(_check_task_name), Told('{found} is not a name without spaces and slashes.')
    ] = option(None, description='unique in the data set, without spaces and slashes; left out, the `type`')
    type: Text = option(None, description='a word of the vocabulary of degradations, `degradations` of the data set')
    label: CountFromZero | None = option(
        None, description="class id given to networks that take one; left out, the word's position"
    )
    copies: Count = option(1, description='how often each image is seen in an epoch; training only')
    weight: Positive | None = option(None, description='share of the epoch instead of `copies`; training only')
    expected_images: Count | None = option(
        None, description='the published number of images; another number is noted in the log'
    )
    known_counts: Annotated[dict[StrictInt, StrictStr], Told('give `number: what it means`, not {found}.')] | None = (
        option(None, description='`{number: words}`: other numbers that are met and what they mean')
    )
    channels: Channels = option(
        3, description='of the images: 3 is RGB; 1 is grey, the luma of BT.601 in full range, computed before `degrade`'
    )
    clean: Folder = option(None, description='synthesised: folder or LMDB of clean images; needs `degrade`')
    degrade: Annotated[Degrade, Parsed(partial(Degrade, where=()), Degradation | list[Degradation])] = option(
        None, description='synthesised: one degradation, or a list of them applied in order; see degradations.md'
    )
    lq: Folder = option(None, description='paired: folder or LMDB of degraded images; needs `gt`')
    gt: Folder = option(None, description='paired: folder or LMDB of clear images; needs `lq`')
    root: Folder = option(None, description='paired: folder or LMDB of both, instead of `lq` and `gt`; needs `pairing`')
    pairing: Annotated[PairingRule, Parsed(pairing_rule, str | PairingOptions)] = option(
        'same_name', description='paired: name of a rule of data.md, or templates; needed with `root`'
    )
    crop_border_gt: CountFromZero = option(
        0, description='paired: pixels cut from each side of the clear images; 10 for SOTS indoor as published'
    )
    list: Text = option(None, description='text file, one name a line: which images to take; left out, all')
    files: Names = option(None, description='the same as a list of names in the option file')


class TaskChange(TaskOptions, json_schema_extra=_nullable):
    """Changes to a task of a protocol: what is given replaces the protocol's, `~` takes it away."""


class AllInOneOptions(Section, extra='ignore'):
    """What AllInOneDataset reads; see docs/data.md."""

    protocol: Text = option(
        None, description='name or file of a published protocol, which gives what is not given beside it; protocols.md'
    )
    dataroot: DataRoot = option(
        None, description='where relative paths of the tasks start; left out, the current folder'
    )
    tasks: Annotated[list[Any], Parsed(_check_tasks, list[TaskOptions] | dict[str, TaskChange | None])] = option(
        description='list of tasks; beside `protocol` not needed, or a mapping that changes its tasks by name'
    )
    degradations: Vocabulary | None = option(
        None, description='vocabulary of degradations; the position of a word is its label. Left out, five words'
    )
    sampling: SamplingOptions | None = option(
        None, description='shares of the tasks other than by `copies`; training only'
    )
    gt_size: Count | None = option(
        None, description='side of the square random crop in pixels, needed in training; validation uses whole images'
    )
    crop_multiple: Count = option(
        1, description='first cut at the centre to sides that are multiples of this; the published protocols: 16'
    )
    use_hflip: Flag = option(False, description='random horizontal flips')
    use_rot: Flag = option(
        False, description='random vertical flips and quarter turns; with `use_hflip` all 8 symmetries of the square'
    )
    augment_identity: Flag = option(
        True, description='whether the untouched crop is among the flips and turns; the released programs never draw it'
    )
    max_pixels: Count = option(MAX_PIXELS, description='images with more are refused, by name, before they are decoded')
    seed: CountFromZero | None = option(
        None, description='of every random draw; left out, `manual_seed` in training and 0 in validation and test'
    )


class AllInOneTrainingOptions(AllInOneOptions):
    """In training the size of the crops is needed."""

    gt_size: Count = option(description='side of the square random crop in pixels')
    second_crop: Flag = option(
        False,
        description='samples have `lq_key` as well: another crop of the same image, degraded to the same extent, for '
        'ContrastiveModel; `lq` and `gt` stay what they are without it',
    )
    stages: Annotated[list[StageOptions], Field(min_length=1), AfterValidator(_in_order)] | None = option(
        None, description='list of stages, which change `gt_size` and `batch_size_per_gpu` during training; data.md'
    )


def _needs_tasks(schema: dict[str, Any]) -> None:
    """A protocol brings tasks and the size of crops."""
    needed = [key for key in ('tasks', 'gt_size') if key == 'tasks' or key in schema['required']]
    schema['required'] = [key for key in schema['required'] if key not in needed]
    schema['anyOf'] = [{'required': ['protocol']}, {'required': needed}]


class TrainingSet(AllInOneTrainingOptions, LoadedTraining, extra='forbid', json_schema_extra=_needs_tasks):
    """`datasets.train` of type AllInOneDataset."""


class MeasuringSet(AllInOneOptions, LoadedDataset, extra='forbid', json_schema_extra=_needs_tasks):
    """`datasets.val`, `datasets.test` and further ones, of type AllInOneDataset."""
