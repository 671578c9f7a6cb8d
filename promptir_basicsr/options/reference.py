"""The options as Markdown tables: every key, its type, its default and its meaning."""

import json
import re
from collections.abc import Iterator
from typing import Any

from promptir_basicsr.options.catalogue import registered
from promptir_basicsr.options.json_schema import Schema, json_schema

COMMAND = 'python -m promptir_basicsr.options --write docs'
REFERENCE = 'options_reference.md'
JSON_SCHEMA = 'options.schema.json'

_HEAD = f"""# Every option

Written by `{COMMAND}` from what checks the options; a test holds this page to it.
[options.md](options.md) explains what belongs together, [{JSON_SCHEMA}]({JSON_SCHEMA}) tells the same to
editors.

A key without a default is *needed*, or, where the table says nothing, may be left out. `~` is YAML for nothing.
"""
_SECTIONS = (
    ('General', 'PromptTraining'),
    ('path', 'PathOptions'),
    ('datasets: train', 'TrainingSet'),
    ('datasets: val, test', 'MeasuringSet'),
    ('A task', 'TaskOptions'),
    ('pairing of a task', 'PairingOptions'),
    ('sampling of a training set', 'SamplingOptions'),
    ('a stage of a training set', 'StageOptions'),
    ('train, of PromptModel', 'PromptTrainOptions'),
    ('train, of ContrastiveModel', 'ContrastiveTrainOptions'),
    ('train, of SensorModel', 'SensorTrainOptions'),
    ('val, of PromptModel', 'PromptTrainingValOptions'),
    ('val, of SensorModel', 'SensorTrainingValOptions'),
    ('logger', 'OwnLoggerOptions'),
    ('dist_params', 'DistOptions'),
)
_KINDS = (
    ('network_g', 'network'),
    ('pixel_opt, frequency_opt', 'loss'),
    ('prompt_opt', 'prompt loss'),
    ('loss_scaler', 'loss scaler'),
    ('scheduler', 'schedule'),
    ('metrics', 'metric'),
)
_PAGES = re.compile(r'\b([a-z]+\.md)((?:#[\w-]+)?)')


def reference() -> str:
    """The page as Markdown."""
    definitions = json_schema()['definitions']
    return '\n'.join([_HEAD, *_blocks(definitions)])


def _blocks(definitions: dict[str, Schema]) -> Iterator[str]:
    for title, name in _SECTIONS:
        yield f'## {title}\n'
        if name == 'MeasuringSet':
            training, here = definitions['TrainingSet'], definitions[name]
            yield 'As of a training set, but for these:\n'
            changed = {k: v for k, v in here['properties'].items() if v != training['properties'][k]}
            yield _table({**here, 'properties': changed})
        else:
            yield _table(definitions[name])
    for key, kind in _KINDS:
        for name, section in registered(kind).items():
            schema = definitions[section.__name__]
            yield f'## {key}: {name}\n' if kind != 'loss scaler' else f'## {key}\n'
            yield f'{schema.get("description", "")}\n'
            properties = {option: value for option, value in schema['properties'].items() if option != 'type'}
            yield _table({**schema, 'properties': properties}) if properties else 'It has no options.\n'


def _table(schema: Schema) -> str:
    rows = ['| key | type | default | meaning |', '|:--|:--|:--|:--|']
    for key, option in schema['properties'].items():
        default = 'needed' if key in schema.get('required', ()) else _yaml(option.get('default'))
        meaning = _PAGES.sub(r'[\1](\1\2)', option.get('description', '')).replace('|', '\\|')
        rows.append(f'| `{key}` | {_words(option)} | {default} | {meaning} |')
    return '\n'.join(rows) + '\n'


def _yaml(value: Any) -> str:
    if value is None or value in ('', {}):
        return ''
    return f'`{value if isinstance(value, str) else json.dumps(value)}`'


def _words(schema: Schema) -> str:
    """The type of an option in words."""
    if 'anyOf' in schema:
        parts = list(dict.fromkeys(_words(part) for part in schema['anyOf']))
        return ' or '.join([part for part in parts if part != '`~`'] + ['`~`'] * ('`~`' in parts))
    if 'enum' in schema or 'const' in schema:
        return ', '.join(_yaml(word) for word in schema.get('enum', [schema.get('const')]))
    kind = schema.get('type')
    if kind == 'array':
        items = _words(schema.get('items', {}))
        return f'list of {items}' if items != 'anything' else 'list'
    named = {'boolean': '`true`, `false`', 'string': 'text', 'null': '`~`', 'object': 'options'}
    if kind in ('integer', 'number'):
        return ', '.join(['whole number' if kind == 'integer' else 'number', *_limits(schema)])
    return named.get(str(kind), 'options' if '$ref' in schema or 'allOf' in schema else 'anything')


def _limits(schema: Schema) -> Iterator[str]:
    words = {'minimum': 'at least', 'exclusiveMinimum': 'above', 'maximum': 'at most', 'exclusiveMaximum': 'below'}
    for name, word in words.items():
        if name in schema:
            yield f'{word} {schema[name]:,}'
