"""Options of a run: the top level of an option file, and `path`, `val`, `logger` and `dist_params`."""

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
        raise told(f'must be `name: {{type: ...}}`, not {shown(metrics)}.')
    return metrics


def _with_type(options: dict[str, Any]) -> dict[str, Any]:
    if 'type' not in options:
        raise ValueError
    return options


PromptScale = Annotated[Literal[1], Told('{found}; the model does not change the image size, so scale must be 1.')]
SensorScale = Annotated[Literal[1], Told('{found}; SensorModel does not use it, so scale must be 1.')]
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
    Told('must be options with a type, e.g. {{type: calculate_paper_psnr}}, not {found}.'),
    Registered('metric'),
]
Metrics = Annotated[dict[str, Metric], BeforeValidator(_by_name)]
Network = Annotated[dict[str, Any], Registered('network'), Told('must be options `key: value`, not {found}.')]


class PathOptions(Section):
    """`path`."""

    pretrain_network_g: ExistingFile | None = option(
        None,
        description='pretrained weights to start from (fine-tuning). Also loads weights released by the authors of '
        'PromptIR, as a state dict, and weights of the plain network into PromptedNetwork and PIPNAFNet, whose prompts '
        "then start from scratch. The file must not be in the run's own folder",
    )
    param_key_g: Text | None = option(
        'params',
        description='which weights of the file to use: `params` or `params_ema`; a bare state dict is used whole. '
        'Averaged (EMA) weights start from `params_ema` if the file has them',
    )
    strict_load_g: Flag = option(True, description='require that all names and shapes match')
    grow_g: Flag = option(
        False,
        description='start from weights with fewer prompts or labels than the network: those in the file are loaded, '
        'the others start from scratch; see extending.md',
    )
    pretrain_network_sensor: ExistingFile | None = option(
        None, description="weights of the network's `sensor`: a checkpoint of SensorModel; see sensor.md"
    )
    resume_state: ExistingFile | None = option(
        None, description="`.state` file to resume training from; `--auto_resume` uses the run's newest"
    )
    ignore_resume_networks: (
        Annotated[list[str], Field(strict=True), Told('must be a list such as [network_g], not {found}.')] | None
    ) = option(None, description='networks that BasicSR does not load on resume')
    experiments_root: Text | None = option(
        None,
        description='parent of the folders of runs, relative to the current folder. Default: `experiments`',
    )
    results_root: Text | None = option(None, description='the same for `basicsr test`. Default: `results`')


class HostPathOptions(PathOptions, extra='allow'):
    """`path` of third-party models: other keys are theirs, and BasicSR creates a folder for each."""

    __pydantic_extra__: dict[str, Text | None]


class LoggerOptions(Section):
    """`logger`."""

    print_freq: Count = option(
        description='iterations between log lines; losses are means since the previous line, `l_pix_TASK` over the '
        'samples of that task'
    )
    save_checkpoint_freq: Count = option(
        description='iterations between checkpoints: `models/net_g_ITER.pth` and `training_states/ITER.state`, written '
        'atomically'
    )
    use_tb_logger: Flag = option(description='write TensorBoard files to `tb_logger/NAME`')
    wandb: Annotated[dict[str, Any], Told('must be options such as {{project: ...}}, not {found}.')] | None = option(
        None, description='Weights & Biases: `project`, `resume_id`'
    )


class OwnLoggerOptions(LoggerOptions):
    """`logger` of this package's models."""

    keep_last: Count | None = option(
        None,
        description='number of newest checkpoints to keep, in addition to `net_g_best.pth` and `net_g_latest.pth`. '
        'Older ones are removed once the newest can be read back. Default: keep all',
    )
    stop_signals: (
        Annotated[list[StopSignal], Told(f'{{found}} is not a list of signals. Allowed: {", ".join(STOP_SIGNALS)}.')]
        | None
    ) = option(
        None,
        description='signals that stop training with its state saved, in addition to SIGTERM and SIGINT, such as '
        '[SIGUSR1] for `sbatch --signal=USR1@120`; see resume.md',
    )


