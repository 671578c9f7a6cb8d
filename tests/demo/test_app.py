"""The page of `basicsr demo`: the real command, in a real browser."""

import http.client
import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from skimage import data

from promptir_basicsr.cli import main
from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.demo.content import (
    PREVIEW,
    copy_examples,
    make_examples,
    preview,
    prompt_shares,
    read_upload,
    restore_upload,
    weights_markup,
)
from promptir_basicsr.inference.restorer import Restorer
from promptir_basicsr.pictures.picture import PictureError
from tests.browser import browser_page

# isort: split
from basicsr.archs import build_network

if find_spec('gradio') is None:  # the commands that the tests start import it
    pytest.skip('gradio is not installed', allow_module_level=True)
Axe = pytest.importorskip('axe_playwright_python.sync_playwright').Axe

TINY = {
    'dim': 8,
    'num_blocks': [1, 1, 1, 1],
    'num_refinement_blocks': 1,
    'heads': [1, 1, 1, 1],
    'prompt_sizes': [4, 4, 4],
}
PROMPTIR = {'type': 'PromptIR', **TINY}
PIP = {'type': 'PIPRestormer', **TINY, 'prompt_dims': [12, 12, 12], 'sensor': {'type': 'DegradationSensor', 'dim': 8}}
SECONDS = 20  # Python itself takes some to end where the machine is busy
GRADIOS_OWN = (
    'warning: Method not implemented.',  # closing a stream of events, whatever the page
    'failed: http://127.0.0.1:{port}/gradio_api/queue/data?session_hash=',  # the page ends such a stream itself
    'failed: http://127.0.0.1:{port}/gradio_api/upload_progress?upload_id=',
)


@dataclass
class Server:
    """A running `basicsr demo`.

    Attributes:
        asked: connections of the process to anybody but this machine, as far as it heeds proxies.
    """

    process: subprocess.Popen
    port: int
    work: Path
    asked: list[str] = field(default_factory=list)

    def stop(self, number: int = signal.SIGINT) -> tuple[int, float, str]:
        """Exit status, seconds it took, and what it said on standard error."""
        begun = time.monotonic()
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=30)
        return self.process.returncode, time.monotonic() - begun, said


def save_network(folder: Path, options: dict) -> tuple[Path, Path]:
    """A checkpoint and an option file of a small network with random weights."""
    torch.manual_seed(3)
    net = build_network(dict(options))
    with torch.no_grad():
        for weight in net.parameters():
            weight.mul_(1.5)  # otherwise it hardly changes anything
    torch.save({'params': net.state_dict()}, folder / 'net.pth')
    (folder / 'net.yml').write_text(yaml.safe_dump({'network_g': options}))
    return folder / 'net.pth', folder / 'net.yml'


def free_port() -> int:
    with socket.socket() as place:
        place.bind(('127.0.0.1', 0))
        return place.getsockname()[1]


@contextmanager
def serving(folder: Path, options: dict, *arguments: str) -> Iterator[Server]:
    weights, option_file = save_network(folder, options)
    port, work = free_port(), folder / 'work'
    work.mkdir()
    with socket.create_server(('127.0.0.1', 0)) as proxy:
        address = f'http://127.0.0.1:{proxy.getsockname()[1]}'
        environment = {name: value for name, value in os.environ.items() if not name.lower().endswith('_proxy')}
        environment |= {'HTTP_PROXY': address, 'HTTPS_PROXY': address, 'ALL_PROXY': address}
        environment |= {'NO_PROXY': '127.0.0.1,localhost', 'OMP_NUM_THREADS': '1', 'TMPDIR': str(work)}
        command = [
            sys.executable,
            '-m',
            'promptir_basicsr',
            'demo',
            '--weights',
            str(weights),
            '-opt',
            str(option_file),
        ]
        process = subprocess.Popen(
            [*command, '--port', str(port), '--no-browser', *arguments],
            cwd=folder,
            env={**environment, 'PYTHONPATH': str(Path(__file__).parents[2])},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=partial(signal.signal, signal.SIGHUP, signal.SIG_DFL),  # whatever nohup has made of it
        )
        server = Server(process, port, work)
        watch = threading.Thread(target=_note_connections, args=(proxy, server.asked), daemon=True)
        watch.start()
        try:
            said = process.stdout.readline()
            assert said == f'The page is at http://127.0.0.1:{port}/ - Ctrl-C ends it.\n', process.stderr.read()
            yield server
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()
            proxy.shutdown(socket.SHUT_RDWR)
            watch.join()


