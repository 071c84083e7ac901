"""training.article.corpus: two domains of text without copies, and sets for alignment, each with a held-out part."""

import json
from collections import Counter
from pathlib import Path

import pytest

from training.article import corpus, made_up, phrases
from training.article.corpus import CorpusSizes, main, write_corpus
from training.article.novelty import Novelty
from training.article.sources import Module, find_modules, read_module
from training.errors import TrainingError

SOURCE = '''# Copyright of somebody.
# All rights reserved.

"""Reads the water of a river, once an hour, from a sensor.

    >>> read("Rhine")
    4.2

It has one function. The level is what the sensor says, and nobody checks it again.

:param name: of the river, which has to be one of those that are known.
"""

import sensors  # of the river


def read(name):
    """Return the level of a river, in metres above the sea, as the last hour had it.

    Args:
        name: of it.
    """
    level = sensors.last(name)


    return level
'''


def _records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _module(folder: Path, name: str, source: str = SOURCE) -> Module:
    path = folder / f"{name}.py"
    path.write_text(source)
    return Module(name, path)


def _modules(folder: Path, count: int) -> list[Module]:
    """Modules that differ in every line."""
    return [
        _module(
            folder,
            f"river{i}",
            SOURCE.replace("river", f"river number {i}")
            .replace("level", f"level_{i}")
            .replace(
                "sensors.last(name)",
                "[\n" + "".join(f"        sensors.of_{i}_{j}(name),\n" for j in range(20)) + "    ]",
            )
            .replace("import sensors", f"import sensors_{i}")
            .replace("It has", f"As {i} others it has"),
        )
        for i in range(count)
    ]


def test_prose_is_whole_sentences_and_code_has_no_docstrings(tmp_path: Path) -> None:
    text = read_module(_module(tmp_path, "river"))
    assert text is not None
    assert text.prose == (
        "Reads the water of a river, once an hour, from a sensor.",
        "It has one function. The level is what the sensor says, and nobody checks it again.",
        "Return the level of a river, in metres above the sea, as the last hour had it.",
    )
    assert text.code == (
        "import sensors  # of the river\n\ndef read(name):\n\n    level = sensors.last(name)\n\n    return level"
    )


@pytest.mark.parametrize("source", ["def f(:", "x = '\0'", "(" * 5000 + ")" * 5000, "\udcff"])
def test_what_is_no_python_is_passed_over(tmp_path: Path, source: str) -> None:
    path = tmp_path / "a.py"
    path.write_bytes(source.encode(errors="surrogateescape"))
    assert read_module(Module("a", path)) is None


def test_data_in_the_form_of_code_is_none(tmp_path: Path) -> None:
    text = read_module(_module(tmp_path, "a", f'table = "{"x" * 300}"\n'))
    assert text is not None
    assert not text.code


def test_modules_are_found_in_an_order_that_is_random_and_always_the_same(tmp_path: Path) -> None:
    for name in ("a/__init__", "a/b", "a/tests/c", "a/test_d", "e-f/g", "site-packages/h", "small", *"ijklmn"):
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text("x = 1\n" * (1 if name == "small" else 200))
    names = [module.name for module in find_modules([tmp_path])]
    assert sorted(names) == ["a", "a.b", *"ijklmn"]
    assert names != sorted(names)
    assert names == [module.name for module in find_modules([tmp_path])]


def test_copies_are_known() -> None:
    novelty = Novelty(0.3)
    assert novelty.take(["The first sentence of it.", "The second sentence of it."])
    assert not novelty.take(["The  FIRST sentence of it."])
    assert not novelty.take(["The first sentence of it.", "A third sentence, as long."])
    assert novelty.take(["The first sentence of it.", "A third sentence that is much longer than the first one is."])
    assert novelty.take(["Short."])
    assert novelty.take(["Short."])


def test_a_corpus(tmp_path: Path) -> None:
    modules = _modules(tmp_path, 60)
    sizes = CorpusSizes(prose_mb=0.005, code_mb=0.01, chats=50, preferences=40, safety=30, held_out=0.3)
    out = tmp_path / "out"
    written = write_corpus(out, sizes, modules=[*modules, *modules])
    assert {path.name for path in out.iterdir()} == {*written, "about.json"}
    for domain, enough in (("prose", 5_000), ("code", 10_000)):
        train, held_out = (_records(out / f"{domain}.{part}.jsonl") for part in ("train", "held-out"))
        texts = [record["text"] for record in train + held_out]
        assert len(set(texts)) == len(texts)
        assert held_out
        assert enough <= sum(len(record["text"]) for record in train) < enough + 1_500
        assert all(record.get("modality") == ("code" if domain == "code" else None) for record in train)
    assert len(_records(out / "chats.train.jsonl")) == 50
    assert len(_records(out / "safety.held-out.jsonl")) == 3
    again = tmp_path / "again"
    write_corpus(again, sizes, modules=modules)
    assert all((again / name).read_bytes() == (out / name).read_bytes() for name in written)


def test_a_corpus_that_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    (tmp_path / "prose.train.jsonl").write_text("old")
    monkeypatch.setattr(corpus, "find_modules", list)
    assert main(["--out", str(tmp_path), "--prose-mb", "1"]) == 2
    assert "no module that is installed has prose" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["prose.train.jsonl"]
    with pytest.raises(TrainingError):
        write_corpus(tmp_path, modules=[])


def _asks_as(text: str, place: int) -> bool:
    return any(way.split("{}")[0] in text for ways in (phrases.WISHES, phrases.COMPLIANCE) for way in ways[place])


def test_what_is_made_up_has_held_out_ways_to_ask() -> None:
    train, held_out = (list(made_up.labelled(400, 0, is_held_out=is_held_out)) for is_held_out in (False, True))
    for place, records in enumerate((train, held_out)):
        assert Counter(record["label"] for record in records) == {"safe": 200, "unsafe": 200}
        for record in records:
            is_harmful = any(deed in record["text"] for deed in phrases.HARMFUL)
            assert is_harmful == (record["label"] == "unsafe")
            if is_harmful or any(deed in record["text"] for deed in phrases.HARMLESS):
                assert _asks_as(record["text"], place)
                assert not _asks_as(record["text"], 1 - place)
    assert len({record["text"] for record in train}) > 300


@pytest.mark.parametrize("is_held_out", [False, True])
def test_preferences_differ_and_chats_alternate(is_held_out: bool) -> None:
    for record in made_up.preferences(300, 1, is_held_out=is_held_out):
        assert record["chosen"] != record["rejected"]
        assert "{" not in record["prompt"]
    for record in made_up.chats(300, 1, is_held_out=is_held_out):
        roles = [message["role"] for message in record["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
    assert list(made_up.chats(5, 1)) != list(made_up.chats(5, 2))
