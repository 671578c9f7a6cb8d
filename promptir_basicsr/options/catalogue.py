"""Sections of options of the classes and functions that this package registers."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY

from promptir_basicsr.losses.loss_scaler import LossScaler
from promptir_basicsr.optim.optimizers import PREFIX
from promptir_basicsr.optim.schedules import SCHEDULERS
from promptir_basicsr.options.data import MeasuringSet, TrainingSet
from promptir_basicsr.options.registered import OURS, section_of
from promptir_basicsr.options.section import Section


def registered(kind: str) -> dict[str, type[Section]]:
    """Return the sections of a kind: registered name -> its options without `type`."""
    if kind == 'network':
        return _sections(_ours(ARCH_REGISTRY))
    if kind in ('loss', 'prompt loss'):
        losses = _ours(LOSS_REGISTRY)
        wanted = kind == 'prompt loss'
        return _sections({name: loss for name, loss in losses.items() if _takes_prompts(loss) == wanted})
    if kind == 'metric':
        return _sections(_ours(METRIC_REGISTRY), given=('img', 'img2'))
    if kind == 'schedule':
        return _sections(SCHEDULERS, given=('optimizer', 'last_epoch'), optional=('total_iter',))
    if kind == 'loss scaler':
        return _sections({'LossScaler': LossScaler})
    sets: dict[str, type[Section]] = {'training set': TrainingSet, 'measuring set': MeasuringSet}
    return {'AllInOneDataset': sets[kind]} if kind in sets else {}


def _ours(registry: Any) -> dict[str, Any]:
    found = {name: kind for name, kind in registry if kind.__module__.startswith(OURS)}
    return {name: found[name] for name in sorted(found)}


def _takes_prompts(loss: Any) -> bool:
    return bool(getattr(loss, 'takes_prompts', False))


def _sections(
    functions: Mapping[str, Callable[..., Any]], given: tuple[str, ...] = (), optional: tuple[str, ...] = ()
) -> dict[str, type[Section]]:
    return {name: section_of(function, given, optional) for name, function in functions.items()}


def find_section(kind: str, options: Any) -> type[Section] | None:
    """Return the section of a `type`, or None if this package does not define the type."""
    if kind == 'loss scaler':
        return registered(kind)['LossScaler']
    name = options.get('type') if isinstance(options, Mapping) else None
    return registered(kind).get(name) if isinstance(name, str) else None


def known_names(kind: str) -> list[str]:
    """Return the names for an editor to suggest: this package's own, then common names of BasicSR."""
    host: Iterable[str] = {
        'loss': ('CharbonnierLoss', 'L1Loss', 'MSELoss'),
        'metric': ('calculate_niqe', 'calculate_psnr', 'calculate_ssim'),
        'schedule': ('CosineAnnealingRestartLR', 'MultiStepLR', 'MultiStepRestartLR'),
        'optimizer': ('Adam', 'AdamW', 'SGD', f'{PREFIX}Muon', f'{PREFIX}SOAP'),
    }.get(kind, ())
    return [*registered(kind), *(name for name in host if name not in registered(kind))]
