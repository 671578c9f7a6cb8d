"""Mixed-degradation data: tasks, pairing rules, synthetic degradations, the dataset."""

from promptir_basicsr.data.allinone_dataset import AllInOneDataset

__all__ = ['AllInOneDataset']