def _note_connections(proxy: socket.socket, asked: list[str]) -> None:
    while True:
        try:
            connection, _ = proxy.accept()
        except OSError:  # closed
            return
        with connection:
            asked.append(connection.recv(200).decode(errors='replace').partition('\r')[0])


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp('promptir'), PROMPTIR, '--max-megapixels', '0.5') as server:
        yield server


@pytest.fixture(scope='module')
def browser():
    with browser_page() as watched:
        yield watched


@contextmanager
def opened(browser, server):
    """The page; nothing goes wrong in it, and nobody else is asked for anything."""
    browser.problems.clear()
    browser.page.goto(f'http://127.0.0.1:{server.port}')
    browser.page.wait_for_selector('#restore')
    yield browser.page
    known = tuple(line.format(port=server.port) for line in GRADIOS_OWN)
    assert [problem for problem in browser.problems if not problem.startswith(known)] == []
    assert server.asked == []


@pytest.fixture
def page(browser, server):
    with opened(browser, server) as page:
        yield page


def upload(page, path: Path) -> None:
    page.locator('#picture input[type=file]').set_input_files(path)
    page.wait_for_function('document.querySelector("#picture img")?.naturalWidth > 0')
    page.wait_for_timeout(300)  # the file is looked at


def restore(page) -> Path:
    """Press the button; the file that comes of it."""
    page.locator('#restore').click()
    page.wait_for_selector('#download', timeout=30000)
    with page.expect_download() as download:
        page.locator('#download').click()
    return Path(download.value.path()), download.value.suggested_filename


def restorer(server) -> Restorer:
    folder = server.work.parent
    return Restorer(folder / 'net.pth', folder / 'net.yml', 'cpu')


def told_weights(page) -> np.ndarray:
    """(prompts, levels) of the bars, in per cent."""
    rows = page.locator('.prompt-weights tbody tr').all()
    return np.array([[float(text.rstrip(' %')) for text in row.locator('td').all_inner_texts()] for row in rows])


def shown(page, number: int) -> np.ndarray:
    """A picture of the slider, as the browser has it."""
    source = page.locator('#comparison img').nth(number).evaluate('(image) => image.src')
    return np.asarray(Image.open(io.BytesIO(page.request.get(source).body())))


def test_a_picture_is_restored_as_by_the_restorer(page, server, tmp_path):
    photograph = data.astronaut()[:181, 100:303]
    Image.fromarray(photograph).save(tmp_path / 'astronaut.png')
    upload(page, tmp_path / 'astronaut.png')
    path, name = restore(page)
    expected = restorer(server).restore(photograph)
    assert name == 'astronaut_restored.png'
    np.testing.assert_array_equal(np.asarray(Image.open(path)), expected)
    assert np.abs(expected.astype(int) - photograph).mean() > 1

    page.wait_for_function(
        '[...document.querySelectorAll("#comparison img")].every((image) => image.naturalWidth === 203)'
    )
    np.testing.assert_array_equal(shown(page, 0), photograph)
    np.testing.assert_array_equal(shown(page, 1), expected)
    assert '203 x 181 pixels in' in page.locator('#said').inner_text()

    net = restorer(server).net
    x = torch.from_numpy(photograph.transpose(2, 0, 1)[None] / np.float32(255))
    x = torch.nn.functional.pad(x, (0, 5, 0, 3), mode='reflect')
    with torch.no_grad():
        weights = torch.cat(list(net.prompt_weights(x).values())).T.numpy()
    assert page.locator('.prompt-weights thead th').all_inner_texts() == ['level 3', 'level 2', 'level 1']
    np.testing.assert_allclose(told_weights(page), 100 * weights, atol=0.51)


def edge(page) -> float:
    """How much of the second picture is cut off on its left, in per cent."""
    return float(
        re.findall(r'[\d.]+', page.locator('#comparison .after').evaluate('(e) => getComputedStyle(e).clipPath'))[-1]
    )


