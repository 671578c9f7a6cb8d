"""JSON schema of the options, for editors that complete and check YAML."""

from collections.abc import Mapping
from typing import Any

from promptir_basicsr.degradations.spec import DEGRADATIONS, Choice, Parameter, Switch
from promptir_basicsr.options.catalogue import known_names, registered
from promptir_basicsr.options.registered import MARK
from promptir_basicsr.options.run import OWN_RUNS, OwnRun
from promptir_basicsr.options.section import Section

Schema = dict[str, Any]

_MORE_SETS = {'TrainingDatasets': {'val': '^val_'}, 'TestDatasets': {'test': '^test_', 'val': '^val_'}}


def json_schema() -> Schema:
    """Return the JSON schema (draft 7) of option files of this package's models; files of other models are valid."""
    definitions: dict[str, Schema] = {}
    rules = []
    for (model, training), run in OWN_RUNS.items():
        has_train = {'required': ['model_type', 'train']}
        rules.append(
            {
                'if': {
                    'properties': {'model_type': {'const': model}},
                    **(has_train if training else {'required': ['model_type'], 'not': {'required': ['train']}}),
                },
                'then': _reference(run, definitions),
            }
        )
    head = {name: _without_noise(OwnRun.model_json_schema()['properties'][name]) for name in ('name', 'model_type')}
    files = {'type': 'string', 'minLength': 1}
    head['base'] = {
        'description': 'one or several option files to inherit from; keys set here override theirs',
        'anyOf': [files, {'type': 'array', 'items': files}],
    }
    head['model_type'] |= _one_of([model for model, training in OWN_RUNS if training])
    return {
        '$schema': 'http://json-schema.org/draft-07/schema#',
        'title': 'Option file of promptir_basicsr',
        'type': 'object',
        'properties': head,
        # The keys of a base are unknown here, so files with a base have no required keys.
        'if': {'not': {'required': ['base']}},
        'then': {'required': ['name', 'model_type'], 'allOf': rules},
        'definitions': dict(sorted(definitions.items())),
    }


def _reference(section: type[Section], definitions: dict[str, Schema]) -> Schema:
    """Return a reference to a section, and add the section and everything in it to the definitions."""
    reference = {'$ref': f'#/definitions/{section.__name__}'}
    if section.__name__ in definitions:
        return reference
    schema = section.model_json_schema(ref_template='#/definitions/{model}')
    for name, part in {**schema.pop('$defs', {}), section.__name__: schema}.items():
        if name in definitions:
            continue
        definitions[name] = {}  # is being made
        definitions[name] = _finished(part, definitions)
        for key, pattern in _MORE_SETS.get(name, {}).items():
            definitions[name].setdefault('patternProperties', {})[pattern] = definitions[name]['properties'][key]
    return reference


def _finished(schema: Any, definitions: dict[str, Schema]) -> Any:
    """Remove what pydantic adds, and replace marks by the options of registered classes."""
    if isinstance(schema, list):
        return [_finished(part, definitions) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    schema = _without_noise(schema)
    kind = schema.pop(MARK, None)
    # The keys of `properties` are options, not words of JSON schema.
    schema = {
        key: {name: _finished(part, definitions) for name, part in value.items()}
        if key == 'properties'
        else _finished(value, definitions)
        for key, value in schema.items()
    }
    if kind is not None:
        return _of_kind(kind, schema, definitions)
    if '$ref' in schema and len(schema) > 1:  # draft 7 ignores keys next to a reference
        schema['allOf'] = [{'$ref': schema.pop('$ref')}]
    return schema


def _without_noise(schema: Mapping[str, Any]) -> Schema:
    return {
        key: value
        for key, value in schema.items()
        if not (key == 'title' and isinstance(value, str)) and not (key == 'default' and value is None)
    }


def _of_kind(kind: str, schema: Schema, definitions: dict[str, Schema]) -> Schema:
    """Return the schema of options with a `type`: the arguments of known types, anything for unknown ones."""
    schema.pop('additionalProperties', None)
    if kind == 'loss scaler':
        return {**schema, 'allOf': [_reference(registered(kind)['LossScaler'], definitions)]}
    types: dict[str, Schema] = {}
    if kind == 'degradation':
        for name in sorted(DEGRADATIONS):
            definitions[name] = _degradation(name)
            types[name] = {'$ref': f'#/definitions/{name}'}
    for name, section in registered(kind).items():
        types[name] = _reference(section, definitions)
        definitions[section.__name__].setdefault('properties', {}).setdefault('type', {'const': name})
    schema['required'] = ['type', 'lr'] if kind == 'optimizer' else ['type']
    schema['properties'] = {'type': {'type': 'string', **_one_of([*types, *known_names(kind)])}}
    if kind == 'optimizer':
        schema['properties']['lr'] = {'type': 'number', 'exclusiveMinimum': 0}
    rules = [{'if': {'properties': {'type': {'const': name}}}, 'then': then} for name, then in types.items()]
    return {**schema, **({'allOf': rules} if rules else {})}


def _one_of(names: list[str]) -> Schema:
    """Return a schema that suggests words and allows any text."""
    names = list(dict.fromkeys(names))
    return {'anyOf': [{'enum': names}, {'type': 'string'}]} if names else {}


def _degradation(name: str) -> Schema:
    kind = DEGRADATIONS[name]
    needed = [key for key, parameter in kind.parameters.items() if parameter.default is None]
    return {
        'type': 'object',
        'additionalProperties': False,
        'description': (kind.__doc__ or '').partition('\n')[0],
        'required': ['type', *needed],
        'properties': {'type': {'const': name}, **{key: _parameter(part) for key, part in kind.parameters.items()}},
    }


def _parameter(parameter: Parameter) -> Schema:
    if isinstance(parameter, Switch):
        return {'type': 'boolean', 'default': parameter.default}
    if isinstance(parameter, Choice):
        # YAML reads words made of digits as numbers; both are allowed.
        words: list[Any] = [*parameter.options, *(int(word) for word in parameter.options if word.isdecimal())]
        return {'enum': words, 'default': parameter.default}
    number: Schema = {'type': 'integer' if parameter.integer else 'number'}
    limits = {'minimum': parameter.low, 'maximum': parameter.high}
    number |= {key: limit for key, limit in limits.items() if abs(limit) != float('inf')}
    schema = {'anyOf': [number, {'type': 'array', 'items': number, 'minItems': 2, 'maxItems': 2}]}
    described = {'description': parameter.unit} if parameter.unit else {}
    return {**schema, **described, **({} if parameter.default is None else {'default': parameter.default})}
