"""The stages from the model that knows both domains to the served one: alignment, int8, evaluation, serving."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import math
import random
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.commands import quantize
from server.commands.remote import RemoteServer
from training.article import recipes
from training.article.held_out import model_losses
from training.article.stages import held_out_rows
from training.article.workplace import DOMAINS
from training.errors import TrainingError
from training.evaluation import report, served
from training.evaluation.evaluate import Wanted, evaluate
from training.evaluation.harness import TASKS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from training.article.workplace import Figures, Workplace
    from training.evaluation.served import Served

_CONTINUATIONS = Path(__file__).with_name("continuations.yaml")
SCHEMES = {"int8-dynamic": "w8a8-dynamic", "int8-static": "w8a8-static"}
SERVED = "int8-dynamic"
_CALIBRATION_DOCUMENTS = 100  # of each domain
_TEXTS_AT_A_TIME = 32
_BEGINNING = 60  # characters of a document that the served model goes on with
_CHOICES, _CONTEXT, _CONTINUATION = 4, 200, 80  # of a question; and characters


def align(place: Workplace) -> Figures:
    """Chats, then preferences, then the safety head, each from where the one before ended; EWC holds the language."""
    figures: Figures = {}
    model, fisher = place.model("ewc"), place.out / "language.fisher"
    language = [place.train(domain) for domain in DOMAINS]
    recipes.measure_fisher(place, "continual", model, language, fisher, place.sizes["fisher_batches"])
    for recipe, data in (("sft", "chats"), ("dpo", "preferences"), ("safety", "safety")):
        files = place.train(data), place.held_out(data)
        figures[recipe] = recipes.train(place, recipe, recipe, model, *files, settings={"ewc.fisher": str(fisher)})
        model = place.model(recipe)
    return figures


def quantise(place: Workplace) -> Figures:
    """Int8 by `deepseek-serve quantize`, static and dynamic; the perplexities that the engine computes with each."""
    calibration = place.out / "calibration.jsonl"
    _write_calibration(place, calibration)
    rows = held_out_rows(place)
    full = place.model("safety")
    losses, shares = {"full": model_losses(full, rows)}, {}
    for name, scheme in SCHEMES.items():
        out = place.out / name
        shutil.rmtree(out, ignore_errors=True)
        shares[name] = _quantize(full, out, scheme, calibration, place.sizes["calibration_tokens"])["shares"]
        losses[name] = model_losses(out, rows)
    changes = {
        name: {domain: math.exp(losses[name][domain] - losses["full"][domain]) - 1 for domain in DOMAINS}
        for name in SCHEMES
    }
    return {"losses": losses, "perplexity_changes": changes, "shares": shares}


def evaluate_served(place: Workplace) -> Figures:
    """What `make evaluate` asks, and a task of held-out continuations, of the served int8 model."""
    wanted = dict(place.sizes["evaluation"])
    continuations = place.out / "evaluation" / "continuations.yaml"
    _write_continuations(place, continuations, wanted.pop("continuations"))
    tasks = [str(continuations), *sorted(map(str, TASKS.glob("*.yaml")))]
    with served.started(str(place.out / SERVED)) as server:
        only = tuple(wanted["only"])
        rows = evaluate(server, Wanted(only, place.out / "evaluation", tasks, wanted["limit"]))
    figures = report.as_json(server.model, rows)
    report.write(place.out / "scores.json", figures)
    return figures


def serve(place: Workplace) -> Figures:
    """What users would see of the served model: continuations, answers of chats, moderations."""
    sizes, texts = place.sizes["serving"], _records(place.held_out("safety"))
    with served.started(str(place.out / SERVED)) as server:
        api = RemoteServer(server.url)
        continuations = [
            _continue(api, server, prompt, sizes["tokens"]) for prompt in _prompts(place, sizes["prompts"])
        ]
        questions = [record["messages"][0]["content"] for record in _records(place.held_out("chats"))]
        chats = [_chat(api, server, question, sizes["tokens"]) for question in questions[: sizes["prompts"]]]
        moderated = _moderate(api, [text["text"] for text in texts])
    flagged = [found["flagged"] == (text["label"] != "safe") for found, text in zip(moderated, texts, strict=True)]
    likeliest = [max(found["category_scores"], key=found["category_scores"].get) for found in moderated]
    right = [label == text["label"] for label, text in zip(likeliest, texts, strict=True)]
    return {
        "continuations": continuations,
        "chats": chats,
        "moderations": {
            "texts": len(texts),
            "flagged_rightly": sum(flagged) / len(flagged),
            "label_right": sum(right) / len(right),
            "largest_class": max(sum(text["label"] == label for text in texts) for label in set(likeliest))
            / len(texts),
        },
    }


def _write_calibration(place: Workplace, path: Path) -> None:
    documents = (itertools.islice(_lines(place.train(domain)), _CALIBRATION_DOCUMENTS) for domain in DOMAINS)
    path.write_text("".join(itertools.chain(*documents)), encoding="utf-8")


def _quantize(model: Path, out: Path, scheme: str, calibration: Path, num_tokens: int) -> Figures:
    """Run the command; what it reports.

    Raises:
        TrainingError: it failed; it has said why.
    """
    flags = ["--model", model, "--out", out, "--scheme", scheme, "--calibration", calibration, "--tokens", num_tokens]
    with contextlib.redirect_stdout(io.StringIO()) as output:
        status = quantize.main([*map(str, flags), "--json"])
    if status != 0:
        raise TrainingError(f"deepseek-serve quantize ended with status {status}")
    figures: Figures = json.loads(output.getvalue())
    return figures


def _write_continuations(place: Workplace, path: Path, count: int) -> None:
    """Questions with four continuations of a held-out text each, of which one is its own."""
    rng = random.Random(0)  # noqa: S311  # no secret
    texts = [
        text for domain in DOMAINS for record in _records(place.held_out(domain))
        if len(text := record["text"].strip()) > _CONTEXT + _CONTINUATION
    ]  # fmt: skip
    if len(texts) < _CHOICES:
        raise TrainingError(f"the held-out documents have {len(texts)} long texts; {_CHOICES} are needed")
    rng.shuffle(texts)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".jsonl").open("w", encoding="utf-8") as file:
        for number, text in enumerate(texts[:count]):
            others = rng.sample([other for at, other in enumerate(texts) if at != number], _CHOICES - 1)
            choices = [other[_CONTEXT : _CONTEXT + _CONTINUATION] for other in (text, *others)]
            order = rng.sample(range(_CHOICES), _CHOICES)
            question = {"context": text[:_CONTEXT], "choices": [choices[at] for at in order], "answer": order.index(0)}
            file.write(json.dumps(question) + "\n")
    shutil.copy(_CONTINUATIONS, path)


def _prompts(place: Workplace, count: int) -> Iterator[tuple[str, str]]:
    """Beginnings of held-out documents, each with its modality."""
    for domain, modality in zip(DOMAINS, ("text", "code"), strict=True):
        for record in itertools.islice(_records(place.held_out(domain)), count):
            beginning, _, _ = record["text"][:_BEGINNING].rpartition(" ")
            yield f"{record['title']} [SEP] {beginning}", modality


def _continue(api: RemoteServer, server: Served, prompt: tuple[str, str], num_tokens: int) -> Figures:
    text, modality = prompt
    body = {
        "model": server.model,
        "prompt": text,
        "modality": modality,
        "max_tokens": num_tokens,
        "temperature": 0.7,
        "seed": 0,
    }
    answer: str = api.post("/v1/completions", body)["choices"][0]["text"]
    return {"prompt": text, "modality": modality, "text": answer}


def _chat(api: RemoteServer, server: Served, question: str, num_tokens: int) -> Figures:
    messages = [{"role": "user", "content": question}]
    body = {"model": server.model, "messages": messages, "max_tokens": num_tokens, "temperature": 0.0}
    answer: str = api.post("/v1/chat/completions", body)["choices"][0]["message"]["content"]
    return {"question": question, "answer": answer}


def _moderate(api: RemoteServer, texts: list[str]) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    for first in range(0, len(texts), _TEXTS_AT_A_TIME):
        results += api.post("/v1/moderations", {"input": texts[first : first + _TEXTS_AT_A_TIME]})["results"]
    return results


def _records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in _lines(path)]


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines(keepends=True)
