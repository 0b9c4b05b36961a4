import logging

import pytest

from lw_retinanet.cli.console import PrintableFormatter, say, say_error


def test_names_cannot_control_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    say("first\nsecond \x1b[31mred\udcff")
    say_error("a\x07b\u202ec\nd")
    printed = capsys.readouterr()
    assert printed.out == "first\nsecond �[31mred�\n"
    assert printed.err == "error: a�b�c d\n"
    record = logging.LogRecord("name", logging.INFO, "", 0, "is %s", ("\x1b]0;title",), None)
    assert PrintableFormatter("%(message)s").format(record) == "is �]0;title"
