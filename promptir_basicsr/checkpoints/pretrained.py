"""Pretrained weights for fine-tuning, also for a network with more prompts or labels, and for its sensor.

A module declares the growable axes of its parameters by a class attribute `growable_axes`:
counted thing -> {parameter: axis}, e.g. `{'prompts': {'prompt_param': 1, 'linear_layer.weight': 0}}`.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from promptir_basicsr.archs.layers.conditioning import SENSOR_PREFIX
from promptir_basicsr.archs.traits import growable_axes, traits_of, unwrapped
from promptir_basicsr.checkpoints.matching import with_queue
from promptir_basicsr.checkpoints.reading import WeightFile, named_as, read_weight_file, readings
from promptir_basicsr.core.errors import OptionError, raise_problems
from promptir_basicsr.core.messages import first_few
from promptir_basicsr.core.problems import Keys, Problem, problem
from promptir_basicsr.core.registry import build, find_registered

# Optimizer states with the size of their parameter, one for each family.
_MOMENTS = ('exp_avg', 'momentum_buffer', 'square_avg', 'sum')

logger = logging.getLogger('basicsr')

WEIGHTS: Keys = ('path', 'pretrain_network_g')
SENSOR_WEIGHTS: Keys = ('path', 'pretrain_network_sensor')
NO_SENSOR = 'network_g has no sensor. Set `sensor: {type: DegradationSensor, ...}`'


@dataclass(frozen=True)
class Difference:
    """A tensor with different sizes along a growable axis in a file and in a network.

    Attributes:
        name: of the parameter.
        counted: what the axis counts, e.g. 'prompts'.
        axis: the only axis in which the shapes differ.
        found: shape in the file.
        wanted: shape in the network.
    """

    name: str
    counted: str
    axis: int
    found: tuple[int, ...]
    wanted: tuple[int, ...]

    @property
    def before(self) -> int:
        return self.found[self.axis]

    @property
    def after(self) -> int:
        return self.wanted[self.axis]

    def __str__(self) -> str:
        return f'{self.name} {self.found} -> {self.wanted}'


def check_fit(
    weights: Mapping[str, Tensor], net: nn.Module, path: str, paths: Mapping[str, Any], resuming: bool = False
) -> list[Difference]:
    """Check that weights fit a network; return the tensors that have to grow.

    Args:
        weights: name -> tensor.
        net: the network; not changed.
        path: the file, for messages.
        paths: the `path` options, of which `strict_load_g` and `grow_g` are used.
        resuming: the file belongs to a resumed run; then nothing may grow.

    Raises:
        OptionError: the file has more than the network, or fewer without `grow_g`, or does not fit otherwise and
            `strict_load_g`.
    """
    strict, allowed = paths.get('strict_load_g', True), bool(paths.get('grow_g')) and not resuming
    where = ('path', 'resume_state' if resuming else 'pretrain_network_g')
    found = _differences(weights, net)
    problems = _growth_problems(where, found, path, allowed, resuming) if strict or allowed else []
    problems += _misfits(where, weights, net, found, path) if strict else []
    raise_problems(problems)
    return found if allowed else []


def with_prompts(weights: Mapping[str, Tensor], net: Any) -> dict[str, Tensor]:
    """Weights of a file for `net`; a network that adds prompts to a backbone adds them to the backbone's weights."""
    return net.with_prompts(weights) if traits_of(net).adds_prompts else dict(weights)


def grow(weights: Mapping[str, Tensor], fresh: Mapping[str, Tensor], found: Sequence[Difference]) -> dict[str, Tensor]:
    """Grow the weights of a file: its rows are kept bit by bit, followed by rows of `fresh`.

    Args:
        weights: name -> tensor; not changed.
        fresh: the state of a newly initialised network of the wanted size.
        found: the tensors to grow, from `check_fit`.
    """
    grown = dict(weights)
    for difference in found:
        new = fresh[difference.name].detach().to(weights[difference.name], copy=True)
        new.narrow(difference.axis, 0, difference.before).copy_(weights[difference.name])
        grown[difference.name] = new
    return grown


