"""Metrics of pyiqa (LPIPS, DISTS, MUSIQ, NIQE, ...), registered with BasicSR as `pyiqa:NAME` when options name one."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from basicsr.utils.registry import METRIC_REGISTRY

from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.core.messages import did_you_mean, first_line

PREFIX = 'pyiqa:'


class PyiqaMetric:
    """A pyiqa metric that accepts images as this package measures them.

    Args:
        name: one of `pyiqa.list_models()`.

    Attributes:
        wants_float: True; the metric expects clipped, unrounded float images.
        better: 'higher' or 'lower', as defined by pyiqa.
        definition: in words, for tables.

    Raises:
        OptionError: its weights cannot be loaded.
    """

    wants_float = True

    def __init__(self, name: str) -> None:
        import pyiqa

        self.__name__ = name
        self.device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
        try:
            with torch.random.fork_rng(devices=[]):
                self.metric = pyiqa.create_metric(name, device=self.device)
        except Exception as error:  # from downloads, the file system, and pyiqa's many metrics
            what = f'{type(error).__name__}: {first_line(error)}'
            raise OptionError(
                f"'{PREFIX}{name}' cannot be created ({what}). pyiqa downloads the weights of a metric on first use: "
                'run it once on a machine with internet access and copy its cache (TORCH_HOME).'
            ) from error
        self.better = 'lower' if self.metric.lower_better else 'higher'
        self.has_target = self.metric.metric_mode == 'FR'
        self.definition = f'{name} of pyiqa {version("pyiqa")}: RGB, float, not rounded, {self.better} is better' + (
            '' if self.has_target else ', without a target'
        )

    def __call__(self, img: np.ndarray, img2: np.ndarray, crop_border: int = 0, better: str = '') -> float:
        """Return the value for two (H, W, 3) RGB or (H, W, 1) grey float images in [0, 1].

        Args:
            crop_border: pixels omitted at each side.
            better: read by the model; 'higher' or 'lower' overrides pyiqa's direction.
        """
        images = [self._tensor(image, crop_border) for image in ((img, img2) if self.has_target else (img,))]
        with torch.no_grad():
            return float(self.metric(*images))

    def _tensor(self, image: np.ndarray, border: int) -> torch.Tensor:
        height, width = image.shape[:2]
        inner = np.ascontiguousarray(image[border : height - border, border : width - border], dtype=np.float32)
        x = torch.from_numpy(inner).permute(2, 0, 1)[None].to(self.device)
        return x.expand(-1, 3, -1, -1)


def know_metric(name: object) -> None:
    """Register the metric of a name `pyiqa:NAME`; ignore other names.

    Raises:
        OptionError: pyiqa is not installed, the metric is unknown, or it cannot be created.
    """
    if not isinstance(name, str) or not name.startswith(PREFIX) or name in METRIC_REGISTRY:
        return
    try:
        import pyiqa
    except ImportError as error:
        raise OptionError(f"'{name}' needs pyiqa ({error}): pip install pyiqa") from error
    short = name.removeprefix(PREFIX)
    if short not in pyiqa.list_models():
        raise OptionError(f"pyiqa has no metric '{short}'.{did_you_mean(short, pyiqa.list_models())}")
    METRIC_REGISTRY._obj_map[name] = PyiqaMetric(short)


def lower_is_better(options: Mapping[str, Any]) -> bool:
    """Return whether lower values of a metric are better: by its option `better`, or else its own attribute."""
    name = options.get('type')  # the sensor's measures have none
    metric = METRIC_REGISTRY.get(name) if name in METRIC_REGISTRY else None
    return bool(options.get('better', getattr(metric, 'better', 'higher')) == 'lower')
