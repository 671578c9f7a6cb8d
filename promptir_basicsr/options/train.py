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
    Told('{found} is not a number above 0. Leave the key out for no clipping.'),
]

OPTIMIZER = (
    '`type:` any optimizer of `torch.optim` (`Adam`, `AdamW`, ...), or `pytorch_optimizer:NAME` where that package is '
    'installed (extra `optim`), `lr`, and its arguments'
)
SCHEDULE = '`type:` a schedule and its arguments'


class IterationOptions(Section):
    """What every training has."""

    total_iter: Count = option(description='iterations of the run')
    warmup_iter: Warmup = option(
        -1, description="BasicSR's own linear warm-up, on top of any schedule; leave it out with the schedules of ours"
    )
    optim_g: Optimizer | None = option(None, description=OPTIMIZER)
    scheduler: Schedule | None = option(None, description=SCHEDULE)
    grad_clip_norm: Clip | None = option(
        None, description='largest norm of the whole gradient; the norm before clipping is logged as `grad_norm`'
    )


class HostTrainOptions(IterationOptions, extra='ignore'):
    """`train` of models that are not ours: what BasicSR reads; the rest is the model's."""

    pixel_opt: ImageLoss | None = option(None, description='the loss')
    perceptual_opt: Typed | None = option(None, description="BasicSR's `PerceptualLoss`")


class OwnTrainOptions(IterationOptions):
    """What all models here have in common."""

    optim_g: Optimizer = option(description=OPTIMIZER)
    scheduler: Schedule = option(description=SCHEDULE)
    accumulate: Count | None = option(
        None,
        description='in how many equal parts the batch passes the network, see '
        'options.md#precision-memory-and-speed; it must divide `batch_size_per_gpu`, and losses must be means over '
        'images (no `reduction: sum`). Left out, 1',
    )
    ema_decay: Annotated[
        float, Field(strict=True, ge=0, lt=1), Told('{found} is not a number from 0 (no EMA) to below 1.')
    ] = option(0, description='decay of the averaged weights, 0 for none; they are validated and saved as `params_ema`')
    max_sick_steps: Count | None = option(
        None,
        description='steps in a row whose loss or gradient is not finite that end the training, with its state saved; '
        'each of them is left out, named in the log and counted. Left out, 10. See resume.md',
    )


class RestoringTrainOptions(OwnTrainOptions):
    """What PromptModel and ContrastiveModel have in common."""

    pixel_opt: ImageLoss | None = option(
        None,
        description='the loss: `type:` registered with BasicSR (`L1Loss`, `CharbonnierLoss`, `MSELoss`, '
        '`SmoothL1Loss`), `loss_weight`; needed, unless one of the next two stands alone',
    )
    frequency_opt: ImageLoss | None = option(
        None, description='a second loss of the images: `FrequencyLoss`, or any that `pixel_opt` takes'
    )
    perceptual_opt: Typed | None = option(None, description="BasicSR's `PerceptualLoss`")


class PromptTrainOptions(RestoringTrainOptions):
    """`train` of PromptModel."""

    prompt_opt: Annotated[Typed, Registered('prompt loss')] | None = option(
        None, description="a loss of the network's prompts: `PromptDecorrelationLoss`"
    )
    loss_scaler: (
        Annotated[
            dict[str, Any],
            Told('give options such as {{history: 100, limit: 5, factor: 2.5}}, not {found}.'),
            Registered('loss scaler'),
        ]
        | None
    ) = option(
        None,
        description='scales the losses of images down in a batch where they are far above the smallest of late; '
        "`{}` for the released program's numbers",
    )


class ContrastiveTrainOptions(RestoringTrainOptions):
    """`train` of ContrastiveModel."""

    encoder_iter: CountFromZero | None = option(
        None,
        description='last iteration that trains the encoder alone, by the contrastive loss; validations begin after '
        'it. Left out, 0: everything is trained from the start',
    )
    contrast_weight: (
        Annotated[
            float,
            Field(strict=True, ge=0, allow_inf_nan=False),
            Told('{found} is not a number of at least 0.'),
        ]
        | None
    ) = option(
        None, description='weight of the contrastive loss beside those of images; left out, 0.1. Alone it counts fully'
    )


class SensorTrainOptions(OwnTrainOptions):
    """`train` of SensorModel, whose loss is cross entropy."""

    label_smoothing: (
        Annotated[float, Field(strict=True, ge=0, lt=1), Told('{found} is not a number from 0 to below 1.')] | None
    ) = option(None, description='how much of a label is spread over all degradations; left out, 0')