def start_problems(options: Mapping[str, Any], is_train: bool = True) -> list[Problem]:
    """Check before the run that `network_g` can load `path.pretrain_network_g`.

    A missing file is reported elsewhere. For third-party networks, which BasicSR may load with another reader, and for
    those that do not support the meta device, only the file is read; the fit is checked when it is loaded.

    Args:
        options: the options of a run, with a valid `network_g`.
        is_train: for a training; a test uses the network as it was trained.
    """
    network, paths = options['network_g'], options['path']
    if paths.get('grow_g') and not is_train:
        message = 'only for training; new rows are untrained. Remove it.'
        return [problem(('path', 'grow_g'), message)]
    file, key = paths.get('pretrain_network_g'), paths.get('param_key_g', 'params')
    path = os.path.expanduser(file) if isinstance(file, str) else ''
    # A training state has its own weights.
    if not os.path.isfile(path) or paths.get('resume_state') or not isinstance(key, str | None):
        return []
    run = os.path.join(os.path.expanduser(str(paths.get('experiments_root') or 'experiments')), str(options['name']))
    if is_train and os.path.realpath(path).startswith(os.path.join(os.path.realpath(run), '')):
        message = (
            f"'{path}' is in the folder of this run, '{run}', which BasicSR renames before it starts. "
            'Set another `name` for the new run, or resume the old one by `resume_state`.'
        )
        return [problem(WEIGHTS, message)]
    try:
        net = _without_memory(network)
        if net is None:
            read_weight_file(path, WEIGHTS)
            return []
        weights, _, _ = read_weights(path, (key,), net)
        complete = with_prompts(weights, net)
        if not is_train and complete.keys() != weights.keys():
            message = (
                f"'{path}' contains a network without prompts. A training can start from it, but a test needs weights "
                f'of a trained {network["type"]}.'
            )
            return [problem(WEIGHTS, message)]
        check_fit(with_queue(complete, net), net, path, paths)
    except OptionError as error:
        return error.problems
    return []


def _without_memory(network: Mapping[str, Any]) -> nn.Module | None:
    """Build a network on the meta device; None if its constructor does not support it."""
    if not traits_of(find_registered(ARCH_REGISTRY, network['type'])).declared:
        return None
    try:
        return build(ARCH_REGISTRY, network, 'meta')
    except RuntimeError:
        return None


def state_problems(states: Sequence[Any], optimizers: Sequence[torch.optim.Optimizer], net: nn.Module) -> list[Problem]:
    """Check that saved optimizer states belong to a network of the same sizes."""
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    differ = []
    for state, optimizer in zip(states, optimizers, strict=False):  # BasicSR checks their number
        saved = [number for group in state['param_groups'] for number in group['params']]
        parameters = [parameter for group in optimizer.param_groups for parameter in group['params']]
        if len(saved) != len(parameters):
            differ.append(f'{len(saved):,} -> {len(parameters):,} parameters')
            continue
        for number, parameter in zip(saved, parameters, strict=True):
            entry = state['state'].get(number, {})
            shapes = [tuple(entry[key].shape) for key in _MOMENTS if isinstance(entry.get(key), Tensor)]
            if any(shape != parameter.shape for shape in shapes):
                differ.append(f'{names.get(id(parameter), number)} {shapes[0]} -> {tuple(parameter.shape)}')
    if not differ:
        return []
    message = (
        f'the optimizer was saved for a network of other sizes: {first_few(differ, most=9)}. '
        f'A resumed run needs the same network. {_NEW_RUN}'
    )
    return [problem(('path', 'resume_state'), message)]


_NEW_RUN = (
    'To add prompts or labels, start a new run from its weights under another name: '
    '`path: {pretrain_network_g: FILE, grow_g: true}`.'
)


def _differences(weights: Mapping[str, Tensor], net: nn.Module) -> list[Difference]:
    """Tensors of a file that differ from the network's only along growable axes."""
    axes, state = growable_axes(net), net.state_dict()
    found = []
    for name, value in weights.items():
        if name not in axes or name not in state or value.shape == state[name].shape:
            continue
        counted, axis = axes[name]
        difference = Difference(name, counted, axis, tuple(value.shape), tuple(state[name].shape))
        if _without(difference.found, axis) == _without(difference.wanted, axis):
            found.append(difference)
    return found


