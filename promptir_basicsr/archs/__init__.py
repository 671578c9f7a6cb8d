"""The networks. Importing this registers them with BasicSR under their class names."""

from promptir_basicsr.archs.pip_arch import PIPRestormer
from promptir_basicsr.archs.promptir_arch import PromptIR

__all__ = ['PIPRestormer', 'PromptIR']
