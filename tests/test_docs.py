"""The pages say what the code knows."""

import re
from pathlib import Path

import pytest

import promptir_basicsr  # noqa: F401  (registers)

# isort: split
import inspect

from promptir_basicsr.archs import DegradationSensor, PIPNAFNet, PIPRestormer, PromptedNetwork, PromptIR
from promptir_basicsr.archs.prompted_arch import TAP_KEYS
from promptir_basicsr.data.allinone_dataset import HOST_KEYS
from promptir_basicsr.losses import FrequencyLoss, LossScaler, PromptDecorrelationLoss, SmoothL1Loss
from promptir_basicsr.metrics import paper_metric
from promptir_basicsr.models.lr_scheduler_util import SCHEDULERS

NETWORKS = (DegradationSensor, PIPNAFNet, PIPRestormer, PromptedNetwork, PromptIR)
LOSSES = (FrequencyLoss, PromptDecorrelationLoss, SmoothL1Loss)
ROOT = Path(__file__).parents[1]
OPTIONS = (ROOT / 'docs' / 'options.md').read_text()
SECTIONS = dict(re.findall(r'^## (.+?)\n(.*?)(?=^## |\Z)', OPTIONS, re.M | re.S))


@pytest.mark.parametrize(
    ('section', 'keys'),
    [
        ('Networks', [*(network.__name__ for network in NETWORKS), *TAP_KEYS]),
        ('Losses and schedules', list(SCHEDULERS)),
        ('Losses and schedules', [kind.__name__ for kind in LOSSES]),
        ('Losses and schedules', [key for kind in (*LOSSES, LossScaler) for key in inspect.signature(kind).parameters]),
        ('Losses and schedules', [key for schedule in SCHEDULERS.values() for key in schedule.settings]),
        ('val', [name for name in vars(paper_metric) if name.startswith('calculate_paper')]),
    ],
)
def test_every_option_has_its_line(section, keys):
    assert [key for key in keys if f'`{key}`' not in SECTIONS[section]] == []


def test_the_loaders_keys_are_documented():
    data = (ROOT / 'docs' / 'data.md').read_text()
    told_elsewhere = {'phase', 'scale', 'use_shuffle', 'io_backend'}  # set by BasicSR, or without meaning here
    assert [key for key in HOST_KEYS if f'`{key}`' not in OPTIONS + data and key not in told_elsewhere] == []


@pytest.mark.parametrize('page', ['README.md', *(f'docs/{path.name}' for path in (ROOT / 'docs').glob('*.md'))])
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    links = [link for link in re.findall(r'\]\(([^)#]+)[^)]*\)', text) if '://' not in link]
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []


def test_the_readme_names_files_that_exist():
    text = (ROOT / 'README.md').read_text()
    assert [path for path in re.findall(r'options/\w+\.yml', text) if not (ROOT / path).exists()] == []


@pytest.mark.slow
def test_the_table_of_costs_is_the_scripts():
    from benchmarks.cost import table

    page = (ROOT / 'docs' / 'backbones.md').read_text()
    assert [line for line in table() if line not in page] == []
