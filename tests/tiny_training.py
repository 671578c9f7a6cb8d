"""The option file of a training of a few seconds; tests replace words of it. What a run has written."""

import re
from pathlib import Path

TINY_TRAINING = """
name: tiny
model_type: PromptModel
num_gpu: 0
manual_seed: 0
datasets:
  train:
    name: tiny_train
    type: AllInOneDataset
    gt_size: 16
    tasks:
      - {type: derain, clean: 'skimage://', files: [astronaut.png], degrade: {type: rain}, copies: 8}
    batch_size_per_gpu: 2
    num_worker_per_gpu: 0
network_g:
  type: PromptIR
  dim: 8
  num_blocks: [1, 1, 1, 1]
  num_refinement_blocks: 1
  heads: [1, 1, 1, 1]
  prompt_sizes: [4, 4, 4]
path: {}
train:
  total_iter: 4
  optim_g: {type: AdamW, lr: 1e-3}
  scheduler: {type: FixedLR}
  pixel_opt: {type: L1Loss}
logger: {print_freq: 1, save_checkpoint_freq: 2, use_tb_logger: false}
"""


def written(root: Path) -> dict[str, bytes]:
    """The files of a run, but for logs and options, which name their folders; the minute of results is left out."""
    found = [path for path in root.rglob('*') if path.is_file() and path.suffix not in ('.log', '.yml')]
    return {path.relative_to(root).as_posix(): _undated(path) for path in found}


def _undated(path: Path) -> bytes:
    dated = path.name in ('results.md', 'results.json')
    return re.sub(rb'20\d\d-\d\d-\d\d \d\d:\d\d', b'', path.read_bytes()) if dated else path.read_bytes()