def test_the_edge_is_dragged(page, tmp_path):
    Image.fromarray(data.astronaut()[:120, :160]).save(tmp_path / 'a.png')
    upload(page, tmp_path / 'a.png')
    restore(page)
    box = page.locator('#comparison .frame').bounding_box()
    assert box['width'] / box['height'] == pytest.approx(160 / 120, rel=0.01)
    y = box['y'] + box['height'] / 3
    assert edge(page) == pytest.approx(50)
    page.mouse.move(box['x'] + box['width'] * 0.6, y)
    page.mouse.down()
    assert edge(page) == pytest.approx(60, abs=1)
    page.mouse.move(box['x'] + box['width'] * 0.2, y, steps=4)
    page.mouse.up()
    assert edge(page) == pytest.approx(20, abs=1)
    page.get_by_label('Actual size').check()
    assert page.locator('#comparison .frame').bounding_box()['width'] == 160


def test_the_keyboard_alone_is_enough(page, server, tmp_path):
    photograph = data.coffee()[:96, :96]
    Image.fromarray(photograph).save(tmp_path / 'a.png')

    def press(key: str, label: str) -> None:
        """Move on to what has this accessible name, and press a key there."""
        for _ in range(20):
            page.keyboard.press('Tab')
            if label in page.evaluate('[document.activeElement.ariaLabel, document.activeElement.innerText]'):
                page.keyboard.press(key)
                return
        raise AssertionError(f'{label!r} is not reached')

    with page.expect_file_chooser() as chooser:
        press('Enter', 'Drop an image file here to upload')
    chooser.value.set_files(tmp_path / 'a.png')
    page.wait_for_function('document.querySelector("#picture img")?.naturalWidth > 0')
    page.wait_for_timeout(300)
    press('Enter', 'Restore')
    page.wait_for_selector('#download', timeout=30000)
    page.wait_for_selector('#comparison [type=range]')
    np.testing.assert_array_equal(shown(page, 1), restorer(server).restore(photograph))
    press('ArrowLeft', 'Edge: before on the left, after on the right')
    assert 45 < edge(page) < 50
    page.keyboard.press('Home')
    assert edge(page) == 0
    with page.expect_download() as download:
        press('Enter', 'Download')
    assert download.value.suggested_filename == 'a_restored.png'


def violations(page) -> list[str]:
    """What the accessibility checker has found."""
    found = Axe().run(page).response['violations']
    return [f'{each["id"]}: {node["html"]}' for each in found for node in each['nodes']]


@pytest.mark.parametrize(
    ('theme', 'width'),
    [
        ('light', 1280),
        ('dark', 390),
        pytest.param('light', 390, marks=pytest.mark.slow),
        pytest.param('dark', 1280, marks=pytest.mark.slow),
    ],
)
def test_the_accessibility_checker_finds_nothing(page, width, theme):
    page.set_viewport_size({'width': width, 'height': 844})
    page.wait_for_function('[...document.images].every((image) => image.complete)')
    page.goto(f'{page.url}?__theme={theme}')
    page.wait_for_selector('#restore')
    assert violations(page) == []
    page.locator('#examples button').first.click()
    page.wait_for_function('document.querySelector("#picture img")?.naturalWidth === 512')
    restore(page)
    page.wait_for_function('document.querySelector("[role=status]")?.innerText === "Done"')
    assert violations(page) == []
    page.set_viewport_size({'width': 1280, 'height': 900})


def test_depth_and_format_stay(page, server, tmp_path):
    deep = data.astronaut()[:64, 200:280].astype(np.uint16) * 257
    cv2.imwrite(str(tmp_path / 'deep.tif'), deep[..., ::-1])
    upload(page, tmp_path / 'deep.tif')  # a browser cannot show it; the page can
    path, name = restore(page)
    assert name == 'deep_restored.tif'
    found = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)[..., ::-1]
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, restorer(server).restore(deep))


def test_an_example_is_restored(page, server):
    page.locator('#examples button').nth(1).click()
    page.wait_for_function('document.querySelector("#picture img")?.naturalWidth === 600')
    path, name = restore(page)
    assert name == 'coffee_rain_restored.png'
    example = np.asarray(Image.open(server.work / next(server.work.glob('*/examples/coffee_rain.png'))))
    np.testing.assert_array_equal(np.asarray(Image.open(path)), restorer(server).restore(example))
    assert page.locator('#examples button').count() == 5


