"""Pairing rules: pairs of path templates that match a degraded image with its ground truth.

A template is a path with fields: `rainy/rain-{id}.png`. The template of the degraded image (lq) is matched, and the
fields found fill the template of the ground truth (gt); see `data.pairing`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from promptir_basicsr.core.errors import OptionError, raise_problems
from promptir_basicsr.core.messages import did_you_mean, unknown_name
from promptir_basicsr.core.problems import Problem, problem
from promptir_basicsr.options.section import Section, Text, option

FIELD = re.compile(r'\{([^\W\d]\w*)\}')


@dataclass(frozen=True)
class PairingRule:
    """Templates of a degraded image and its ground truth, relative to the task's folder(s).

    Examples:
        >>> from promptir_basicsr.data import PairingRule
        >>> PairingRule('input/{id}_rainy.{ext}', 'target/{id}.{ext}').without_folder().lq
        '{id}_rainy.{ext}'
    """

    lq: str
    gt: str
    about: str = ''

    def without_folder(self) -> 'PairingRule':
        """Return the rule without leading fixed folders, for tasks that name the lq and gt folders themselves."""
        lq, gt = (re.sub(r'^([^/{}]+/)+', '', template) for template in (self.lq, self.gt))
        return PairingRule(lq, gt, self.about)


PAIRING_RULES: dict[str, PairingRule] = {
    'same_name': PairingRule('{path}.{ext}', '{path}.{ext}', 'the same relative path, any image extension'),
    'rain100l_train': PairingRule('rainy/rain-{id}.{ext}', 'gt/norain-{id}.{ext}', 'Rain100L training set'),
    'rain100l_test': PairingRule('input/{id}.{ext}', 'target/{id}.{ext}', 'Rain100L test set as released'),
    'reside_ots': PairingRule(
        'synthetic/{part}/{id}_{a}_{beta}.{ext}', 'original/{id}.{ext}', 'RESIDE-beta OTS: 35 hazy images, one clear'
    ),
    'reside_sots': PairingRule('input/{id}_{rest}.{ext}', 'target/{id}.{ext}', 'RESIDE SOTS: ID_A_BETA, one clear ID'),
    'gopro_nested': PairingRule('{seq}/blur/{id}.{ext}', '{seq}/sharp/{id}.{ext}', 'GoPro as published, by sequence'),
    'gopro_flat': PairingRule('blur/{id}.{ext}', 'sharp/{id}.{ext}', 'GoPro copied into two folders'),
    'lol': PairingRule('low/{id}.{ext}', 'high/{id}.{ext}', 'LOL-v1: our485, eval15'),
    'cdd11': PairingRule('{kind}/{id}.{ext}', 'clear/{id}.{ext}', 'CDD-11: one folder per degradation, and clear'),
}


class PairingOptions(Section):
    """Path templates of a custom pairing rule; see docs/data.md."""

    lq: Text = option(description='template of the degraded image, such as `input/{id}_rainy.{ext}`')
    gt: Text = option(description='template of the ground truth, filled with the fields of `lq`')


def pairing_rule(option: object) -> PairingRule:
    """Return a rule from its name or from `{lq: template, gt: template}`.

    Raises:
        OptionError: lists all mistakes.
    """
    if isinstance(option, str) and option in PAIRING_RULES:
        return PAIRING_RULES[option]
    if isinstance(option, str):
        message = unknown_name('pairing rule', option, PAIRING_RULES)
        raise OptionError(f'{message} Or use templates {{lq: ..., gt: ...}}.')
    if not isinstance(option, Mapping):
        raise OptionError(f'must be the name of a pairing rule or templates {{lq: ..., gt: ...}}, not {option!r}.')
    raise_problems(PairingOptions.problems(option))
    rule = PairingRule(option['lq'], option['gt'])
    known = {*FIELD.findall(rule.lq), 'ext'}
    problems: list[Problem] = []
    for field in FIELD.findall(rule.gt):
        if field not in known:
            message = f"field '{{{field}}}' is not in the lq template '{rule.lq}'.{did_you_mean(field, known)}"
            problems.append(problem('gt', message))
    if not FIELD.search(rule.lq):
        problems.append(problem('lq', f"'{rule.lq}' has no field such as {{id}}, so it matches at most one file."))
    raise_problems(problems)
    return rule
