"""The `basicsr` command."""

import argparse
import importlib
import logging
import os
import platform
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, entry_points, version

from promptir_basicsr import activate
from promptir_basicsr.core.command_line import argument_parser
from promptir_basicsr.core.errors import (
    NOT_SAVED,
    STOPPED,
    ImageError,
    OptionError,
    RunError,
    SaveError,
    Stopped,
)
from promptir_basicsr.core.messages import printable, unknown

PLUGIN_GROUP = 'basicsr.plugins'
USAGE = """usage: basicsr VERB ...

  train -opt FILE    train; writes to experiments/NAME below the current folder
  test  -opt FILE    measure a trained network; writes to results/NAME
  check -opt FILE    tell whether training would be right: counts, images, leaks, epochs; writes nothing
  options [--copy NAME]    the option files that come with this package
  prepare -opt FILE --out DIR    store the images in LMDBs and options that read them in DIR
  restore IMAGE... -o DIR --weights FILE    restore pictures: files, folders, patterns
  compare RUN...    put results of runs side by side: a table for a paper, with published rows
  measure RESTORED --target CLEAN    measure restored images, whoever has made them
  convert IN OUT --to basicsr|official|safetensors    bring weights into another layout
  export  WEIGHTS OUT    write the network as ONNX or torch.export, checked against it
  publish RUN -o DIR    write weights as a folder that others can load, with a model card
  explain -opt FILE --weights FILE    show what the prompts have learned: figures, tables, one HTML page
  demo    --weights FILE    a page in the browser to try a network

basicsr VERB --help tells the arguments of a verb; basicsr --version the versions of what is installed.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb.

    Args:
        arguments: the verb and its arguments. Default: the command line's.

    Returns:
        Exit status: the verb's (0 where it has none), 1 where an image turned out to be damaged, 2 for a mistake of
        the user, 3 where a signal has stopped a training, 4 where a file could not be saved, 5 where too many steps of
        a training were not finite, 6 where a worker of the data loader was killed, 7 where there was not enough
        memory, 8 where another error has ended a run, 9 where another process of a training has ended; all are told in
        plain words on standard error.
    """
    for stream in (sys.stdout, sys.stderr):  # names of files may be anything
        getattr(stream, 'reconfigure', lambda **_: None)(errors='backslashreplace')
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    verb = arguments[0] if arguments else '--help'
    if verb in ('-h', '--help'):
        sys.stdout.write(USAGE)
        return 0
    if verb == '--version':
        sys.stdout.write(f'{versions()}\n')
        return 0
    if verb not in VERBS:
        return _fail(str(unknown('basicsr', 'verb', verb, VERBS)))
    sys.argv = [f'basicsr {verb}', *arguments[1:]]
    parsed = argument_parser(verb).parse_args()  # ends the process after --help and wrong arguments
    try:
        activate()
    except ImportError as error:
        return _fail(*str(error).splitlines())
    load_plugins()
    status = _run(verb, parsed)
    if status and verb in ('train', 'test'):
        importlib.import_module('promptir_basicsr.host.distributed').leave(status)
    return status


def _run(verb: str, parsed: argparse.Namespace) -> int:
    try:
        return VERBS[verb](parsed) or 0
    except OptionError as error:
        return _fail(*error.lines)
    except ImageError as error:
        return _stop(f'{error} `basicsr check -opt FILE` finds all such images before a run.')
    except SaveError as error:
        return _stop(f'{error} Make room; a training goes on with --auto_resume.', NOT_SAVED)
    except RunError as error:
        return _stop(str(error), error.status)
    except Stopped:
        logging.shutdown()
        return STOPPED


def load_plugins() -> None:
    """Import what registers itself in the entry-point group `basicsr.plugins`.

    A plugin that cannot be imported is reported on standard error; what it would have registered is missing, and an
    option file that names it is refused.
    """
    for plugin in entry_points(group=PLUGIN_GROUP):
        try:
            plugin.load()
        except Exception as error:  # whatever a third party's module raises
            sys.stderr.write(
                f"basicsr: the plugin '{plugin.name}' ({plugin.value}) was skipped, because it cannot be imported: "
                f'{type(error).__name__}: {printable(error)}\n'
            )


def versions() -> str:
    """The installed versions of this package, BasicSR, torch and Python."""
    found = []
    for shown, name in (('promptir_basicsr', 'promptir_basicsr'), ('BasicSR', 'basicsr'), ('torch', 'torch')):
        try:
            found.append(f'{shown} {version(name)}')
        except PackageNotFoundError:
            found.append(f'{shown} not installed')
    return ', '.join([*found, f'Python {platform.python_version()}'])


def train(_: argparse.Namespace) -> None:
    """BasicSR's own trainer, which parses the command line anew, with experiments below the current folder."""
    importlib.import_module('basicsr.train').train_pipeline(os.getcwd())
    _end_processes()


def test(_: argparse.Namespace) -> None:
    """BasicSR's own test pipeline, which parses the command line anew, with results below the current folder."""
    importlib.import_module('basicsr.test').test_pipeline(os.getcwd())
    _end_processes()


def _end_processes() -> None:
    importlib.import_module('promptir_basicsr.host.distributed').end_processes()


def _verb(name: str) -> Callable[[argparse.Namespace], int | None]:
    """The `main` of a module, which is imported when the verb is used."""
    return lambda parsed: importlib.import_module(f'promptir_basicsr.commands.{name}').main(parsed)


VERBS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    'train': train,
    'test': test,
    **{
        name: _verb(name)
        for name in (
            'check',
            'options',
            'prepare',
            'restore',
            'compare',
            'measure',
            'convert',
            'export',
            'publish',
            'explain',
            'demo',
        )
    },
}


def _fail(*lines: str) -> int:
    logging.shutdown()
    sys.stderr.writelines(f'{printable(line)}\n' for line in lines)
    return 2


def _stop(message: str, status: int = 1) -> int:
    """A run that cannot go on says so in its log as well."""
    logger = logging.getLogger('basicsr')
    if logger.handlers:
        logger.error(message)
        logging.shutdown()
    else:
        _fail(message)
    return status


if __name__ == '__main__':
    sys.exit(main())
