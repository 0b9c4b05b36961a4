"""The self-check: the claims that must hold on every machine, tried again on this one."""

import logging
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lw_retinanet.errors import InputError, MissingExtraError, first_line, nearest, shown
from lw_retinanet.jobs.command_server import CommandServer
from lw_retinanet.jobs.durable_claims import CLAIMS, Workshop
from lw_retinanet.progress import Progress, tracked
from lw_retinanet.tables import aligned


@dataclass(frozen=True, kw_only=True)
class ClaimResult:
    """What became of one claim.

    Args:
        claim: Its name.
        meaning: What it says.
        tried: Number of cases.
        wrong: The cases that went wrong, each with what happened.
        skipped: Why it was not tried, or not wholly; empty if it was.
        seconds: How long that took.
    """

    claim: str
    meaning: str
    tried: int
    wrong: tuple[str, ...]
    skipped: str
    seconds: float

    @property
    def right(self) -> int:
        """Number of cases that came out right."""
        return self.tried - len(self.wrong)


@dataclass(frozen=True, kw_only=True)
class SelfCheck:
    """The results of all claims, in order."""

    results: tuple[ClaimResult, ...]

    @property
    def is_right(self) -> bool:
        """Whether nothing went wrong and something was tried."""
        return any(result.tried for result in self.results) and not any(result.wrong for result in self.results)

    def as_dict(self) -> dict[str, Any]:
        """``{"right": true, "claims": [...]}`` in plain values."""
        claims = [{**asdict(result), "wrong": list(result.wrong), "right": result.right} for result in self.results]
        return {"right": self.is_right, "claims": claims}

    def lines(self) -> list[str]:
        """A table for people, and a line for each case that went wrong."""
        rows = [("claim", "tried", "right", "wrong", "seconds", "")]
        rows += [
            (one.meaning, str(one.tried), str(one.right), str(len(one.wrong)), f"{one.seconds:.0f}", one.skipped) for one in self.results
        ]
        tried, wrong = sum(one.tried for one in self.results), sum(len(one.wrong) for one in self.results)
        rows.append(("all", str(tried), str(tried - wrong), str(wrong), f"{sum(one.seconds for one in self.results):.0f}", ""))
        return [*aligned(rows, left=(0, 5)), *(f"wrong: {one.claim}: {case}" for one in self.results for case in one.wrong)]


def run_selfcheck(*, quick: bool = False, only: Collection[str] = (), progress: Progress | None = None) -> SelfCheck:
    """Try every claim again. Everything that is needed is made on the spot, in a temporary folder.

    Args:
        quick: Fewer cases.
        only: Names of claims; nothing means all.
        progress: Shows how far it is.

    Raises:
        InputError: for a name that is no claim's.
    """
    unknown = [name for name in only if name not in CLAIMS]
    if unknown:
        raise InputError(f"there is no claim {unknown[0]}{nearest(unknown[0], CLAIMS)}; there are {', '.join(CLAIMS)}")
    chosen = [name for name in CLAIMS if not only or name in only]
    with tempfile.TemporaryDirectory(prefix="lw-retinanet-selfcheck-", ignore_cleanup_errors=True) as folder, ExitStack() as stack:
        stack.enter_context(_quiet())
        commands = stack.enter_context(CommandServer())
        if {"kills", "exports"} & set(chosen):
            commands.begin()
        workshop = Workshop(Path(folder), is_quick=quick, commands=commands)
        return SelfCheck(results=tuple(_tried(name, workshop) for name in tracked(chosen, len(chosen), "selfcheck", progress)))


def _tried(name: str, workshop: Workshop) -> ClaimResult:
    meaning, cases = CLAIMS[name]
    started, tried, wrong, skipped = time.monotonic(), 0, [], ""
    try:
        for case, fault in cases(workshop):
            tried += 1
            if fault:
                wrong.append(f"{case}: {shown(' '.join(fault.split()), most=300)}")
    except MissingExtraError as error:
        skipped = f"not tried: {first_line(error)}" if not tried else f"in part: {first_line(error)}"
    except Exception as error:  # a claim that cannot even be tried does not hold
        tried += 1
        wrong.append(f"{type(error).__name__}: {shown(first_line(error), most=300)}")
    seconds = time.monotonic() - started
    return ClaimResult(claim=name, meaning=meaning, tried=tried, wrong=tuple(wrong), skipped=skipped, seconds=round(seconds, 1))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without log lines, which would tell of faults that were made on purpose."""
    logger = logging.getLogger("lw_retinanet")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
