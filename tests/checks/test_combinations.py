"""What `basicsr train` accepts, trains and is measured; what it refuses, it refuses before it makes anything."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.models.test_resume import ENVIRONMENT


@pytest.mark.slow
def test_200_combinations_are_refused_or_train(tmp_path: Path) -> None:
    driver = Path(__file__).with_name('combined_training.py')
    done = subprocess.run([sys.executable, str(driver), str(tmp_path), '0', '200'], env=ENVIRONMENT, timeout=3600)
    assert done.returncode == 0
    found = json.loads((tmp_path / 'found.json').read_text())
    assert [each for each in found if each['wrong']] == []
    statuses = [each['status'] for each in found]
    assert min(statuses.count(0), statuses.count(2)) >= 40
