"""The report of a run: what each stage found, in tables and pictures. Every number in it is the run's own."""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.article import curves
from training.article.workplace import DOMAINS, STAGES
from training.evaluation import report as evaluation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from training.article.workplace import Figures, Workplace

OLD, NEW = DOMAINS


def write(place: Workplace, path: Path, pictures: Path) -> str:
    """Write the report and its pictures; its text."""
    names = curves.draw(place, pictures)
    links = [os.path.relpath(pictures / name, path.parent) for name in names]
    parts = [_beginning(place), _pretraining(place, links), _continual(place, links), _alignment(place), _int8(place)]
    text = "\n\n".join([*parts, _evaluation(place), _serving(place), _times(place)]) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return text


def _beginning(place: Workplace) -> str:
    found = _figures(place, "pretrain")
    return f"""# The whole way

`make article` made this at the scale `{place.scale.name}`, on {_processor()}, cores: {len(os.sched_getaffinity(0))}.
It goes from the text of installed Python packages to a served int8 model of {found["parameters"] / 1e6:.1f} million
parameters.
[training.md](training.md) explains the parts."""


def _pretraining(place: Workplace, links: Sequence[str]) -> str:
    found, size = _figures(place, "pretrain"), _figures(place, "tokenizer")["tokens"]
    losses, per = found["losses"], found["held_out_characters_a_token"]
    rows = [
        [name, f"{loss:.3f}", f"{math.exp(loss):.1f}", f"{loss / math.log(2) / per:.2f}"]
        for name, loss in losses.items()
    ]
    return f"""## Training

{found["tokens"] / 1e6:.2f} million tokens of {OLD} ({found["train_tokens"] / 1e6:.2f} million are there) in
{found["steps"]} steps and {found["training_seconds"] / 60:.1f} minutes: {found["tokens_per_second"]:.0f} tokens a
second, at an MFU of {found["mfu"]:.0%}. The vocabulary has {size} tokens. In the last step {found["dropped"]:.1%} of
the experts' choices were dropped; {found["skipped_steps"]} steps were skipped for NaN.

On {found["held_out_tokens"]} tokens of held-out {OLD}, the n-grams counted on all text for training:

{_table(["", "nats a token", "perplexity", "bits a character"], rows)}

![Loss]({links[0]})

![Experts]({links[1]})"""


def _continual(place: Workplace, links: Sequence[str]) -> str:
    full, seeds = _figures(place, "continual"), _figures(place, "seeds")["seeds"]
    rows = [
        [name, *(f"{one[key][way]:+.3f}" for key in ("forgotten", "learnt") for way in ("plain", "ewc")), _share(one)]
        for name, one in [("the model", full), *((f"small, seed {n}", one) for n, one in enumerate(seeds))]
    ]
    head = ["", "forgotten, plain", "with EWC", "learnt, plain", "with EWC", "kept by EWC"]
    return f"""## Continual learning

The model goes on with {NEW}, once plainly and once with elastic weight consolidation, on the same batches. Forgotten
is how much the loss on held-out {OLD} rose, learnt how much that on held-out {NEW} fell, in nats a token. Kept is the
share of what plain fine-tuning forgets that EWC does not.

{_table(head, rows)}

![EWC]({links[2]})"""


def _alignment(place: Workplace) -> str:
    found, seen = _figures(place, "align"), _figures(place, "serving")["moderations"]
    rows = [
        [
            kind,
            str(one["steps"]),
            _number(one.get("loss")),
            _number(one.get("validation_loss")),
            _percent(one.get("accuracy", one.get("ranked_right"))),
        ]
        for kind, one in found.items()
    ]
    return f"""## Alignment

Elastic weight consolidation holds what the model knows of both domains here, too: without it chats alone make the
model worse on text than a bigram.

{_table(["stage", "steps", "loss", "held-out loss", "accuracy in training"], rows)}

Of {seen["texts"]} held-out requests, half of them harmful and all asked in ways that were not trained,
`POST /v1/moderations` of the served int8 model flags {seen["flagged_rightly"]:.1%} rightly."""


def _int8(place: Workplace) -> str:
    found = _figures(place, "int8")
    rows = [["full", *(f"{math.exp(found['losses']['full'][domain]):.3f}" for domain in DOMAINS), "", "", ""]]
    for name, changes in found["perplexity_changes"].items():
        perplexities = [f"{math.exp(found['losses'][name][domain]):.3f}" for domain in DOMAINS]
        shares = ", ".join(f"{share:.0%} {kind}" for kind, share in found["shares"][name].items() if share)
        rows.append([name, *perplexities, *(f"{changes[domain]:+.2%}" for domain in DOMAINS), shares])
    head = ["", f"{OLD}", f"{NEW}", f"{OLD}, change", f"{NEW}, change", "linear layers"]
    return f"""## Int8

Perplexity on held-out text of the aligned model, computed by the serving engine, after `deepseek-serve quantize`; a
bigram's on the same {OLD} is {math.exp(_figures(place, "pretrain")["losses"]["bigram"]):.1f}:

{_table(head, rows)}"""


def _evaluation(place: Workplace) -> str:
    found = _figures(place, "evaluation")
    known = evaluation.Row.__dataclass_fields__
    rows = [evaluation.Row(**{key: row[key] for key in known}) for row in found["benchmarks"]]
    return f"""## Evaluation

`make evaluate` of the served int8 model. `continuations` asks which of four continuations is a held-out text's own (25%
by chance).

{evaluation.as_table("this model", rows).rstrip()}"""


def _serving(place: Workplace) -> str:
    found = _figures(place, "serving")
    texts = [f"{one['prompt']} \u25b6{one['text']}" for one in found["continuations"]]
    chats = [f"{one['question']} \u25b6 {one['answer']}" for one in found["chats"]]
    return "\n\n".join(
        [
            "## What it says",
            "Beginnings of held-out texts and, after the triangle, how the model goes on (temperature 0.7):",
            *map(_block, texts),
            "Held-out questions and, after the triangle, its answers (greedy):",
            _block("\n\n".join(chats)),
        ]
    )


def _times(place: Workplace) -> str:
    rows = [[name, f"{place.seconds(name):.0f}"] for name in STAGES]
    return f"## Seconds of each stage\n\n{_table(['stage', 'seconds'], rows)}"


def _figures(place: Workplace, stage: str) -> Figures:
    found = place.figures(stage)
    assert found is not None, f"{stage} is not done"
    return found


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _share(one: Figures) -> str:
    return "-" if one["kept_share"] is None else f"{one['kept_share']:.0%}"


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.3f}"


def _percent(value: Any) -> str:
    return "" if value is None else f"{value:.0%}"


def _block(text: str) -> str:
    """A model's text as it is, whatever marks it has."""
    lines = [line.rstrip() for line in text.replace("`````", "````").splitlines()]
    return "\n".join(["`````text", *lines, "`````"])


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
