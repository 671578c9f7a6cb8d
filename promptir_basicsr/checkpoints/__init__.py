"""Files of weights: their layouts, and which network they are of."""

from promptir_basicsr.checkpoints.checkpoint import Checkpoint, build, read_checkpoint, write_checkpoint

__all__ = ['Checkpoint', 'build', 'read_checkpoint', 'write_checkpoint']