def _growth_problems(
    where: Keys, found: Sequence[Difference], path: str, allowed: bool, resuming: bool
) -> list[Problem]:
    """One problem for each counted thing that cannot grow."""
    problems = []
    for counted in dict.fromkeys(difference.counted for difference in found):
        members = [difference for difference in found if difference.counted == counted]
        shrinks = any(each.before > each.after for each in members)
        if allowed and not shrinks:
            continue
        before = ' or '.join(map(str, sorted({each.before for each in members})))
        after = ' or '.join(map(str, sorted({each.after for each in members})))
        message = f"the network has {after} {counted}, but the file '{path}' has {before}. These tensors differ: "
        message += f'{first_few(map(str, members), most=9)}. '
        if resuming:
            message += f'A resumed run needs the same network. {_NEW_RUN}'
        elif shrinks:
            most = max(each.before for each in members)
            message += f'The number of {counted} can grow, not shrink: set at least {most} for the network.'
        else:
            message += f'Set `path: {{grow_g: true}}` to load the {before} of the file and initialise the new ones.'
        problems.append(problem(where, message))
    return problems


def _misfits(
    where: Keys, weights: Mapping[str, Tensor], net: nn.Module, counted: Sequence[Difference], path: str
) -> list[Problem]:
    """Other differences: sizes, and names that only one of the two has."""
    told, state = {difference.name for difference in counted}, net.state_dict()
    sizes = [
        f'{name} {tuple(value.shape)} -> {tuple(state[name].shape)}'
        for name, value in weights.items()
        if name in state and name not in told and value.shape != state[name].shape
    ]
    # Use the network's own loader, which knows optional names, with the network's own values.
    names = net.load_state_dict({name: state.get(name, value) for name, value in weights.items()}, strict=False)
    parts = [
        f'{what}: {first_few(listed)}'
        for what, listed in (
            ('other sizes', sizes),
            ('not in the file', names.missing_keys),
            ('not in the network', names.unexpected_keys),
        )
        if listed
    ]
    if not parts:
        return []
    message = (
        f"the weights in '{path}' are of another {type(net).__name__}; "
        f'{"; ".join(parts)}. Set network_g to the options of its training, or use another file.'
    )
    return [problem(where, message)]


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], *shape[axis + 1 :])


def read_weights(
    path: str, keys: Sequence[str | None], net: nn.Module, where: Keys = WEIGHTS
) -> tuple[dict[str, Tensor], str, dict[str, Any]]:
    """Read weights for a network, by its names, from a file of any layout.

    Args:
        path: the file.
        keys: keys to try in order, such as `params_ema`, then `params`. Weights without a key, and those of Lightning,
            are used with any keys.
        net: the network; not changed.
        where: the option that names the file, for messages.

    Returns:
        The weights on the CPU; their key, '' without a key; the file's metadata.

    Raises:
        OptionError: the file cannot be read, or has no such weights.
    """
    file = read_weight_file(path, where)
    key = _chosen(file, keys, where)
    # The backbone of a PromptedNetwork and the sensor of a network may have separate files.
    known = {name.removeprefix('network.') for name in net.state_dict()} | net.state_dict().keys()
    return named_as(file.sets[key], known | {f'{SENSOR_PREFIX}{name}' for name in known}), key, file.metadata


def _chosen(file: WeightFile, keys: Sequence[str | None], where: Keys) -> str:
    """The key of the weights of a file."""
    usual = (*keys, 'params', '', *(['state_dict'] if file.layout == 'official' else []))
    key = next((key for key in usual if key in file.sets), None)
    if key is None:
        option = ('path', 'param_key_g') if where == WEIGHTS else where
        found = f"'{file.path}' has no weights under '{keys[0]}'. Set `param_key_g: {next(iter(file.sets))}`."
        raise OptionError(problem(option, found))
    return key


