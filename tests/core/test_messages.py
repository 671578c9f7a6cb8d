import logging
import os
import sys

import pytest

import promptir_basicsr
from promptir_basicsr.core.messages import Printable, printable


def test_what_does_not_print_is_escaped() -> None:
    assert printable('a ü 画 é.png') == 'a ü 画 é.png'
    assert printable('\x1b[31mred\n\t\x07\u202e\x9b\udcff') == '\\x1b[31mred\\n\\t\\x07\\u202e\\x9b\\udcff'
    assert printable('a\n\tb\x1b', keep='\n\t') == 'a\n\tb\\x1b'
    assert printable(ValueError('a\nb')) == 'a\\nb'
    for text in ('\\x1b', printable('\x1b\n')):
        assert printable(text) == text  # twice is as once


def record(message: str, *args: object, path: str) -> logging.LogRecord:
    return logging.LogRecord('basicsr', logging.INFO, path, 1, message, args, None)


def test_the_log_escapes_names_and_keeps_the_lines_of_other_packages() -> None:
    own = os.path.join(os.path.dirname(promptir_basicsr.__file__), 'models', 'step.py')
    text = '%s is\n\tdamaged'
    for path, expected in ((own, 'a\\x1b\\n is\\n\\tdamaged'), ('elsewhere.py', 'a\\x1b\n is\n\tdamaged')):
        each = record(text, 'a\x1b\n', path=path)
        assert Printable().filter(each)
        assert each.getMessage() == expected
    wrong = record('%d', 'text', path='elsewhere.py')
    assert Printable().filter(wrong)  # what logging reports is not reported here
    assert (wrong.msg, wrong.args) == ('%d', ('text',))


def test_the_log_of_basicsr_has_the_filter_once(capsys: pytest.CaptureFixture[str]) -> None:
    promptir_basicsr.activate()
    logger = logging.getLogger('basicsr')
    assert sum(isinstance(each, Printable) for each in logger.filters) == 1
    handler = logging.StreamHandler(sys.stderr)
    logger.addHandler(handler)
    try:
        logger.error('a\x1bb')
    finally:
        logger.removeHandler(handler)
    assert capsys.readouterr().err.splitlines()[-1] == 'a\\x1bb'
