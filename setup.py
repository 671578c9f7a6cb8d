"""What pyproject.toml cannot say: option files inside the package, and a description without links to this tree."""

import re
import shutil
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
    """README.md as an index shows it: links to files of this tree are text, pictures are omitted."""
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    return re.sub(r'\[([^\]]*)\]\((?!\w+:|#)[^)]*\)', r'\1', re.sub(r'!\[[^\]]*\]\((?!\w+:)[^)]*\)\n*', '', text))


setup(
    cmdclass={'build_py': BuildWithOptionFiles},
    long_description=description(),
    long_description_content_type='text/markdown',
)
