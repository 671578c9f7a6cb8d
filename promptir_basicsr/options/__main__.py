"""Write the reference and the JSON schema of the options: `python -m promptir_basicsr.options`."""

import argparse
import json
import sys
from pathlib import Path

from promptir_basicsr.core.files import atomic_write
from promptir_basicsr.core.messages import printable
from promptir_basicsr.options.json_schema import json_schema
from promptir_basicsr.options.reference import JSON_SCHEMA, REFERENCE, reference


def main() -> int:
    """Print the JSON schema of option files, or write it and the reference of all options to a folder."""
    parser = argparse.ArgumentParser(prog='python -m promptir_basicsr.options', description=main.__doc__)
    parser.add_argument('--write', metavar='DIR', type=Path, help=f'write {JSON_SCHEMA} and {REFERENCE} to this folder')
    args = parser.parse_args()
    if args.write is None:
        sys.stdout.write(files()[JSON_SCHEMA])
        return 0
    if not args.write.is_dir():
        sys.stderr.write(f"--write: the folder '{printable(args.write)}' does not exist.\n")
        return 2
    for name, text in files().items():
        atomic_write(text, args.write / name)
    return 0


def files() -> dict[str, str]:
    """Return the contents of the files by name."""
    return {JSON_SCHEMA: json.dumps(json_schema(), indent=1) + '\n', REFERENCE: reference()}


if __name__ == '__main__':
    sys.exit(main())
