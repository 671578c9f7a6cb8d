"""Pairing of degraded and clear images by a rule of `options.pairing`.

A field of a template matches the shortest run of characters without `/`. `{ext}` is any image extension; in the gt
template the lq's own extension is tried first.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from promptir_basicsr.core.messages import first_few
from promptir_basicsr.core.problems import Keys, Problem, keys
from promptir_basicsr.options.pairing import FIELD, PairingRule
from promptir_basicsr.pictures.picture import EXTENSIONS


def compile_template(template: str) -> re.Pattern[str]:
    """Compile a template to a regular expression for whole relative paths; `{path}` may span folders."""
    pattern, end, seen = '', 0, set()
    for field in FIELD.finditer(template):
        name = field.group(1)
        pattern += re.escape(template[end : field.start()])
        if name in seen:
            pattern += f'(?P={name})'
        elif name == 'ext':
            pattern += f'(?P<ext>(?i:{"|".join(EXTENSIONS)}))'
        else:
            pattern += f'(?P<{name}>{".+?" if name == "path" else "[^/]+?"})'
        seen.add(name)
        end = field.end()
    return re.compile(pattern + re.escape(template[end:]) + r'\Z')


def fill_template(template: str, fields: Mapping[str, str]) -> str:
    """Fill the fields of a template with values, which results in a path."""
    return FIELD.sub(lambda field: fields[field.group(1)], template)


class PairFinder:
    """Finds the clear image of a degraded one among existing names."""

    def __init__(self, rule: PairingRule, gt_names: Sequence[str]) -> None:
        self.rule = rule
        self._lq = compile_template(rule.lq)
        self._gt_names = set(gt_names)

    def gt_of(self, lq_name: str) -> tuple[str | None, str]:
        """The existing gt name or None, and the expected gt name; '' if the lq name does not match the rule."""
        match = self._lq.match(lq_name)
        if match is None:
            return None, ''
        fields = match.groupdict()
        own = fields.get('ext', '')
        expected = fill_template(self.rule.gt, {'ext': own or '*', **fields})
        if '{ext}' not in self.rule.gt:
            return (expected if expected in self._gt_names else None), expected
        for extension in dict.fromkeys((own, *EXTENSIONS, *(e.upper() for e in EXTENSIONS))):
            name = fill_template(self.rule.gt, {**fields, 'ext': extension})
            if name in self._gt_names:
                return name, expected
        return None, expected


class Pairing(NamedTuple):
    """The result of pairing the names of a folder.

    Attributes:
        pairs: (degraded, clear) names in the order of the degraded ones.
        problems: images without a partner.
        unmatched: names that do not match the rule.
        orphans: degraded names without a clear image, each with the expected clear name.
    """

    pairs: list[tuple[str, str]]
    problems: list[Problem]
    unmatched: list[str]
    orphans: list[tuple[str, str]]


def find_pairs(
    where: str | Keys,
    rule: PairingRule,
    lq_names: Sequence[str],
    gt_names: Sequence[str],
    listed: bool = False,
    one_folder: bool = False,
) -> Pairing:
    """Pair degraded names with clear ones.

    Args:
        where: the task, for messages.
        lq_names: the names to pair; `listed` if they are from the user's list, not from a folder.
        gt_names: the existing clear names.
        one_folder: lq and gt names are relative to the same folder; a clear image that also matches the lq template
            (`1_gt.png` next to `1.png`, `{id}.png`) is not a degraded one.
    """
    finder = PairFinder(rule, gt_names)
    pairs: list[tuple[str, str]] = []
    unmatched: list[str] = []
    orphans: list[tuple[str, str]] = []
    found = [(lq_name, *finder.gt_of(lq_name)) for lq_name in lq_names]
    clear = {gt_name for _, gt_name, _ in found} if one_folder else set()
    for lq_name, gt_name, expected in found:
        if lq_name in clear:
            unmatched.append(lq_name)
        elif gt_name is not None:
            pairs.append((lq_name, gt_name))
        elif expected:
            orphans.append((lq_name, expected))
        else:
            unmatched.append(lq_name)
    problems, path = [], keys(where)
    if orphans:
        message = (
            f'{len(orphans):,} of {len(pairs) + len(orphans):,} degraded images have no clear image: '
            f'{first_few(" -> ".join(orphan) for orphan in orphans)}. '
            'Add the clear images, or select degraded ones by `list` or `files`.'
        )
        items = tuple((name, f'needs {clear}') for name, clear in orphans)
        problems.append(Problem(path, message, 'orphans', items))
    if unmatched and (listed or not pairs):
        message = (
            f"{len(unmatched):,} of {len(lq_names):,} names do not match the lq template '{rule.lq}': "
            f'{first_few(unmatched)}. Set another pairing rule, or templates {{lq: ..., gt: ...}}.'
        )
        problems.append(Problem(path, message, 'missing'))
    return Pairing(pairs, problems, unmatched, orphans)