def test_problems_of_a_file_are_shown_on_the_page(page, tmp_path):
    large = np.zeros((800, 800, 3), np.uint8)
    cv2.imwrite(str(tmp_path / 'good.tif'), large[:64, :64])
    messages = page.locator('.toast-body')
    for turn in range(2):  # the second after a good picture, which the page has replaced by one that browsers show
        (tmp_path / f'text{turn}.png').write_text('no picture')
        Image.fromarray(large).save(tmp_path / f'large{turn}.png')
        for name, words in (
            (f'text{turn}.png', "' is text"),
            (f'large{turn}.png', "' has 800 x 800 pixels, 0.6 megapixels"),
        ):
            page.locator('#picture input[type=file]').set_input_files(tmp_path / name)
            messages.filter(has_text=f"'{name}{words}").wait_for(timeout=10000)
            page.wait_for_selector('#picture input[type=file]', state='attached')  # room for another one
        if turn == 0:
            upload(page, tmp_path / 'good.tif')
            restore(page)
            page.get_by_label('Remove Image').click()
    page.locator('#restore').click()
    messages.filter(has_text='There is no image yet').wait_for(timeout=10000)


@pytest.mark.parametrize(
    ('host', 'status'),
    [('127.0.0.1:{port}', 200), ('localhost:{port}', 200), ('[::1]:{port}', 200), ('LOCALHOST', 200)]
    + [('evil.example:{port}', 421), ('localhost.evil.example', 421), ('', 421), ('127.0.0.1.evil.example', 421)],
)
def test_only_requests_to_this_machine_are_answered(server, host, status):
    connection = http.client.HTTPConnection('127.0.0.1', server.port, timeout=10)
    connection.request('GET', '/config', headers={'Host': host.format(port=server.port)})
    answer = connection.getresponse()
    assert (answer.status, b'`--host NAME`' in answer.read()) == (status, status != 200)
    connection.close()


def test_visitors_take_turns(browser, server, tmp_path):
    Image.fromarray(data.coffee()[:200, :200]).save(tmp_path / 'a.png')
    contexts = [browser.page.context.browser.new_context() for _ in range(2)]
    pages = [context.new_page() for context in contexts]
    for each in pages:
        each.goto(f'http://127.0.0.1:{server.port}')
        each.wait_for_selector('#restore')
        upload(each, tmp_path / 'a.png')
    for each in pages:
        each.locator('#restore').click()
    for each in pages:
        each.wait_for_selector('.prompt-weights', timeout=30000)
    first, second = (shown(each, 1) for each in pages)
    np.testing.assert_array_equal(first, second)
    for context in contexts:
        context.close()


@pytest.mark.parametrize('width', [375, 768])
def test_a_telephone_is_wide_enough(page, width):
    """Nothing is cut off or covered, and the result comes into view."""
    page.set_viewport_size({'width': width, 'height': 700})
    page.locator('#examples button').first.click()
    page.wait_for_function('document.querySelector("#picture img")?.naturalWidth === 512')
    restore(page)
    assert page.evaluate('document.documentElement.scrollWidth') == width
    assert -1 <= page.locator('#result').bounding_box()['y'] < 350
    page.wait_for_selector('.prompt-weights')
    covered = page.locator('.prompt-weights tbody td > span:last-child').evaluate_all(
        """(shares) => shares.filter((share) => {
          share.scrollIntoView({block: 'center'});
          const {left, right, top, bottom} = share.getBoundingClientRect();
          return document.elementFromPoint((left + right) / 2, (top + bottom) / 2) !== share || right > innerWidth;
        }).length"""
    )
    assert covered == 0
    page.set_viewport_size({'width': 1280, 'height': 900})


def test_closing_the_terminal_ends_it_and_nothing_is_left(server):
    """The last test of this server."""
    assert list(server.work.iterdir())
    status, seconds, said = server.stop(signal.SIGHUP)
    assert status == 0
    assert seconds < SECONDS
    assert 'Traceback' not in said
    assert list(server.work.iterdir()) == []
    assert {path.name for path in server.work.parent.iterdir()} == {'net.pth', 'net.yml', 'work'}
    assert server.asked == []


