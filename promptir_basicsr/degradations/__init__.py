"""Synthetic degradations of clean images, by name."""

from promptir_basicsr.degradations.spec import DEGRADATIONS, Choice, Degradation, Degrade, Number, Switch, degradation
from promptir_basicsr.degradations.synthesis import (
    defocus_blur,
    gaussian_noise,
    haze,
    jpeg,
    low_light,
    motion_blur,
    rain,
    snow,
)

__all__ = [
    'DEGRADATIONS',
    'Choice',
    'Degradation',
    'Degrade',
    'Number',
    'Switch',
    'defocus_blur',
    'degradation',
    'gaussian_noise',
    'haze',
    'jpeg',
    'low_light',
    'motion_blur',
    'rain',
    'snow',
]
