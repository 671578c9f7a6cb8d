"""Model for training a degradation sensor on the dataset of the restorers."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from basicsr.utils.registry import MODEL_REGISTRY

from promptir_basicsr.archs.traits import traits_of
from promptir_basicsr.core.registry import register
from promptir_basicsr.evaluation.sensor import SensorMeasurement, SensorReport
from promptir_basicsr.models.objective import CrossEntropy, Objective
from promptir_basicsr.models.prompt_model import PromptModel


@register(MODEL_REGISTRY)
class SensorModel(PromptModel):
    """Trains and validates a network that classifies degradations, such as DegradationSensor.

    The labels are the dataset's, the loss is cross entropy. A validation uses whole images and reports accuracy,
    confidence, calibration and the confusion matrix of every task; the most accurate weights are saved as
    `net_g_best.pth`. Files, averaged weights, gradient clipping and resuming work as in PromptModel.

    Options in addition to PromptModel's:
        train.label_smoothing: part of each label that is spread over all degradations. Default: 0.

    Examples:
        >>> from promptir_basicsr.models import SensorModel
        >>> network = {'type': 'DegradationSensor', 'dim': 8}
        >>> model = SensorModel({'is_train': False, 'num_gpu': 0, 'dist': False, 'network_g': network, 'path': {}})
        >>> model.feed_data({'lq': torch.rand(2, 3, 20, 30), 'degradation': torch.tensor([0, 1])})
        >>> model.test()
        >>> model.output.shape  # of the five degradations
        torch.Size([2, 5])
    """

    report_class = SensorReport
    measurement_class = SensorMeasurement
    report: SensorReport

    def __init__(self, opt: dict[str, Any]) -> None:
        super().__init__(opt)
        self.report.names = traits_of(self.net_g).labels

    def build_objective(self) -> Objective:
        return CrossEntropy(self.opt['train'].get('label_smoothing') or 0.0)

    def feed_data(self, data: Mapping[str, Any]) -> None:
        """Set the batch: lq (B, 3, H, W), degradation (B,) labels, optionally task (B names).

        Raises:
            ValueError: the dataset has no labels.
        """
        super().feed_data(data)
        if self.batch.degradation is None:
            raise ValueError(
                'SensorModel: the dataset has no labels, its samples have no `degradation`. Use an AllInOneDataset.'
            )

    def test(self) -> None:
        """Compute logits (B, T) of `lq` of any size into `output`, with the averaged weights if there are any."""
        self.output = self.infer()

    def get_current_visuals(self) -> dict[str, torch.Tensor]:
        """logits: (1, T) on the CPU."""
        return OrderedDict(logits=self.output.detach().float().cpu())