@pytest.mark.slow
def test_a_network_with_labels(browser, tmp_path):
    photograph = data.coffee()[100:220, 200:340]
    Image.fromarray(photograph).save(tmp_path / 'coffee.png')
    (tmp_path / 'own').mkdir()
    Image.fromarray(photograph).save(tmp_path / 'own' / 'mine.png')
    with serving(tmp_path, PIP, '--examples', str(tmp_path / 'own')) as server, opened(browser, server) as page:
        assert page.locator('#examples button').count() == 1
        upload(page, tmp_path / 'coffee.png')
        path, _ = restore(page)  # blind: the sensor looks
        one = restorer(server)
        np.testing.assert_array_equal(np.asarray(Image.open(path)), one.restore(photograph))
        with torch.no_grad():
            sensed = one.net.sense(torch.from_numpy(photograph.transpose(2, 0, 1)[None] / np.float32(255)))[0]
        np.testing.assert_allclose(told_weights(page), 100 * sensed.numpy()[:, None].repeat(3, axis=1), atol=0.51)
        assert page.locator('.prompt-weights tbody th').all_inner_texts() == list(one.net.degradations)
        assert not page.locator('#mixture').is_visible()

        page.get_by_label('Choose the degradation').click()
        page.locator('#mixture').wait_for()
        assert violations(page) == []
        for control, value in (('label-0', '0'), ('label-1', '0.75'), ('label-4', '0.25'), ('strength', '0.5')):
            page.locator(f'#{control} input[type=number]').fill(value)
            page.locator(f'#{control} input[type=number]').blur()
        before = page.locator('.prompt-weights').inner_text()
        page.locator('#restore').click()
        page.wait_for_function('(text) => document.querySelector(".prompt-weights")?.innerText !== text', arg=before)
        np.testing.assert_array_equal(told_weights(page), np.array([[0, 75, 0, 0, 25]]).T.repeat(3, axis=1))
        expected = one.restore(photograph, {'derain': 0.75, 'lowlight': 0.25}, 0.5)
        np.testing.assert_array_equal(shown(page, 1), expected)
        assert (expected != one.restore(photograph, 'lowlight')).any()

        for control in ('label-1', 'label-4'):
            page.locator(f'#{control} input[type=number]').fill('0')
            page.locator(f'#{control} input[type=number]').blur()
        page.locator('#restore').click()
        page.locator('.toast-body').filter(has_text='All labels are at 0').wait_for(timeout=10000)
        status, seconds, said = server.stop(signal.SIGTERM)
        assert (status, 'Traceback' in said) == (0, False)
        assert seconds < SECONDS
        assert list(server.work.iterdir()) == []
        browser.problems.clear()  # of a page without its server


@pytest.mark.slow
@pytest.mark.parametrize('tile', ['none', '128'])
def test_ctrl_c_does_not_wait_for_a_restoration(browser, tmp_path, tile):
    Image.fromarray(data.astronaut()).resize((4000, 3000)).save(tmp_path / 'large.jpg')
    with serving(tmp_path, {**PROMPTIR, 'num_refinement_blocks': 8}, '--tile', tile) as server:
        with opened(browser, server) as page:
            upload(page, tmp_path / 'large.jpg')
            page.wait_for_timeout(2000)
            page.locator('#restore').click()
            page.wait_for_timeout(3000)
        status, seconds, said = server.stop()
        assert status == 0
        assert seconds < SECONDS
        assert 'Traceback' not in said
        assert list(server.work.iterdir()) == []
        browser.page.goto('about:blank')


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        ([], ['--weights: missing.']),
        (
            ['--weights', 'x', '--port', '0', '--max-megapixels', '0', '--tile', 'large'],
            ['--port: 0 is not', '--max-megapixels: 0 is not', "tile: 'large' is not"],
        ),
        (['--weights', 'there_is_none.pth'], ["'there_is_none.pth'"]),
    ],
)
def test_mistakes_are_reported(arguments, words, capsys, monkeypatch, tmp_path):
    keep_environment(monkeypatch, tmp_path)
    assert main(['demo', *arguments]) == 2
    said = capsys.readouterr().err
    assert [word for word in words if word not in said] == []
    assert 'Traceback' not in said
    assert list(tmp_path.iterdir()) == []


