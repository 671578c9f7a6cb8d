"""The page of `basicsr demo`, to try a network in the browser. See `docs/web.md`."""

import html
import logging
import os
import tempfile
import threading
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import torch

from promptir_basicsr.core.arrays import save_picture
from promptir_basicsr.demo.content import (
    comparison_markup,
    preview,
    read_upload,
    remove_older,
    restore_upload,
    summary,
    weights_markup,
)
from promptir_basicsr.inference.restorer import Restorer

if TYPE_CHECKING:
    import gradio

logger = logging.getLogger('basicsr')

_KEPT = 3600  # seconds that a restored file can be downloaded
_WAITING = 32  # largest number of waiting visitors
_UNSHOWN = ('TIFF', 'PPM')  # formats that browsers cannot show
_BLIND, _TOLD = 'Detect the degradation', 'Choose the degradation'
# On a phone the result is below the fold: if there is an image, scroll there while it is restored.
_SHOW_RESULT = """(...inputs) => {
  const result = document.getElementById('result');
  if (inputs[0] && result.getBoundingClientRect().top > innerHeight / 2) result.scrollIntoView();
  return inputs;
}"""


@dataclass(frozen=True)
class Activity:
    """Activity of a page.

    Attributes:
        busy: held while an image is being restored.
        closing: set when the page closes; a running restoration then ends after the next pass of the network.
    """

    busy: threading.Lock = field(default_factory=threading.Lock)
    closing: threading.Event = field(default_factory=threading.Event)


def build_page(
    restorer: Restorer, work: Path, examples: list[tuple[str, Path]], most_pixels: int, activity: Activity | None = None
) -> 'gradio.Blocks':
    """Build the page without serving it.

    Args:
        work: folder for restored files.
        examples: name and file of each.
        most_pixels: larger images are refused.

    Examples:
        >>> from pathlib import Path
        >>> from promptir_basicsr.demo import build_page
        >>> from promptir_basicsr.inference import Restorer
        >>> page = build_page(Restorer('net_g_latest.pth'), Path('work'), examples=[], most_pixels=16_000_000)
        >>> type(page).__name__
        'Blocks'
    """
    import gradio as gr

    activity = activity or Activity()
    traits = restorer.traits
    labels = list(traits.labels) if traits.takes_degradation else []
    has_sensor = bool(labels) and traits.holds_sensor

    originals: dict[str, str] = {}  # by the preview of a file that browsers cannot show
    tracker = gr.Progress()  # gradio finds it as a default value

    # Events with `preprocess=False` get the original file; gradio would decode it, with its own errors.
    def look(dropped: dict[str, Any] | None) -> Any:
        """Check a dropped file at once, and make a preview if browsers cannot show it."""
        if dropped is None:
            return gr.skip()
        path = dropped['path']
        try:
            uploaded = read_upload(path, most_pixels)
        except (ValueError, OSError) as error:
            gr.Warning(html.escape(str(error)), duration=None)
            return None
        if uploaded.format not in _UNSHOWN:
            return gr.skip()
        stand_in = Path(tempfile.mkdtemp(dir=_results(work))) / 'preview.png'
        save_picture(preview(uploaded.image), stand_in)
        originals[str(stand_in)] = path
        return str(stand_in)

    def restore(dropped: dict[str, Any] | None, *controls: Any, progress: Any = tracker) -> list[Any]:
        if dropped is None:
            raise gr.Error('There is no image yet. Drop one, or choose an example.', print_exception=False)
        path = originals.get(dropped['path'], dropped['path'])
        mode, strength, *shares = controls if labels else (_BLIND, 1.0)

        def advance(done: int, total: int) -> None:
            if activity.closing.is_set():
                raise SystemExit
            progress((done, total), unit='passes')

        progress(0, desc='Restoring')
        folder = Path(tempfile.mkdtemp(dir=_results(work)))
        try:
            told = None if mode == _BLIND else _mixture(labels, shares)
            with activity.busy:
                result = restore_upload(restorer, path, folder, most_pixels, told, strength, advance)
            before, after = (folder / name / 'preview.png' for name in ('before', 'after'))
            for image, shown in ((result.before, before), (result.after, after)):
                shown.parent.mkdir()
                save_picture(image, shown)
        except (ValueError, OSError) as error:
            logger.warning(f'Not restored: {error}')
            raise gr.Error(html.escape(str(error)), duration=None, print_exception=False) from error
        except (MemoryError, torch.OutOfMemoryError) as error:
            advice = 'Not enough memory for this image. Start the page with a smaller `--tile`.'
            raise gr.Error(advice, duration=None, print_exception=False) from error
        return [
            comparison_markup(_address(before), _address(after), result.before.shape[1]),
            gr.update(value=str(result.file), visible=True),
            summary(result, restorer.device.type.replace('cuda', 'GPU').replace('cpu', 'CPU')),
            weights_markup(result.weights, result.part),
        ]

    with gr.Blocks(title='Restore an image', analytics_enabled=False, delete_cache=(600, _KEPT)) as page:
        gr.Markdown(_head(restorer), elem_id='head')
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=320):
                picture = gr.Image(
                    image_mode=None,
                    sources=['upload', 'clipboard'],
                    label='Image',
                    height=360,
                    elem_id='picture',
                    buttons=[],
                )
                controls = _controls(gr, labels, has_sensor) if labels else []
                button = gr.Button('Restore', variant='primary', elem_id='restore')
                _examples(gr, examples, picture)
            with gr.Column(scale=3, min_width=320, elem_id='result'):
                comparison = gr.HTML(elem_id='comparison', padding=False)
                with gr.Row(equal_height=True):
                    said = gr.Markdown(elem_id='said')
                    download = gr.DownloadButton('Download', visible=False, elem_id='download', size='md', scale=0)
                weights = gr.HTML(elem_id='weights', padding=False)
        picture.upload(look, picture, picture, api_visibility='private', show_progress='minimal', preprocess=False)
        button.click(
            restore,
            [picture, *controls],
            [comparison, download, said, weights],
            api_visibility='private',
            concurrency_limit=1,
            show_progress_on=comparison,
            js=_SHOW_RESULT,
            preprocess=False,
        )
    return page.queue(max_size=_WAITING, default_concurrency_limit=1, api_open=False)


