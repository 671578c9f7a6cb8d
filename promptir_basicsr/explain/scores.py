"""Scores of `basicsr explain`: dependence of weights and embeddings on the tasks, compared with chance.

Every score has two baselines. Permutations of the tasks among the images show whether it depends on the task at all;
networks with the same options and random weights show whether this was learned, because degradations also change the
statistics of random features.

Shapes: n images, T tasks, K prompts of a level, D features.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Array = np.ndarray

ALPHA = 0.05
"""Significance level: the largest p that does not count as chance."""

PERMUTATIONS = 999

CLEAR = 1.5
"""Smallest share of a prompt, relative to chance, for which the prompt is said to respond to a task."""

ALL_LEVELS = 'all levels'
"""Used instead of the name of a level."""


@dataclass(frozen=True)
class Score:
    """A score and its baselines.

    Attributes:
        name: measured quantity.
        value: higher values depend more on the task.
        n: number of images.
        chance: mean over permutations of the tasks among the images.
        p: share of the permutations, including the true order, that score at least as high.
        untrained: scores of networks with the same options and random weights; empty if not computed.
    """

    name: str
    value: float
    n: int
    chance: float
    p: float
    untrained: tuple[float, ...] = ()

    @property
    def depends(self) -> bool:
        """Whether the score depends on the task more than by chance."""
        return self.p <= ALPHA

    @property
    def learned(self) -> bool:
        """Whether the score also exceeds that of every untrained network; False without any."""
        return self.depends and bool(self.untrained) and self.value > max(self.untrained)

    @property
    def verdict(self) -> str:
        """The result as text."""
        if not self.depends:
            return 'no more than chance'
        if not self.untrained:
            return 'depends on the task; not compared with untrained networks'
        return 'learned' if self.learned else 'no more than untrained networks'


def scored(
    name: str,
    statistic: Callable[[Array], float],
    tasks: Array,
    untrained: Sequence[float] = (),
    seed: int = 0,
    permutations: int = PERMUTATIONS,
) -> Score:
    """Compute a score of tasks: (n,) ids, with its baselines.

    Args:
        statistic: function of ids (n,).
        untrained: the same statistic for networks with random weights.
        seed: of the permutations.
    """
    value = float(statistic(tasks))
    rng = np.random.default_rng(seed)
    found = np.array([statistic(rng.permutation(tasks)) for _ in range(permutations)], float)
    return Score(name, value, len(tasks), *_chance(value, found), tuple(map(float, untrained)))


def least_p(tasks: Array) -> float:
    """The smallest possible p for tasks (n,): one over the number of ways to group the images."""
    counts = np.bincount(tasks)
    ways = math.factorial(len(tasks))
    for count in counts.tolist():
        ways //= math.factorial(count)
    for alike in np.bincount(counts).tolist():  # tasks of equal size are interchangeable
        ways //= math.factorial(alike)
    return 1 / ways


def _chance(value: float, found: Array) -> tuple[float, float]:
    """Mean of permuted values, and the share of at least `value`, up to rounding."""
    reached = found >= value - 1e-12 * max(1.0, abs(value))
    return float(found.mean()), float((1 + reached.sum()) / (1 + len(found)))


# which prompt responds to which task


def mean_weights(weights: Array, tasks: Array) -> Array:
    """Mean weight of each prompt in each task: weights (n, K), tasks (n,) ids from 0 -> (T, K)."""
    counts = np.bincount(tasks)
    return (_members(tasks).T @ weights) / counts[:, None]


def component_bits(weights: Array, tasks: Array) -> Array:
    """Contribution of each prompt to the mutual information of prompt and task, in bits.

    A prompt is drawn with the weights of an image, and every task is equally likely. Prompt k adds the sum over tasks
    of p(t, k) log2 p(t, k) / (p(t) p(k)), which is at least 0.

    Args:
        weights: (n, K), each row >= 0 with sum 1.
        tasks: (n,) ids from 0 to T - 1; each has an image.

    Returns:
        (K,); their sum is the mutual information, between 0 and log2 of the smaller of T and K.
    """
    joint = mean_weights(weights.astype(float), tasks)
    joint = joint / len(joint)
    independent = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    with np.errstate(divide='ignore', invalid='ignore'):
        terms = np.where(joint > 0, joint * np.log2(joint / independent), 0.0)
    return np.maximum(terms.sum(axis=0), 0.0)


def mutual_information(weights: Array, tasks: Array) -> float:
    """Mutual information of prompt and task in bits; see `component_bits`."""
    return float(component_bits(weights, tasks).sum())


def effective_prompts(weights: Array) -> Array:
    """Effective number of prompts per image, 2 to the power of the entropy: (n, K) -> (n,) from 1 to K."""
    logs = np.log2(np.where(weights > 0, weights, 1.0))
    return np.exp2(-(weights * logs).sum(axis=1))


@dataclass(frozen=True)
class Answer:
    """The task that a prompt responds to.

    Attributes:
        prompt: its number, from 0.
        task: id of the task with its largest mean weight.
        share: this task's part of the prompt's weight, with equal weights of the tasks; 1/T without a preference.
        mean: the mean weight of the prompt.
        tasks: T.
        score: the bits of this prompt; its permutations are those of the level's most informative prompt, so p holds
            for all prompts of the level together.
    """

    prompt: int
    task: int
    share: float
    mean: float
    score: Score
    tasks: int

    @property
    def clear(self) -> bool:
        """Whether the prompt responds to its task: learned, and at least `CLEAR` times chance."""
        return self.score.learned and self.share >= CLEAR / self.tasks


def answers(
    weights: Array, tasks: Array, untrained: Sequence[Array] = (), seed: int = 0, permutations: int = PERMUTATIONS
) -> list[Answer]:
    """The task that each prompt responds to.

    Args:
        weights: (n, K).
        tasks: (n,) ids.
        untrained: (n, K) of networks with random weights.
    """
    bits, means = component_bits(weights, tasks), mean_weights(weights, tasks)
    rng = np.random.default_rng(seed)
    most = np.array([component_bits(weights, rng.permutation(tasks)).max() for _ in range(permutations)])
    theirs = tuple(float(component_bits(each, tasks).max()) for each in untrained)
    found = []
    for k, value in enumerate(bits):
        task = int(np.argmax(means[:, k]))
        share = means[task, k] / means[:, k].sum() if means[:, k].any() else 1 / len(means)
        score = Score(f'bits of prompt {k + 1}', float(value), len(tasks), *_chance(value, most), theirs)
        found.append(Answer(k, task, float(share), float(means[:, k].mean()), score, len(means)))
    return found


# separation of the tasks


def standardized(x: Array) -> Array:
    """Scale each column to mean 0 and standard deviation 1, constant columns to 0: (n, D) -> (n, D)."""
    x = x.astype(float) - x.mean(axis=0, dtype=float)
    deviation = x.std(axis=0)
    constant = deviation <= 1e-12 * max(1.0, float(np.abs(x).max(initial=0)))
    return np.where(constant, 0.0, x / np.where(constant, 1.0, deviation))


def embedded(x: Array, standardize: bool) -> Array:
    """Centre (n, D), and scale its columns to standard deviation 1 if their units differ."""
    return standardized(x) if standardize else x.astype(float) - x.mean(axis=0, dtype=float)


def separations(
    x: Array,
    tasks: Array,
    untrained: Sequence[Array] = (),
    photographs: Array | None = None,
    seed: int = 0,
    permutations: int = PERMUTATIONS,
) -> list[Score]:
    """Three scores of the separation of the tasks in an embedding, and one of the photographs.

    The silhouette (Rousseeuw 1987), from -1 to 1; the accuracy of the nearest other image (leave-one-out 1-NN); and
    the leave-one-out accuracy of a linear probe, see `probe_accuracy`. The last score is that of a linear probe of the
    photograph, which shows whether the embedding separates degradations or contents.

    Args:
        x: (n, D).
        tasks: (n,) ids.
        untrained: (n, D') of networks with random weights.
        photographs: (n,) ids, each in several tasks; None omits the last score.
    """
    measures = [_separation(each) for each in (x, *untrained)]
    scores = []
    for i, name in enumerate(('silhouette', '1-NN accuracy', 'linear probe accuracy')):
        theirs = [float(measure[i](tasks)) for measure in measures[1:]]
        scores.append(scored(name, measures[0][i], tasks, theirs, seed, permutations))
    if photographs is not None:
        theirs = [float(measure[2](photographs)) for measure in measures[1:]]
        name = 'linear probe accuracy, photograph'
        scores.append(scored(name, measures[0][2], photographs, theirs, seed, permutations))
    return scores


def _separation(x: Array) -> tuple[Callable[[Array], float], ...]:
    """The three statistics of one embedding; parts that do not depend on the tasks are computed once."""
    x = x.astype(float) - x.mean(axis=0, dtype=float)
    squares = (x * x).sum(axis=1)
    distances = np.sqrt(np.maximum(squares[:, None] + squares[None] - 2 * x @ x.T, 0.0))
    nearest = np.argmin(np.where(np.eye(len(x), dtype=bool), np.inf, distances), axis=1)
    hat = ridge_hat(x)
    return (
        lambda tasks: silhouette(distances, tasks),
        lambda tasks: float(np.mean(tasks[nearest] == tasks)),
        lambda tasks: probe_accuracy(hat, tasks),
    )


def silhouette(distances: Array, tasks: Array) -> float:
    """Mean silhouette of images: distances (n, n), tasks (n,) ids. The only image of a task has 0."""
    members = _members(tasks)
    counts = members.sum(axis=0)
    sums = distances @ members  # (n, T)
    own = members.astype(bool)
    alone = counts[tasks] == 1
    inside = sums[own] / np.maximum(counts[tasks] - 1, 1)
    outside = np.where(own, np.inf, sums / counts).min(axis=1)
    larger = np.maximum(inside, outside)
    values = np.divide(outside - inside, larger, out=np.zeros_like(larger), where=(larger > 0) & ~alone)
    return float(values.mean())


def ridge_hat(x: Array) -> Array:
    """Hat matrix of a ridge regression, which maps values to fitted values: x (n, D) centred -> (n, n).

    The penalty of the squared coefficients is 1 for x scaled to a mean square length of 1; the intercept has none.
    """
    n = len(x)
    gram = x @ x.T
    scale = np.trace(gram) / n
    gram = gram / scale if scale > 0 else gram
    return gram @ np.linalg.inv(gram + np.eye(n)) + np.full((n, n), 1 / n)


def probe_accuracy(hat: Array, tasks: Array) -> float:
    """Accuracy of a linear probe on unseen images (leave-one-out).

    The probe is a ridge regression on the tasks as 0 and 1, with the matrix of `ridge_hat`; it predicts the task with
    the largest value. The prediction without an image follows from the fit with all: y - (y - fitted) / (1 - h).
    """
    target = _members(tasks)
    residuals = (target - hat @ target) / (1 - np.diag(hat))[:, None]
    return float(np.mean((target - residuals).argmax(axis=1) == tasks))


def _members(tasks: Array) -> Array:
    """One-hot encoding: (n,) ids -> (n, T) of 0 and 1."""
    return np.eye(tasks.max() + 1)[tasks]


# maps and similarities


def principal_components(x: Array, count: int = 2) -> tuple[Array, Array]:
    """Coordinates on the principal axes, and their shares of the variance.

    Args:
        x: (n, D).
        count: number of axes; those beyond n or D are 0.

    Returns:
        (n, count) and (count,). Signs are scikit-learn's, the same in every run.
    """
    from sklearn.decomposition import PCA

    wanted = min(count, *x.shape)
    pca = PCA(wanted, svd_solver='full')
    with np.errstate(invalid='ignore'):
        found = pca.fit_transform(x.astype(float))
    coordinates, shares = np.zeros((len(x), count)), np.zeros(count)
    coordinates[:, :wanted], shares[:wanted] = found, np.nan_to_num(pca.explained_variance_ratio_)
    return coordinates, shares


LEAST_FOR_TSNE = 20
"""Smallest number of images for t-SNE; fewer have no neighbourhoods to preserve."""


def tsne(x: Array, seed: int = 0) -> tuple[Array, float] | None:
    """Coordinates (n, 2) of t-SNE, and its perplexity: a third of the other images, at most 30.

    Returns:
        None for fewer than LEAST_FOR_TSNE images.
    """
    if len(x) < LEAST_FOR_TSNE:
        return None
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(x) - 1) / 3)
    if not np.ptp(x, axis=0).any():  # all images in one place
        return np.zeros((len(x), 2)), perplexity
    x = np.column_stack([x, np.zeros(len(x))]) if x.shape[1] == 1 else x  # the initialisation has two components
    found = TSNE(perplexity=perplexity, init='pca', random_state=seed, n_jobs=1).fit_transform(x.astype(np.float32))
    return found.astype(float), perplexity


def in_their_span(vectors: Array) -> Array:
    """Coordinates of vectors in the space that they span: (K, D) -> (K, min(K, D)); angles are preserved."""
    return np.linalg.qr(vectors.astype(float).T)[1].T


def cosine_similarity(vectors: Array) -> Array:
    """Cosine similarity: (K, D) -> (K, K) from -1 to 1; 0 for a vector of zeros."""
    vectors = vectors.astype(float)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    return np.clip(unit @ unit.T, -1, 1)


def off_diagonal_mean(matrix: Array) -> float:
    """Mean of (K, K) off the diagonal; NaN for K = 1."""
    k = len(matrix)
    return float((matrix.sum() - np.trace(matrix)) / (k * (k - 1))) if k > 1 else float('nan')


# value of the true choice


def choice_gain(quality: Array, truth: Array) -> float:
    """Mean over images of the quality with the true choice minus the mean over all choices: (n, C), (n,) ids."""
    return float((quality[np.arange(len(truth)), truth] - quality.mean(axis=1)).mean())


def choice_share(quality: Array, truth: Array) -> float:
    """Share of the images for which the true choice is the best one: (n, C), (n,) ids."""
    return float(np.mean(quality.argmax(axis=1) == truth))
