"""What every test needs."""

import logging
import sys
from collections.abc import Iterator

import pytest


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
