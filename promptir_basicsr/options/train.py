"""Options of the section `train`."""

from typing import Annotated, Any

from pydantic import Field

from promptir_basicsr.options.registered import Registered
from promptir_basicsr.options.section import Count, CountFromZero, Section, Told, Typed, Warmup, option

Optimizer = Annotated[Typed, Registered('optimizer')]
Schedule = Annotated[Typed, Registered('schedule')]
ImageLoss = Annotated[Typed, Registered('loss')]
Clip = Annotated[
    float,
    Field(strict=True, gt=0, allow_inf_nan=False),
    Told('{found} is not a number above 0. Omit the key for no clipping.'),
]

OPTIMIZER = (
    '`type:` any optimizer of `torch.optim` (`Adam`, `AdamW`, ...), or `pytorch_optimizer:NAME` of that package '
    '(`pytorch_optimizer:Muon`), `lr`, and its arguments'
)
SCHEDULE = '`type:` a schedule and its arguments'


class IterationOptions(Section):
    """Keys of `train` that every training run has."""

    total_iter: Count = option(description='iterations of the run')
    warmup_iter: Warmup = option(
        -1, description="BasicSR's linear warm-up on top of any schedule; omit it with this package's schedules"
    )
    optim_g: Optimizer | None = option(None, description=OPTIMIZER)
    scheduler: Schedule | None = option(None, description=SCHEDULE)
    grad_clip_norm: Clip | None = option(
        None, description='maximum norm of the whole gradient; the norm before clipping is logged as `grad_norm`'
    )


class HostTrainOptions(IterationOptions, extra='ignore'):
    """`train` of third-party models: the keys that BasicSR reads; other keys are the model's."""

    pixel_opt: ImageLoss | None = option(None, description='pixel loss')
    perceptual_opt: Typed | None = option(None, description="BasicSR's `PerceptualLoss`")


class OwnTrainOptions(IterationOptions):
    """`train` options that all models of this package share."""

    optim_g: Optimizer = option(description=OPTIMIZER)
    scheduler: Schedule = option(description=SCHEDULE)
    accumulate: Count | None = option(
        None,
        description='gradient accumulation: number of equal micro-batches, see options.md#precision-memory-and-speed; '
        'it must divide `batch_size_per_gpu`, and losses must be means over images (no `reduction: sum`). Default: 1',
    )
    ema_decay: Annotated[
        float, Field(strict=True, ge=0, lt=1), Told('{found} is not a number from 0 (no EMA) to below 1.')
    ] = option(
        0, description='decay of the averaged (EMA) weights, 0 for none; they are validated and saved as `params_ema`'
    )
    max_sick_steps: Count | None = option(
        None,
        description='training stops, with its state saved, after this many consecutive steps with a non-finite loss or '
        'gradient; each such step is skipped, logged and counted. Default: 10. See resume.md',
    )


class RestoringTrainOptions(OwnTrainOptions):
    """`train` options that PromptModel and ContrastiveModel share."""

    pixel_opt: ImageLoss | None = option(
        None,
        description='pixel loss: `type:` registered with BasicSR (`L1Loss`, `CharbonnierLoss`, `MSELoss`, '
        '`SmoothL1Loss`), `loss_weight`; required unless one of the next two is set',
    )
    frequency_opt: ImageLoss | None = option(
        None, description='second loss of the images: `FrequencyLoss`, or any loss allowed in `pixel_opt`'
    )
    perceptual_opt: Typed | None = option(None, description="BasicSR's `PerceptualLoss`")


class PromptTrainOptions(RestoringTrainOptions):
    """`train` of PromptModel."""

    prompt_opt: Annotated[Typed, Registered('prompt loss')] | None = option(
        None, description="loss of the network's prompts: `PromptDecorrelationLoss`"
    )
    loss_scaler: (
        Annotated[
            dict[str, Any],
            Told('must be options such as {{history: 100, limit: 5, factor: 2.5}}, not {found}.'),
            Registered('loss scaler'),
        ]
        | None
    ) = option(
        None,
        description='scale down the image losses of a batch that are far above the smallest recent loss; '
        '`{}` for the values of the released program',
    )


class ContrastiveTrainOptions(RestoringTrainOptions):
    """`train` of ContrastiveModel."""

    encoder_iter: CountFromZero | None = option(
        None,
        description='last iteration that trains only the encoder, with the contrastive loss; validation starts after '
        'it. Default: 0, everything is trained from the start',
    )
    contrast_weight: (
        Annotated[
            float,
            Field(strict=True, ge=0, allow_inf_nan=False),
            Told('{found} is not a number of at least 0.'),
        ]
        | None
    ) = option(
        None,
        description='weight of the contrastive loss next to the image losses. Default: 0.1. While only the encoder is '
        'trained, it is 1',
    )


class SensorTrainOptions(OwnTrainOptions):
    """`train` of SensorModel, whose loss is cross entropy."""

    label_smoothing: (
        Annotated[float, Field(strict=True, ge=0, lt=1), Told('{found} is not a number from 0 to below 1.')] | None
    ) = option(None, description='share of a label that is spread over all degradations. Default: 0')
