"""What a load tells of itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.build import load_engine
from engine.config import EngineConfig
from engine.loading import phases as phases_module
from engine.loading.phases import ALLOCATING, WARMING_UP, WEIGHTS, Phases

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from engine.protocol import Loading


def test_a_load_tells_each_phase_and_how_much_is_read(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phases_module, "_SPACING", 0.0)
    told: list[Loading] = []
    config = EngineConfig(model=str(tiny_llama), dtype="float32", device="cpu", threads=1, num_kv_blocks=64)
    load_engine(config, phases=Phases(told.append))
    names = [loading.phase for loading in told]
    assert list(dict.fromkeys(names)) == [WEIGHTS, ALLOCATING, WARMING_UP]
    assert names.count(ALLOCATING) == 1
    shares = [loading.share for loading in told if loading.share is not None]
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[-1] == 1.0


def test_reports_of_one_phase_have_time_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    now, told = 0.0, list[tuple[str, float | None]]()
    monkeypatch.setattr(phases_module.time, "monotonic", lambda: now)
    phases = Phases(lambda loading: told.append((loading.phase, loading.share)))
    phases.begin("a")
    for step in range(1000):
        now = step / 1000
        phases.share(now)
    phases.begin("b")
    assert told == [("a", None), ("a", 0.25), ("a", 0.5), ("a", 0.75), ("b", None)]
