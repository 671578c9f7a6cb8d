"""Whatever happens around a training: no traceback, no torn file, at most the iteration in hand is lost."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.models.test_resume import ENVIRONMENT


@pytest.mark.slow
def test_300_disturbed_trainings_end_in_order_and_resume(tmp_path: Path) -> None:
    driver = Path(__file__).with_name('disturbed_training.py')
    done = subprocess.run(
        [sys.executable, str(driver), str(tmp_path), '0', '300'],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=7200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / 'found.json').read_text())
    assert len(found) == 300
    assert [each for each in found if each['wrong']] == []
