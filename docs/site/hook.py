"""What the site has beyond the pages in docs/: changelog, contributing, command line, option files.

Links are written as they work where the repository's files are shown. In the site, links to files outside docs/ lead to
the pages that are added here, and pages that are called by their file name are called by their title. Tables and the
theme's markup get what screen readers and narrow screens need.
"""

import argparse
import html
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from promptir_basicsr.cli import USAGE, VERBS
from promptir_basicsr.core.command_line import argument_parser

PAGES = {
    'README.md': 'index.md',
    'CHANGELOG.md': 'changelog.md',
    'CODE_OF_CONDUCT.md': 'code_of_conduct.md',
    'CONTRIBUTING.md': 'contributing.md',
}
OPTIONS = 'option_files.md'
COMMANDS = 'command_line.md'
# Pages that explain a verb.
EXPLAINED = {
    'train': 'quickstart.md',
    'test': 'protocols.md',
    'options': 'options.md',
    'measure': 'compare.md',
    'convert': 'weights.md',
    'publish': 'weights.md',
    'demo': 'web.md',
}
QUIET = '---\nsearch: {boost: 0.5}\n---\n\n'  # the other pages come first in the search

_LINK = re.compile(r'\[(?P<text>[^\]]*)\]\((?![a-z]+:|#)(?P<path>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)')
_OPTION_FILE = re.compile(r'(?<!\[)`options/(\w+\.yml)`')
_PAGE_NAME = re.compile(r'(?<!">)<code>docs/(\w+\.md)</code>')
_ROW = re.compile(r'^\|.*$', re.M)
_CODE = re.compile(r'`[^`]*`')
_TITLE = re.compile(r'^# (.+)$', re.M)
_TABLE = re.compile(r'<table>.*?</table>', re.S)
_TABLE_ROW = re.compile(r'<tr>.*?</tr>', re.S)
_CELL = re.compile(r'<(t[dh])([^>]*)>(.*?)</\1>', re.S)
_TAG = re.compile(r'<[^>]+>')
_INLINE_CODE = re.compile(r'(?<!</span>)<code>[^<]*</code>')
_ARGUMENT = re.compile(r'(?<![\w-])--?\w[\w-]*')


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add pages that are made of files outside docs/."""
    root = Path(config.config_file_path).parent
    for source in ('CHANGELOG.md', 'CODE_OF_CONDUCT.md', 'CONTRIBUTING.md'):
        files.append(File.generated(config, PAGES[source], content=QUIET + (root / source).read_text()))
    files.append(File.generated(config, COMMANDS, content=_command_line()))
    files.append(File.generated(config, OPTIONS, content=_option_files(root / 'options')))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links, and names of option files, to pages of the site; write tables as Python-Markdown reads them."""
    own = page.file.src_uri
    sources = {added: source for source, added in PAGES.items()}
    source = sources[own] if page.file.generated_by and own in sources else f'docs/{own}'

    def lead(match: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match['path']))
        if target.startswith('options/'):
            return f'[{match["text"]}]({_relative(OPTIONS, own)}#{_anchor(posixpath.basename(target))})'
        uri = PAGES.get(target, target.removeprefix('docs/'))
        text = match['text']
        file = files.get_file_from_path(uri)
        if file and text == posixpath.basename(uri) and (title := _TITLE.search(file.content_string)):
            text = title[1]
        return f'[{text}]({_relative(uri, own)}{match["anchor"] or ""})'

    def name(match: re.Match) -> str:
        return f'[{match[0]}]({_relative(OPTIONS, own)}#{_anchor(match[1])})'

    if own in (OPTIONS, COMMANDS):
        return markdown
    # A bar in code within a table: GitHub wants it escaped, Python-Markdown does not and shows the backslash.
    markdown = _ROW.sub(lambda row: _CODE.sub(lambda code: code[0].replace(r'\|', '|'), row[0]), markdown)
    return _LINK.sub(lead, _OPTION_FILE.sub(name, markdown))


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead names of pages in docstrings to the pages; prepare the page for screen readers and narrow screens."""

    def name(match: re.Match) -> str:
        file = files.get_file_from_path(match[1])
        return f'<a href="{_relative(file.dest_uri, page.file.dest_uri)}">{match[0]}</a>' if file else match[0]

    content = _INLINE_CODE.sub(lambda code: _ARGUMENT.sub(r'<span class="argument">\g<0></span>', code[0]), content)
    return _TABLE.sub(_table, _PAGE_NAME.sub(name, content))


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Name the parts of the theme's markup that screen readers list: the search, and levels of the table of contents.

    The latter are called like headings, and some headings like sections of the navigation.
    """
    output = output.replace('<div class="md-search" data-md', '<div class="md-search" aria-label="Search" data-md', 1)
    return output.replace('<nav class="md-nav" aria-label="', '<nav class="md-nav" aria-label="On this page: ')