class DistOptions(Section):
    """`dist_params`."""

    backend: Backend | None = option(
        None, description='communication backend. Default: `nccl`; processes on CPUs use `gloo` instead'
    )
    port: Port | None = option(None, description='port of the first node under Slurm. Default: MASTER_PORT or 29500')
    timeout: Positive | None = option(
        None, description='seconds that a process waits for the others before it fails. Default: 1800'
    )


def _check_labels(labels: Any) -> Any:
    if labels == 1 and labels is not True:  # 1 == True
        raise told(f'{shown(labels)}; allowed: true (labels of the data), sensor, or a mixture {{name: weight}}.')
    return labels


class _ValOptions(Section):
    """Keys of `val` that every validation has."""

    val_freq: Count = option(1, description='iterations between validations; training only, and required there')
    save_img: Flag = option(
        description='write images to `visualization/SET/TASK/`: input, restored and target side by side; in a test '
        'the restored image as well'
    )
    pbar: Flag = option(False, description='show a progress bar')
    use_ema: Flag = option(True, description='validate the averaged (EMA) weights if there are any')


class _OwnValOptions(Section):
    """`val` options that all models of this package share."""

    precision: Precision | None = option(
        None, description='precision of inference in validations and tests. Default: fp32'
    )
    compile: Flag | None = option(
        None,
        description='use torch.compile in validations and tests, for images of any size. Default: false',
    )


class HostValOptions(_ValOptions, extra='ignore'):
    """Keys of `val` that BasicSR and PromptModel read in a test; other keys are the model's."""

    suffix: FileSuffix | None = option(
        None, description='in a test, suffix of the names of restored images. Default: `restored`'
    )
    metrics: Metrics | None = option(
        None, description='name -> `type:` and arguments; the names are the columns of the results'
    )
    best_metric: Text | None = option(
        None, description='metric, averaged over tasks, that selects the best weights. Default: the first of `metrics`'
    )
    contact_sheet: Flag = option(False, description='write `contact_sheet.png`: the first image of each task')
    labels: Annotated[
        Literal[True, 'sensor'] | dict[str | int, Any],
        BeforeValidator(_check_labels),
        Told('{found}; allowed: true (labels of the data), sensor, or a mixture {{name: weight}}.'),
    ] = option(
        True,
        description='labels passed to networks that accept labels: `true`, those of the data; `sensor`, those that the '
        "network's own sensor predicts, see sensor.md; or one mixture for all images, `{derain: 0.7, dehaze: 0.3}`",
    )


class PromptValOptions(_OwnValOptions, HostValOptions, extra='forbid'):
    """`val` of PromptModel in a test."""

    comparisons: CountFromZero | None = option(
        None, description='maximum number of images written per task and validation. Default: all'
    )
    size_multiple: Count | None = option(
        None,
        description="pad the input to multiples of this. Default: the network's `size_multiple` or its option "
        '`window_size`',
    )
    tile: Tile | None = option(
        None,
        description='side in pixels of the tiles that larger images are split into, or `auto` for the largest that fit '
        'into memory; see tiles.md. Default: images are restored whole',
    )
    tile_overlap: CountFromZero | None = option(None, description='pixels that adjacent tiles share. Default: 32')
    tile_statistics: Statistics | None = option(
        None,
        description='source of the whole-image statistics that tiles are restored with: `tiles`, sums over all tiles; '
        '`reduced`, the downscaled image; `tile`, each tile alone. Default: tiles',
    )
    tile_passes: Count | None = option(None, description='passes over the tiles to compute these sums. Default: 1')
    ensemble: Flag | None = option(
        None,
        description='average over the eight rotations and reflections of each image, which takes eight times as long. '
        'Default: false',
    )


class SensorValOptions(_OwnValOptions, _ValOptions):
    """`val` of SensorModel in a test."""


VAL_FREQ: Any = option(description='iterations between validations')


class HostTrainingValOptions(HostValOptions):
    """`val` of third-party models in training."""

    val_freq: Count = VAL_FREQ


