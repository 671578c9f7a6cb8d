"""The pages of docs/ make a site: strictly, whole, and without asking anything of other servers."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from griffe import Docstring, DocstringSectionKind, Object, load

from promptir_basicsr import archs, data, losses, metrics, models
from tests.browser import browser_page

ROOT = Path(__file__).parents[1]
PAGES = sorted(path.relative_to(ROOT / 'docs').as_posix() for path in (ROOT / 'docs').rglob('*.md'))
ADDED = ['changelog.md', 'code_of_conduct.md', 'command_line.md', 'contributing.md', 'option_files.md']
EVERY_PAGE = [page.removesuffix('.md') + '.html' for page in [*PAGES, *ADDED]]
API = re.findall(r'^::: (\S+)$', '\n'.join(path.read_text() for path in (ROOT / 'docs' / 'api').glob('*.md')), re.M)


def build(config: Path, site: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, '-m', 'mkdocs', 'build', '--strict', '-f', str(config), '-d', str(site)]
    environment = {**os.environ, 'NO_MKDOCS_2_WARNING': '1'}
    return subprocess.run(command, env=environment, cwd=config.parent, capture_output=True, text=True)


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp('site')
    done = build(ROOT / 'mkdocs.yml', folder)
    assert done.returncode == 0, done.stderr
    assert 'WARNING' not in done.stderr
    return folder


class Elements(HTMLParser):
    """What a page is made of.

    Attributes:
        loaded: addresses that a browser asks for when it shows the page.
        linked: those that it asks for when somebody clicks.
        paragraphs: their text, without code and tables.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded, self.linked, self.paragraphs = [], [], []
        self._depth, self._in = {'article': 0, 'p': 0, 'code': 0, 'pre': 0}, ''
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag == 'a':
            self.linked.append(values.get('href') or '')
        elif not (tag == 'link' and values.get('rel') in ('canonical', 'next', 'prev', 'edit')):
            self.loaded += [values[key] for key in ('src', 'href', 'data', 'poster') if values.get(key)]
            self.loaded += re.findall(r'\S+(?= \d+[wx])', values.get('srcset') or '')
        if tag in self._depth:
            self._depth[tag] += 1
            if tag == 'p':
                self.paragraphs.append('')

    def handle_endtag(self, tag):
        if tag in self._depth:
            self._depth[tag] -= 1

    def handle_data(self, text):
        depth = self._depth
        if depth['article'] and depth['p'] and not depth['code'] and not depth['pre']:
            self.paragraphs[-1] += text


def elements(path: Path) -> Elements:
    return Elements(path.read_text())


def test_every_page_is_in_the_navigation(site):
    linked = set(elements(site / 'index.html').linked)
    assert [page for page in EVERY_PAGE if not (site / page).exists() or page not in linked] == []


def test_nothing_is_asked_of_other_servers(site):
    pages = sorted(site.rglob('*.html'))
    assert len(pages) >= len(PAGES)
    outside = re.compile(r'^(?:[a-z]+:)?//')
    assert [(page.name, url) for page in pages for url in elements(page).loaded if outside.match(url)] == []
    styles = ''.join(path.read_text() for path in site.rglob('*.css'))
    assert [url for url in re.findall(r'(?:url\(|@import )["\']?([^"\')\s]+)', styles) if outside.match(url)] == []


def test_lists_and_tables_are_not_paragraphs(site):
    """What GitHub takes for a list or a table and Python-Markdown does not: no empty line before, two spaces in."""
    source = re.compile(r'^\s*(?:[-*] |\d+\. \w|\|.*\||```|:::|#+ )', re.M)
    wrong = [
        (page.name, text[:80])
        for page in sorted(site.rglob('*.html'))
        for text in elements(page).paragraphs
        if source.search(text)
    ]
    assert wrong == []
    assert [page.name for page in site.rglob('*.html') if re.search(r'<td[^\n]*\\\|', page.read_text())] == []


def test_broken_links_break_the_build(tmp_path):
    (tmp_path / 'docs').mkdir()
    (tmp_path / 'docs' / 'index.md').write_text(
        '# Home\n\n[1](#nowhere) [2](other.md#nowhere) [3](nowhere.md) [4](/nowhere.md)\n'
    )
    (tmp_path / 'docs' / 'other.md').write_text('# Other\n')
    (tmp_path / 'docs' / 'forgotten.md').write_text('# Not in the navigation\n')
    changes = {
        'INHERIT': str(ROOT / 'mkdocs.yml'),
        'docs_dir': 'docs',
        'nav': ['index.md', 'other.md'],
        'hooks': [],
        'plugins': [],
        'theme': {'name': 'mkdocs', 'features': [], 'logo': None, 'favicon': None, 'palette': []},
    }
    (tmp_path / 'mkdocs.yml').write_text(yaml.safe_dump(changes))
    done = build(tmp_path / 'mkdocs.yml', tmp_path / 'site')
    assert done.returncode == 1
    for warning in (
        "contains a link '#nowhere', but there is no such anchor on this page",
        "'other.md' does not contain an anchor '#nowhere'",
        "'nowhere.md', but the target is not found",
        "an absolute link '/nowhere.md'",
        'not included in the "nav" configuration:\n  - forgotten.md',
    ):
        assert warning in done.stderr


