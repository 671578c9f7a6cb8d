"""Schedules of the learning rate."""

from promptir_basicsr.optim.schedules import FixedLR, LinearWarmupCosineLR, ReleasedPromptIRLR

__all__ = ['FixedLR', 'LinearWarmupCosineLR', 'ReleasedPromptIRLR']
