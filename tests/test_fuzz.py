"""Damaged input at every door: whatever stands in a file or a request, only errors of this package leave, in one line.

The targets are those of ``scripts/fuzz.py``, which runs for hours. Here each gets the same few dozen inputs in every run.
"""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
FUZZ: Any = importlib.import_module("scripts.fuzz")
sys.path.remove(str(ROOT))
NEEDS = {"lists": "pyarrow", "http": "fastapi", "requests": "fastapi"}
FEW = {"models": 15, "yolo": 40, "voc": 40}  # what takes longer
places = st.floats(0, 1, exclude_max=True)
edits = st.lists(st.tuples(places, st.sampled_from(FUZZ.KINDS), st.sampled_from(FUZZ.TOKENS) | st.binary(max_size=8)), max_size=4)
exchanges = st.lists(st.tuples(places, st.sampled_from(FUZZ.STRANGE)), max_size=3)


@pytest.mark.parametrize("name", FUZZ.TARGETS)
def test_only_our_own_errors_leave(name: str, tmp_path: Path) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    target = FUZZ.TARGETS[name](tmp_path)
    assert FUZZ.tried(target, target.seeds[0])  # good input is taken, so that what follows gets past the first check
    taken = []

    @settings(max_examples=FEW.get(name, 60), derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(seed=st.sampled_from(target.seeds), edits=edits, exchanges=exchanges)
    def try_many(seed: bytes, edits: Sequence[Any], exchanges: Sequence[Any]) -> None:
        is_exchanged = target.is_json and exchanges
        taken.append(FUZZ.tried(target, FUZZ.edited_json(seed, exchanges) if is_exchanged else FUZZ.edited(seed, edits)))

    try_many()
    assert any(taken)
