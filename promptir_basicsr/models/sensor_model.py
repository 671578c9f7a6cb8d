"""The model that trains a degradation sensor, on the data set of the restorers."""

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
    """Trains and measures a network that tells degradations apart, such as DegradationSensor.

    The labels are the data set's, the loss is cross entropy. A validation sees whole images and reports, for every
    task, accuracy, confidence and calibration, and what its images were taken for; the most accurate weights are kept
    as `net_g_best.pth`. Files, averaged weights, clipping and resuming are PromptModel's.

    Options beside PromptModel's:
        train.label_smoothing: how much of each label is spread over all degradations. Default: 0.
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
        """Take a batch: lq (B, 3, H, W), degradation (B,) labels, optionally task (B names).

        Raises:
            ValueError: the data set gives no labels.
        """
        super().feed_data(data)
        if self.batch.degradation is None:
            raise ValueError(
                'SensorModel: the data set gives no labels, its samples have no `degradation`. Take an AllInOneDataset.'
            )

    def test(self) -> None:
        """Logits (B, T) of `lq` of any size into `output`, by the averaged weights where there are any."""
        self.output = self.infer()

    def get_current_visuals(self) -> dict[str, torch.Tensor]:
        """logits: (1, T) on the CPU."""
        return OrderedDict(logits=self.output.detach().float().cpu())
