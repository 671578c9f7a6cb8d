"""The verb `basicsr explain`."""

import argparse

from rich.console import Console

from promptir_basicsr.explain.run import PAGE, Settings, explain


def main() -> int:
    """The verb `basicsr explain`.

    Raises:
        OptionError: mistakes in the arguments or the options, or weights that do not fit.
        ImageError: an image cannot be read.
        SaveError: a file could not be written.
    """
    args = argument_parser().parse_args()
    names = ('images', 'size', 'untrained', 'permutations', 'seed', 'device')
    settings = Settings(page=not args.no_page, **{name: getattr(args, name) for name in names})
    report, folder = explain(
        args.opt, args.weights, args.out, settings, args.force_yml, overwrite=args.overwrite, progress=True
    )
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    for section in report.sections:
        first = section.text.partition('\n\n')[0]
        console.print(f'{section.title}\n  {first}\n'.replace('\n', '\n  ').rstrip() + '\n')
    console.print(f'{folder / PAGE if settings.page else folder}')
    return 0


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    default = Settings()
    parser = argparse.ArgumentParser(
        prog='basicsr explain', description='Show what the prompts of a network have learned.'
    )
    parser.add_argument('-opt', required=True, metavar='FILE', help='option file of a training or a test')
    parser.add_argument(
        '--weights', metavar='FILE', help='weights of the network; default: path.pretrain_network_g of the option file'
    )
    parser.add_argument('--out', metavar='DIR', help='folder for the files; default: explain/NAME')
    parser.add_argument('--overwrite', action='store_true', help='replace what this command has written there before')
    for name, what in (
        ('images', 'images of each task, at most'),
        ('size', 'longest side of an image; larger ones are cut'),
        ('untrained', 'networks with random weights to compare with'),
        ('permutations', 'of the tasks among the images'),
        ('seed', 'of everything random'),
    ):
        help_text = f'{what}; default: %(default)s'
        parser.add_argument(f'--{name}', type=int, metavar='N', default=getattr(default, name), help=help_text)
    parser.add_argument('--device', default='auto', help='such as cpu or cuda:0; default: a GPU where there is one')
    parser.add_argument('--no-page', action='store_true', help='no HTML page')
    parser.add_argument('--force_yml', nargs='+', metavar='KEY=VALUE', help='replace options of FILE')
    return parser
