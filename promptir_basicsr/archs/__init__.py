"""Networks, registered with BasicSR under their class names on import."""

from promptir_basicsr.archs.airnet_arch import AirNet
from promptir_basicsr.archs.layers.conditioning import ConditionedNetwork, weights_of
from promptir_basicsr.archs.layers.contrast import ContrastiveEncoder
from promptir_basicsr.archs.layers.formulation import set_checkpointing, set_formulation
from promptir_basicsr.archs.layers.prompts import PromptGenBlock, PromptInPrompt, PromptToFeature, PromptToPrompt
from promptir_basicsr.archs.layers.restormer import GDFN, MDTA, TransformerBlock
from promptir_basicsr.archs.layers.taps import PromptTap, survey
from promptir_basicsr.archs.pip_arch import PIPRestormer
from promptir_basicsr.archs.pip_nafnet_arch import NAFBlock, PIPNAFNet
from promptir_basicsr.archs.prompted_arch import PromptedNetwork
from promptir_basicsr.archs.promptir_arch import PromptIR
from promptir_basicsr.archs.sensor_arch import DegradationSensor
from promptir_basicsr.archs.traits import NetworkTraits, traits_of

__all__ = [
    'GDFN',
    'MDTA',
    'AirNet',
    'ConditionedNetwork',
    'ContrastiveEncoder',
    'DegradationSensor',
    'NAFBlock',
    'NetworkTraits',
    'PIPNAFNet',
    'PIPRestormer',
    'PromptGenBlock',
    'PromptIR',
    'PromptInPrompt',
    'PromptTap',
    'PromptToFeature',
    'PromptToPrompt',
    'PromptedNetwork',
    'TransformerBlock',
    'set_checkpointing',
    'set_formulation',
    'survey',
    'traits_of',
    'weights_of',
]
