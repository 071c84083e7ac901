"""make article: stages are done once and in order, also after a stop."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from engine.errors import ConfigError
from training.article import cli
from training.article.workplace import SCALES, STAGES, Workplace

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return Workplace(tmp_path / "run", SCALES / "tiny")


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of stages as they are done; in place of the real ones, which would do too much."""
    names: list[str] = []

    def stage(name: str) -> Callable[[Workplace], dict[str, Any]]:
        def work(place: Workplace) -> dict[str, Any]:
            """Work."""
            names.append(name)
            (place.out / name).mkdir(exist_ok=True)
            return {"name": name}

        return work

    monkeypatch.setattr(cli, "_stages", lambda: {name: (stage(name), (name,)) for name in STAGES})
    return names


def test_stages_are_done_once_and_in_order(place: Workplace, done: list[str]) -> None:
    cli.run(place)
    cli.run(place)
    assert done == [*STAGES]
    assert place.figures("align") == {"name": "align"}


def test_a_stage_and_all_later_ones_can_be_done_again(place: Workplace, done: list[str]) -> None:
    cli.run(place)
    old = place.out / "align" / "old"
    old.touch()
    cli.run(place, begin="align")
    assert done[len(STAGES) :] == ["align", "int8", "evaluation", "serving"]
    assert not old.exists()


def test_a_run_that_was_stopped_goes_on_with_the_stage_that_was_not_done(
    place: Workplace, done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = cli._stages()

    def stop(_: Workplace) -> dict[str, Any]:
        """Stop."""
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_stages", lambda: {**stages, "serving": (stop, ())})
    with pytest.raises(KeyboardInterrupt):
        cli.run(place)
    monkeypatch.setattr(cli, "_stages", lambda: stages)
    cli.run(place)
    assert done == [*STAGES]


def test_a_stage_that_was_done_with_other_settings_is_named(place: Workplace, done: list[str], tmp_path: Path) -> None:
    cli.run(place)
    other = Workplace(place.out, shutil.copytree(place.scale, tmp_path / "other"))
    cli.run(other)
    recipe = other.scale / "dpo.yaml"
    recipe.write_text(recipe.read_text() + "seed: 3\n")
    with pytest.raises(ConfigError, match="--from align"):
        cli.run(other)
    cli.run(other, begin="align")
    assert done == [*STAGES, *STAGES[STAGES.index("align") :]]


def test_an_unknown_scale_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--scale", "huge", "--out", str(tmp_path / "run")]) == 2
    assert "--scale huge is neither one of full, tiny nor a folder" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["a: [", "", "[1]", "packages: true\n"])
def test_a_scale_without_its_sizes_is_one_line(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scale = tmp_path / "scale"
    scale.mkdir()
    (scale / "scale.yaml").write_text(text)
    assert cli.main(["--scale", str(scale), "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_place_that_is_no_folder_and_a_damaged_record_are_one_line(
    place: Workplace, done: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert cli.main(["--scale", str(place.scale), "--out", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    cli.run(place)
    (place.out / "figures" / "corpus.json").write_text('{"scale": ')
    with pytest.raises(ConfigError, match="--from corpus"):
        cli.run(place)
    cli.run(place, begin="corpus")
    assert done == [*STAGES, *STAGES]
