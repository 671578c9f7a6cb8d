"""Models for BasicSR: training and validation of all-in-one restoration networks."""

from promptir_basicsr.models.contrastive_model import ContrastiveModel
from promptir_basicsr.models.prompt_model import PromptModel
from promptir_basicsr.models.resume import TrainingState
from promptir_basicsr.models.sensor_model import SensorModel
from promptir_basicsr.models.step import TrainingStep

__all__ = ['ContrastiveModel', 'PromptModel', 'SensorModel', 'TrainingState', 'TrainingStep']
