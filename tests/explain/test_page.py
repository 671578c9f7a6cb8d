"""The page of a report, looked at in a real browser."""

import base64
import io
import re
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from PIL import Image
from skimage import data

from promptir_basicsr.core.errors import OptionError, SaveError
from promptir_basicsr.explain.page import Comparison, Figure, Report, Section, Table, write_page
from promptir_basicsr.explain.page.embed import LARGEST_SVG, inline_svg
from tests.browser import browser_page

EVIL = '<script>document.title = "broken"</script><img src=x onerror="document.title = 1">"\'&amp;'
RED, GREEN, BLUE = (np.full((60, 90, 3), colour, np.uint8) for colour in ([255, 0, 0], [0, 128, 0], [0, 0, 255]))
DRAWING = """<?xml version="1.0"?>
<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="80pt" height="40pt"
 viewBox="0 0 80 40">
 <metadata>who, when</metadata>
 <defs>
  <style>* {{ fill-opacity: 0.5 }}</style>
  <clipPath id="cut"><rect width="40" height="40"/></clipPath>
  <path id="mark" d="M 0 0 L 10 0 L 10 10 z" style="fill: {colour}"/>
 </defs>
{more}
 <g clip-path="url(#cut)"><use xlink:href="#mark" x="5"/></g>
 <rect width="80" height="40"/>
</svg>
"""
ELSEWHERE = """
 <script>document.title = 'broken'</script>
 <style>@import url(https://example.org/a.css);</style>
 <use xlink:href="https://example.org/a.svg#b"/><image xlink:href="https://example.org/c.png" width="9" height="9"/>
 <rect width="80" height="40" style="fill: url(https://example.org/b)" onload="document.title = 'broken'"/>
"""


@pytest.fixture(scope='module')
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    folder = tmp_path_factory.mktemp('figures')
    figures = []
    for name in ('red', 'blue'):
        (folder / f'{name}.svg').write_text(DRAWING.format(colour=name, more=''))
        Image.new('RGB', (8, 4), name).save(folder / f'{name}.png')
        figures.append(Figure(f'The {name} one', folder / f'{name}.png', folder / f'{name}.svg', 'Triangles.'))
    photograph = data.astronaut()[:200, 100:300]
    rows = [
        ['derain', 10, 27.5, 0.91, None],
        ['denoise', 9, -3, np.float32(0.5), 'x'],
        ['dehaze', 1200, float('inf'), None, EVIL],
        ['deblur 10', np.int64(2), 101.25, 1.0, True],
        ['deblur 9', 0, None, float('nan'), False],
    ]
    table = Table('Which is best?', ['task', 'images', 'PSNR', 'SSIM', EVIL], rows, 'In dB.')
    return Report(
        f'What a network has learned {EVIL}',
        [('Network', 'PromptIR'), (EVIL, 1234567), ('Gain', np.float64(3.14159265)), ('Label', None)],
        [
            Section(
                EVIL,
                f'One paragraph.\n\nAnother one, {EVIL}.',
                comparisons=[
                    Comparison(EVIL, RED, GREEN, BLUE, 'Colours.'),
                    Comparison('Tones', photograph / 255, 1 - photograph / 255, names=('Photograph', 'Negative', '')),
                ],
            ),
            Section('Figures', figures=figures),
            Section('Figures', 'Twice the same name.', tables=[table]),
        ],
    )


@pytest.fixture(scope='module')
def path(report, tmp_path_factory):
    path = tmp_path_factory.mktemp('page') / 'new' / 'report.html'
    write_page(path, report)
    return path


@pytest.fixture(scope='module')
def browser():
    with browser_page() as watched:
        yield watched


@pytest.fixture
def page(browser, path):
    """The page, opened anew; whatever a test does with it, nothing goes wrong and nothing is asked for."""
    browser.problems.clear()
    browser.page.set_viewport_size({'width': 1280, 'height': 900})
    browser.page.emulate_media(media='screen', color_scheme='light', reduced_motion='reduce')
    browser.page.goto(path.as_uri())
    yield browser.page
    assert browser.problems == []


