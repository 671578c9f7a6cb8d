"""What options there are, with their types and meanings: the one place that decides on it.

Option files are checked by these models, values of the command line typed by them, and `docs/options_reference.md` and
`docs/options.schema.json` written from them by `python -m promptir_basicsr.options --write docs`.
"""

from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.core.yaml_loader import load_yaml
from promptir_basicsr.options.file import read_options

__all__ = ['OptionError', 'load_yaml', 'read_options']
