"""Optimizers and learning rate schedules that BasicSR lacks."""

import functools
import logging
from typing import Any

from basicsr.models.base_model import BaseModel

from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.optim.optimizers import PREFIX, build_optimizer
from promptir_basicsr.optim.rates import describe
from promptir_basicsr.optim.schedules import SCHEDULERS, scheduler_arguments

logger = logging.getLogger('basicsr')


def adapt() -> None:
    add_optimizers()
    add_schedulers()


def add_optimizers() -> None:
    """Add optimizers: `BaseModel.get_optimizer` of the index release only has Adam; all-in-one recipes use AdamW.

    A type that BasicSR refuses is built by `build_optimizer`, so the list of the git master still applies.
    """
    host = BaseModel.get_optimizer
    if hasattr(host, '__wrapped__'):
        return

    @functools.wraps(host)
    def get_optimizer(self: BaseModel, optim_type: str, params: Any, lr: float, **kwargs: Any) -> Any:
        try:
            return host(self, optim_type, params, lr, **kwargs)
        except NotImplementedError as refusal:
            try:
                return build_optimizer(optim_type, params, lr=lr, **kwargs)
            except OptionError:
                if optim_type.startswith(PREFIX):
                    raise
                raise refusal from None

    BaseModel.get_optimizer = get_optimizer


def add_schedulers() -> None:
    """Add the schedules of `schedules.SCHEDULERS`, such as a cosine schedule with warmup."""
    host = BaseModel.setup_schedulers
    if hasattr(host, '__wrapped__'):
        return

    @functools.wraps(host)
    def setup_schedulers(self: BaseModel) -> None:
        train = self.opt['train']
        if train['scheduler'].get('type') not in SCHEDULERS:
            host(self)
            return
        kind, options = scheduler_arguments(train['scheduler'], train['total_iter'])
        self.schedulers += [kind(optimizer, **options) for optimizer in self.optimizers]
        logger.info(describe(self.schedulers[0], train['total_iter']))

    BaseModel.setup_schedulers = setup_schedulers