def _examples(gr: Any, examples: list[tuple[str, Path]], picture: Any) -> None:
    """A button for each example, with its name and its image."""
    gr.Markdown('Examples', elem_id='examples-title')
    with gr.Row(elem_id='examples'):
        for name, path in examples:
            gr.Button(name, icon=str(path), size='sm', scale=0, min_width=0).click(
                partial(str, path), None, picture, api_visibility='private', queue=False, show_progress='hidden'
            )


def _controls(gr: Any, labels: list[str], has_sensor: bool) -> list[Any]:
    """Controls for a network with labels: mode, strength, and one slider per label."""
    mode = gr.Radio(
        [_BLIND, _TOLD],
        value=_BLIND if has_sensor else _TOLD,
        label='Degradation',
        visible=has_sensor,
        elem_id='mode',
    )
    with gr.Column(visible=not has_sensor, elem_id='mixture') as mixture:
        gr.Markdown('Degradation', visible=not has_sensor)
        with gr.Group():
            sliders = [
                gr.Slider(0, 1, value=float(number == 0), step=0.05, label=label, elem_id=f'label-{number}')
                for number, label in enumerate(labels)
            ]
    strength = gr.Slider(
        0,
        1.5,
        value=1,
        step=0.05,
        label='Strength',
        info='1 is as trained, 0 ignores the labels',
        elem_id='strength',
    )
    mode.change(
        lambda chosen: gr.update(visible=chosen == _TOLD),
        mode,
        mixture,
        api_visibility='private',
        queue=False,
        show_progress='hidden',
    )
    return [mode, strength, *sliders]


def _mixture(labels: list[str], shares: list[float]) -> dict[str | int, float]:
    """The labels for the network.

    Raises:
        ValueError: all shares are 0.
    """
    told: dict[str | int, float] = {
        int(label) if label.isdecimal() else label: share for label, share in zip(labels, shares, strict=True) if share
    }
    if not told:
        raise ValueError('All labels are at 0. Move the slider of a degradation.')
    return told


def _address(path: Path) -> str:
    """URL of a file below gradio's folder, relative to the page."""
    return f'gradio_api/file={quote(path.as_posix())}'


def _results(work: Path) -> Path:
    """The folder of restored files, below gradio's folder, which it serves; removes old files."""
    folder = work / 'uploads' / 'restored'
    folder.mkdir(parents=True, exist_ok=True)
    remove_older(folder, _KEPT)
    return folder


def _head(restorer: Restorer) -> str:
    count = sum(parameter.numel() for parameter in restorer.net.parameters())
    name = html.escape(os.path.basename(restorer.checkpoint.path))
    where = 'GPU' if restorer.device.type == 'cuda' else 'CPU'
    kind = type(restorer.net).__name__
    return (
        f'# Restore an image\n\n{kind} with {count / 1e6:.3g} million parameters, weights of <code>{name}</code>, on '
        f'the {where}. Images stay on the machine that serves this page.'
    )
