"""Options of a whole run: what an option file may hold at its top, and in `path`, `val` and `logger`."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, Strict, model_validator
from pydantic.fields import FieldInfo

from promptir_basicsr.core import vocabulary
from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.core.messages import missing, shown, unknown_name
from promptir_basicsr.core.problems import problem
from promptir_basicsr.core.vocabulary import STOP_SIGNALS, StopSignal
from promptir_basicsr.options.data import LoadedDataset, LoadedTraining
from promptir_basicsr.options.registered import Registered
from promptir_basicsr.options.section import (
    INSIDE,
    UNCHECKED,
    Count,
    CountFromZero,
    ExistingFile,
    FileName,
    FileSuffix,
    Flag,
    OneOf,
    Port,
    Positive,
    Section,
    Seed,
    Text,
    Told,
    option,
    refused,
    told,
)
from promptir_basicsr.options.train import (
    ContrastiveTrainOptions,
    HostTrainOptions,
    PromptTrainOptions,
    SensorTrainOptions,
)


def _by_name(metrics: Any) -> Any:
    if not isinstance(metrics, Mapping) or not all(isinstance(name, str) for name in metrics):
        raise told(f'give `name: {{type: ...}}`, not {shown(metrics)}.')
    return metrics


def _with_type(options: dict[str, Any]) -> dict[str, Any]:
    if 'type' not in options:
        raise ValueError
    return options


PromptScale = Annotated[Literal[1], Told('{found}; the model restores at the same size, scale: 1.')]
SensorScale = Annotated[Literal[1], Told('{found}; SensorModel has no use for it, scale: 1.')]
Precision = Annotated[vocabulary.Precision, OneOf('precision')]
Compile = Annotated[
    Annotated[bool, Strict()] | Literal['max-autotune'], Told('{found}; allowed: false, true, max-autotune.')
]
Formulation = Annotated[vocabulary.Formulation, OneOf('choice')]
Kernels = Annotated[vocabulary.Kernels, OneOf('choice')]
Checkpointing = Annotated[vocabulary.Checkpointing, OneOf('choice')]
Gpus = Annotated[Literal['auto'] | CountFromZero, Told('{found} is not a whole number of at least 0.')]
Backend = Annotated[Literal['nccl', 'gloo', 'mpi', 'cpu:gloo,cuda:nccl'], OneOf('backend')]
Tile = Annotated[Literal['auto'] | Count, Told('{found} is neither auto nor a whole number of pixels, at least 1.')]
Statistics = Annotated[vocabulary.Statistics, OneOf('choice')]
Metric = Annotated[
    dict[str, Any],
    AfterValidator(_with_type),
    Told('give options with a type, e.g. {{type: calculate_paper_psnr}}, not {found}.'),
    Registered('metric'),
]
Metrics = Annotated[dict[str, Metric], BeforeValidator(_by_name)]
Network = Annotated[dict[str, Any], Registered('network'), Told('give options `key: value`, not {found}.')]


class PathOptions(Section):
    """`path`."""

    pretrain_network_g: ExistingFile | None = option(
        None,
        description="weights to start from; weights released by PromptIR's authors load as well, as a state dict, and "
        'those of the plain network into PromptedNetwork and PIPNAFNet, whose prompts then start afresh. The file must '
        'not lie in the folder of the run itself',
    )
    param_key_g: Text | None = option(
        'params',
        description='which weights of the file: `params`, `params_ema`; of a bare state dict, all. Averaged weights '
        '(`ema_decay`) start from `params_ema` where the file has them',
    )
    strict_load_g: Flag = option(True, description='every name and size must fit')
    grow_g: Flag = option(
        False,
        description='start from weights with fewer prompts or labels than the network: those of the file are kept, the '
        'others start afresh; see extending.md',
    )
    pretrain_network_sensor: ExistingFile | None = option(
        None, description="weights of the network's `sensor`: a checkpoint of SensorModel; see sensor.md"
    )
    resume_state: ExistingFile | None = option(
        None, description='a `.state` file to continue from; `--auto_resume` takes the newest of the run'
    )
    ignore_resume_networks: (
        Annotated[list[str], Field(strict=True), Told('give a list such as [network_g], not {found}.')] | None
    ) = option(None, description="BasicSR's: networks that a resume leaves alone")
    experiments_root: Text | None = option(
        None,
        description='folder that holds the folders of runs, relative to the current folder; left out, `experiments`',
    )
    results_root: Text | None = option(None, description='the same for `basicsr test`; left out, `results`')


class HostPathOptions(PathOptions, extra='allow'):
    """`path` of models that are not ours: further keys are theirs, and BasicSR makes a folder of each."""

    __pydantic_extra__: dict[str, Text | None]


class LoggerOptions(Section):
    """`logger`."""

    print_freq: Count = option(
        description='iterations between lines of the log; losses are means since the line before, `l_pix_TASK` over '
        'the samples of that task'
    )
    save_checkpoint_freq: Count = option(
        description='iterations between checkpoints: `models/net_g_ITER.pth` and `training_states/ITER.state`, written '
        'whole or not at all'
    )
    use_tb_logger: Flag = option(description='TensorBoard files below `tb_logger/NAME`')
    wandb: Annotated[dict[str, Any], Told('give options such as {{project: ...}}, not {found}.')] | None = option(
        None, description="BasicSR's: `project`, `resume_id`"
    )


class OwnLoggerOptions(LoggerOptions):
    """`logger` of the models here."""

    keep_last: Count | None = option(
        None,
        description='checkpoints that are kept, the newest ones; `net_g_best.pth` and `net_g_latest.pth` stay as well. '
        'Older ones are removed once the newest can be read back. Left out, all are kept',
    )
    stop_signals: (
        Annotated[list[StopSignal], Told(f'{{found}}; give a list of some of {", ".join(STOP_SIGNALS)}.')] | None
    ) = option(
        None,
        description='signals that end a training with its state saved, beside SIGTERM and SIGINT, such as [SIGUSR1] '
        'for `sbatch --signal=USR1@120`; see resume.md',
    )


class DistOptions(Section):
    """`dist_params`."""

    backend: Backend | None = option(
        None, description='left out, `nccl`. Processes on CPUs, which it does not know, take `gloo` in its place'
    )
    port: Port | None = option(None, description='of the first node, under Slurm; left out, MASTER_PORT or 29500')
    timeout: Positive | None = option(
        None, description='seconds that a process waits for the others before it gives up; left out, 1800'
    )


def _check_labels(labels: Any) -> Any:
    if labels == 1 and labels is not True:  # which Python takes for true
        raise told(f'{shown(labels)}; allowed: true (those of the data), sensor, or a mixture {{name: weight}}.')
    return labels


class _ValOptions(Section):
    """What every validation has."""

    val_freq: Count = option(1, description='iterations between validations; training only, where it is needed')
    save_img: Flag = option(
        description='write pictures below `visualization/SET/TASK/`: in training input, restored and target side by '
        'side, in a test the restored image as well'
    )
    pbar: Flag = option(False, description='progress bar')
    use_ema: Flag = option(True, description='validate the averaged weights where there are any')


class _OwnValOptions(Section):
    """What validations of all models here have in common."""

    precision: Precision | None = option(None, description='of the network in validations and tests; left out, fp32')
    compile: Flag | None = option(
        None,
        description='torch.compile of the network in validations and tests, for images of any size; left out, false',
    )


class HostValOptions(_ValOptions, extra='ignore'):
    """What BasicSR, and PromptModel, read of `val` in a test; what else there is, is the model's."""

    suffix: FileSuffix | None = option(
        None, description='in a test, ending of the names of restored images; left out, `restored`'
    )
    metrics: Metrics | None = option(None, description='name -> `type:` and options; the names are the columns')
    best_metric: Text | None = option(
        None, description='decides, averaged over tasks, on the best weights; left out, the first of `metrics`'
    )
    contact_sheet: Flag = option(False, description='write `contact_sheet.png`: the first image of each task')
    labels: Annotated[
        Literal[True, 'sensor'] | dict[str | int, Any],
        BeforeValidator(_check_labels),
        Told('{found}; allowed: true (those of the data), sensor, or a mixture {{name: weight}}.'),
    ] = option(
        True,
        description='the labels that networks are given which take any: `true`, those of the data, `sensor`, those '
        "that the network's own sensor finds, see sensor.md, or a mixture for every image, "
        '`{derain: 0.7, dehaze: 0.3}`',
    )


