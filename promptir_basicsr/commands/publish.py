"""The verb `basicsr publish`."""

import argparse
import os

from promptir_basicsr.core.console import plain_console
from promptir_basicsr.core.messages import printable
from promptir_basicsr.export.publish import find_source, publish


def main(args: argparse.Namespace) -> int:
    """The verb `basicsr publish`.

    Raises:
        OptionError: wrong arguments, or a file that cannot be read.
        SaveError: a file could not be written.
    """
    out, console = os.path.expanduser(args.out), plain_console()
    source = find_source(args.run)
    files = publish(source, out, args.name, args.license, args.results, args.image, args.opt, args.key, args.overwrite)
    console.print(printable(f'{source.weights} -> {out}: {", ".join(files)}'))
    if args.license is None:
        console.print('The card has no licence. Without one nobody may use the weights: set it by --license ID.')
    if len(files) > 3:
        console.print(f'{files[3]} shows images of the dataset: check that their licences permit publication.')
    console.print(printable(f'Upload: hf upload OWNER/NAME {out}'))
    return 0
