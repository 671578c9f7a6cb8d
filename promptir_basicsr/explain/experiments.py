"""Experiments of `basicsr explain`: observe the prompts of a network, and restore with other weights or labels.

Shapes: n images, T tasks, K prompts of a level, C choices of labels or weights.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from promptir_basicsr.checkpoints.matching import new_network
from promptir_basicsr.explain.prompted import Change, Observation, PromptedNet, Sample, fixed, observe, without
from promptir_basicsr.explain.scores import ALL_LEVELS, cosine_similarity


@dataclass(frozen=True)
class Trials:
    """PSNR in dB of n samples, restored by the unchanged network and with other weights or labels.

    Attributes:
        base: (n,), unchanged; for a network with labels, with the true label.
        choices: (n, C). For a network with labels, with each label; for one with prompts and no labels, with the mean
            weights of each task in all levels, where an image itself does not count for its own task; else C = 0.
        truth: (n,), index of the true choice.
        levels: level or ALL_LEVELS -> name of other weights -> (n,).
        others: for a network with labels, further inputs -> (n,).
    """

    base: np.ndarray
    choices: np.ndarray
    truth: np.ndarray
    levels: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    others: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Findings:
    """All findings about a network.

    Attributes:
        similarity: level -> (K, K) cosines of its prompts.
        sensed: (n, T) probabilities of the sensor, if there is one.
    """

    seen: Observation
    trials: Trials
    similarity: Mapping[str, np.ndarray]
    sensed: np.ndarray | None = None


Passed = Callable[[int], Any]
"""Called with the number of images that the network has just processed."""


def investigate(
    prompted: PromptedNet,
    samples: Sequence[Sample],
    ids: np.ndarray,
    tasks: Sequence[str],
    *,
    detailed: bool = True,
    passed: Passed = lambda _: None,
) -> Findings:
    """Observe a network, and restore with other weights or labels.

    Args:
        ids: (n,), the task of each sample.
        tasks: names of the T tasks.
        detailed: run all experiments; otherwise only those that scores need.
    """
    seen = observe(prompted, samples, lambda: passed(1))
    if prompted.encodes:
        trials = _plain_trials(prompted, samples, ids, detailed, passed)
    elif prompted.told:
        trials = _told_trials(prompted, samples, detailed, passed)
    else:
        trials = _blind_trials(prompted, samples, ids, tasks, seen, detailed, passed)
    similarity = {level: cosine_similarity(each) for level, each in prompted.vectors().items()}
    sensed = np.array([prompted.sense(sample) for sample in samples]) if prompted.sensing else None
    return Findings(seen, trials, similarity, sensed)


def passes(prompted: PromptedNet, tasks: int, detailed: bool) -> int:
    """Number of runs of the network per sample in `investigate`, as `passed` counts them."""
    if prompted.encodes:
        return 1 + detailed
    if prompted.told:
        return 2 + len(prompted.degradations) + detailed * (2 + prompted.sensing)
    counts = [len(vectors) for vectors in prompted.vectors().values()]
    more = sum(count + (count if count > 1 else 0) + 1 + tasks for count in counts) + 1
    return 2 + tasks + detailed * more


def untrained_network(options: Mapping[str, Any], seed: int) -> nn.Module:
    """Build a network of `type` and arguments with random weights, without changing the random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return new_network(options).eval()


def _plain_trials(
    prompted: PromptedNet, samples: Sequence[Sample], ids: np.ndarray, detailed: bool, passed: Passed
) -> Trials:
    base = np.full(len(samples), np.nan)
    for i, sample in enumerate(samples if detailed else ()):
        base[i] = prompted.psnr(sample)
        passed(1)
    return Trials(base, np.empty((len(samples), 0)), ids.copy())


def _told_trials(prompted: PromptedNet, samples: Sequence[Sample], detailed: bool, passed: Passed) -> Trials:
    count = len(prompted.degradations)
    truth = np.array([sample.label for sample in samples])
    choices = np.empty((len(samples), count))
    tell: dict[str, tuple[Any, ...]] = {'equal mixture': (torch.full((count,), 1 / count),), 'strength 0': (0, 0.0)}
    if prompted.sensing:
        tell['the sensor'] = (None,)
    others = {name: np.empty(len(samples)) for name in (tell if detailed else ())}
    for i, sample in enumerate(samples):
        for label in range(count):
            choices[i, label] = prompted.psnr(sample, label)
        for name, values in others.items():
            values[i] = prompted.psnr(sample, *tell[name])
        passed(1 + count + len(others))
    base = choices[np.arange(len(samples)), truth]
    return Trials(base, choices, truth, others=others)


def _blind_trials(
    prompted: PromptedNet,
    samples: Sequence[Sample],
    ids: np.ndarray,
    tasks: Sequence[str],
    seen: Observation,
    detailed: bool,
    passed: Passed,
) -> Trials:
    base, choices = np.empty(len(samples)), np.empty((len(samples), len(tasks)))
    levels: dict[str, dict[str, np.ndarray]] = {}
    for i, sample in enumerate(samples):
        base[i] = prompted.psnr(sample)
        means = {level: _means_without(each, ids, i) for level, each in seen.weights.items()}
        for task in range(len(tasks)):
            with prompted.changed({level: fixed(each[task]) for level, each in means.items()}):
                choices[i, task] = prompted.psnr(sample)
        done = 1 + len(tasks)
        for level, changes in _changes(means, tasks).items() if detailed else ():
            for name, change in changes.items():
                with prompted.changed(change):
                    found = prompted.psnr(sample)
                levels.setdefault(level, {}).setdefault(name, np.empty(len(samples)))[i] = found
                done += 1
        passed(done)
    if detailed:
        levels[ALL_LEVELS].update({f'as for {name}': choices[:, task] for task, name in enumerate(tasks)})
    return Trials(base, choices, ids.copy(), levels)


def _changes(means: Mapping[str, np.ndarray], tasks: Sequence[str]) -> dict[str, dict[str, dict[str, Change]]]:
    """Changes by level and name: level -> name -> change of the weights of each level."""
    found: dict[str, dict[str, dict[str, Change]]] = {}
    for level, mean in means.items():
        count = mean.shape[1]
        each: dict[str, Change] = {f'only {k + 1}': fixed(row) for k, row in enumerate(np.eye(count))}
        each |= {f'without {k + 1}': without(k) for k in range(count if count > 1 else 0)}
        each['equal'] = fixed(np.full(count, 1 / count))
        each |= {f'as for {name}': fixed(mean[task]) for task, name in enumerate(tasks)}
        found[level] = {name: {level: change} for name, change in each.items()}
    equal = {level: fixed(np.full(mean.shape[1], 1 / mean.shape[1])) for level, mean in means.items()}
    return {**found, ALL_LEVELS: {'equal': equal}}


def _means_without(weights: np.ndarray, ids: np.ndarray, image: int) -> np.ndarray:
    """Mean weights (T, K) of the tasks; an image counts for its own task only if that has no other image."""
    rows = []
    for task in range(ids.max() + 1):
        members = np.flatnonzero(ids == task)
        others = members[members != image]
        rows.append(weights[others if len(others) else members].mean(axis=0))
    return np.array(rows)
