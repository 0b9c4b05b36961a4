"""Optional packages: what is said where one is missing, and what they must not do."""

import logging
import os
import sys
import threading
import time
import warnings

import pytest

from lw_retinanet.errors import MissingExtraError
from lw_retinanet.exporting.extras import need, quiet


def test_a_missing_package_names_its_extra() -> None:
    with pytest.raises(MissingExtraError, match=r"writing ONNX needs no_such_package; install it with: pip install 'lw-retinanet\[onnx\]'"):
        need("no_such_package.part", extra="onnx", why="writing ONNX")


def test_quiet_puts_everything_back(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "perhaps")
    monkeypatch.delenv("NNCF_CI", raising=False)
    disabled = logging.root.manager.disable

    def foreign_code() -> None:
        assert os.environ["CI"] == "true"  # OpenVINO's and NNCF's switch against reporting usage
        assert os.environ["NNCF_CI"]
        sys.stdout.write("to standard error\n")
        warnings.warn("of somebody else's insides", stacklevel=1)
        raise KeyError

    with pytest.raises(KeyError), quiet():
        foreign_code()
    assert os.environ["CI"] == "perhaps"
    assert "NNCF_CI" not in os.environ
    assert logging.root.manager.disable == disabled
    assert capsys.readouterr() == ("", "to standard error\n")
    assert sys.stdout is not sys.stderr


def test_threads_are_quiet_one_after_the_other() -> None:
    disabled, inside, first_is_in = logging.root.manager.disable, [], threading.Event()

    def work(number: int) -> None:
        if number:
            first_is_in.wait()
        with quiet():
            first_is_in.set()
            inside.append(number)
            time.sleep(0.02)
            inside.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert inside == [0, 0, 1, 1]
    assert logging.root.manager.disable == disabled
