"""What every test needs."""

import logging
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import skimage.data

Write = Callable[..., Path]


# What a script starts in the background inherits an ignored SIGINT, and so would the commands that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def host_log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What BasicSR's logger records, which passes nothing on to the root logger once BasicSR has set it up."""
    logger = logging.getLogger('basicsr')
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO, logger='basicsr'):
        yield caplog
    logger.removeHandler(caplog.handler)


@pytest.fixture(autouse=True)
def fresh_logger() -> Iterator[None]:
    """BasicSR sets its logger up once a process; each test is a command of its own."""

    def reset() -> None:
        host_logger = sys.modules.get('basicsr.utils.logger')
        if host_logger is None:
            return
        host_logger.initialized_logger.clear()
        logger = logging.getLogger('basicsr')
        for handler in list(logger.handlers):
            handler.close()
            logger.removeHandler(handler)

    reset()
    yield
    reset()


@pytest.fixture(scope='session')
def photographs() -> list[np.ndarray]:
    """Three photographs, (96, 96, 3) RGB uint8."""
    sources = skimage.data.chelsea(), skimage.data.astronaut(), skimage.data.coffee()
    return [np.ascontiguousarray(source[100:196, 150:246]) for source in sources]


@pytest.fixture
def write(tmp_path: Path, photographs: list[np.ndarray]) -> Write:
    """write(name, image): an RGB image as a file below tmp_path; 12x12 of a photograph where no image is given."""

    def write_image(name: str, image: np.ndarray | None = None) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = photographs[0][:12, :12] if image is None else image
        written, content = cv2.imencode(path.suffix.lower(), pixels[..., ::-1])
        assert written
        path.write_bytes(content.tobytes())
        return path

    return write_image


@pytest.fixture
def derain(write: Write, photographs: list[np.ndarray]) -> Mapping[str, Any]:
    """A task: three pairs in the training layout of Rain100L; the rainy image is the negative of the clear one."""
    for number, photograph in enumerate(photographs, 1):
        folder = write(f'Derain/gt/norain-{number}.png', photograph).parents[1]
        write(f'Derain/rainy/rain-{number}.png', 255 - photograph)
    return {'name': 'derain', 'type': 'derain', 'root': str(folder), 'pairing': 'rain100l_train'}


@pytest.fixture
def denoise(write: Write, photographs: list[np.ndarray]) -> Mapping[str, Any]:
    """A task: two clean images to add noise to."""
    for number, photograph in enumerate(photographs[:2], 1):
        folder = write(f'Denoise/{number:05}.bmp', photograph).parent
    return {
        'name': 'denoise25',
        'type': 'denoise',
        'clean': str(folder),
        'degrade': {'type': 'gaussian_noise', 'sigma': 25},
    }


@pytest.fixture
def log() -> Iterator[list[logging.LogRecord]]:
    """What goes to BasicSR's logger, whose records do not reach pytest's."""
    records: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    logger, handler = logging.getLogger('basicsr'), Keep()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield records
    logger.setLevel(level)
    logger.removeHandler(handler)
