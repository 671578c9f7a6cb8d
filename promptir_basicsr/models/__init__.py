"""The prompt-aware model and its helpers."""

from promptir_basicsr.models.prompt_model import PromptModel
from promptir_basicsr.models.sensor_model import SensorModel

__all__ = ['PromptModel', 'SensorModel']
