"""Losses, registered with BasicSR on import, and the loss scaler."""

from promptir_basicsr.losses.frequency_loss import FrequencyLoss
from promptir_basicsr.losses.loss_scaler import LossScaler
from promptir_basicsr.losses.pixel_loss import SmoothL1Loss
from promptir_basicsr.losses.prompt_loss import PromptDecorrelationLoss, decorrelation

__all__ = ['FrequencyLoss', 'LossScaler', 'PromptDecorrelationLoss', 'SmoothL1Loss', 'decorrelation']
