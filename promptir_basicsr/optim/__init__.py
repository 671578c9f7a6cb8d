"""Schedules of the learning rate."""

from promptir_basicsr.optim.schedules import FixedLR, LinearWarmupCosineLR, ReleasedPromptIRLR, WarmupStableDecayLR

__all__ = ['FixedLR', 'LinearWarmupCosineLR', 'ReleasedPromptIRLR', 'WarmupStableDecayLR']
