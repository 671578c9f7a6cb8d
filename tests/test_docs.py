"""The pages say what the code knows."""

import re

import pytest

import promptir_basicsr  # noqa: F401  (registers)

# isort: split
import inspect

from promptir_basicsr.archs import AirNet, DegradationSensor, PIPNAFNet, PIPRestormer, PromptedNetwork, PromptIR
from promptir_basicsr.archs.prompted_arch import TAP_KEYS
from promptir_basicsr.core.yaml_loader import load_yaml
from promptir_basicsr.data.allinone_dataset import HOST_KEYS
from promptir_basicsr.losses import FrequencyLoss, LossScaler, PromptDecorrelationLoss, SmoothL1Loss
from promptir_basicsr.metrics import paper_metric
from promptir_basicsr.optim.schedules import SCHEDULERS
from tests.pages import PAGES, ROOT

NETWORKS = (AirNet, DegradationSensor, PIPNAFNet, PIPRestormer, PromptedNetwork, PromptIR)
LOSSES = (FrequencyLoss, PromptDecorrelationLoss, SmoothL1Loss)
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


@pytest.mark.parametrize('page', PAGES)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    links = [link for link in re.findall(r'\]\(([^)#]+)[^)]*\)', text) if '://' not in link]
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []


@pytest.mark.parametrize('page', PAGES)
def test_links_to_headings_lead_to_them(page):
    """As GitHub makes anchors of headings; mkdocs, which does it a little differently, checks its own."""
    text = (ROOT / page).read_text()
    links = [link for link in re.findall(r'\]\(([^)]*#[^)]*)\)', text) if '://' not in link]
    wrong = []
    for path, anchor in (link.split('#') for link in links):
        target = (ROOT / page).parent / path if path else ROOT / page
        headings = re.findall(r'^#+ (.+)$', re.sub(r'^```.*?^```', '', target.read_text(), flags=re.M | re.S), re.M)
        if anchor not in [re.sub(r'[^\w -]', '', heading).lower().replace(' ', '-') for heading in headings]:
            wrong.append(f'{path}#{anchor}')
    assert wrong == []


@pytest.mark.parametrize('page', PAGES)
def test_examples_in_yaml_are_yaml(page, tmp_path):
    examples = re.findall(r'^```yaml\n(.*?)^```', (ROOT / page).read_text(), re.M | re.S)
    for number, text in enumerate(examples):
        path = tmp_path / f'{number}.yml'
        path.write_text(text if re.search('^[^#]', text, re.M) else f'{text}a comment: alone')
        assert load_yaml(str(path))


@pytest.mark.parametrize('page', PAGES)
def test_nothing_is_left_to_be_filled_in(page):
    text = re.sub(r'^```.*?^```', '', (ROOT / page).read_text(), flags=re.M | re.S)
    assert re.findall(r'^@@.*|^[A-Z_]{4,}$|\bTODO\b|\bTBD\b|\bXXX\b', text, re.M) == []


@pytest.mark.slow
def test_the_table_of_costs_is_the_scripts():
    from benchmarks.cost import table

    page = (ROOT / 'docs' / 'backbones.md').read_text()
    assert [line for line in table() if line not in page] == []