class Elements(HTMLParser):
    """Names and attributes of all elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def values(self, name: str) -> list[str]:
        return [attributes[name] or '' for _, attributes in self.found if name in attributes]


def pixels(page, locator) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(locator.screenshot())).convert('RGB'))


def test_the_file_refers_to_nothing_outside_and_has_no_name_twice(path, report):
    text = path.read_text()
    elements = Elements(text)
    links = elements.values('src') + elements.values('href') + elements.values('xlink:href')
    assert len([link for link in links if link.startswith('data:image/')]) == 5
    assert [link for link in links if not link.startswith(('#', 'data:'))] == []
    assert 'example.org' not in text
    assert 'who, when' not in text
    ids = elements.values('id')
    assert len(ids) == len(set(ids)) > 10
    assert {link[1:] for link in links if link.startswith('#')} <= set(ids)
    assert [tag for tag, _ in elements.found].count('script') == 1
    assert list(path.parent.iterdir()) == [path]


def test_the_same_report_gives_the_same_bytes(path, report, tmp_path):
    write_page(tmp_path / 'again.html', report)
    assert (tmp_path / 'again.html').read_bytes() == path.read_bytes()


def test_pictures_are_held_without_loss(path, report):
    uris = [value for value in Elements(path.read_text()).values('src') if value.startswith('data:image/webp')]
    held = [np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(',')[2])))) for uri in uris]
    assert len(held) == 5
    for image, expected in zip(held[:3], (RED, GREEN, BLUE), strict=True):
        np.testing.assert_array_equal(image, expected)
    photograph = data.astronaut()[:200, 100:300]
    np.testing.assert_array_equal(held[3], photograph)
    np.testing.assert_array_equal(held[4], 255 - photograph)


def test_many_large_pictures_are_held_as_jpeg(tmp_path):
    large = np.broadcast_to(np.uint8(200), (2000, 2500, 3))
    write_page(
        tmp_path / 'large.html', Report('Large', sections=[Section('', comparisons=[Comparison('', large, large)])])
    )
    text = (tmp_path / 'large.html').read_text()
    assert text.count('data:image/jpeg') == 2
    assert 'JPEG of quality 95' in text
    assert 'image/webp' not in text


def test_every_picture_is_decoded(page):
    sizes = page.evaluate(
        '[...document.images].map((image) => [image.complete, image.naturalWidth, image.naturalHeight])'
    )
    assert sizes == [[True, 90, 60]] * 3 + [[True, 200, 200]] * 2


def test_texts_are_texts(page):
    assert page.title() == f'What a network has learned {EVIL}'
    assert page.locator('h1').text_content() == page.title()
    assert page.locator('h2').first.text_content() == EVIL
    assert page.locator('section p').all_text_contents() == [
        'One paragraph.',
        f'Another one, {EVIL}.',
        'Twice the same name.',
    ]
    assert page.locator('td').filter(has_text='script').text_content() == EVIL
    assert page.locator('dt').nth(1).text_content() == EVIL
    assert page.locator('dd').all_text_contents() == ['PromptIR', '1,234,567', '3.14159', '–']
    assert page.locator('.before img').first.get_attribute('alt') == f'{EVIL}: Input'


def edge(page, figure=0) -> float:
    """Where the first colour ends, as a share of the width."""
    page.locator('.edge').nth(figure).evaluate('(edge) => edge.style.visibility = "hidden"')
    row = pixels(page, page.locator('.stage').nth(figure))[-8]  # below the names
    return float(np.mean(row[:, 0] > 128))


def test_the_slider_follows_the_mouse(page):
    assert edge(page) == pytest.approx(0.5, abs=0.01)
    box = page.locator('.stage').first.bounding_box()
    middle = box['y'] + box['height'] / 2
    page.mouse.move(box['x'] + box['width'] * 0.5, middle)
    page.mouse.down()
    for share in (0.4, 0.2, 0.25):
        page.mouse.move(box['x'] + box['width'] * share, middle)
    assert edge(page) == pytest.approx(0.25, abs=0.01)
    page.mouse.up()
    page.mouse.click(box['x'] + box['width'] * 0.9, middle)
    assert edge(page) == pytest.approx(0.9, abs=0.01)


def test_the_slider_follows_a_finger(browser, path):
    context = browser.page.context.browser.new_context(has_touch=True, viewport={'width': 375, 'height': 700})
    page = context.new_page()
    page.goto(path.as_uri())
    page.locator('.stage').first.scroll_into_view_if_needed()
    box = page.locator('.stage').first.bounding_box()
    page.touchscreen.tap(box['x'] + box['width'] * 0.8, box['y'] + box['height'] / 2)
    assert edge(page) == pytest.approx(0.8, abs=0.02)
    session = context.new_cdp_session(page)
    places = [(box['x'] + box['width'] * share, box['y'] + 20) for share in (0.8, 0.6, 0.4, 0.3)]
    for kind, place in zip(('touchStart', 'touchMove', 'touchMove', 'touchMove'), places, strict=True):
        session.send('Input.dispatchTouchEvent', {'type': kind, 'touchPoints': [{'x': place[0], 'y': place[1]}]})
    session.send('Input.dispatchTouchEvent', {'type': 'touchEnd', 'touchPoints': []})
    assert edge(page) == pytest.approx(0.3, abs=0.02)
    context.close()


def test_the_slider_follows_the_keyboard(page):
    slider = page.get_by_role('slider').first
    slider.focus()
    for key, share in (('ArrowLeft', 0.48), ('ArrowUp', 0.5), ('Shift+ArrowRight', 0.6), ('End', 1), ('Home', 0)):
        slider.press(key)
        assert edge(page) == pytest.approx(share, abs=0.01), key
    assert slider.get_attribute('aria-valuetext') == '0 % Input, 100 % Restored'
    assert slider.get_attribute('aria-label') == f'{EVIL}: part of the image that shows Input'


def test_the_target_takes_the_place_of_what_was_restored(page):
    right = lambda: tuple(pixels(page, page.locator('.stage').first)[-8, -8])  # noqa: E731
    button = page.get_by_role('button', name='Show target')
    assert button.count() == 1  # the other comparison has no target
    assert right() == (0, 128, 0)
    button.click()
    assert right() == (0, 0, 255)
    assert button.get_attribute('aria-pressed') == 'true'
    assert page.get_by_role('slider').first.get_attribute('aria-valuetext') == '50 % Input, 50 % Target'
    button.click()
    assert right() == (0, 128, 0)


def test_a_picture_is_enlarged_and_comes_back(page):
    button = page.get_by_role('button', name='Enlarge').first
    before = page.locator('.stage').first.bounding_box()
    button.click()
    large = page.locator('dialog .stage').bounding_box()
    assert large['width'] > 1.5 * before['width']
    assert large['width'] / large['height'] == pytest.approx(90 / 60, rel=0.01)
    assert large['y'] >= 0
    assert large['y'] + large['height'] <= 900
    page.keyboard.press('ArrowRight')  # the slider has the focus
    assert page.locator('dialog input').input_value() == '52'
    page.keyboard.press('Escape')
    page.locator('dialog .stage').wait_for(state='detached')
    assert page.locator('.comparison .stage').first.bounding_box() == before
    assert button.evaluate('(button) => button === document.activeElement')


def column(page, number: int) -> list[str]:
    return page.locator(f'tbody td:nth-child({number})').all_text_contents()


def test_tables_are_sorted_by_any_column(page):
    head = page.locator('thead th')
    button = page.locator('thead button')
    assert column(page, 2) == ['10', '9', '1,200', '2', '0']
    button.nth(1).click()
    assert column(page, 2) == ['0', '2', '9', '10', '1,200']
    assert column(page, 1) == ['deblur 9', 'deblur 10', 'denoise', 'derain', 'dehaze']
    assert head.nth(1).get_attribute('aria-sort') == 'ascending'
    button.nth(1).click()
    assert column(page, 2) == ['1,200', '10', '9', '2', '0']
    button.nth(1).press('Enter')
    assert column(page, 2) == ['10', '9', '1,200', '2', '0']
    button.nth(2).click()
    assert column(page, 3) == ['−3', '27.50', '101.25', '∞', '–']
    assert head.nth(1).get_attribute('aria-sort') == 'none'
    button.nth(2).click()
    assert column(page, 3) == ['∞', '101.25', '27.50', '−3', '–']
    button.nth(3).click()
    assert column(page, 4) == ['0.5000', '0.9100', '1.0000', '–', '–']
    button.nth(0).click()
    assert column(page, 1) == ['deblur 9', 'deblur 10', 'dehaze', 'denoise', 'derain']
    assert column(page, 5)[:2] == ['no', 'yes']


def test_numbers_are_right_aligned_in_their_columns(page):
    sides = (
        page.locator('tbody tr')
        .first.locator('td')
        .evaluate_all('(cells) => cells.map((cell) => getComputedStyle(cell).textAlign)')
    )
    assert sides == ['left', 'right', 'right', 'right', 'left']


def test_drawings_keep_their_own_names(page):
    assert page.locator('.paper svg').count() == 2
    fills = page.locator('.paper use').evaluate_all(
        '(uses) => uses.map((use) => document.querySelector(use.getAttribute("href"))?.style.fill ?? null)'
    )
    assert fills == ['red', 'blue']
    clips = page.locator('.paper g').evaluate_all('(groups) => groups.map((group) => group.getAttribute("clip-path"))')
    assert clips == ['url(#figure-3-cut)', 'url(#figure-4-cut)']
    assert page.locator('.paper rect').last.evaluate('(drawn) => getComputedStyle(drawn).fillOpacity') == '0.5'
    assert page.locator('h1').evaluate('(title) => getComputedStyle(title).fillOpacity') == '1'
    assert page.locator('.paper').first.get_attribute('aria-label') == 'The red one'


def test_the_page_lets_no_drawing_run_or_load_anything(browser, tmp_path):
    """Also one that somebody else has drawn."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *arguments):
            pass

    Image.new('RGB', (8, 4), 'red').save(tmp_path / 'a.png')
    page = browser.page
    with HTTPServer(('127.0.0.1', 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        more = ELSEWHERE.replace('https://example.org', f'http://127.0.0.1:{server.server_port}')
        (tmp_path / 'a.svg').write_text(DRAWING.format(colour='red', more=more))
        figure = Figure('Drawn', tmp_path / 'a.png', tmp_path / 'a.svg')
        write_page(tmp_path / 'page.html', Report('Quiet', sections=[Section('', figures=[figure])]))
        page.goto((tmp_path / 'page.html').as_uri(), wait_until='networkidle')
        assert page.title() == 'Quiet'
        assert page.locator('.paper image').count() == 1
        assert not asked
        # The same drawing in a page that allows everything.
        text = (tmp_path / 'page.html').read_text()
        (tmp_path / 'page.html').write_text(text.replace('http-equiv="Content-Security-Policy"', ''))
        page.goto((tmp_path / 'page.html').as_uri(), wait_until='networkidle')
        assert page.title() == 'broken'
        assert '/c.png' in asked
        server.shutdown()
    browser.problems.clear()


def test_captions_follow_titles_as_sentences_do(page):
    captions = [' '.join(text.split()) for text in page.locator('figcaption').all_text_contents()]
    assert captions[1:3] == ['Figure 2. Tones', 'Figure 3. The red one. Triangles.']
    assert captions[-1] == 'Table 1. Which is best? In dB.'


def test_the_head_of_a_long_table_stays_in_sight(browser, tmp_path):
    rows = [[f'image {number}', number] for number in range(200)]
    write_page(
        tmp_path / 'page.html', Report('Long', sections=[Section('', tables=[Table('All', ['name', 'dB'], rows)])])
    )
    page = browser.page
    page.goto((tmp_path / 'page.html').as_uri())
    frame = page.locator('.scroll')
    assert frame.bounding_box()['height'] < 900
    page.locator('td').last.scroll_into_view_if_needed()
    assert page.locator('th').first.bounding_box()['y'] == pytest.approx(frame.bounding_box()['y'] + 2, abs=1)
    page.emulate_media(media='print')
    assert frame.bounding_box()['height'] > 3000


def test_contents_lead_to_the_sections(page):
    page.set_viewport_size({'width': 1280, 'height': 300})
    links = page.locator('nav a')
    assert links.all_text_contents() == [EVIL, 'Figures', 'Figures']
    assert links.evaluate_all('(links) => new Set(links.map((link) => link.hash)).size') == 3
    links.nth(2).click()
    assert page.locator('section').nth(2).bounding_box()['y'] < 300
    page.wait_for_selector('nav li:nth-child(3) a[aria-current]')


@pytest.mark.parametrize('width', [320, 375, 768])
def test_nothing_is_wider_than_a_telephone(page, width):
    page.set_viewport_size({'width': width, 'height': 700})
    assert page.evaluate('document.documentElement.scrollWidth') == width


def contrast(first: str, second: str) -> float:
    """WCAG 2.2 on two colours such as `rgb(1, 2, 3)`."""

    def luminance(colour):
        levels = np.array([int(part) for part in re.findall(r'\d+', colour)[:3]]) / 255
        linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_words_can_be_read(page, scheme):
    page.emulate_media(color_scheme=scheme)
    page.locator('.swap').click()
    looks = page.evaluate("""() => {
      const back = (element) => {
        const colour = getComputedStyle(element).backgroundColor;
        return colour !== 'rgba(0, 0, 0, 0)' || !element.parentElement ? colour : back(element.parentElement);
      };
      const words = 'h1, h2, p, dt, dd, nav a, summary, figcaption, figcaption b, th button, td, .tools button, footer';
      return [...document.querySelectorAll(words)].map((element) =>
        [element.tagName, getComputedStyle(element).color, back(element)]);
    }""")
    assert len(looks) > 40
    assert [look for look in looks if contrast(look[1], look[2]) < 4.5] == []
    lightness = contrast(page.evaluate('getComputedStyle(document.body).backgroundColor'), 'rgb(0, 0, 0)')
    assert (lightness > 15) == (scheme == 'light')


def test_in_print_and_without_scripts_images_are_side_by_side(page, browser, path):
    page.emulate_media(media='print')
    context = browser.page.context.browser.new_context(java_script_enabled=False)
    still = context.new_page()
    still.goto(path.as_uri())
    for shown in (page, still):
        stage = pixels(shown, shown.locator('.stage').first)
        row = stage[-8]
        assert [tuple(row[int(len(row) * share)]) for share in (1 / 6, 1 / 2, 5 / 6)] == [
            (255, 0, 0),
            (0, 128, 0),
            (0, 0, 255),
        ]
        assert not shown.locator('.tools').first.is_visible()
    context.close()


def test_a_drawing_that_is_too_large_or_missing_or_broken_is_shown_as_png(tmp_path):
    Image.new('RGB', (8, 4), 'red').save(tmp_path / 'a.png')
    (tmp_path / 'large.svg').write_text(DRAWING.format(colour='red', more='') + ' ' * LARGEST_SVG)
    (tmp_path / 'broken.svg').write_text('<svg><g></svg>')
    names = ('large', 'broken', 'missing')
    figures = [Figure(name, tmp_path / 'a.png', tmp_path / f'{name}.svg') for name in names]
    write_page(tmp_path / 'page.html', Report('PNG', sections=[Section('All', figures=figures)]))
    text = (tmp_path / 'page.html').read_text()
    png = base64.b64encode((tmp_path / 'a.png').read_bytes()).decode()
    assert text.count(f'src="data:image/png;base64,{png}"') == 3
    assert '<svg' not in text


def test_matplotlibs_drawings_are_taken(tmp_path):
    pyplot = pytest.importorskip('matplotlib.pyplot')
    figure, axes = pyplot.subplots()
    axes.imshow(np.eye(3))
    axes.plot([0, 2], [0, 1], label='a')
    axes.legend()
    figure.savefig(tmp_path / 'a.svg')
    pyplot.close(figure)
    text = inline_svg((tmp_path / 'a.svg').read_text(), 'x-')
    elements = Elements(text)
    ids = set(elements.values('id'))
    references = re.findall(r'url\(#([^)]+)\)', text) + [v[1:] for v in elements.values('href') if v.startswith('#')]
    assert references
    assert set(references) <= ids
    assert all(name.startswith('x-') for name in ids)
    assert 'data:image/png;base64,iVBOR' in text


def test_mistakes_are_reported_all_at_once_and_nothing_is_written(tmp_path):
    page = tmp_path / 'page.html'
    page.write_text('what was there')
    section = Section(
        'Results',
        tables=[Table('PSNR', ['task', 'dB'], [['derain', 1], ['denoise']])],
        comparisons=[
            Comparison('sizes', RED, GREEN[:-1]),
            Comparison('grey', RED[..., 0], GREEN[..., 0]),
        ],
    )
    with pytest.raises(OptionError) as error:
        write_page(page, Report('x', sections=[section]))
    first, second, third = error.value.lines
    assert "section 'Results', table 'PSNR': row 2 has 1 values for 2 columns" in first
    assert "comparison 'sizes': images of different sizes" in second
    assert "comparison 'grey': images must be (H, W, 3), found" in third
    with pytest.raises(FileNotFoundError):
        write_page(page, Report('x', sections=[Section('', figures=[Figure('', Path('a.png'), Path('a.svg'))])]))
    assert page.read_text() == 'what was there'
    with pytest.raises(SaveError):
        write_page(tmp_path, Report('x'))


def test_an_empty_report_and_a_name_that_is_not_text(browser, tmp_path):
    browser.problems.clear()
    write_page(
        tmp_path / 'page.html',
        Report('caf\udce9.png', [('dB', -0.5)], [Section('Empty', tables=[Table('t', ['a'], [])])]),
    )
    browser.page.goto((tmp_path / 'page.html').as_uri())
    assert browser.page.title() == 'caf\\udce9.png'
    assert browser.page.locator('dd').text_content() == '−0.5'
    assert browser.page.locator('nav').count() == 0
    browser.page.locator('th button').click()
    assert browser.problems == []
