"""Weights of a network with fewer prompts or labels as the start of one with more.

A module says which axes of its parameters count something by a class attribute `growable_axes`:
what is counted -> {parameter: axis}, e.g. `{'prompts': {'prompt_param': 1, 'linear_layer.weight': 0}}`.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from promptir_basicsr.models.checkpoint_util import read_weights
from promptir_basicsr.option_util import OptionError, first_few

# States of an optimizer that have the size of their parameter, one for each family.
_MOMENTS = ('exp_avg', 'momentum_buffer', 'square_avg', 'sum')


@dataclass(frozen=True)
class Difference:
    """A tensor that has another number of something in a file than in a network.

    Attributes:
        name: of the parameter.
        counted: what its axis counts, e.g. 'prompts'.
        axis: along which the two differ; everywhere else they agree.
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


def growable_axes(net: nn.Module) -> dict[str, tuple[str, int]]:
    """For each parameter that may grow: what an axis of it counts, and which axis that is."""
    return {
        f'{prefix}.{name}'.lstrip('.'): (counted, axis)
        for prefix, module in net.named_modules()
        for counted, axes in getattr(module, 'growable_axes', {}).items()
        for name, axis in axes.items()
    }


def check_fit(
    weights: Mapping[str, Tensor], net: nn.Module, path: str, paths: Mapping[str, Any], resuming: bool = False
) -> list[Difference]:
    """What has to grow so that the weights of a file fit a network.

    Args:
        weights: name -> tensor.
        net: the network; not changed.
        path: the file, for messages.
        paths: the `path` options; of interest are `strict_load_g` and `grow_g`.
        resuming: the file belongs to a run that is to be continued; nothing grows then.

    Raises:
        OptionError: the file has more than the network, or fewer without `grow_g`, or does not fit otherwise and
            `strict_load_g`.
    """
    strict, allowed = paths.get('strict_load_g', True), bool(paths.get('grow_g')) and not resuming
    where = 'path.resume_state' if resuming else 'path.pretrain_network_g'
    found = _differences(weights, net)
    problems = _growth_problems(where, found, path, allowed, resuming) if strict or allowed else []
    problems += _misfits(where, weights, net, found, path) if strict else []
    if problems:
        raise OptionError(problems)
    return found if allowed else []


def with_prompts(weights: Mapping[str, Tensor], net: Any) -> dict[str, Tensor]:
    """Weights of a file as those of `net`; to weights of the network that it puts prompts into, it adds its prompts."""
    return net.with_prompts(weights) if hasattr(net, 'with_prompts') else dict(weights)


def grow(weights: Mapping[str, Tensor], fresh: Mapping[str, Tensor], found: Sequence[Difference]) -> dict[str, Tensor]:
    """The weights of a file with more rows: its own are kept bit by bit, behind them stand those of `fresh`.

    Args:
        weights: name -> tensor; not changed.
        fresh: the state of a network of the wanted size, newly initialised.
        found: what is to grow, from `check_fit`.
    """
    grown = dict(weights)
    for difference in found:
        new = fresh[difference.name].detach().to(weights[difference.name], copy=True)
        new.narrow(difference.axis, 0, difference.before).copy_(weights[difference.name])
        grown[difference.name] = new
    return grown