def _table(match: re.Match) -> str:
    """A table whose empty heads are plain cells, and with `data-stacked` if site.css is to stack it on narrow screens.

    That is one with a wide first column or several short ones, and texts in the last. Its cells then have their head in
    `data-head`, except the first, and those of a column 'meaning'.
    """
    table = re.sub(r'<th[^>]*></th>', '<td></td>', match[0])
    head, *body = [[_text(cell[2]) for cell in _CELL.findall(row)] for row in _TABLE_ROW.findall(table)]
    texts = max((len(row[-1]) for row in body), default=0) > 30
    wide = len(head) > 2 or max((len(word) for row in body for word in row[0].split()), default=0) > 20
    if not (texts and wide and len(head) <= 4):
        return table

    def label(row: re.Match) -> str:
        heads = iter(['', *('' if text == 'meaning' else text for text in head[1:])])

        def cell(match: re.Match) -> str:
            text = next(heads)
            attribute = f' data-head="{html.escape(text)}"' if text else ''
            return f'<td{match[2]}{attribute}>{match[3]}</td>'

        return _CELL.sub(cell, row[0])

    top, bottom = table.split('<tbody>')
    return f'{top}<tbody>{_TABLE_ROW.sub(label, bottom)}'.replace('<table>', '<table data-stacked>', 1)


def _text(content: str) -> str:
    return html.unescape(_TAG.sub('', content))


def _option_files(folder: Path) -> str:
    """A page of all option files, left out of the search."""
    page = ['---\nsearch: {exclude: true}\n---\n\n# Option files\n\nThe files in `options/`, ready to be copied.\n']
    page += [f'## {path.name}\n\n```yaml\n{path.read_text().rstrip()}\n```\n' for path in sorted(folder.glob('*.yml'))]
    return '\n'.join(page)


def _command_line() -> str:
    """A page of all verbs, from their parsers."""
    page = [f'# Command line\n\nThe verbs of the `basicsr` command and their arguments.\n\n```\n{USAGE.strip()}\n```\n']
    for verb in VERBS:
        explained = EXPLAINED.get(verb, f'{verb}.md')
        text = '\n'.join(line.rstrip() for line in _help(verb).splitlines())
        page.append(f'## basicsr {verb}\n\nSee [the page with explanations]({explained}).\n\n```\n{text}\n```\n')
    return '\n'.join(page)


def _help(verb: str) -> str:
    """The output of `basicsr VERB --help` in a window of 100 columns, with `N` for the number of cores here."""
    parser = argument_parser(verb)
    parser.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=100)
    for action in parser._actions:
        if '--workers' in action.option_strings:
            action.default = 'the number of cores'
    return parser.format_help()


def _anchor(name: str) -> str:
    return name.replace('.', '')


def _relative(uri: str, page: str) -> str:
    return posixpath.relpath(uri, posixpath.dirname(page) or '.')
