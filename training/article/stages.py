"""The stages of the whole way up to a model that knows both domains: text, tokenizer, training, EWC."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

from training.article import corpus, held_out, recipes
from training.article.sources import find_modules
from training.article.workplace import DOMAINS
from training.data.train_tokenizer import save_tokenizer, texts_of, train_tokenizer

if TYPE_CHECKING:
    from training.article.held_out import Row
    from training.article.workplace import Figures, Workplace

OLD, NEW = DOMAINS


def write_corpus(place: Workplace) -> Figures:
    """Text of installed packages: what docstrings say, and code; and data to align with."""
    folders = [Path(sysconfig.get_path("stdlib")), *(Path(path) for path in sys.path if path.endswith("-packages"))]
    folders = folders if place.sizes["packages"] else folders[:1]
    sizes = corpus.CorpusSizes(**place.sizes["corpus"])
    return dict(corpus.write_corpus(place.out / "corpus", sizes, modules=find_modules(folders)))


def make_tokenizer(place: Workplace) -> Figures:
    """A tokenizer of both domains."""
    files = [place.train(domain) for domain in DOMAINS]
    made = train_tokenizer(texts_of(files, place.sizes["tokenizer_megabytes"]), place.sizes["vocab_size"])
    save_tokenizer(made, place.tokenizer)
    return {"tokens": made.get_vocab_size()}


def pretrain(place: Workplace) -> Figures:
    """The model, on prose; its loss on held-out ones beside a unigram's and a bigram's on the same tokens."""
    found = recipes.train(
        place, "pretrain", "pretrain", place.scale / "model.json",
        place.train(OLD), place.held_out(OLD),
    )  # fmt: skip
    length = place.sizes["max_length"]
    tokenizer = held_out.tokenizer_of(place.tokenizer)
    rows = held_out_rows(place)[OLD]
    pairs = held_out.read_pairs([place.train(OLD)], tokenizer, length)
    losses = held_out.ngram_losses(pairs, rows, tokenizer.vocab_size)
    return {
        **found,
        "parameters": _num_parameters(place.model("pretrain")),
        "train_tokens": len(pairs[0]),
        "held_out_tokens": sum(len(row.token_ids) - 1 for row in rows),
        "held_out_characters_a_token": _characters_a_token(place, rows),
        "losses": {**losses, "model": held_out.model_losses(place.model("pretrain"), {OLD: rows})[OLD]},
    }


def continue_training(place: Workplace) -> Figures:
    """The model goes on with code, once held by EWC and once not; what it forgets of prose."""
    return _continue(place, "pretrain", place.out, "", "pretrain", "continual", 0)


def repeat_with_seeds(place: Workplace) -> Figures:
    """The same with a small model from the beginning, once for each seed."""
    found = []
    for seed in range(place.sizes["seeds"]):
        folder = f"seeds/{seed}/"
        recipes.train(
            place, f"{folder}pretrain", "seeds_pretrain", place.scale / "seeds_model.json",
            place.train(OLD), place.held_out(OLD), settings={"seed": seed},
        )  # fmt: skip
        found.append(
            _continue(place, f"{folder}pretrain", place.out / folder, folder, "seeds_pretrain", "seeds_continual", seed)
        )
    return {"seeds": found}


def _continue(
    place: Workplace, base: str, folder: Path, prefix: str, old_recipe: str, recipe: str, seed: int
) -> Figures:
    """Fisher of the old domain, then plain fine-tuning and EWC's; held-out losses before and after."""
    model, fisher = place.model(base), folder / "fisher.safetensors"
    recipes.measure_fisher(place, old_recipe, model, [place.train(OLD)], fisher, place.sizes["fisher_batches"])
    files = place.train(NEW), place.held_out(NEW)
    recipes.train(place, f"{prefix}plain", recipe, model, *files, settings={"seed": seed, "ewc": None})
    recipes.train(place, f"{prefix}ewc", recipe, model, *files, settings={"seed": seed, "ewc.fisher": str(fisher)})
    rows = held_out_rows(place)
    losses = {
        name: held_out.model_losses(place.model(run), rows)
        for name, run in (("before", base), ("plain", f"{prefix}plain"), ("ewc", f"{prefix}ewc"))
    }
    forgotten = {name: losses[name][OLD] - losses["before"][OLD] for name in ("plain", "ewc")}
    learnt = {name: losses["before"][NEW] - losses[name][NEW] for name in ("plain", "ewc")}
    kept = 1 - forgotten["ewc"] / forgotten["plain"] if forgotten["plain"] > 0 else None
    return {"losses": losses, "forgotten": forgotten, "learnt": learnt, "kept_share": kept}


def held_out_rows(place: Workplace) -> dict[str, list[Row]]:
    """The held-out rows of both domains; the same in every stage."""
    tokenizer = held_out.tokenizer_of(place.tokenizer)
    length, num_tokens = place.sizes["max_length"], place.sizes["held_out_tokens"]
    return {domain: held_out.read_rows([place.held_out(domain)], tokenizer, length, num_tokens) for domain in DOMAINS}


def _num_parameters(model: Path) -> int:
    from engine.loading.safetensors_source import SafetensorsSource

    source = SafetensorsSource(model)
    return sum(source.read(name).numel() for name in source.names())


def _characters_a_token(place: Workplace, rows: list[Row]) -> float:
    tokenizer = held_out.tokenizer_of(place.tokenizer)
    texts = [tokenizer.decode(row.token_ids[1:], skip_special_tokens=False) for row in rows]
    return round(sum(map(len, texts)) / sum(len(row.token_ids) - 1 for row in rows), 3)