def test_pages_of_the_repository_are_in_the_site(site):
    for name, page in (('CHANGELOG.md', 'changelog.html'), ('CONTRIBUTING.md', 'contributing.html')):
        title = re.match('# (.+)', (ROOT / name).read_text())[1]
        assert re.search(rf'<h1[^>]*>{title}', (site / page).read_text())
    text = (site / 'option_files.html').read_text()
    files = sorted((ROOT / 'options').glob('*.yml'))
    assert [path.name for path in files if f'id="{path.name.replace(".", "")}"' not in text] == []
    # what pages and docstrings name leads there, and pages are called by their title
    assert 'href="option_files.html#pip_demoyml"' in (site / 'pip.html').read_text()
    title = re.search(r'^# (.+)', (ROOT / 'docs' / 'data.md').read_text(), re.M)[1]
    assert f'<a href="data.html">{title}</a>' in (site / 'quickstart.html').read_text()
    assert '<a href="../protocols.html"><code>docs/protocols.md</code></a>' in (site / 'api' / 'data.html').read_text()


def test_the_site_works_in_a_browser_without_a_server(site):
    with browser_page() as watched:
        page = watched.page
        page.goto((site / 'pip.html').as_uri())
        page.click('.md-search__input')
        page.keyboard.type('sensor')
        page.wait_for_selector('.md-search-result__link')
        assert 'sensor.html' in ' '.join(
            link.get_attribute('href') for link in page.query_selector_all('.md-search-result__link')
        )
        page.keyboard.press('Escape')
        colour = 'getComputedStyle(document.body).backgroundColor'
        before = page.evaluate(colour)
        page.click('label[title=Dark]')
        assert page.evaluate(colour) != before
        assert page.query_selector_all('.highlight button, .md-clipboard, .md-code__button')
        assert watched.problems == []


SEARCHES = {
    'finetune': 'extending.html',
    'fine-tune': 'extending.html',
    'fine-tuning': 'extending.html',
    'pretrained': 'weights.html',
    'resume': 'resume.html',
    'multi-gpu': 'distributed.html',
    'inference': 'restore.html',
    'latex': 'compare.html',
    'citation': 'index.html',
    'docker': 'quickstart.html',
    'colab': 'quickstart.html',
    'lmdb': 'prepare.html',
    'onnx': 'export.html',
    'own data': 'data.html',
}


def test_searches_find_the_right_page_first(site):
    with browser_page() as watched:
        page = watched.page
        page.goto((site / 'pip.html').as_uri())
        page.click('.md-search__input')
        found = {}
        for words in SEARCHES:
            page.fill('.md-search__input', '')
            page.wait_for_function('!document.querySelector(".md-search-result__link")')
            page.keyboard.type(words)
            page.wait_for_selector('.md-search-result__link')
            page.wait_for_timeout(300)  # the last letter's results
            link = page.query_selector('.md-search-result__link').get_attribute('href')
            found[words] = re.sub(r'.*/|[?#].*', '', link)
        assert found == SEARCHES
        assert watched.problems == []


# Accessibility and narrow screens


def opened(watched, site: Path, name: str):
    """The page, when the theme's scripts and those of the site have run."""
    watched.page.goto((site / name).as_uri())
    watched.page.evaluate('new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))')
    return watched.page


def violations(site: Path, pages: list[str], width: int, scheme: str) -> list[str]:
    """What the accessibility checker finds."""
    found = []
    with browser_page(width) as watched:
        from axe_playwright_python.sync_playwright import Axe

        watched.page.emulate_media(color_scheme=scheme)
        for name in pages:
            page = opened(watched, site, name)
            assert page.get_attribute('body', 'data-md-color-scheme') == {'light': 'default', 'dark': 'slate'}[scheme]
            # `preload` requests the style sheets again, which fails for files; no rule that runs here needs it.
            result = Axe().run(page, options={'preload': False, 'resultTypes': ['violations']}).response['violations']
            found += [f'{name}: {each["id"]}: {node["html"]}' for each in result for node in each['nodes']]
        assert watched.problems == []
    return found


@pytest.mark.parametrize(
    ('width', 'scheme', 'pages'),
    [
        (1280, 'light', ['index.html', 'options.html', 'options_reference.html', 'api/data.html']),
        (390, 'dark', ['options.html']),
    ],
    ids=['wide and light', 'narrow and dark'],
)
def test_the_accessibility_checker_finds_nothing(site, width, scheme, pages):
    assert violations(site, pages, width, scheme) == []


@pytest.mark.slow
@pytest.mark.parametrize('width', [1280, 390])
@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_the_accessibility_checker_finds_nothing_on_any_page(site, width, scheme):
    assert violations(site, EVERY_PAGE, width, scheme) == []


