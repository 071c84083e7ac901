"""The guard's name beside the served model's."""

from __future__ import annotations

from server.guard.model import guard_name


def test_a_guard_has_its_own_name_unless_the_served_model_has_it() -> None:
    assert guard_name("safety", ("export",)) == "safety"
    assert guard_name("export", ("chats",)) == "export"
    assert guard_name("export", ("chats", "export")) == "export-guard"
