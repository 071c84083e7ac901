"""The way of alignment by the command: chats, preferences, a safety head; and a second task that keeps the first."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from server import LLM
from tests.support import tiny_recipe
from training.cli import run_command
from training.continual.ewc import EWCPenalty
from training.model.build import build_model
from training.model.description import ModelDescription

if TYPE_CHECKING:
    from pathlib import Path

CHATS = [
    {"messages": [{"role": "user", "content": f"say {word}"}, {"role": "assistant", "content": word}]}
    for word in ("yes", "no", "red", "blue")
]
PAIRS = [{"prompt": f"say {word}", "chosen": word, "rejected": "never"} for word in ("yes", "no", "red", "blue")]
LABELLED = [
    {"text": f"{n} {word}", "label": label} for n in range(8) for word, label in (("bad", "harm"), ("ok", "safe"))
]
SOUND = [{"text": f"{n} + 1 = {n + 1}", "label": True} for n in range(4)] + [{"text": "1 + 1 = 3", "label": False}]


class Runs:
    """Runs of the command in one folder, each from an export."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.recipe = folder, str(tiny_recipe.write(folder))

    def run(self, name: str, model: Path, lines: list[dict[str, Any]], *overrides: str) -> Path:
        """The export of a run on these lines."""
        data = self.folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(line) + "\n" for line in lines))
        output, folder = self.folder / name, [f"data.files=[{data}]", "learning_rate=3e-3", "warmup_steps=0"]
        assert run_command([self.recipe, f"model={model}", f"output={output}", *folder, *overrides]) == 0
        return output / "export"

    def last(self, name: str) -> dict[str, Any]:
        """The metrics of a run's last step."""
        line: dict[str, Any] = json.loads((self.folder / name / "metrics.jsonl").read_text().splitlines()[-1])
        return line


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


@pytest.fixture
def trained(runs: Runs) -> Path:
    """A model that has read something."""
    assert run_command([runs.recipe, "total_steps=2", "warmup_steps=0"]) == 0
    return runs.folder / "run" / "export"


def test_chats_then_preferences_then_a_safety_head_that_is_served(runs: Runs, trained: Path) -> None:
    chats = runs.run("sft", trained, CHATS, "objective=sft", "total_steps=6")
    preferring = runs.run("dpo", chats, PAIRS, "objective={kind: dpo, beta: 0.5}", "total_steps=6")
    assert runs.last("dpo")["ranked_right"] > 0.5
    assert runs.last("dpo")["loss"] < 0.69
    labels = "objective={kind: classification, labels: [safe, harm], train: head}"
    safe = runs.run("safety", preferring, LABELLED, labels, "total_steps=40", "learning_rate=0.02", "optimizer=AdamW")
    assert runs.last("safety")["accuracy"] == 1
    config = json.loads((safe / "config.json").read_text())
    assert config["task_heads"] == {"classification": {"labels": ["safe", "harm"]}}
    before, after = (LLM(folder, dtype="float32", kernels="torch", num_kv_blocks=16) for folder in (preferring, safe))
    prompt = before.tokenizer.encode("say yes")
    assert [after.generate([prompt], use_tqdm=False)[0].text] == [before.generate([prompt], use_tqdm=False)[0].text]
    assert [c.label for c in after.classify(["3 bad", "3 ok"], use_tqdm=False)] == ["harm", "safe"]
    reasoning = runs.run("reasoning", safe, SOUND, "objective=reasoning", "total_steps=2")
    assert json.loads((reasoning / "config.json").read_text())["task_heads"].keys() == {"classification", "reasoning"}


def test_a_second_task_is_held_to_the_first(runs: Runs, trained: Path) -> None:
    fisher = runs.folder / "first.fisher"
    assert run_command([runs.recipe, f"model={trained}", "total_steps=2", "--fisher", str(fisher)]) == 0
    held = runs.run(
        "held", trained, CHATS, "objective=sft", "total_steps=8", f"ewc.fisher={fisher}", "ewc.strength=1e4"
    )
    free = runs.run("free", trained, CHATS, "objective=sft", "total_steps=8")
    assert runs.last("held")["penalty"] > 0
    assert "penalty" not in runs.last("free")
    assert _forgotten(fisher, held) < 0.5 * _forgotten(fisher, free)


def _forgotten(fisher: Path, folder: Path) -> float:
    """How far an export's weights are from the old ones, by what the old task needs of each."""
    model = build_model(ModelDescription.read(folder), folder)
    return sum(EWCPenalty(fisher, 1.0, model).add_gradients(model).values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["objective=dpo"], "expects a folder with the weights to start from"),
        (["objective=classification"], "expected objective.labels"),
        (["--fisher", "x"], "--fisher expects a folder"),
        (["ewc.fisher=nowhere"], "ewc.fisher nowhere cannot be read"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(
    runs: Runs, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run_command([runs.recipe, *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
