"""The option file of a training of a few seconds; tests replace words of it."""

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