class PromptValOptions(_OwnValOptions, HostValOptions, extra='forbid'):
    """`val` of PromptModel in a test."""

    comparisons: CountFromZero | None = option(None, description='most pictures a task and validation; left out, all')
    size_multiple: Count | None = option(
        None,
        description="pad the input to multiples of this; left out, the network's `size_multiple` or its option "
        '`window_size`',
    )
    tile: Tile | None = option(
        None,
        description='side of the tiles in which larger images are restored, in pixels, or `auto` for the largest that '
        'fit the memory; see tiles.md. Left out, images are restored whole',
    )
    tile_overlap: CountFromZero | None = option(None, description='pixels that neighbouring tiles share; left out, 32')
    tile_statistics: Statistics | None = option(
        None,
        description='what tiles are restored with of what the network learns from the whole image: `tiles`, sums over '
        'all tiles; `reduced`, that of the reduced image; `tile`, nothing. Left out, tiles',
    )
    tile_passes: Count | None = option(
        None, description='passes over the tiles in which these sums are worked out; left out, 1'
    )
    ensemble: Flag | None = option(
        None,
        description='the mean over the eight rotations and reflections of each image, in eight times the time; left '
        'out, false',
    )


class SensorValOptions(_OwnValOptions, _ValOptions):
    """`val` of SensorModel in a test."""