def start_problems(options: Mapping[str, Any], is_train: bool = True) -> list[str]:
    """Why `path.pretrain_network_g` cannot be the start of `network_g`, found before anything is created.

    A file that is not there is told elsewhere. Networks of others, and those that cannot be built without memory, are
    checked when they are loaded.

    Args:
        options: the options of a run; `network_g` was found to be right.
        is_train: for a training; a test takes the network as it was trained.
    """
    network, paths = options['network_g'], options['path']
    if paths.get('grow_g') and not is_train:
        return ['path.grow_g: belongs to a training; rows that are new have learned nothing yet. Leave it out.']
    file, key = paths.get('pretrain_network_g'), paths.get('param_key_g', 'params')
    path = os.path.expanduser(file) if isinstance(file, str) else ''
    # A training state brings weights of its own.
    if not os.path.isfile(path) or paths.get('resume_state') or not isinstance(key, str | None):
        return []
    run = os.path.join(os.path.expanduser(str(paths.get('experiments_root') or 'experiments')), str(options['name']))
    if is_train and os.path.realpath(path).startswith(os.path.join(os.path.realpath(run), '')):
        return [
            f"path.pretrain_network_g: '{path}' lies in the folder of this very run, '{run}', which BasicSR renames "
            'before it starts anew. Give the new run another `name`, or continue the old one with `resume_state`.'
        ]
    kind = ARCH_REGISTRY.get(network['type'])
    if not hasattr(kind, 'takes_degradation'):
        return []
    try:
        with torch.device('meta'):
            net = kind(**{name: value for name, value in network.items() if name != 'type'})
    except RuntimeError:
        return []
    try:
        weights, _ = read_weights(path, (key,), 'meta')
        complete = with_prompts(weights, net)
        if not is_train and complete.keys() != weights.keys():
            return [
                f"path.pretrain_network_g: '{path}' holds a network without prompts. A training can start from it; a "
                f'test needs weights that {network["type"]} was trained to.'
            ]
        check_fit(complete, net, path, paths)
    except OptionError as error:
        return error.problems
    return []


def state_problems(states: Sequence[Any], optimizers: Sequence[torch.optim.Optimizer], net: nn.Module) -> list[str]:
    """Why saved states of optimizers belong to a network of other sizes."""
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    differ = []
    for state, optimizer in zip(states, optimizers, strict=False):  # BasicSR counts them
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
    return [
        f'path.resume_state: the optimizer was saved for a network of other sizes: {first_few(differ, most=9)}. '
        f'A resumed run goes on with the same network. {_NEW_RUN}'
    ]


_NEW_RUN = (
    'To give it more prompts or labels, start a run under another name from its weights: '
    '`path: {pretrain_network_g: FILE, grow_g: true}`.'
)


def _differences(weights: Mapping[str, Tensor], net: nn.Module) -> list[Difference]:
    """The tensors of a file that differ from the network's in what they count, and in nothing else."""
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


def _growth_problems(where: str, found: Sequence[Difference], path: str, allowed: bool, resuming: bool) -> list[str]:
    """A line for each thing that is counted and cannot grow."""
    problems = []
    for counted in dict.fromkeys(difference.counted for difference in found):
        members = [difference for difference in found if difference.counted == counted]
        shrinks = any(each.before > each.after for each in members)
        if allowed and not shrinks:
            continue
        before = ' or '.join(map(str, sorted({each.before for each in members})))
        after = ' or '.join(map(str, sorted({each.after for each in members})))
        problem = f"{where}: the network has {after} {counted}, the file '{path}' {before}. These tensors differ: "
        problem += f'{first_few(map(str, members), most=9)}. '
        if resuming:
            problem += f'A resumed run goes on with the same network. {_NEW_RUN}'
        elif shrinks:
            most = max(each.before for each in members)
            problem += f'The number of {counted} can grow, not shrink: give the network at least {most}.'
        else:
            problem += f'`path: {{grow_g: true}}` keeps the {before} of the file and starts the new ones afresh.'
        problems.append(problem)
    return problems


def _misfits(
    where: str, weights: Mapping[str, Tensor], net: nn.Module, counted: Sequence[Difference], path: str
) -> list[str]:
    """What else differs: other sizes, names that only one of the two has."""
    told, state = {difference.name for difference in counted}, net.state_dict()
    sizes = [
        f'{name} {tuple(value.shape)} -> {tuple(state[name].shape)}'
        for name, value in weights.items()
        if name in state and name not in told and value.shape != state[name].shape
    ]
    # Asked through the network's own loader, which knows names that it may leave out; it is given its own values.
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
    return [
        f"{where}: the weights in '{path}' are those of another {type(net).__name__}; "
        f'{"; ".join(parts)}. Give network_g the options that the file was trained with, or take another file.'
    ]


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], *shape[axis + 1 :])
