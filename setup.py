"""What pyproject.toml cannot say: option files inside the package, and links of the README that work on an index."""

import re
import shutil
import tomllib
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithOptionFiles(build_py):
    """Add `options/*.yml` and the schema of option files to what is installed."""

    def run(self):
        super().run()
        if not self.editable_mode:  # a source tree has them beside the package
            target = Path(self.build_lib, 'promptir_basicsr', 'option_files')
            target.mkdir(parents=True, exist_ok=True)
            for path in (*sorted(ROOT.glob('options/*.yml')), ROOT / 'docs' / 'options.schema.json'):
                shutil.copyfile(path, target / path.name)


def description():
    """README.md with absolute links, where the project's address is known; without it, relative links are text."""
    urls = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))['project'].get('urls', {})
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    image, link = r'!\[([^\]]*)\]\((?!\w+:)([^)]*)\)', r'(?<!!)\[([^\]]*)\]\((?!\w+:|#)([^)]*)\)'
    if 'Repository' not in urls:
        return re.sub(link, r'\1', re.sub(rf'{image}\n*', '', text))
    raw, blob = f'{urls["Repository"]}/raw/main', f'{urls["Repository"]}/blob/main'
    return re.sub(link, rf'[\1]({blob}/\2)', re.sub(image, rf'![\1]({raw}/\2)', text))


setup(
    cmdclass={'build_py': BuildWithOptionFiles},
    long_description=description(),
    long_description_content_type='text/markdown',
)