VAL_FREQ: Any = option(description='iterations between validations')


class HostTrainingValOptions(HostValOptions):
    """`val` of other models in a training."""

    val_freq: Count = VAL_FREQ


class PromptTrainingValOptions(PromptValOptions):
    """`val` of PromptModel in a training."""

    val_freq: Count = VAL_FREQ


class SensorTrainingValOptions(SensorValOptions):
    """`val` of SensorModel in a training."""

    val_freq: Count = VAL_FREQ


TrainingData = Annotated[dict[str, Any], Registered('training set')]
MeasuringData = Annotated[dict[str, Any], Registered('measuring set')]


class Datasets(Section):
    """The data sets of a run; several of a phase are `val_1`, `val_2`."""

    @classmethod
    def field_of(cls, key: str) -> FieldInfo | None:
        return cls.model_fields.get(key.partition('_')[0])

    @model_validator(mode='wrap')
    @classmethod
    def _check(cls, datasets: Any, handler: Callable[[Any], Self]) -> Self:
        if not isinstance(datasets, Mapping):
            return handler(datasets)
        needed = [key for key, field in cls.model_fields.items() if field.is_required()]
        problems = missing('', datasets, needed)
        for key, dataset in datasets.items():
            phase = str(key).partition('_')[0]
            # BasicSR takes only the exact word for the training set.
            if phase not in cls.model_fields or (phase == 'train' and key != 'train'):
                message = unknown_name('phase', key if phase == 'train' else phase, cls.model_fields)
                problems.append(problem(str(key), f'{message} Several sets: val_1, val_2.'))
            else:
                problems += (LoadedTraining if phase == 'train' else LoadedDataset).problems(dataset, str(key))
        if problems:
            raise refused(OptionError(problems), INSIDE)
        return cls.model_construct()


class TrainingDatasets(Datasets):
    """`datasets` of a training."""

    train: TrainingData = option(description='the training set')
    val: MeasuringData = option(None, description='a validation set; several are `val_1`, `val_2`')


class TestDatasets(Datasets):
    """`datasets` of a test."""

    test: MeasuringData = option(None, description='a test set; several are `test_1`, `test_2`')
    val: MeasuringData = option(None, description='a test set as well')


class HostRun(Section, extra='ignore'):
    """What BasicSR reads of a run of any model."""

    name: FileName = option(
        description='of the run: folder below `experiments/` (train) or `results/` (test). A name with `debug` in it '
        "switches on BasicSR's debug mode"
    )
    model_type: Text = option(
        description='`PromptModel`, `SensorModel` for a sensor or `ContrastiveModel` for AirNet; other models '
        'registered with BasicSR get their options untouched'
    )
    num_gpu: Gpus = option(
        description='GPUs of this process, `auto` for all there are, 0 for the CPU. Several processes: torchrun and '
        '`--launcher pytorch`'
    )
    manual_seed: Seed | None = option(
        None,
        description='of weights, order and every random draw of the training data; validation has a `seed` of its own. '
        'Left out, BasicSR draws one and logs it',
    )
    path: PathOptions = option(description='files and folders')
    base: Text | list[str] | None = option(
        None, description='option file, or several, whose options count where this file has none; see options.md'
    )


class HostTraining(HostRun):
    """A training of a model that is not ours."""

    datasets: TrainingDatasets = option(description='`train`, `val`')
    path: HostPathOptions = option(description='files and folders')
    network_g: Network = option(None, description='`type:` a network, and its arguments')
    train: HostTrainOptions = option(description='the training')
    val: HostTrainingValOptions = option(None, description='validation during the training')
    logger: LoggerOptions = option(description='what is written, and when')


class HostTest(HostRun):
    """A test of a model that is not ours."""

    datasets: TestDatasets = option(description='`test`, `val`')
    path: HostPathOptions = option(description='files and folders')
    network_g: Network = option(None, description='`type:` a network, and its arguments')
    val: HostValOptions = option(None, description='what is measured')


