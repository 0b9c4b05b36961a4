"""Optional packages: imported where they are used, and kept quiet."""

import contextlib
import importlib
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from types import ModuleType

from lw_retinanet.errors import MissingExtraError

_switches = threading.RLock()


def need(package: str, *, extra: str, why: str) -> ModuleType:
    """Import an optional package.

    Args:
        package: Its name, dotted for a part of it.
        extra: The extra of this project that installs it.
        why: What needs it, for the message.

    Raises:
        MissingExtraError: If it is not installed.
    """
    with contextlib.nullcontext() if package in sys.modules else quiet():
        try:
            return importlib.import_module(package)
        except ImportError:
            name = package.split(".")[0]
            raise MissingExtraError(f"{why} needs {name}; install it with: pip install 'lw-retinanet[{extra}]'") from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep other libraries from logging their internals, writing to standard output, and sending usage data.

    OpenVINO and NNCF send usage data unless they find themselves on a build server, which they check once, when they start. These switches
    belong to the whole process, so only one thread at a time is in here.
    """
    stand_ins = {"CI": "true", "NNCF_CI": "1"}
    with _switches:
        logged = logging.root.manager.disable
        before = {name: os.environ.get(name) for name in stand_ins}
        os.environ.update(stand_ins)
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
                warnings.simplefilter("ignore")
                logging.disable(logging.WARNING)
                yield
        finally:
            logging.disable(logged)
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
