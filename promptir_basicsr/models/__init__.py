"""The prompt-aware model and its helpers."""

from promptir_basicsr.models.contrastive_model import ContrastiveModel
from promptir_basicsr.models.prompt_model import PromptModel
from promptir_basicsr.models.resume import TrainingState
from promptir_basicsr.models.sensor_model import SensorModel
from promptir_basicsr.models.step import TrainingStep

__all__ = ['ContrastiveModel', 'PromptModel', 'SensorModel', 'TrainingState', 'TrainingStep']