class OwnRun(HostRun, extra='forbid'):
    """What runs of all models here have in common."""

    find_unused_parameters: Flag = option(
        False, description='of DistributedDataParallel; not needed by the networks here, set where AirNet needs it'
    )
    network_g: Network = option(
        description="`type:` a network registered with BasicSR, and its constructor's arguments"
    )
    dist_params: DistOptions | None = option(None, description='of several processes; see distributed.md')
    precision: Precision | None = option(
        None,
        description='of a training step; left out, fp32, and GPUs do not round to TF32 then. See '
        'options.md#precision-memory-and-speed',
    )
    formulation: Formulation | None = option(
        None,
        description='two ways to compute the same, in PromptIR, PIP and networks with their blocks; left out, fast',
    )
    activation_checkpointing: Checkpointing | None = option(
        None,
        description='what a training step keeps for its backward pass: `none` everything, `gate` what convolutions '
        "give, `block` the inputs of blocks. Left out, the network's own: `gate` for PromptIR and PIP, else `none`",
    )
    channels_last: Flag | None = option(
        None,
        description='images and convolutions with the channels of a pixel side by side; left out, false. PromptIR and '
        'PIP find their layout themselves',
    )
    compile: Compile | None = option(None, description='torch.compile of the training step; left out, false')
    kernels: Kernels | None = option(
        None,
        description='`triton`: hand-written kernels for the blocks of PromptIR and PIP on NVIDIA GPUs, see '
        "performance.md#on-a-gpu; omitted, torch's own",
    )


class OwnTraining(OwnRun):
    """A training of ours."""

    datasets: TrainingDatasets = option(description='`train`, and `val` or several `val_1`, `val_2`')
    logger: OwnLoggerOptions = option(description='what is written, and when')


class OwnTest(OwnRun):
    """A test of ours; the sections of the training are passed over, so that a file can be copied."""

    datasets: TestDatasets = option(description='`test`, or several `test_1`, `test_2`')
    logger: Annotated[OwnLoggerOptions, UNCHECKED] = option(None, description='of the training; passed over')


class PromptTraining(OwnTraining):
    """An option file of `basicsr train` with `model_type: PromptModel`."""

    scale: PromptScale = option(1, description='1; the model restores at the same size')
    train: PromptTrainOptions = option(description='losses, optimizer, schedule')
    val: PromptTrainingValOptions = option(None, description='validation during the training')


class PromptTest(OwnTest):
    """An option file of `basicsr test` with `model_type: PromptModel`."""

    scale: PromptScale = option(1, description='1; the model restores at the same size')
    train: Annotated[PromptTrainOptions, UNCHECKED] = option(None, description='of the training; passed over')
    val: PromptValOptions = option(description='what is measured')


class ContrastiveTraining(OwnTraining):
    """An option file of `basicsr train` with `model_type: ContrastiveModel`."""

    scale: PromptScale = option(1, description='1; the model restores at the same size')
    train: ContrastiveTrainOptions = option(description='stages, losses, optimizer, schedule')
    val: PromptTrainingValOptions = option(None, description='validation during the training')


class ContrastiveTest(OwnTest):
    """An option file of `basicsr test` with `model_type: ContrastiveModel`."""

    scale: PromptScale = option(1, description='1; the model restores at the same size')
    train: Annotated[ContrastiveTrainOptions, UNCHECKED] = option(None, description='of the training; passed over')
    val: PromptValOptions = option(description='what is measured')


class SensorTraining(OwnTraining):
    """An option file of `basicsr train` with `model_type: SensorModel`."""

    scale: SensorScale = option(1, description='1')
    train: SensorTrainOptions = option(description='optimizer, schedule')
    val: SensorTrainingValOptions = option(None, description='validation during the training')


class SensorTest(OwnTest):
    """An option file of `basicsr test` with `model_type: SensorModel`."""

    scale: SensorScale = option(1, description='1')
    train: Annotated[SensorTrainOptions, UNCHECKED] = option(None, description='of the training; passed over')
    val: SensorValOptions = option(description='what is measured')


OWN_RUNS: dict[tuple[str, bool], type[OwnRun]] = {
    ('PromptModel', True): PromptTraining,
    ('PromptModel', False): PromptTest,
    ('ContrastiveModel', True): ContrastiveTraining,
    ('ContrastiveModel', False): ContrastiveTest,
    ('SensorModel', True): SensorTraining,
    ('SensorModel', False): SensorTest,
}
"""By `model_type`, and whether it is a training."""


def run_schema(model_type: object, is_train: bool) -> type[HostRun]:
    """What decides on the options of a run."""
    own = OWN_RUNS.get((model_type, is_train)) if isinstance(model_type, str) else None
    return own or (HostTraining if is_train else HostTest)
