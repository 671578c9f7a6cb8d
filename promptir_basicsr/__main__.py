"""`python -m promptir_basicsr VERB ...` is `basicsr VERB ...`."""

import sys

from promptir_basicsr.cli import main

sys.exit(main())
