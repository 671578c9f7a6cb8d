"""Datasets of several degradations: tasks, pairing rules, protocols, sampling."""

from promptir_basicsr.data.allinone_dataset import AllInOneDataset
from promptir_basicsr.data.lmdb.reader import LmdbSource
from promptir_basicsr.data.pairing import PairingRule
from promptir_basicsr.data.protocol import Corpus, Protocol, expand_protocol, load_protocol, protocol_names
from promptir_basicsr.data.sampling import TaskShare, epoch_shares
from promptir_basicsr.data.tasks import Task, build_tasks

__all__ = [
    'AllInOneDataset',
    'Corpus',
    'LmdbSource',
    'PairingRule',
    'Protocol',
    'Task',
    'TaskShare',
    'build_tasks',
    'epoch_shares',
    'expand_protocol',
    'load_protocol',
    'protocol_names',
]