class PromptTrainingValOptions(PromptValOptions):
    """`val` of PromptModel in training."""

    val_freq: Count = VAL_FREQ


class SensorTrainingValOptions(SensorValOptions):
    """`val` of SensorModel in training."""

    val_freq: Count = VAL_FREQ


TrainingData = Annotated[dict[str, Any], Registered('training set')]
MeasuringData = Annotated[dict[str, Any], Registered('measuring set')]


class Datasets(Section):
    """The datasets of a run; several of a phase are `val_1`, `val_2`."""

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
            # BasicSR accepts only the exact key for the training set.
            if phase not in cls.model_fields or (phase == 'train' and key != 'train'):
                message = unknown_name('phase', key if phase == 'train' else phase, cls.model_fields)
                problems.append(problem(str(key), f'{message} For several sets use val_1, val_2.'))
            else:
                problems += (LoadedTraining if phase == 'train' else LoadedDataset).problems(dataset, str(key))
        if problems:
            raise refused(OptionError(problems), INSIDE)
        return cls.model_construct()


class TrainingDatasets(Datasets):
    """`datasets` in training."""

    train: TrainingData = option(description='training set')
    val: MeasuringData = option(None, description='validation set; several are `val_1`, `val_2`')


class TestDatasets(Datasets):
    """`datasets` of a test."""

    test: MeasuringData = option(None, description='test set; several are `test_1`, `test_2`')
    val: MeasuringData = option(None, description='another test set')


class HostRun(Section, extra='ignore'):
    """Top-level keys that BasicSR reads for any model."""

    name: FileName = option(
        description='name of the run and of its folder in `experiments/` (train) or `results/` (test). A name that '
        "contains `debug` enables BasicSR's debug mode"
    )
    model_type: Text = option(
        description='`PromptModel`, `SensorModel` for a sensor or `ContrastiveModel` for AirNet; options of other '
        'models registered with BasicSR are not checked'
    )
    num_gpu: Gpus = option(
        description='GPUs of this process: `auto` for all, 0 for the CPU. For multi-GPU training use torchrun and '
        '`--launcher pytorch`'
    )
    manual_seed: Seed | None = option(
        None,
        description='seed of the weights and of the order and random draws of the training data; validation sets have '
        'their own `seed`. Default: BasicSR draws and logs one',
    )
    path: PathOptions = option(description='files and folders')
    base: Text | list[str] | None = option(
        None, description='one or several option files to inherit from; keys set here override theirs. See options.md'
    )


class HostTraining(HostRun):
    """Training of a third-party model."""

    datasets: TrainingDatasets = option(description='`train`, `val`')
    path: HostPathOptions = option(description='files and folders')
    network_g: Network = option(None, description='`type:` a network, and its arguments')
    train: HostTrainOptions = option(description='losses, optimizer, schedule')
    val: HostTrainingValOptions = option(None, description='validation during training')
    logger: LoggerOptions = option(description='what is logged and saved, and when')


class HostTest(HostRun):
    """Test of a third-party model."""

    datasets: TestDatasets = option(description='`test`, `val`')
    path: HostPathOptions = option(description='files and folders')
    network_g: Network = option(None, description='`type:` a network, and its arguments')
    val: HostValOptions = option(None, description='what is measured')


class OwnRun(HostRun, extra='forbid'):
    """Top-level keys that all models of this package share."""

    find_unused_parameters: Flag = option(
        False,
        description='argument of DistributedDataParallel; set automatically for AirNet, not needed by other networks',
    )
    network_g: Network = option(
        description='`type:` a network registered with BasicSR, and the arguments of its constructor'
    )
    dist_params: DistOptions | None = option(None, description='distributed training; see distributed.md')
    precision: Precision | None = option(
        None,
        description='precision of training steps (mixed precision). Default: fp32, without TF32 on GPUs. See '
        'options.md#precision-memory-and-speed',
    )
    formulation: Formulation | None = option(
        None,
        description='two ways to compute the same, in PromptIR, PIP and networks with their blocks. Default: fast',
    )
    activation_checkpointing: Checkpointing | None = option(
        None,
        description='what training steps store for the backward pass: `none`, everything; `gate`, outputs of '
        'convolutions; `block`, inputs of blocks. Default: `gate` for PromptIR and PIP, else `none`',
    )
    channels_last: Flag | None = option(
        None,
        description='use the channels-last memory format. Default: false. PromptIR and PIP choose their layout '
        'themselves',
    )
    compile: Compile | None = option(None, description='use torch.compile in training steps. Default: false')
    kernels: Kernels | None = option(
        None,
        description='`triton`: hand-written kernels for the blocks of PromptIR and PIP on NVIDIA GPUs, see '
        "performance.md#on-a-gpu. Default: torch's own",
    )


