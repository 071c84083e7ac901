"""The folder of one run of `make article`, and the sizes that it was made with.

Each stage leaves its figures in figures/STAGE.json when it is done, and is passed over from then on.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from engine.errors import ConfigError
from training.evaluation.report import write
from training.read_yaml import read_yaml

SCALES = Path(__file__).with_name("scales")
DOMAINS = ("prose", "code")  # what is learnt first, and what next

_FILES: dict[str, tuple[str, ...]] = {  # of a scale, that each stage is the first to use
    "corpus": ("scale.yaml",),
    "tokenizer": (),
    "pretrain": ("model.json", "pretrain.yaml"),
    "continual": ("continual.yaml",),
    "seeds": ("seeds_model.json", "seeds_pretrain.yaml", "seeds_continual.yaml"),
    "align": ("sft.yaml", "dpo.yaml", "safety.yaml"),
    "int8": (),
    "evaluation": (),
    "serving": (),
}
STAGES = tuple(_FILES)  # in order
_SIZES = (
    *("packages", "corpus", "tokenizer_megabytes", "vocab_size", "max_length", "held_out_tokens", "fisher_batches"),
    *("seeds", "calibration_tokens", "evaluation", "serving"),
)

Figures = dict[str, Any]


@dataclass(frozen=True)
class Workplace:
    """One run.

    Attributes:
        out: its folder.
        scale: the folder with scale.yaml, the models' config.json files and the recipes.
    """

    out: Path
    scale: Path

    @cached_property
    def sizes(self) -> Figures:
        """What scale.yaml says.

        Raises:
            ConfigError: it is no YAML, or a size is not in it.
        """
        path = self.scale / "scale.yaml"
        sizes = read_yaml(path)
        if absent := [name for name in _SIZES if not isinstance(sizes, dict) or name not in sizes]:
            raise ConfigError(f"{path} lacks {', '.join(absent)}")
        return dict(sizes)

    def train(self, kind: str) -> Path:
        """Records to learn: of a domain, or "chats", "preferences", "safety"."""
        return self.out / "corpus" / f"{kind}.train.jsonl"

    def held_out(self, kind: str) -> Path:
        """Records of that kind that are only tested."""
        return self.out / "corpus" / f"{kind}.held-out.jsonl"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer's folder."""
        return self.out / "tokenizer"

    def model(self, run: str) -> Path:
        """What a training run exported."""
        return self.out / run / "export"

    def figures(self, stage: str) -> Figures | None:
        """What a stage found; None if it is not done.

        Raises:
            ConfigError: it was done with other settings, or its record is damaged.
        """
        path = self._record(stage)
        if not path.exists():
            return None
        try:
            record: Figures = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise ConfigError(f"{path} is damaged: do the stage again with --from {stage}") from None
        if record["scale"] != self._digest(stage):
            raise ConfigError(
                f"{self.out} has a stage {stage} that was done with other settings than {self.scale} has now: do it "
                f"again with --from {stage}, or name another folder with --out"
            )
        figures: Figures = record["figures"]
        return figures

    def done(self, stage: str, figures: Figures, seconds: float) -> None:
        """Keep a stage's figures."""
        write(self._record(stage), {"scale": self._digest(stage), "seconds": round(seconds, 1), "figures": figures})

    def forget(self, stage: str) -> None:
        """Let a stage be done again."""
        self._record(stage).unlink(missing_ok=True)

    def seconds(self, stage: str) -> float:
        """How long a stage took that is done."""
        return float(json.loads(self._record(stage).read_text(encoding="utf-8"))["seconds"])

    def _record(self, stage: str) -> Path:
        return self.out / "figures" / f"{stage}.json"

    def _digest(self, stage: str) -> str:
        """Of the files of the scale that this stage and those before it use."""
        before = STAGES[: STAGES.index(stage) + 1]
        files = [self.scale / name for one in before for name in _FILES[one]]
        return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()[:16]
