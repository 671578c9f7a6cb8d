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
  check -opt FILE    check options and data before training: counts, images, leaks, epochs; writes nothing
  options [--copy NAME]    list or copy the option files of this package
  prepare -opt FILE --out DIR    write the images as LMDBs, and an option file that reads them, to DIR
  restore IMAGE... -o DIR --weights FILE    restore images: files, folders, patterns
  compare RUN...    compare the results of runs: a table for a paper, with published rows
  measure RESTORED --target CLEAN    measure restored images of any program
  convert IN OUT --to basicsr|official|safetensors    convert weights to another layout
  export  WEIGHTS OUT    export the network as ONNX or torch.export, and verify the export
  publish RUN -o DIR    write weights and a model card as a folder that others can load
  explain -opt FILE --weights FILE    show what the prompts have learned: figures, tables, one HTML page
  demo    --weights FILE    try a network in the browser

basicsr VERB --help shows the arguments of a verb; basicsr --version shows the installed versions.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb.

    Args:
        arguments: the verb and its arguments. Default: those of the command line.

    Returns:
        Exit status: the verb's (default 0), 1 for a damaged image, 2 for a user error, 3 for a training stopped by a
        signal, 4 for a file that could not be saved, 5 for too many non-finite steps, 6 for a killed data loader
        worker, 7 for too little memory, 8 for another error that ended a run, 9 for another training process that
        ended. Each of them writes a message to standard error.
    """
    for stream in (sys.stdout, sys.stderr):  # file names may contain any bytes
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
        return _stop(f'{error} Free some disk space; --auto_resume continues a training.', NOT_SAVED)
    except RunError as error:
        return _stop(str(error), error.status)
    except Stopped:
        logging.shutdown()
        return STOPPED


def load_plugins() -> None:
    """Import the plugins of the entry-point group `basicsr.plugins`.

    A plugin that cannot be imported is reported on standard error. An option file that uses it is then refused.
    """
    for plugin in entry_points(group=PLUGIN_GROUP):
        try:
            plugin.load()
        except Exception as error:  # third-party modules may raise anything
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
    """Run BasicSR's trainer, which parses the command line again. Experiments go below the current folder."""
    importlib.import_module('basicsr.train').train_pipeline(os.getcwd())
    _end_processes()


def test(_: argparse.Namespace) -> None:
    """Run BasicSR's test pipeline, which parses the command line again. Results go below the current folder."""
    importlib.import_module('basicsr.test').test_pipeline(os.getcwd())
    _end_processes()


def _end_processes() -> None:
    importlib.import_module('promptir_basicsr.host.distributed').end_processes()


def _verb(name: str) -> Callable[[argparse.Namespace], int | None]:
    """The `main` of a command module, imported on first use."""
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
    """Report a fatal error, in the run's log if there is one."""
    logger = logging.getLogger('basicsr')
    if logger.handlers:
        logger.error(message)
        logging.shutdown()
    else:
        _fail(message)
    return status


if __name__ == '__main__':
    sys.exit(main())
