"""The model that trains a degradation sensor, on the data set of the restorers."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from basicsr.utils.registry import MODEL_REGISTRY

from promptir_basicsr.archs.traits import traits_of
from promptir_basicsr.core.registry import register
from promptir_basicsr.evaluation.sensor import SensorMeasurement, SensorReport
from promptir_basicsr.models.prompt_model import PromptModel
from promptir_basicsr.models.step import chosen


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
    degradation: torch.Tensor

    def __init__(self, opt: dict[str, Any]) -> None:
        super().__init__(opt)
        self.report.names = traits_of(self.net_g).labels

    def init_training_settings(self) -> None:
        """BasicSR's, which ends without a loss of images."""
        train = self.opt['train']
        self.opt['train'] = {**train, 'pixel_opt': {'type': 'L1Loss'}}
        super().init_training_settings()
        self.opt['train'], self.cri_pix = train, None

    def feed_data(self, data: Mapping[str, Any]) -> None:
        """Take a batch: lq (B, 3, H, W), degradation (B,) labels, optionally task (B names).

        Raises:
            ValueError: the data set gives no labels.
        """
        super().feed_data(data)
        if self.degradation is None:
            raise ValueError(
                'SensorModel: the data set gives no labels, its samples have no `degradation`. Take an AllInOneDataset.'
            )

    def losses(self) -> dict[str, torch.Tensor]:
        """Cross entropy by its name in the log."""
        return {'l_ce': self._cross_entropy(list(range(len(self.output))))}

    def _cross_entropy(self, members: list[int]) -> torch.Tensor:
        """Of images of the batch."""
        smoothing = self.opt['train'].get('label_smoothing') or 0.0
        return F.cross_entropy(
            chosen(self.output, members), chosen(self.degradation, members), label_smoothing=smoothing
        )

    @torch.no_grad()
    def _record_tasks(self) -> None:
        """The accuracy in the batch, and the loss of each task in it."""
        right = (self.output.argmax(dim=1) == self.degradation).float()
        self._record('accuracy', right.mean(), len(right))
        for name, members in self._members().items():
            self._record(f'l_ce_{name}', self._cross_entropy(members), len(members))

    def test(self) -> None:
        """Logits (B, T) of `lq` of any size into `output`, by the averaged weights where there are any."""
        self.output = self.infer(self.lq)

    def get_current_visuals(self) -> dict[str, torch.Tensor]:
        """logits: (1, T) on the CPU."""
        return OrderedDict(logits=self.output.detach().float().cpu())
