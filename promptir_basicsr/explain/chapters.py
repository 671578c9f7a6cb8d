"""Chapters of the report of `basicsr explain`: numbers, figures and text.

Shapes: n images, T tasks, K prompts of a level.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from promptir_basicsr.explain import figures
from promptir_basicsr.explain import scores as numbers
from promptir_basicsr.explain.figures import style, words
from promptir_basicsr.explain.page.model import Comparison, Section, Table
from promptir_basicsr.explain.prompted import quality
from promptir_basicsr.explain.scores import Score
from promptir_basicsr.explain.writer import (
    CHANCE_CAPTION,
    SCORE_COLUMNS,
    SCORE_WORDS,
    Study,
    Writer,
    score_cells,
    told,
    verdict,
)

LEAST_GAIN = 0.005
"""In dB; smaller gains would be printed as 0.00."""


def chapters(study: Study, writer: Writer) -> list[Section]:
    """Create all chapters, and write their files."""
    with style():
        found = [restored_section(study, writer)]
        if study.prompted.encodes:
            return [*found, embedding_section(study, writer)]
        found.append(label_section(study, writer) if study.prompted.told else weights_section(study, writer))
        if study.prompted.sensing:
            found.append(sensor_section(study, writer))
        found.append(embedding_section(study, writer))
        found.append(pictures_section(study, writer))
        found.append(similarity_section(study, writer))
        if not study.prompted.told:
            found.append(ablation_section(study, writer))
    return found


# Restored images


def restored_section(study: Study, writer: Writer) -> Section:
    """An image of each task before and after restoration, and the gain in PSNR."""
    comparisons: list[Comparison] = []
    rows: list[list[Any]] = []
    before = np.array([quality(each.lq, each.gt) for each in study.samples])
    means = [study.means(values).tolist() for values in (before, study.found.trials.base)]
    for task, name in enumerate(study.tasks):
        sample = next(sample for sample in study.samples if sample.task == name)
        after = study.prompted.restore(sample.lq, sample.label)
        images = (x.clamp(0, 1).expand(3, -1, -1) for x in (sample.lq, after, sample.gt))
        degraded, restored, clear = (x.numpy().transpose(1, 2, 0) for x in images)
        caption = f'{quality(sample.lq, sample.gt):.2f} dB before, {quality(after, sample.gt):.2f} dB after (PSNR).'
        comparisons.append(Comparison(f'{words(name)}: {sample.name}', degraded, restored, clear, caption))
        degraded_mean, restored_mean = (each[task] for each in means)
        count = int((study.ids == task).sum())
        rows.append([name, count, degraded_mean, restored_mean, restored_mean - degraded_mean])
    caption = f'Mean PSNR in dB of {"RGB" if study.prompted.channels == 3 else "grey"} floats, not rounded.'
    if study.prompted.told:
        caption += ' The network gets the true degradation label.'
    columns = ('task', 'images', 'degraded', 'restored', 'gain')
    table = writer.table('restored', 'What the network restores', columns, rows, caption)
    gains = [row[-1] for row in rows]
    text = (
        f'{study.sizes()}, cropped at their centres. Restoration gains {min(gains):+.2f} to {max(gains):+.2f} dB '
        'per task.'
    )
    least = numbers.least_p(study.ids)
    if least > numbers.ALPHA:
        text += (
            f'\n\nWith so few images no p is below {least:.2f}, so no result can be distinguished from chance. '
            'Use more images of each task.'
        )
    return Section('Restored images', text, tables=[table], comparisons=comparisons)


# Which prompt answers which degradation


def weights_section(study: Study, writer: Writer) -> Section:
    """Networks that compute prompt weights from the image: which prompt responds to which degradation."""
    weights, ids, tasks = study.found.seen.weights, study.ids, study.tasks
    theirs = {level: [each.seen.weights[level] for each in study.untrained] for level in weights}
    rows = [
        [level, sample.task, sample.name, k + 1, weight]
        for level, each in weights.items()
        for sample, row in zip(study.samples, each, strict=True)
        for k, weight in enumerate(row)
    ]
    writer.table('prompt_weights', 'Prompt weights', ('level', 'task', 'image', 'prompt', 'weight'), rows, '')
    means = {level: numbers.mean_weights(each, ids) for level, each in weights.items()}
    rows = [
        [level, name, k + 1, means[level][task, k]]
        for level in weights
        for task, name in enumerate(tasks)
        for k in range(weights[level].shape[1])
    ]
    writer.table('mean_weights', 'Mean weights', ('level', 'task', 'prompt', 'weight'), rows, '')

    def information(levels: Sequence[str], name: str) -> Score:
        def bits(of: Mapping[str, np.ndarray], tasks: np.ndarray) -> float:
            return sum(numbers.mutual_information(of[level], tasks) for level in levels)

        untrained = [bits(each.seen.weights, ids) for each in study.untrained]
        return numbers.scored(name, lambda shuffled: bits(weights, shuffled), ids, untrained, **study.chance)

    scores = {words(level): information([level], level) for level in weights}
    total = information(list(weights), numbers.ALL_LEVELS)
    answers = {level: numbers.answers(each, ids, theirs[level], **study.chance) for level, each in weights.items()}
    most = {level: math.log2(min(len(tasks), each.shape[1])) for level, each in weights.items()}
    used = {level: float(numbers.effective_prompts(each).mean()) for level, each in weights.items()}

    rows = [
        [score.name, most.get(score.name, sum(most.values())), used.get(score.name), *score_cells(score)]
        for score in (*scores.values(), total)
    ]
    columns = ('level', 'most possible', 'prompts used', *SCORE_COLUMNS)
    caption = (
        "Mutual information in bits between the task and a prompt drawn with an image's weights; every task is equally "
        'likely. "Prompts used": 2 to the power of the weights\' entropy, mean over the images. ' + SCORE_WORDS
    )
    table = writer.table('information', 'Information of the weights about the task', columns, rows, caption)
    cells = [
        [level, a.prompt + 1, tasks[a.task], a.share, 1 / len(tasks), a.mean, *score_cells(a.score)]
        for level in weights
        for a in answers[level]
    ]
    heads = ('level', 'prompt', 'task', 'share', 'share by chance', 'mean weight', *SCORE_COLUMNS)
    caption = (
        "For each prompt the task with the largest mean weight, and that task's share of the prompt. "
        '"Value": the bits that the prompt adds to its level. '
        'The text says that a prompt responds to a task if this was learned and the share is at least '
        f'{numbers.CLEAR:g} times that by chance. Chance is that of the most informative prompt of the level.'
    )
    answered = writer.table('answers', 'Which prompt responds to which task', heads, cells, caption)
    caption = 'One row per image, grouped by task; the weights of a row and level sum to 1.'
    shown = figures.weights_figure(weights, ids, tasks)
    drawn = [writer.figure('prompt_weights', 'Prompt weights of each image', shown, caption)]
    shown = figures.mean_weights_figure(means, tasks)
    drawn += [writer.figure('mean_weights', 'Mean weights of each task', shown, f'Means over {study.sizes()}.')]
    shown = figures.scores_figure(scores, 'Mutual information of prompt and task, bits')
    drawn += [writer.figure('information', 'Information of the weights about the task', shown, CHANCE_CAPTION)]
    return Section(
        'Which prompt responds to which degradation',
        _weights_text(study, total, scores, list(most.values()), answers),
        drawn,
        [table, answered],
    )


def _weights_text(
    study: Study,
    total: Score,
    scores: Mapping[str, Score],
    most: Sequence[float],
    answers: Mapping[str, Sequence[numbers.Answer]],
) -> str:
    lines = [
        f'{level}: {told(score, f"of {bits:.2f} bits")}.'
        for (level, score), bits in zip(scores.items(), most, strict=True)
    ]
    named = [
        f'{words(level)}: '
        + ', '.join(f'prompt {a.prompt + 1} responds to {words(study.tasks[a.task])} ({a.share:.0%})' for a in clear)
        + '.'
        for level, each in answers.items()
        if (clear := [a for a in each if a.clear])
    ]
    chance = f'By chance a task has {1 / len(study.tasks):.0%} of a prompt.'
    part = total.value / sum(most) if sum(most) else 0.0  # a single prompt has no information
    paragraphs = [
        f'{verdict("The weights", total)} All levels together: {part:.1%} of the maximum, '
        f'{told(total, f"of {sum(most):.2f} bits")}.',
        '\n\n'.join(lines),
        '\n\n'.join(
            [*named, chance] if named else ['No single prompt responds to a task clearly more than by chance.']
        ),
    ]
    return '\n\n'.join(paragraphs)


# Embeddings


def embedding_section(study: Study, writer: Writer) -> Section:
    """Embeddings of the images by features or encodings, and by prompts."""
    ids, tasks, seen = study.ids, study.tasks, study.found.seen
    kinds = {'features': 'Encodings' if study.prompted.encodes else 'Features', 'prompts': 'Prompts'}
    photographs = study.photographs()
    scores: dict[str, list[Score]] = {}
    maps: dict[str, dict[str, tuple[np.ndarray, str, str]]] = {'pca': {}, 'tsne': {}}
    about = _ENCODED if study.prompted.encodes else _EMBEDDED[study.prompted.told]
    perplexity = 0.0
    rows: list[list[Any]] = []
    for kind, title in kinds.items():
        for level, embedding in getattr(seen, kind).items():
            x = numbers.embedded(embedding, kind == 'features')
            theirs = [numbers.embedded(getattr(each.seen, kind)[level], kind == 'features') for each in study.untrained]
            place = f'{title}, {words(level).lower()}'
            if not (study.prompted.told and kind == 'prompts'):
                scores[place] = numbers.separations(x, ids, theirs, photographs, **study.chance)
            points, shares = numbers.principal_components(x)
            across, up = (f'PC {axis + 1} ({share:.0%})' for axis, share in enumerate(shares))
            maps['pca'][place] = (points, across, up)
            near = numbers.tsne(x, study.seed)
            if near is not None:
                perplexity = near[1]
                maps['tsne'][place] = (near[0], '', '')
            rows += [
                [name, kind, level, sample.task, sample.name, *point]
                for name, each in maps.items()
                if place in each
                for sample, point in zip(study.samples, each[place][0], strict=True)
            ]
    columns = ('map', 'of', 'level', 'task', 'image', 'x', 'y')
    writer.table('embeddings', 'Coordinates of the maps', columns, rows, '')
    panels = len(seen.features) if len(seen.features) <= 4 else 3
    captions = {
        'pca': f'Principal components with their shares of variance; {study.sizes()}. {about}',
        'tsne': f't-SNE, perplexity {perplexity:.1f}. Distances between groups and sizes of groups have no meaning.',
    }
    drawn = [
        writer.figure(kind, title, figures.embedding_figure(maps[kind], ids, tasks, panels), captions[kind])
        for kind, title in (('pca', 'Principal components'), ('tsne', 't-SNE'))
        if maps[kind]
    ]
    shown = figures.scores_figure({place: each[2] for place, each in scores.items()}, 'Accuracy of the linear probe')
    drawn.append(writer.figure('probes', 'Linear probes of the task', shown, CHANCE_CAPTION))
    rows = [[place, score.name, *score_cells(score)] for place, each in scores.items() for score in each]
    caption = (
        'Silhouette: -1 to 1, above 0 if tasks are separated. 1-NN: share of the images whose nearest other image has '
        'the same task. Linear probe: a ridge regression on the tasks, evaluated on unseen images (leave-one-out). '
        '"Photograph": the same probe of the photograph, if each is in several tasks. ' + SCORE_WORDS
    )
    table = writer.table('separation', 'Separation of the tasks', ('embedding', 'score', *SCORE_COLUMNS), rows, caption)
    lines = []
    for place, (silhouette, _, probe, *photograph) in scores.items():
        lines.append(f'{place}: silhouette {told(silhouette)}.\n\nLinear probe {told(probe)}.')
        lines += [f'Of the photograph instead of the task: {told(each)}.' for each in photograph]
    text = about
    if not maps['tsne']:
        text += f' t-SNE needs at least {numbers.LEAST_FOR_TSNE} images.'
    return Section('Embeddings', '\n\n'.join([_probed(scores), text, *lines]), drawn, [table])


def _probed(scores: Mapping[str, Sequence[Score]]) -> str:
    """A sentence about the linear probes of all embeddings."""
    probes = {place: each[2] for place, each in scores.items()}
    learned = [f'{place.lower()} ({score.value:.0%})' for place, score in probes.items() if score.learned]
    best = max(score.value for score in probes.values())
    chance = max(score.chance for score in probes.values())
    if learned:
        return f'A linear probe separates the tasks better than in any untrained network by: {", ".join(learned)}.'
    if any(score.depends for score in probes.values()):
        compared = 'no better than in untrained networks' if any(score.untrained for score in probes.values()) else ''
        also = f', {compared}' if compared else '; not compared with untrained networks'
        return f'A linear probe recognises the task of up to {best:.0%} of the images, by chance {chance:.0%}{also}.'
    return f'A linear probe is no better than chance: {best:.0%} of the images at most, by chance {chance:.0%}.'


_ENCODED = 'Encodings: what the network computes from the image as a representation of its degradation; of maps, mean '
_ENCODED += 'and standard deviation over the pixels.'
_FEATURES = 'Features: mean and standard deviation over the pixels of the input features of the prompt modules'
_EMBEDDED = {
    False: f'{_FEATURES}. Prompts: the prompts times the weights of each image.',
    True: f'{_FEATURES}, with an equal mixture of all labels, so they only show what the network sees. '
    'Prompts: mean and standard deviation of the prompt of each image with its true label; they are separated by the '
    'labels, so they have no score.',
}


# prompts


def pictures_section(study: Study, writer: Writer) -> Section:
    """The prompts drawn as images."""
    told = study.prompted.told
    what = 'The basic prompt of each level' if told else 'The prompts of each level'
    drawn = [
        writer.figure(
            'prompts',
            'The prompts as images',
            figures.prompts_figure(study.prompted.pictures()),
            f'{what}, two rows each: the three principal components of the channels as red, green and blue, and the '
            'mean of the channels. Ranges are those of the level, so a strong pattern may have small values.',
        )
    ]
    if told:
        drawn.append(
            writer.figure(
                'vectors',
                'The degradation prompts',
                figures.vectors_figure(study.prompted.vectors(), study.prompted.degradations),
                'The vector of each degradation, one column per channel.',
            )
        )
    text = (
        'Prompts are learned as images of a fixed size and resized to the size of the features. An untrained prompt is '
        'noise, so a visible pattern has been learned.'
    )
    return Section('The prompts', text, drawn)


def similarity_section(study: Study, writer: Writer) -> Section:
    """Similarity of the prompts of a level."""
    names = study.prompted.degradations if study.prompted.told else None
    matrices = study.found.similarity
    rows, summary, lines = [], [], []
    for level, matrix in matrices.items():
        labels = names or [str(k + 1) for k in range(len(matrix))]
        rows += [[level, a, b, matrix[i, j]] for i, a in enumerate(labels) for j, b in enumerate(labels)]
        if len(matrix) == 1:
            lines.append(f'{words(level)} has one prompt.')
            continue
        value = numbers.off_diagonal_mean(matrix)
        theirs = [numbers.off_diagonal_mean(each.similarity[level]) for each in study.untrained]
        low, high = (min(theirs), max(theirs)) if theirs else (None, None)
        summary.append([level, len(matrix), value, len(theirs), low, high])
        compared = f'; in {len(theirs)} untrained {low:.3f} to {high:.3f}' if theirs else ''
        lines.append(f'{words(level)}: mean similarity of two prompts {value:.3f}{compared}.')
    writer.table('similarity', 'Cosine similarity', ('level', 'prompt', 'other prompt', 'cosine'), rows, '')
    columns = ('level', 'prompts', 'mean', 'untrained networks', 'untrained least', 'untrained most')
    caption = (
        'Mean cosine of two different prompts. PromptIR initialises prompts with values from 0 to 1, so untrained ones '
        'are similar.'
    )
    table = writer.table('similarity_mean', 'Mean similarity', columns, summary, caption)
    caption = 'Cosine similarity between the prompts of a level, each as one vector.'
    shown = figures.similarity_figure(matrices, names)
    drawn = writer.figure('similarity', 'Similarity of the prompts', shown, caption)
    return Section('Similarity of the prompts', '\n\n'.join(lines), [drawn], [table])


def label_section(study: Study, writer: Writer) -> Section:
    """Networks with degradation labels: the effect of wrong labels."""
    prompted, trials, tasks = study.prompted, study.found.trials, study.tasks
    names = prompted.degradations
    tried = {**dict(zip(names, trials.choices.T, strict=True)), **trials.others}
    means = {column: study.means(values) for column, values in tried.items()}
    gaps = {column: each - study.means(trials.base) for column, each in means.items()}
    rows = [
        [name, int((study.ids == task).sum()), column, means[column][task], gaps[column][task]]
        for task, name in enumerate(tasks)
        for column in means
    ]
    columns = ('task', 'images', 'told', 'psnr', 'difference to the true label')
    table = writer.table('labels', 'Effect of labels', columns, rows, 'Mean PSNR in dB.')
    drawn = writer.figure(
        'labels',
        'Effect of labels',
        figures.table_figure(
            np.array(list(means.values())).T,
            list(map(words, tasks)),
            [words(column) if column in names else column.capitalize() for column in means],
            'Label passed to the network',
            'Task',
            '.2f',
            np.array(list(gaps.values())).T,
        ),
        'Mean PSNR in dB; the colour is the difference to the true label. "Equal mixture": all labels with equal '
        'weights. "Strength 0": without the contribution of the degradation prompts.',
    )
    text, table2 = _choice_section(study, writer, 'label_scores', 'Does the label matter?', 'label')
    text += (
        '\n\nThis network gets the degradation as a label. Its prompt weights are the label, so only the effect of the '
        'label on the restored image shows what it has learned.'
    )
    return Section('Effect of labels', text, [drawn], [table, table2])


def _choice_section(study: Study, writer: Writer, name: str, title: str, what: str) -> tuple[str, Table]:
    """Whether the true choice is the best one, as text and table NAME.csv."""
    trials, theirs = study.found.trials, [each.trials for each in study.untrained]
    measures = {
        'gain of the true one, dB': numbers.choice_gain,
        'share of images that the true one is best for': numbers.choice_share,
    }
    gain, share = scores = [
        numbers.scored(
            score,
            partial(measure, trials.choices),
            trials.truth,
            [measure(each.choices, each.truth) for each in theirs],
            **study.chance,
        )
        for score, measure in measures.items()
    ]
    rows = [[score.name, *score_cells(score)] for score in scores]
    caption = (
        f'Choices of the {what}. Gain: PSNR with the true one minus the mean over all of them, in dB. {SCORE_WORDS}'
    )
    table = writer.table(name, title, ('score', *SCORE_COLUMNS), rows, caption)
    found = 'matters more than in any untrained network' if gain.learned else f'matters: {gain.verdict}'
    if abs(gain.value) < LEAST_GAIN:
        found = f'makes no visible difference (below {LEAST_GAIN} dB), whatever its p'
    text = (
        f'Compared with the mean of all {trials.choices.shape[1]}, the true one gains {told(gain, "dB")}.\n\n'
        f'The true one is the best for {share.value:.0%} of the images, by chance {share.chance:.0%} '
        f'(p = {share.p:.3f}; N = {share.n}).'
    )
    return f'The choice of the {what} {found}.\n\n{text}', table


def ablation_section(study: Study, writer: Writer) -> Section:
    """Networks that compute prompt weights from the image: the effect of other weights."""
    trials, tasks = study.found.trials, study.tasks
    rows, effects = [], {}
    for level, changes in trials.levels.items():
        effects[level] = np.full((len(tasks), len(changes)), np.nan)
        for column, (change, values) in enumerate(changes.items()):
            for task, name in enumerate(tasks):
                mine = study.ids == task
                lost = values[mine] - trials.base[mine]
                error = lost.std(ddof=1) / math.sqrt(len(lost)) if len(lost) > 1 else None
                effects[level][task, column] = lost.mean()
                rows.append([level, change, name, int(mine.sum()), values[mine].mean(), lost.mean(), error])
    columns = ('level', 'weights', 'task', 'images', 'psnr', 'difference', 'standard error')
    caption = (
        'Mean PSNR in dB, and its difference to the unchanged network. "Only k": only prompt k. "Without k": the '
        'others in proportion. "Equal": equal weights. "As for X": the mean weights of task X.'
    )
    table = writer.table('ablation', 'Effect of other weights', columns, rows, caption)
    shown = {level: [_change_words(change) for change in changes] for level, changes in trials.levels.items()}
    drawn = writer.figure(
        'ablation',
        'Effect of other weights on the restored images',
        figures.effects_figure(effects, tasks, shown, 'Difference in PSNR, dB'),
        'Difference in mean PSNR to the unchanged network, in dB, if the weights of a level are replaced.',
    )
    what = 'task whose mean weights are used'
    text, table2 = _choice_section(study, writer, 'choice_scores', 'Do the right weights matter?', what)
    return Section('Effect of other weights', f'{_worst(effects, shown, tasks)}\n\n{text}', [drawn], [table, table2])


def _change_words(change: str) -> str:
    head, _, task = change.partition('as for ')
    return f'{head}as for {words(task)}' if task else change


def _worst(effects: Mapping[str, np.ndarray], shown: Mapping[str, Sequence[str]], tasks: Sequence[str]) -> str:
    level = min(effects, key=lambda level: float(np.nanmin(effects[level])))
    task, column = np.unravel_index(np.nanargmin(effects[level]), effects[level].shape)
    most = max(float(np.nanmax(np.abs(each))) for each in effects.values())
    if most < LEAST_GAIN:
        return f'No other weights change the mean PSNR of any task by as much as {LEAST_GAIN} dB.'
    if effects[level][task, column] >= 0:
        return 'No other weights lower the mean PSNR of any task.'
    return (
        f'The largest loss is {effects[level][task, column]:+.2f} dB, for {words(tasks[int(task)])} with the weights '
        f'"{shown[level][int(column)]}" ({words(level)}).'
    )


def sensor_section(study: Study, writer: Writer) -> Section:
    """Predictions of the sensor of a network with degradation labels."""
    names, said = study.prompted.degradations, study.found.sensed
    assert said is not None
    labels = np.array([sample.label for sample in study.samples])
    guessed = said.argmax(axis=1)
    rows = [
        [sample.task, sample.name, names[sample.label], names[guess], *row]
        for sample, guess, row in zip(study.samples, guessed, said, strict=True)
    ]
    columns = ('task', 'image', 'degradation', 'sensed', *names)
    writer.table('sensed', 'Predictions of the sensor', columns, rows, 'Probabilities, one row per image.')
    counts = np.array(
        [[np.sum(guessed[study.ids == t] == k) for k in range(len(names))] for t in range(len(study.tasks))]
    )
    rows = [[task, *row] for task, row in zip(study.tasks, counts, strict=True)]
    caption = 'Images of each task by the most likely degradation according to the sensor'
    table = writer.table('confusion', 'Sensed degradations', ('task', *names), rows, f'{caption}.')
    drawing = figures.table_figure(
        counts, list(map(words, study.tasks)), list(map(words, names)), 'Predicted degradation', 'Task', 'd', None
    )
    drawn = writer.figure('confusion', 'Sensed degradations', drawing, f'{caption}; {study.sizes()}.')
    theirs = [each.sensed for each in study.untrained if each.sensed is not None]
    score = numbers.scored(
        'accuracy',
        lambda truth: float(np.mean(guessed == truth)),
        labels,
        [float(np.mean(each.argmax(axis=1) == labels)) for each in theirs],
        **study.chance,
    )
    rows = [['accuracy', *score_cells(score)]]
    table2 = writer.table('sensor_score', 'Accuracy of the sensor', ('score', *SCORE_COLUMNS), rows, SCORE_WORDS)
    return Section('Predictions of the sensor', f'Accuracy {told(score)}.', [drawn], [table, table2])
