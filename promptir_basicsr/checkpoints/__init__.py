"""Checkpoints and pretrained weights: file layouts, and recognition of networks."""

from promptir_basicsr.checkpoints.checkpoint import Checkpoint, build, read_checkpoint, write_checkpoint

__all__ = ['Checkpoint', 'build', 'read_checkpoint', 'write_checkpoint']
