"""The verb `basicsr explain`."""

import argparse

from promptir_basicsr.core.console import plain_console
from promptir_basicsr.core.messages import printable
from promptir_basicsr.explain.run import PAGE, Settings, explain


def main(args: argparse.Namespace) -> int:
    """The verb `basicsr explain`.

    Raises:
        OptionError: wrong arguments or options, or weights that do not fit.
        ImageError: an image cannot be read.
        SaveError: a file could not be written.
    """
    names = ('images', 'size', 'untrained', 'permutations', 'seed', 'device')
    settings = Settings(page=not args.no_page, **{name: getattr(args, name) for name in names})
    report, folder = explain(
        args.opt, args.weights, args.out, settings, args.force_yml, overwrite=args.overwrite, progress=True
    )
    console = plain_console()
    for section in report.sections:
        first = section.text.partition('\n\n')[0]
        console.print(printable(f'{section.title}\n  {first}\n'.replace('\n', '\n  ').rstrip() + '\n', keep='\n'))
    console.print(printable(folder / PAGE if settings.page else folder))
    return 0