def keep_environment(monkeypatch, folder):
    for name in ('GRADIO_TEMP_DIR', 'GRADIO_ANALYTICS_ENABLED', 'HF_HUB_DISABLE_TELEMETRY', 'HF_HUB_OFFLINE'):
        monkeypatch.setenv(name, os.environ.get(name, ''))  # put back after the test
    monkeypatch.setattr('tempfile.tempdir', str(folder))


def test_without_gradio_the_error_names_what_to_install(capsys, monkeypatch, tmp_path):
    keep_environment(monkeypatch, tmp_path)
    monkeypatch.setitem(sys.modules, 'gradio', None)
    assert main(['demo', '--weights', 'x.pth']) == 2
    assert "pip install 'promptir_basicsr[web]'" in capsys.readouterr().err


def test_a_port_that_is_taken(capsys, monkeypatch, tmp_path):
    (tmp_path / 'temporary').mkdir()
    keep_environment(monkeypatch, tmp_path / 'temporary')
    weights, options = save_network(tmp_path, PROMPTIR)
    monkeypatch.setattr('signal.signal', lambda *_: None)
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(['demo', '--weights', str(weights), '-opt', str(options), '--port', port, '--no-browser']) == 2
    assert f'--port: {port} on 127.0.0.1 is in use' in capsys.readouterr().err
    assert list((tmp_path / 'temporary').iterdir()) == []


def test_examples_are_degraded_photographs(tmp_path):
    examples = dict(make_examples(tmp_path))
    assert list(examples) == ['noise', 'rain', 'haze', 'blur', 'low light']
    clean = data.astronaut().astype(float)
    noisy, dark = (np.asarray(Image.open(examples[name])).astype(float) for name in ('noise', 'low light'))
    assert np.std(noisy - clean) == pytest.approx(24, abs=4)  # clipping takes a little
    assert dark.mean() < 0.6 * clean.mean()


def test_own_examples_are_copied(tmp_path):
    (tmp_path / 'own').mkdir()
    with pytest.raises(OptionError, match='is not a folder'):
        copy_examples(tmp_path / 'missing', tmp_path / 'to')
    (tmp_path / 'own' / 'broken.png').write_text('no')
    (tmp_path / 'own' / 'words.txt').write_text('no')
    with pytest.raises(OptionError, match='no images in'):
        copy_examples(tmp_path / 'own', tmp_path / 'to')
    for number in range(14):
        Image.new('RGB', (4, 4)).save(tmp_path / 'own' / f'{number:02}.jpg')
    copied = copy_examples(tmp_path / 'own', tmp_path / 'to')
    assert [name for name, _ in copied] == [f'{number:02}' for number in range(12)]
    assert all(path.read_bytes() == (tmp_path / 'own' / path.name).read_bytes() for _, path in copied)


def test_large_pictures_are_refused_before_they_are_decoded(tmp_path):
    Image.new('L', (300, 200)).save(tmp_path / 'a.png')
    content = (tmp_path / 'a.png').read_bytes()
    (tmp_path / 'cut.png').write_bytes(content[:60])  # its header is all there is
    with pytest.raises(PictureError, match=r'0\.1 megapixels\. This page accepts at most 0\.05'):
        read_upload(tmp_path / 'cut.png', 50_000)
    with pytest.raises(PictureError, match='damaged or truncated'):
        read_upload(tmp_path / 'cut.png', 60_000)
    assert read_upload(tmp_path / 'a.png', 60_000).size == (200, 300)


@pytest.mark.parametrize('shape', [(5, 7), (5, 7, 2), (5, 7, 3), (5, 7, 4)])
@pytest.mark.parametrize('kind', [np.uint8, np.uint16])
def test_any_image_can_be_shown(shape, kind):
    image = np.random.default_rng(0).integers(0, np.iinfo(kind).max, shape, endpoint=True).astype(kind)
    small = preview(image)
    assert (small.shape, small.dtype) == ((5, 7, 3), np.uint8)
    first = image.reshape(5, 7, -1)[..., 0]
    np.testing.assert_array_equal(small[..., 0], np.rint(first / (1 if kind == np.uint8 else 257)))


