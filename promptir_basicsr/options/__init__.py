"""Models of all options: their names, types, defaults and descriptions.

These models check option files and convert values from the command line. `python -m promptir_basicsr.options --write
docs` generates `docs/options_reference.md` and `docs/options.schema.json` from them.
"""

from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.core.yaml_loader import load_yaml
from promptir_basicsr.options.file import read_options

__all__ = ['OptionError', 'load_yaml', 'read_options']
