"""The numbers of `basicsr explain`, against scikit-learn, and on data whose answers are known."""

import itertools
from functools import partial

import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import mutual_info_score, silhouette_score
from sklearn.model_selection import LeaveOneOut, cross_val_score
from sklearn.neighbors import KNeighborsClassifier

from promptir_basicsr.explain.scores import (
    LEAST_FOR_TSNE,
    Score,
    answers,
    choice_gain,
    choice_share,
    component_bits,
    cosine_similarity,
    effective_prompts,
    embedded,
    in_their_span,
    least_p,
    mean_weights,
    mutual_information,
    off_diagonal_mean,
    principal_components,
    probe_accuracy,
    ridge_hat,
    scored,
    separations,
    silhouette,
    standardized,
    tsne,
)

RNG = np.random.default_rng(0)
TASKS = np.repeat(np.arange(4), 6)
CLUSTERS = 8 * np.eye(4)[TASKS] @ RNG.normal(size=(4, 10)) + RNG.normal(size=(24, 10))
NOISE = RNG.normal(size=(24, 10))


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)


def test_information_of_certain_weights_is_scikit_learns():
    prompts = RNG.integers(5, size=24)
    found = mutual_information(np.eye(5)[prompts], TASKS)
    assert found == pytest.approx(mutual_info_score(TASKS, prompts) / np.log(2), abs=1e-12)


def test_information_is_the_entropy_less_that_within_tasks_each_task_counted_once():
    weights, tasks = softmax(RNG.normal(size=(24, 5))), np.repeat([0, 1, 2], [3, 8, 13])
    means = np.array([weights[tasks == task].mean(axis=0) for task in range(3)])

    def entropy(p: np.ndarray) -> float:
        return float(-(p * np.log2(p)).sum())

    expected = entropy(means.mean(axis=0)) - np.mean([entropy(row) for row in means])
    assert mutual_information(weights, tasks) == pytest.approx(expected, abs=1e-12)
    assert np.allclose(mean_weights(weights, tasks), means)
    assert component_bits(weights, tasks).sum() == pytest.approx(expected, abs=1e-12)


def test_information_at_its_ends():
    assert mutual_information(np.eye(4)[TASKS], TASKS) == pytest.approx(2.0)
    assert mutual_information(np.full((24, 4), 0.25), TASKS) == 0.0
    assert mutual_information(np.tile([0.7, 0.3, 0, 0], (24, 1)), TASKS) == pytest.approx(0.0, abs=1e-12)
    assert np.allclose(effective_prompts(np.array([[1, 0, 0, 0], [0.25] * 4, [0.5, 0.5, 0, 0]])), [1, 4, 2])


def test_the_prompts_that_answer_are_found_and_those_that_do_not_are_not():
    # Prompt 1 answers task 2, prompts 0 and 2 share the rest whatever the task.
    weights = np.where(TASKS[:, None] == 2, [0.1, 0.8, 0.1], [0.48, 0.04, 0.48]) + 0.02 * RNG.random((24, 3))
    weights /= weights.sum(axis=1, keepdims=True)
    random = [softmax(0.1 * RNG.normal(size=(24, 3))) for _ in range(19)]
    found = {each.prompt: each for each in answers(weights, TASKS, random, permutations=199)}
    assert found[1].task == 2
    assert found[1].share == pytest.approx(0.8 / (0.8 + 3 * 0.04), abs=0.05)
    assert found[1].score.verdict == 'learned'
    assert found[1].score.p == pytest.approx(1 / 200)
    noise = answers(random[0], TASKS, random[1:], permutations=199)
    assert [each.score.verdict for each in noise] == ['no more than chance'] * 3


def test_p_is_uniform_if_there_is_nothing_to_find():
    ps = []
    for _ in range(100):
        weights = softmax(RNG.normal(size=(24, 5)))
        ps.append(scored('bits', partial(mutual_information, weights), TASKS, permutations=99).p)
    assert 0.4 < np.mean(ps) < 0.6
    assert np.mean(np.array(ps) <= 0.05) < 0.12


@pytest.mark.parametrize('tasks', [[0, 0, 1, 1, 2, 2], [0, 1, 1], [0, 0, 0, 1, 1, 2]])
def test_the_least_p_is_that_of_all_ways_to_group_the_images(tasks):
    groupings = {
        frozenset(frozenset(i for i, own in enumerate(order) if own == task) for task in set(order))
        for order in itertools.permutations(tasks)
    }
    assert least_p(np.array(tasks)) == pytest.approx(1 / len(groupings))


@pytest.mark.parametrize(
    ('value', 'p', 'untrained', 'verdict'),
    [
        (1.0, 0.001, (0.2, 0.9), 'learned'),
        (1.0, 0.001, (0.2, 1.0), 'no more than untrained networks'),
        (1.0, 0.2, (0.2, 0.9), 'no more than chance'),
        (1.0, 0.001, (), 'depends on the task; not compared with untrained networks'),
    ],
)
def test_a_verdict_wants_both_kinds_of_chance_exceeded(value, p, untrained, verdict):
    assert Score('x', value, 10, 0.1, p, untrained).verdict == verdict


