"""Weights that travel: published folders, and repositories of the Hub on a local stand-in of its HTTP interface."""

import json
import os
import sys
import threading
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import skimage.data
import torch
import yaml

from promptir_basicsr import cli
from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.export.publish import find_source, publish
from promptir_basicsr.inference import Restorer
from tests.forked import basicsr, called
from tests.tiny_training import TINY_TRAINING

VALIDATION = """
datasets:
  val:
    name: set
    type: AllInOneDataset
    tasks: [{type: derain, clean: 'skimage://', files: [microaneurysms.png], degrade: {type: rain}}]
"""
IMAGE = skimage.data.astronaut()[:37, :50]


@pytest.fixture(scope='module')
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training with a validation; its best weights are not its last."""
    folder = tmp_path_factory.mktemp('published')
    options = yaml.safe_load(TINY_TRAINING)
    options['datasets'] |= yaml.safe_load(VALIDATION)['datasets']
    options['train'] |= {'ema_decay': 0.5}
    options['val'] = {'val_freq': 2, 'contact_sheet': True, 'best_metric': 'psnr', 'save_img': False, 'pbar': False}
    options['val']['metrics'] = {'psnr': {'type': 'calculate_paper_psnr'}, 'ssim': {'type': 'calculate_paper_ssim'}}
    (folder / 'a.yml').write_text(yaml.safe_dump(options))
    done = basicsr('train', '-opt', 'a.yml', cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / 'experiments' / 'tiny'


@pytest.fixture
def published(run: Path, tmp_path: Path) -> Path:
    publish(find_source(str(run)), str(tmp_path / 'model'), licence='cc-by-4.0')
    return tmp_path / 'model'


def test_a_published_folder_restores_bit_by_bit_what_the_run_does(run: Path, published: Path, tmp_path: Path) -> None:
    expected = Restorer(run / 'models' / 'net_g_best.pth').restore(IMAGE)
    assert (expected != IMAGE).any()
    np.testing.assert_array_equal(Restorer.from_pretrained(published).restore(IMAGE), expected)
    # By others, without what the header says.
    weights = safetensors.torch.load_file(published / 'model.safetensors')
    safetensors.torch.save_file(weights, published / 'model.safetensors')
    again = Restorer.from_pretrained(published, device='cpu')
    np.testing.assert_array_equal(again.restore(IMAGE), expected)
    assert 'Network: PromptIR, as the file says.' in again.checkpoint.notes


def test_the_card_reports_what_was_measured_with_these_weights(run: Path, published: Path) -> None:
    assert sorted(path.name for path in published.iterdir()) == [
        'README.md',
        'config.json',
        'image.png',
        'model.safetensors',
    ]
    _, front, text = (published / 'README.md').read_text(encoding='utf-8').split('---\n', 2)
    assert yaml.safe_load(front) == {
        'library_name': 'promptir_basicsr',
        'pipeline_tag': 'image-to-image',
        'license': 'cc-by-4.0',
        'tags': ['image-restoration', 'all-in-one-image-restoration', 'promptir'],
    }
    best = json.loads((run / 'models' / 'net_g_best.json').read_text())
    row = next(line for line in text.splitlines() if line.startswith('| derain | 1 |'))
    assert f'| {best["value"]:.2f} (' in row
    assert text.count('| average | 1 |') == 1
    assert f'{best["iter"]} iterations' in text
    assert '- ssim: SSIM: RGB, float' in text
    config = json.loads((published / 'config.json').read_text())
    assert config['network_g'] == {**yaml.safe_load(TINY_TRAINING)['network_g']}
    assert (published / 'image.png').read_bytes() == (run / 'contact_sheet.png').read_bytes()


def test_the_table_of_a_test_takes_the_place_of_the_validation(run: Path, tmp_path: Path) -> None:
    results = json.loads((run / 'results.json').read_text())
    results['tasks'][0]['values']['psnr'] = 33.125
    (tmp_path / 'results.json').write_text(json.dumps(results))
    publish(find_source(str(run)), str(tmp_path / 'model'), name='mine', results=str(tmp_path))
    text = (tmp_path / 'model' / 'README.md').read_text()
    assert '| derain | 1 | 33.12 (' in text
    assert '# mine\n' in text
    assert 'license' not in text


def test_nothing_is_replaced_unasked_and_mistakes_are_one_sentence(
    run: Path, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run.parents[1])
    before = {path: path.read_bytes() for path in published.iterdir()}
    out = ['-o', str(published)]
    for arguments, words in (
        (['tiny', *out], 'already exists'),
        (['tin', *out], "'tin' is not a weights file, a folder, or a run in 'experiments'"),
        (['experiments', *out], 'is not a run with weights'),
        (['a.yml', *out, '--overwrite'], 'contains no weights'),
        (['tiny', *out, '--overwrite', '--license', 'a b'], "'a b' is not an identifier"),
        (['tiny', *out, '--overwrite', '--image', 'none.png'], "'none.png' does not exist"),
        (['tiny', *out, '--overwrite', '--results', 'none'], 'cannot be read'),
        (['tiny', '-o', 'a.yml'], "'a.yml' is a file"),
    ):
        assert cli.main(['publish', *arguments]) == 2
        assert words in capsys.readouterr().err
    assert {path: path.read_bytes() for path in published.iterdir()} == before
    assert cli.main(['publish', 'tiny', *out, '--overwrite']) == 0
    assert 'has no licence' in capsys.readouterr().out


class Hub(BaseHTTPRequestHandler):
    """`GET /OWNER/NAME/resolve/REVISION/FILE`, as far as downloads need it."""

    folder: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        self.asked.append(self.path)
        *place, name = self.path.partition('?')[0].strip('/').split('/')
        file = self.folder / name
        there = place in (['me', 'model', 'resolve', each] for each in ('main', 'v1')) and file.is_file()
        content = file.read_bytes() if there else b'Entry not found'
        self.send_response(200 if there else 404)
        self.send_header('Content-Length', str(len(content)))
        if there:
            self.send_header('ETag', f'"{sha256(content).hexdigest()}"')
            self.send_header('X-Repo-Commit', '0123456789abcdef0123456789abcdef01234567')
        else:
            self.send_header('X-Error-Code', 'RepoNotFound')
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(published: Path) -> Iterator[ThreadingHTTPServer]:
    handler = type('Handler', (Hub,), {'folder': published, 'asked': []})
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def restore_with(sources: list[str], hub: bool = True) -> None:
    """Restore image.npy by weights of each source, in a process that has not read the environment of the Hub yet."""
    assert 'huggingface_hub' not in sys.modules
    if not hub:
        sys.modules['huggingface_hub'] = None  # type: ignore[assignment]
    for number, source in enumerate(sources):
        np.save(f'{number}.npy', Restorer.from_pretrained(source).restore(np.load('image.npy')))


def test_weights_of_the_hub_restore(hub: ThreadingHTTPServer, run: Path, tmp_path: Path) -> None:
    pytest.importorskip('huggingface_hub')
    np.save(tmp_path / 'image.npy', IMAGE)
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith('_proxy')}
    environment |= {
        'HF_ENDPOINT': f'http://127.0.0.1:{hub.server_port}',
        'HF_HOME': str(tmp_path / 'cache'),
        'HF_HUB_OFFLINE': '0',
    }

    expected = Restorer(run / 'models' / 'net_g_best.pth').restore(IMAGE)
    sources = ['me/model', 'me/model@v1', 'me/other']
    lost = called(restore_with, sources, cwd=tmp_path, env=environment)
    for number in range(2):
        np.testing.assert_array_equal(np.load(tmp_path / f'{number}.npy'), expected)
    assert '/me/model/resolve/v1/model.safetensors' in hub.RequestHandlerClass.asked
    assert "'me/other' does not exist as a file or folder, and a repository of this name" in lost.stderr
    absent = called(restore_with, ['me/model'], False, cwd=tmp_path, env=environment)
    assert "run pip install 'promptir_basicsr[hub]'" in absent.stderr


@pytest.mark.parametrize('path', ['models/net.pth', 'owner/name/more', 'here/model', '/owner/name', 'name'])
def test_a_missing_path_is_not_looked_up_on_the_hub(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    (tmp_path / 'here').mkdir()
    with pytest.raises(OptionError, match='does not exist'):
        Restorer.from_pretrained(path)


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    torch.save({}, tmp_path / 'a.pth')
    with pytest.raises(OptionError, match=r'is a folder\. Pass a file in it: a\.pth'):
        Restorer.from_pretrained(tmp_path)