def load_sensor(nets: Sequence[nn.Module], paths: Mapping[str, Any]) -> None:
    """Load the weights of the sensors inside networks, unless the networks' own weights contain them.

    Args:
        nets: the network and its averaged copy; each gets the same weights.
        paths: the `path` options. A resumed run uses the sensor of its checkpoint.

    Raises:
        OptionError: the weights are missing, or do not fit.
    """
    found = [unwrapped(net).sensor for net in nets if traits_of(net).holds_sensor]
    sensors = [sensor for sensor in found if isinstance(sensor, nn.Module)]
    if not sensors:
        return
    path, came_along = _source(paths)
    if not path:
        raise OptionError(_nowhere(paths))
    logger.info(f'Sensor: {type(sensors[0]).__name__}, weights of {path}; not trained here.')
    if came_along:
        return
    weights = _read(path, sensors[0])
    for sensor in sensors:
        raise_problems(_sensor_misfits(weights, sensor, path))
        sensor.load_state_dict(weights)


def sensor_problems(options: Mapping[str, Any]) -> list[Problem]:
    """Check before the run that the sensor of `network_g` has weights that fit.

    Args:
        options: the options of a run, with a valid `network_g`. Missing files are reported elsewhere.
    """
    network, paths, val = options['network_g'], options['path'], options.get('val') or {}
    if not network.get('sensor'):
        problems = [problem(SENSOR_WEIGHTS, f'{NO_SENSOR}.')] if paths.get('pretrain_network_sensor') else []
        sensed = val.get('labels') == 'sensor'
        return problems + [problem(('val', 'labels'), f'{NO_SENSOR}, or use true labels.')] * sensed
    files = [paths.get(key) for key in ('pretrain_network_sensor', 'pretrain_network_g', 'resume_state')]
    if not all(isinstance(file, str) and os.path.isfile(os.path.expanduser(file)) for file in files if file):
        return []
    if paths.get('resume_state'):
        return []
    try:
        path, came_along = _source(paths)
        if not path:
            return [_nowhere(paths)]
        if came_along:
            return []
        net = build(ARCH_REGISTRY, network, 'meta')
        return _sensor_misfits(_read(path, net.sensor), net.sensor, path)
    except OptionError as error:
        return error.problems
    except RuntimeError:  # not every constructor supports the meta device
        return []


def _source(paths: Mapping[str, Any]) -> tuple[str, bool]:
    """The file of the sensor's weights or '', and whether it is the file of the whole network."""
    own, whole = paths.get('pretrain_network_sensor'), paths.get('pretrain_network_g')
    if whole and (paths.get('resume_state') or not own):
        file = read_weight_file(whole, WEIGHTS)
        weights = file.sets[_chosen(file, (paths.get('param_key_g', 'params'),), WEIGHTS)]
        if any(name.startswith(SENSOR_PREFIX) for _, named, _ in readings(weights) for name in named):
            return whole, True
    return (os.path.expanduser(own), False) if own else ('', False)


def _read(path: str, sensor: nn.Module) -> dict[str, Tensor]:
    """Read a sensor's weights from a checkpoint of SensorModel, averaged ones first, or of a network with a sensor."""
    weights, _, _ = read_weights(path, ('params_ema', 'params'), sensor, SENSOR_WEIGHTS)
    inside = {
        name.removeprefix(SENSOR_PREFIX): part for name, part in weights.items() if name.startswith(SENSOR_PREFIX)
    }
    return inside or weights


def _sensor_misfits(weights: Mapping[str, Tensor], sensor: nn.Module, path: str) -> list[Problem]:
    state = sensor.state_dict()
    shapes = {
        name: [tuple(part[name].shape) if name in part else 'none' for part in (weights, state)]
        for name in {**state, **weights}
    }
    differ = [f'{name} {found} -> {wanted}' for name, (found, wanted) in shapes.items() if found != wanted]
    if not differ:
        return []
    message = (
        f"the weights in '{path}' are of another {type(sensor).__name__}; they differ in {first_few(differ)}. "
        'Set network_g.sensor to the options of its training, or use another file.'
    )
    return [problem(SENSOR_WEIGHTS, message)]


def _nowhere(paths: Mapping[str, Any]) -> Problem:
    whole = paths.get('pretrain_network_g')
    found = f" '{whole}' has none." if whole else ''
    message = (
        f'is missing, but the sensor of network_g needs weights.{found} Set a checkpoint of SensorModel '
        '(options/sensor.yml trains one), or remove `sensor` from network_g.'
    )
    return problem(SENSOR_WEIGHTS, message)