def distances(x: np.ndarray) -> np.ndarray:
    return np.linalg.norm(x[:, None] - x[None], axis=-1)


@pytest.mark.parametrize('x', [CLUSTERS, NOISE], ids=['clusters', 'noise'])
@pytest.mark.parametrize('tasks', [TASKS, np.repeat([0, 1, 2], [1, 10, 13])], ids=['even', 'one alone'])
def test_silhouette_is_scikit_learns(x, tasks):
    assert silhouette(distances(x), tasks) == pytest.approx(silhouette_score(x, tasks), abs=1e-10)


@pytest.mark.parametrize('x', [CLUSTERS, NOISE, RNG.normal(size=(24, 200))], ids=['clusters', 'noise', 'wide'])
def test_the_probe_is_a_ridge_classifier_fitted_without_each_image(x):
    # A fit without an image has its own intercept, as the probe's; the columns are left as they are.
    x = standardized(x)
    scale = np.sqrt((x * x).sum() / len(x))
    expected = cross_val_score(RidgeClassifier(alpha=1.0), x / scale, TASKS, cv=LeaveOneOut()).mean()
    assert probe_accuracy(ridge_hat(x), TASKS) == pytest.approx(expected)


def test_clusters_are_separated_and_noise_is_not():
    random = [RNG.normal(size=(24, 10)) for _ in range(5)]
    clear = separations(embedded(CLUSTERS, True), TASKS, random, permutations=99)
    assert [score.name for score in clear] == ['silhouette', '1-NN accuracy', 'linear probe accuracy']
    assert [score.verdict for score in clear] == ['learned'] * 3
    nearest = cross_val_score(KNeighborsClassifier(1), standardized(CLUSTERS), TASKS, cv=LeaveOneOut()).mean()
    assert clear[1].value == pytest.approx(nearest)
    noise = [separations(RNG.normal(size=(24, 10)), TASKS, random, permutations=39) for _ in range(60)]
    taken = np.mean([[score.depends for score in each] for each in noise], axis=0)
    assert (taken <= 0.12).all()  # one in 20 is taken for more than chance
    # By chance the nearest of the 23 other images is one of the 5 of the same task.
    assert np.mean([each[1].chance for each in noise]) == pytest.approx(5 / 23, abs=0.01)


def test_what_does_not_vary_has_no_information():
    flat = standardized(np.column_stack([np.full(24, 0.1), NOISE[:, 0]]))
    assert not flat[:, 0].any()
    assert flat[:, 1].std() == pytest.approx(1)
    same = separations(np.zeros((24, 3)), TASKS, permutations=19)
    assert same[0].value == 0
    assert all(not score.depends for score in same)


def test_components_and_spans_keep_geometry():
    points, shares = principal_components(CLUSTERS, 3)
    values = np.linalg.svd(CLUSTERS - CLUSTERS.mean(axis=0), compute_uv=False)
    assert np.allclose(np.linalg.norm(points, axis=0), values[:3])
    assert np.allclose(shares, values[:3] ** 2 / (values**2).sum())
    few, none = principal_components(np.ones((4, 1)), 2)
    assert few.shape == (4, 2)
    assert not few.any()
    assert not none.any()
    vectors = RNG.normal(size=(5, 1000))
    assert np.allclose(in_their_span(vectors) @ in_their_span(vectors).T, vectors @ vectors.T)


def test_tsne_is_the_same_again_and_wants_enough_images():
    first, again = tsne(CLUSTERS), tsne(CLUSTERS)
    assert first is not None
    assert again is not None
    assert np.array_equal(first[0], again[0])
    assert first[1] == pytest.approx(23 / 3)
    assert tsne(CLUSTERS[: LEAST_FOR_TSNE - 1]) is None


def test_maps_of_a_single_prompt():
    line, point = tsne(CLUSTERS[:, :1]), tsne(np.ones((24, 3)))
    assert line is not None
    assert point is not None
    assert np.isfinite(line[0]).all()
    assert not point[0].any()


def test_cosines():
    matrix = cosine_similarity(np.array([[1.0, 0], [2, 0], [0, 3], [-1, 0], [0, 0]]))
    assert np.allclose(matrix[0], [1, 1, 0, -1, 0])
    assert off_diagonal_mean(np.array([[1, 0.5], [0.3, 1]])) == pytest.approx(0.4)
    assert np.isnan(off_diagonal_mean(np.ones((1, 1))))


def test_gain_and_share_of_the_true_choice():
    quality = np.array([[30.0, 28, 26], [25, 27, 20], [10, 20, 30]])
    assert choice_gain(quality, np.array([0, 1, 0])) == pytest.approx(((30 - 28) + (27 - 24) + (10 - 20)) / 3)
    assert choice_share(quality, np.array([0, 1, 0])) == pytest.approx(2 / 3)
