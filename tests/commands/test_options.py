"""The option files that come with the package, named and copied."""

from pathlib import Path

import pytest

from promptir_basicsr import cli
from promptir_basicsr.options.file import shipped_option_files


def test_every_file_is_named_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(['options']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [file.name for file in shipped_option_files()]
    assert min(len(line.split()) for line in lines) > 8


def test_a_copy_is_the_file_and_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (source,) = [file for file in shipped_option_files() if file.name == 'demo.yml']
    assert cli.main(['options', '--copy', 'demo.yml']) == 0
    assert Path('demo.yml').read_bytes() == source.read_bytes()
    Path('demo.yml').write_text('mine')
    assert cli.main(['options', '--copy', 'demo.yml']) == 2
    assert 'already exists' in capsys.readouterr().err
    assert Path('demo.yml').read_text() == 'mine'
    assert cli.main(['options', '--copy', 'demo.yml', '-o', 'b.yml']) == 0
    assert Path('b.yml').read_bytes() == source.read_bytes()
    assert cli.main(['options', '--copy', 'dem.yml']) == 2
    assert "Did you mean 'demo.yml'?" in capsys.readouterr().err