def test_what_is_shown_is_not_larger_than_a_screen():
    assert preview(np.zeros((3, 2 * PREVIEW, 3), np.uint8)).shape == (2, PREVIEW, 3)
    assert preview(np.zeros((1, 3 * PREVIEW), np.uint8)).shape == (1, PREVIEW, 3)


def test_grey_with_alpha_is_restored_to_a_file_and_large_images_show_their_centre(tmp_path):
    weights, options = save_network(tmp_path, PROMPTIR)
    one = Restorer(weights, options, 'cpu')
    grey = np.dstack([data.camera()[:50, :60], np.full((50, 60), 200, np.uint8)])
    Image.fromarray(grey, 'LA').save(tmp_path / 'grey.png')
    restored = restore_upload(one, tmp_path / 'grey.png', tmp_path / 'out', 10_000)
    assert restored.file == tmp_path / 'out' / 'grey_restored.png'
    np.testing.assert_array_equal(np.asarray(Image.open(restored.file)), one.restore(grey))
    assert restored.part == ''
    with pytest.raises(ValueError, match='it accepts neither labels'):
        restore_upload(one, tmp_path / 'grey.png', tmp_path / 'out', 10_000, 'derain')

    wide = np.tile(data.astronaut()[:64], (1, 2, 1))
    shares, part = prompt_shares(one, wide)
    assert part == 'the central 768 x 64 pixels'
    assert shares == prompt_shares(one, wide[:, 128:-128])[0]
    assert all(sum(level.values()) == pytest.approx(1, abs=1e-5) for level in shares.values())


def test_labels_and_a_sensor(tmp_path):
    weights, options = save_network(tmp_path, PIP)
    one = Restorer(weights, options, 'cpu')
    photograph = data.coffee()[:40, :56]
    Image.fromarray(photograph).save(tmp_path / 'a.png')
    told = {'derain': 0.75, 'lowlight': 0.25}
    restored = restore_upload(one, tmp_path / 'a.png', tmp_path / 'out', 10_000, told, 0.5)
    np.testing.assert_array_equal(restored.after, one.restore(photograph, told, 0.5))
    mixture = {'denoise': 0, 'derain': 0.75, 'dehaze': 0, 'deblur': 0, 'lowlight': 0.25}
    assert restored.weights == dict.fromkeys(('level3', 'level2', 'level1'), mixture)
    blind = restore_upload(one, tmp_path / 'a.png', tmp_path / 'out', 10_000)
    with torch.no_grad():
        sensed = one.net.sense(torch.from_numpy(photograph.transpose(2, 0, 1)[None] / np.float32(255)))[0]
    assert list(blind.weights['level1'].values()) == pytest.approx(sensed.tolist(), abs=1e-5)


def test_names_of_prompts_are_texts():
    markup = weights_markup({'level3': {'<b>rain</b>': 0.25}, 'level1': {'<b>rain</b>': 0.75}}, 'a <i>part</i>')
    assert '&lt;b&gt;rain&lt;/b&gt;' in markup
    assert '<b>' not in markup
    assert '<i>' not in markup
    assert re.findall(r'>(\d+ %)<', markup) == ['25 %', '75 %']
    assert weights_markup({}) == ''


def test_a_network_without_prompts_has_no_weights(tmp_path):
    weights, options = save_network(tmp_path, {**PROMPTIR, 'prompts': False})
    assert prompt_shares(Restorer(weights, options, 'cpu'), np.zeros((8, 8, 3), np.uint8)) == ({}, '')


def test_a_one_channel_network_writes_grey_images_and_reports_it(tmp_path):
    weights, options = save_network(tmp_path, {**PROMPTIR, 'inp_channels': 1, 'out_channels': 1})
    one = Restorer(weights, options, 'cpu')
    photograph = data.coffee()[:40, :56]
    Image.fromarray(photograph).save(tmp_path / 'a.png')
    restored = restore_upload(one, tmp_path / 'a.png', tmp_path / 'out', 10_000)
    np.testing.assert_array_equal(np.asarray(Image.open(restored.file)), one.restore(photograph))
    np.testing.assert_array_equal(restored.after, np.dstack([one.restore(photograph)] * 3))
    assert restored.notes == ('converted to grey',)
    assert list(restored.weights) == ['level3', 'level2', 'level1']