# What is broken in first columns (words, arguments), and tables wider than the screen that do not scroll.
NARROW = """() => {
  const broken = [], stuck = [];
  for (const table of document.querySelectorAll('.md-typeset table:not([class])')) {
    const box = table.closest('.md-typeset__scrollwrap');
    if (box.getBoundingClientRect().right > innerWidth) stuck.push(table.innerText.slice(0, 40));
    if (box.scrollWidth > box.clientWidth) {
      box.scrollLeft = 1;
      if (box.scrollLeft !== 1 || box.tabIndex !== 0) stuck.push(table.innerText.slice(0, 40));
    }
    for (const cell of table.querySelectorAll('tr > :first-child')) {
      const texts = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
      for (let node; (node = texts.nextNode()); ) {
        const words = node.parentElement.closest('code') ? /(?<![\\w-])--?\\w[\\w-]*|\\w+/g : /\\w+/g;
        for (const word of node.data.matchAll(words)) {
          const range = document.createRange();
          range.setStart(node, word.index);
          range.setEnd(node, word.index + word[0].length);
          if (new Set([...range.getClientRects()].map((part) => part.top)).size > 1) broken.push(word[0]);
        }
      }
    }
  }
  return {width: document.documentElement.scrollWidth, broken, stuck};
}"""


def unreadable(site: Path, pages: list[str]) -> dict[str, dict]:
    """What is wrong with pages on a screen of 390 pixels."""
    with browser_page(390, 844) as watched:
        found = {name: opened(watched, site, name).evaluate(NARROW) for name in pages}
        assert watched.problems == []
    return {name: each for name, each in found.items() if each != {'width': 390, 'broken': [], 'stuck': []}}


def test_tables_are_readable_on_a_narrow_screen(site):
    names = ['index', 'options', 'options_reference', 'data', 'restore', 'protocols']
    assert unreadable(site, [f'{name}.html' for name in names]) == {}


@pytest.mark.slow
def test_tables_of_every_page_are_readable_on_a_narrow_screen(site):
    assert unreadable(site, EVERY_PAGE) == {}


def test_cells_have_their_heads_on_a_narrow_screen(site):
    with browser_page(390, 844) as watched:
        row = opened(watched, site, 'options_reference.html').locator('table[data-stacked] tbody tr').first
        cells = row.locator('td').all()
        assert len({cell.bounding_box()['x'] for cell in cells}) == 1
        before = [cell.evaluate('(cell) => getComputedStyle(cell, "::before").content') for cell in cells]
        assert before == ['none', '"type: "', '"default: "', 'none']


# The API


def test_the_api_has_what_the_packages_export():
    shown = {name.rsplit('.', 1)[1] for name in API}
    told = {'definition'}  # a helper of the model
    assert [
        name
        for package in (archs, data, losses, metrics, models)
        for name in package.__all__
        if name not in shown | told
    ] == []


@pytest.fixture(scope='module')
def documented() -> list[tuple[str, Object, Docstring]]:
    """The objects of the API pages and their methods, read as the pages read them."""
    package = load('promptir_basicsr', search_paths=[ROOT])
    found = []
    for name in API:
        thing = package[name.split('.', 1)[1]]
        thing = thing.final_target if thing.is_alias else thing
        members = [m for m in thing.members.values() if not m.is_alias] if thing.is_class else []
        found += [(name if one is thing else f'{name}.{one.name}', one) for one in [thing, *members]]
    return [(name, one, one.docstring) for name, one in found if one.docstring]


def test_the_api_is_documented(documented):
    assert [name for name in API if name not in [shown for shown, _, _ in documented]] == []


def test_documented_arguments_are_those_of_the_signature(documented):
    wrong = []
    for name, thing, docstring in documented:
        sections = docstring.parse('google', warnings=False, returns_named_value=False, returns_multiple_items=False)
        told = [
            one.strip().lstrip('*')
            for section in sections
            if section.kind is DocstringSectionKind.parameters
            for argument in section.value
            for one in argument.name.split(',')
        ]
        if told:
            call = thing.members.get('__init__', thing) if thing.is_class else thing
            known = [parameter.name.lstrip('*') for parameter in getattr(call, 'parameters', [])]
            known += [member for member in thing.members if thing.is_class]
            wrong += [f'{name}: {one}' for one in told if one not in known]
    assert wrong == []


def test_sections_of_docstrings_are_rendered(site):
    pages = {path.name: path.read_text() for path in (site / 'api').glob('*.html')}
    forward = pages['networks.html'].split('id="promptir_basicsr.archs.PromptIR.forward"')[1].split('<h4')[0]
    assert all(f'>{section}:<' in forward for section in ('Parameters', 'Returns', 'Raises'))
    assert '<li><strong><code>train.grad_clip_norm</code></strong>' in pages['training.html']
    raw = re.compile(r'<p>[^<]*\b(?:Args|Returns|Raises|Attributes|Yields):\s')
    assert [name for name, text in pages.items() if raw.search(text)] == []
