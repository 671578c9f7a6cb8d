"""PromptIR, PIPRestormer, PIPNAFNet and AirNet for programs that load networks through spandrel (extra `spandrel`).

```python
from promptir_basicsr.inference import spandrel
from spandrel import ModelLoader

spandrel.install()
model = ModelLoader().load_from_file('net_g_latest.pth')
```
"""

from typing import Any

import torch
from spandrel import (
    MAIN_REGISTRY,
    Architecture,
    ArchRegistry,
    ArchSupport,
    ImageModelDescriptor,
    ModelTiling,
    SizeRequirements,
    StateDict,
)
from torch import nn

from promptir_basicsr.archs.traits import traits_of
from promptir_basicsr.checkpoints.matching import fit, new_network, shapes_of
from promptir_basicsr.checkpoints.reading import readings
from promptir_basicsr.checkpoints.recognition import recognize

NETWORKS = ('PromptIR', 'PIPRestormer', 'PIPNAFNet', 'AirNet')


class RecognizedArchitecture(Architecture[nn.Module]):
    """A network of this package, detected with all its arguments from names and shapes of weights.

    spandrel does not pass labels: call a PIP without a sensor as `descriptor.model(image, 'derain')`. If an image must
    be padded, the sensor processes the padded image, unlike in `Restorer`.
    """

    def __init__(self, kind: str) -> None:
        super().__init__(id=kind, detect=lambda weights: _options(weights, kind) is not None)
        self.kind = kind

    def load(self, state_dict: StateDict) -> ImageModelDescriptor[nn.Module]:
        """Return the network with its weights.

        Raises:
            OptionError: the weights do not fully match the detected network.
        """
        options = _options(state_dict, self.kind) or {'type': self.kind}
        found = fit(state_dict, options)
        with torch.random.fork_rng(devices=[]):
            net = new_network(options)
        traits = traits_of(net)
        return ImageModelDescriptor(
            net,
            found.weights,
            architecture=self,
            purpose='Restoration',
            tags=['all-in-one', f'{sum(each.numel() for each in net.parameters()) / 1e6:.1f}M'],
            supports_half=False,
            supports_bfloat16=True,
            scale=1,
            input_channels=traits.image_channels,
            output_channels=traits.channels_out or traits.image_channels,
            size_requirements=SizeRequirements(multiple_of=traits.size_multiple),
            tiling=ModelTiling.DISCOURAGED,  # its prompts and attention use the whole image
        )


def _options(weights: StateDict, kind: str) -> dict[str, Any] | None:
    """Return type and arguments of the network with these weights, if it is of a given type."""
    for _, named, _ in readings(weights):
        options = recognize(shapes_of(named))
        if options is not None and options['type'] == kind:
            return options
    return None


def install(registry: ArchRegistry = MAIN_REGISTRY) -> None:
    """Add the networks to a registry of spandrel, before existing ones; repeated calls change nothing."""
    others = tuple(each.architecture.id for each in registry.architectures() if each.architecture.id not in NETWORKS)
    added = [ArchSupport.from_architecture(RecognizedArchitecture(kind), before=others) for kind in NETWORKS]
    registry.add(*added, ignore_duplicates=True)
