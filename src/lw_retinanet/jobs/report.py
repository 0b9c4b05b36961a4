"""The page of a training run."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lw_retinanet.counting.latency import measure_latency
from lw_retinanet.counting.profile import Profile, profile
from lw_retinanet.devices import cpu_name
from lw_retinanet.errors import OutputError
from lw_retinanet.files import output_folder, write_text
from lw_retinanet.reporting.evidence import Evidence, gather
from lw_retinanet.reporting.findings import Finding, findings
from lw_retinanet.reporting.run_page import run_page

PAGE = "report.html"
_ROUNDS = 5


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """A page and what it says first.

    Args:
        page: Path of the HTML file.
        findings: What to do next, the most important first.
        missing: What the run folder and its data set do not have, so that the page does not show it.
    """

    page: Path
    findings: tuple[Finding, ...]
    missing: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"page": str(self.page), "findings": [dict(vars(one)) for one in self.findings], "missing": list(self.missing)}

    def lines(self) -> list[str]:
        """What to do next and what is missing, for a terminal."""
        return [
            *(f"- {one.what} {one.do}" for one in self.findings),
            *(f"- missing: {one}" for one in self.missing),
            f"page: {self.page}",
        ]


def run_report(run: Path, out: Path | None = None, *, data: Path | None = None) -> RunReport:
    """Write the page of a training run.

    The parameters and errors are those of :func:`lw_retinanet.report`.
    """
    page = out or run / PAGE
    if page.is_dir():
        raise OutputError(f"{page} is a folder; name the HTML file to write, such as {page / PAGE}")
    if out and not page.parent.is_dir():
        raise OutputError(f"{page.parent} is no folder, so {page.name} cannot be written there; make the folder, or choose another place")
    evidence = gather(run, data)
    output_folder(page.parent)
    found = findings(evidence)
    cost = _cost(evidence)
    load = f", load before {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    content = run_page(evidence, found, cost, f"Median of {_ROUNDS} calls on {cpu_name()}{load}.")
    write_text(page, content)
    return RunReport(page=page, findings=tuple(found), missing=evidence.missing)


def _cost(evidence: Evidence) -> Profile | None:
    if evidence.model is None:
        return None
    side = evidence.model.record.conventions.input.size
    size_hw = (side, side)
    times = measure_latency({"model": evidence.model.model}, size_hw=size_hw, rounds=_ROUNDS, warm_up=1)["model"]
    return profile(evidence.model.model, name=evidence.model.record.preset, size_hw=size_hw, latency_ms=times)