class OwnTraining(OwnRun):
    """Training of a model of this package."""

    datasets: TrainingDatasets = option(description='`train`, and `val` or several `val_1`, `val_2`')
    logger: OwnLoggerOptions = option(description='what is logged and saved, and when')


class OwnTest(OwnRun):
    """Test of a model of this package; training sections are ignored, so a training file can be reused."""

    datasets: TestDatasets = option(description='`test`, or several `test_1`, `test_2`')
    logger: Annotated[OwnLoggerOptions, UNCHECKED] = option(None, description='ignored in a test')


class PromptTraining(OwnTraining):
    """An option file of `basicsr train` with `model_type: PromptModel`."""

    scale: PromptScale = option(1, description='must be 1: the model does not change the image size')
    train: PromptTrainOptions = option(description='losses, optimizer, schedule')
    val: PromptTrainingValOptions = option(None, description='validation during training')


class PromptTest(OwnTest):
    """An option file of `basicsr test` with `model_type: PromptModel`."""

    scale: PromptScale = option(1, description='must be 1: the model does not change the image size')
    train: Annotated[PromptTrainOptions, UNCHECKED] = option(None, description='ignored in a test')
    val: PromptValOptions = option(description='what is measured')


class ContrastiveTraining(OwnTraining):
    """An option file of `basicsr train` with `model_type: ContrastiveModel`."""

    scale: PromptScale = option(1, description='must be 1: the model does not change the image size')
    train: ContrastiveTrainOptions = option(description='stages, losses, optimizer, schedule')
    val: PromptTrainingValOptions = option(None, description='validation during training')


class ContrastiveTest(OwnTest):
    """An option file of `basicsr test` with `model_type: ContrastiveModel`."""

    scale: PromptScale = option(1, description='must be 1: the model does not change the image size')
    train: Annotated[ContrastiveTrainOptions, UNCHECKED] = option(None, description='ignored in a test')
    val: PromptValOptions = option(description='what is measured')


class SensorTraining(OwnTraining):
    """An option file of `basicsr train` with `model_type: SensorModel`."""

    scale: SensorScale = option(1, description='must be 1')
    train: SensorTrainOptions = option(description='optimizer, schedule')
    val: SensorTrainingValOptions = option(None, description='validation during training')


class SensorTest(OwnTest):
    """An option file of `basicsr test` with `model_type: SensorModel`."""

    scale: SensorScale = option(1, description='must be 1')
    train: Annotated[SensorTrainOptions, UNCHECKED] = option(None, description='ignored in a test')
    val: SensorValOptions = option(description='what is measured')


OWN_RUNS: dict[tuple[str, bool], type[OwnRun]] = {
    ('PromptModel', True): PromptTraining,
    ('PromptModel', False): PromptTest,
    ('ContrastiveModel', True): ContrastiveTraining,
    ('ContrastiveModel', False): ContrastiveTest,
    ('SensorModel', True): SensorTraining,
    ('SensorModel', False): SensorTest,
}
"""The schema by `model_type` and whether the run is a training."""


def run_schema(model_type: object, is_train: bool) -> type[HostRun]:
    """Return the schema of the options of a run."""
    own = OWN_RUNS.get((model_type, is_train)) if isinstance(model_type, str) else None
    return own or (HostTraining if is_train else HostTest)
