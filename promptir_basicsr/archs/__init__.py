"""The networks. Importing this registers them with BasicSR under their class names."""

from promptir_basicsr.archs.pip_arch import PIPRestormer
from promptir_basicsr.archs.pip_nafnet_arch import PIPNAFNet
from promptir_basicsr.archs.prompted_arch import PromptedNetwork
from promptir_basicsr.archs.promptir_arch import PromptIR
from promptir_basicsr.archs.sensor_arch import DegradationSensor

__all__ = ['DegradationSensor', 'PIPNAFNet', 'PIPRestormer', 'PromptIR', 'PromptedNetwork']
