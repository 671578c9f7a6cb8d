"""The verb `basicsr demo`."""

import argparse
import importlib.resources
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from promptir_basicsr.core.errors import OptionError, raise_problems
from promptir_basicsr.core.problems import Problem
from promptir_basicsr.demo.app import Activity, build_page
from promptir_basicsr.demo.content import copy_examples, make_examples
from promptir_basicsr.demo.hosts import KnownHosts
from promptir_basicsr.inference.restorer import Restorer
from promptir_basicsr.inference.restoring import Settings

if TYPE_CHECKING:
    import gradio


def main(args: argparse.Namespace) -> int:
    """The verb `basicsr demo`: serve the page until Ctrl-C.

    Raises:
        OptionError: wrong arguments, a file that cannot be used, or gradio is missing.
    """
    problems: list[Problem | str] = []
    if not args.weights:
        problems.append('--weights: missing. Pass the weights of a trained network, see docs/weights.md.')
    if not 0 < args.max_megapixels < 1000:
        problems.append(f'--max-megapixels: {args.max_megapixels:g} is not between 0 and 1000.')
    if not 0 < args.port < 1 << 16:
        problems.append(f'--port: {args.port} is not in the range 1 to 65535.')
    settings = Settings()
    try:
        settings = Settings(tile=args.tile, precision=args.precision)
    except OptionError as error:
        problems += error.problems
    raise_problems(problems)
    for name in ('SIGTERM', 'SIGHUP'):  # the second when the terminal is closed; Windows lacks it, nohup ignores it
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _interrupt)
    work = Path(tempfile.mkdtemp(prefix='basicsr-demo-'))
    try:
        _prepare_gradio(work)
        restorer = Restorer(args.weights, args.opt, args.device, settings, args.key)
        folder = work / 'examples'
        examples = copy_examples(Path(args.examples), folder) if args.examples else make_examples(folder)
        activity = Activity()
        page = build_page(restorer, work, examples, round(args.max_megapixels * 1e6), activity)
        _serve(page, args, activity)
    except KeyboardInterrupt:
        with suppress(OSError):  # the terminal may be gone
            sys.stdout.write('\n')
            sys.stdout.flush()
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if activity.busy.locked():  # Python would wait for the thread, and a pass of the network may take minutes
        logging.shutdown()
        os._exit(0)
    return 0


def _prepare_gradio(work: Path) -> None:
    """Import gradio, with its files in `work` and without network requests.

    Raises:
        OptionError: gradio is missing.
    """
    os.environ |= {
        'GRADIO_TEMP_DIR': str(work / 'uploads'),
        'GRADIO_ANALYTICS_ENABLED': 'False',
        'TORCHINDUCTOR_CACHE_DIR': str(work / 'torch'),
        'HF_HUB_DISABLE_TELEMETRY': '1',
        'HF_HUB_OFFLINE': '1',
    }
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise OptionError(f"demo: gradio is missing ({error}). Run `pip install 'promptir_basicsr[web]'`") from error


def _serve(page: 'gradio.Blocks', args: argparse.Namespace, activity: Activity) -> None:
    """Serve until the process is interrupted.

    Raises:
        KeyboardInterrupt: by Ctrl-C, SIGTERM or SIGHUP.
        OptionError: the port is in use, or the host is unknown.
    """
    import gradio as gr
    from starlette.middleware import Middleware

    fonts = ('system-ui', '-apple-system', 'Segoe UI', 'Roboto', 'Noto Sans', 'Liberation Sans', 'sans-serif')
    theme = gr.themes.Default(
        primary_hue='blue', neutral_hue='slate', font=fonts, font_mono=('ui-monospace', 'monospace')
    ).set(  # readable: contrasts of at least 4.5 to 1
        body_text_color_subdued='*neutral_600',
        block_info_text_color='*neutral_600',
        button_primary_background_fill='*primary_700',
        button_primary_background_fill_dark='*primary_700',
        button_primary_background_fill_hover='*primary_800',
    )
    megabytes = max(16, round(args.max_megapixels * 16))  # twice four channels of two bytes
    try:
        try:
            page.launch(
                server_name=args.host,
                server_port=args.port,
                inbrowser=not args.no_browser,
                theme=theme,
                i18n=gr.I18n(en={'common.complete': 'Done'}),  # gradio lacks this text and would show the key
                app_kwargs={'middleware': [Middleware(KnownHosts, names=_names(args.host))]},
                css=importlib.resources.files('promptir_basicsr.demo')
                .joinpath('style.css')
                .read_text(encoding='utf-8'),
                max_file_size=megabytes << 20,
                prevent_thread_lock=True,
                share=False,
                quiet=True,
                footer_links=[],
                ssr_mode=False,
                mcp_server=False,
                enable_monitoring=False,
                run_history=False,
            )
        except OSError as error:
            problem = f'--port: {args.port} on {args.host} is in use, or this machine does not have this address.'
            raise OptionError(f'{problem} Set another one.') from error
        sys.stdout.write(f'The page is at {page.local_url} - Ctrl-C ends it.\n')
        sys.stdout.flush()
        threading.Event().wait()
    finally:
        activity.closing.set()
        server = getattr(page, 'server', None)
        if server is not None:
            server.force_exit = True  # do not wait for visitors to leave, and do not log each of them
            logging.getLogger('uvicorn.error').setLevel(logging.CRITICAL + 1)
        page.close(verbose=False)


def _names(host: str) -> set[str]:
    """Host names of this machine."""
    names = {'localhost', host}
    if host not in ('localhost', '127.0.0.1', '::1'):
        names |= {socket.gethostname(), socket.getfqdn()}
    return {name.lower() for name in names}


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
