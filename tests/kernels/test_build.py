"""Modules that are older than their sources are told from others."""

from kernels.native import build


def test_modules_are_outdated_when_a_source_has_changed(tmp_path, monkeypatch):
    folder, source = tmp_path / "native", tmp_path / "some_op" / "native.cpp"
    folder.mkdir()
    source.parent.mkdir()
    source.write_text("// as built")
    monkeypatch.setattr(build, "HERE", folder)
    monkeypatch.setattr(build, "_BUILT_FROM", folder / "_kernels.sources")
    assert not build.is_outdated(), "nothing was built here"
    build._BUILT_FROM.write_text(build._hash_of_sources())
    assert not build.is_outdated()
    source.write_text("// changed")
    assert build.is_outdated()
