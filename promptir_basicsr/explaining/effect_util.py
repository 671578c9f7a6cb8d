"""The chapters of `basicsr explain` on what prompts do to the restored images, and on what a sensor says.

Shapes: n images, T tasks, K prompts of a level.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from promptir_basicsr.explaining import figure_util as figures
from promptir_basicsr.explaining import score_util as numbers
from promptir_basicsr.explaining.probe_util import Trials
from promptir_basicsr.explaining.score_util import Score
from promptir_basicsr.explaining.style_util import words
from promptir_basicsr.explaining.write_util import SCORE_COLUMNS, SCORE_WORDS, Study, Writer, score_cells, told
from promptir_basicsr.report.model import Section

LEAST_GAIN = 0.005
"""In dB: what is below would be written as 0.00."""


def label_section(study: Study, writer: Writer) -> Section:
    """Prompts that are told the degradation: what a wrong label costs."""
    prompted, trials, tasks = study.prompted, study.found.trials, study.tasks
    names = prompted.degradations
    means, gaps = {}, {}
    for column, values in {**_by_choice(trials, names), **trials.others}.items():
        means[column] = np.array([values[study.ids == task].mean() for task in range(len(tasks))])
        own = np.array([trials.base[study.ids == task].mean() for task in range(len(tasks))])
        gaps[column] = means[column] - own
    rows = [
        [name, int((study.ids == task).sum()), column, means[column][task], gaps[column][task]]
        for task, name in enumerate(tasks)
        for column in means
    ]
    columns = ('task', 'images', 'told', 'psnr', 'difference to the true label')
    table = writer.table('labels', 'What labels do', columns, rows, 'Mean PSNR in dB.')
    drawn = writer.figure(
        'labels',
        'What labels do',
        figures.table_figure(
            np.array(list(means.values())).T,
            list(map(words, tasks)),
            [words(column) if column in names else column.capitalize() for column in means],
            'Label that is given',
            'Task',
            '.2f',
            np.array(list(gaps.values())).T,
        ),
        'Mean PSNR in dB; the colour is the difference to the true label. "Equal mixture": all labels with equal '
        'weights. "Strength 0": without what the degradation prompts add.',
    )
    scores, text = _choice_scores(study, 'label')
    rows = [[score.name, *score_cells(score)] for score in scores]
    table2 = writer.table(
        'label_scores', 'Does the label matter?', ('score', *SCORE_COLUMNS), rows, _choice_words('label')
    )
    text += (
        '\n\nThis network is told the degradation: its prompt weights are the label, so they tell nothing of what it '
        'has learned. What the label does to the restored image does.'
    )
    return Section('What labels do', text, [drawn], [table, table2])


def _by_choice(trials: Trials, names: Sequence[str]) -> dict[str, np.ndarray]:
    return {name: trials.choices[:, i] for i, name in enumerate(names)}


def _choice_scores(study: Study, what: str) -> tuple[list[Score], str]:
    """Whether the true choice is the best one."""
    trials, theirs = study.found.trials, [each.trials for each in study.untrained]
    scores = [
        numbers.scored(
            'gain of the true one, dB',
            lambda truth: numbers.choice_gain(trials.choices, truth),
            trials.truth,
            [numbers.choice_gain(each.choices, each.truth) for each in theirs],
            **study.chance,
        ),
        numbers.scored(
            'share of images that the true one is best for',
            lambda truth: numbers.choice_share(trials.choices, truth),
            trials.truth,
            [numbers.choice_share(each.choices, each.truth) for each in theirs],
            **study.chance,
        ),
    ]
    gain, share = scores
    found = 'matters, and more than in any untrained network' if gain.learned else f'matters: {gain.verdict}'
    if abs(gain.value) < LEAST_GAIN:
        found = f'makes no difference that could be seen (below {LEAST_GAIN} dB), whatever p says'
    text = (
        f'Over the mean of all {trials.choices.shape[1]} the true one gains {told(gain, "dB")}.\n\n'
        f'The true one is the best for {share.value:.0%} of the images, by chance {share.chance:.0%} '
        f'(p = {share.p:.3f}; N = {share.n}).'
    )
    return scores, f'The choice of the {what} {found}.\n\n{text}'


def _choice_words(what: str) -> str:
    return f'Choices of the {what}. Gain: PSNR with the true one less the mean over all of them, in dB. {SCORE_WORDS}'


def ablation_section(study: Study, writer: Writer) -> Section:
    """Prompts that find their weights themselves: what other weights do."""
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
        'Mean PSNR in dB, and its difference to the network as it is. "Only k": prompt k alone. "Without k": the '
        'others in their proportion. "Equal": all alike. "As for X": the mean weights of task X.'
    )
    table = writer.table('ablation', 'What other weights do', columns, rows, caption)
    shown = {level: [_change_words(change) for change in changes] for level, changes in trials.levels.items()}
    drawn = writer.figure(
        'ablation',
        'What other weights do to the restored images',
        figures.effects_figure(effects, tasks, shown, 'Difference in PSNR, dB'),
        'Difference in mean PSNR to the network as it is, in dB, where the weights of a level are replaced.',
    )
    scores, text = _choice_scores(study, 'task whose mean weights are given')
    rows = [[score.name, *score_cells(score)] for score in scores]
    table2 = writer.table(
        'choice_scores',
        'Do the right weights matter?',
        ('score', *SCORE_COLUMNS),
        rows,
        _choice_words('task whose mean weights are given'),
    )
    return Section('What other weights do', f'{_worst(effects, shown, tasks)}\n\n{text}', [drawn], [table, table2])


def _change_words(change: str) -> str:
    head, _, task = change.partition('as for ')
    return f'{head}as for {words(task)}' if task else change


def _worst(effects: Mapping[str, np.ndarray], shown: Mapping[str, Sequence[str]], tasks: Sequence[str]) -> str:
    level = min(effects, key=lambda level: float(np.nanmin(effects[level])))
    task, column = np.unravel_index(np.nanargmin(effects[level]), effects[level].shape)
    most = max(float(np.nanmax(np.abs(each))) for each in effects.values())
    if most < 0.005:
        return 'No other weights change the mean PSNR of any task by as much as 0.005 dB.'
    if effects[level][task, column] >= 0:
        return 'No other weights lower the mean PSNR of any task.'
    return (
        f'The largest loss is {effects[level][task, column]:+.2f} dB, of {words(tasks[int(task)])} with the weights '
        f'"{shown[level][int(column)]}" ({words(level)}).'
    )


def sensor_section(study: Study, writer: Writer) -> Section:
    """What the sensor of a network that is told says."""
    names, said = study.prompted.degradations, study.found.sensed
    assert said is not None
    labels = np.array([sample.label for sample in study.samples])
    guessed = said.argmax(axis=1)
    rows = [
        [sample.task, sample.name, names[sample.label], names[guess], *row]
        for sample, guess, row in zip(study.samples, guessed, said, strict=True)
    ]
    columns = ('task', 'image', 'degradation', 'sensed', *names)
    writer.table('sensed', 'What the sensor says', columns, rows, 'Probabilities, an image a row.')
    counts = np.array(
        [[np.sum(guessed[study.ids == t] == k) for k in range(len(names))] for t in range(len(study.tasks))]
    )
    table = writer.table(
        'confusion',
        'Sensed degradations',
        ('task', *names),
        [[n, *row] for n, row in zip(study.tasks, counts, strict=True)],
        'Images of each task by the degradation that the sensor finds likeliest.',
    )
    drawn = writer.figure(
        'confusion',
        'Sensed degradations',
        figures.table_figure(
            counts, list(map(words, study.tasks)), list(map(words, names)), 'Likeliest degradation', 'Task', 'd', None
        ),
        f'Images of each task by the degradation that the sensor finds likeliest; {study.sizes()}.',
    )
    theirs = [each.sensed for each in study.untrained if each.sensed is not None]
    score = numbers.scored(
        'accuracy',
        lambda truth: float(np.mean(guessed == truth)),
        labels,
        [float(np.mean(each.argmax(axis=1) == labels)) for each in theirs],
        **study.chance,
    )
    table2 = writer.table(
        'sensor_score',
        'Accuracy of the sensor',
        ('score', *SCORE_COLUMNS),
        [['accuracy', *score_cells(score)]],
        SCORE_WORDS,
    )
    return Section('What the sensor says', f'Accuracy {told(score)}.', [drawn], [table, table2])
