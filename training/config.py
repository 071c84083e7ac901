"""The recipe: every setting of a run, its default (the article's), its bounds and its help. Imports no torch.

training.read_config reads a recipe's file.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, model_validator

if TYPE_CHECKING:
    from collections.abc import Mapping


def setting(text: str, default: Any = ..., **bounds: Any) -> Any:
    """A field of a section: its help, its default if it has one, and bounds as pydantic's Field."""
    return Field(default, description=text, **bounds)


class Section(BaseModel):
    """A part of the recipe: frozen, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Integer = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True)]
_MOST_STEPS = 10**12
_LARGEST = 1e6  # of what the optimizer multiplies by: far above all that trains, and a finite number in float32
_MOST_RANKS = 1 << 20
NamedPath = Annotated[Path, BeforeValidator(lambda value: value or None)]  # "" would be the working directory
Files = Annotated[tuple[NamedPath, ...], Field(min_length=1)]


class LanguageModelSettings(Section):
    """Next tokens of documents."""

    kind: Literal["language_model"] = "language_model"


class SFTSettings(Section):
    """Next tokens of the assistant's messages in chats."""

    kind: Literal["sft"]


class DPOSettings(Section):
    """Preference pairs (arXiv 2305.18290)."""

    kind: Literal["dpo"]
    beta: Number = setting("how firmly the model is held to the one that it started from", 0.1, gt=0, le=_LARGEST)


class HeadSettings(Section):
    """What the objectives of task heads share."""

    train: Literal["all", "head"] = setting("head: leave all but the head as it is", "all")


class ClassificationSettings(HeadSettings):
    """Labels of texts, for the classification head."""

    kind: Literal["classification"]
    labels: tuple[str, ...] | None = setting("names of the classes; by default config.json's", None, min_length=2)


class ReasoningSettings(HeadSettings):
    """How sound a chain of thought is, for the reasoning head."""

    kind: Literal["reasoning"]


class AnyObjectiveSettings(DPOSettings, ClassificationSettings):
    """The settings of all objectives, for help and for hints."""

    kind: Any = None


ObjectiveSettings = Annotated[
    LanguageModelSettings | SFTSettings | DPOSettings | ClassificationSettings | ReasoningSettings,
    Discriminator("kind"),
    BeforeValidator(lambda value: {"kind": value} if isinstance(value, str) else value),
]


class DataSettings(Section):
    """Which documents, and how they become micro batches."""

    files: Files = setting("JSONL (.jsonl), plain text, or folders with both")
    max_length: Integer = setting("tokens of a row at most", 4096, ge=2, le=(1 << 24) - 1)
    long_documents: Literal["split", "cut"] = setting(
        "what follows a document's first max_length tokens: rows of its own (split), or nothing (cut)", "split"
    )
    micro_batch_size: Integer = setting("rows of one forward pass", 8, ge=1, le=1 << 16)
    pad_to: Literal["longest", "max_length"] = setting(
        "the width of a micro batch: its longest row's, or always max_length", "longest"
    )


class ValidationSettings(Section):
    """Held-out documents, whose loss is taken as the run goes."""

    files: Files = setting("as data.files")
    interval: Integer = setting("steps from one time to the next", 1000, ge=1, le=_MOST_STEPS)
    micro_batches: Integer = setting("how many are taken at most, the same each time", 16, ge=1, le=1 << 20)


class ParallelismSettings(Section):
    """The number of ranks along each axis; their product is the number of processes."""

    tensor: Integer = setting("ranks that share each layer's matrices and experts", 1, ge=1, le=_MOST_RANKS)
    pipeline: Integer = setting("ranks that have some of the layers each", 1, ge=1, le=_MOST_RANKS)
    data: Integer = setting(
        "ranks that read different rows; the optimizer's state is divided among them", 1, ge=1, le=_MOST_RANKS
    )

    @property
    def num_ranks(self) -> int:
        """Processes in all."""
        return self.tensor * self.pipeline * self.data


class EWCSettings(Section):
    """Elastic weight consolidation: an old task that is not to be forgotten."""

    fisher: Path = setting("the old task's file, which --fisher writes")
    strength: Number = setting("how firmly the weights are held that the old task needs", 1.0, ge=0, le=_LARGEST)


class Settings(Section):
    """The whole recipe."""

    output: NamedPath = setting("the run's folder: checkpoints/, tensorboard/, metrics.jsonl, export/")
    model: Path = setting("a config.json, for new weights; or a folder, for its weights")
    tokenizer: Path | None = setting("a folder with tokenizer.json; by default the model's", None)
    seed: Integer = setting("of new weights, of the data's order and of dropout", 0, ge=0, lt=1 << 63)
    objective: ObjectiveSettings = setting(
        "language_model, sft, dpo, classification or reasoning; with settings: {kind: dpo, beta: 0.1}",
        LanguageModelSettings(),
    )
    data: DataSettings
    validation: ValidationSettings | None = None

    precision: Literal["bfloat16", "float32"] = setting(
        "bfloat16: autocast of matrix products; weights and sums stay in float32", "bfloat16"
    )
    optimizer: Literal["Lion", "AdamW"] = setting("Lion or AdamW", "Lion")
    learning_rate: Number = setting("the highest, at the end of the warm-up", 3e-5, gt=0, le=_LARGEST)
    weight_decay: Number = setting("of matrices, by the learning rate", 0.01, ge=0, le=_LARGEST)
    beta1: Number = setting("of the optimizer", 0.9, ge=0, lt=1)
    beta2: Number = setting("of the optimizer", 0.99, ge=0, lt=1)
    gradient_clipping: Number = setting("the norm of a step's gradients at most; 0 is no limit", 1.0, ge=0, le=_LARGEST)
    warmup_steps: Integer = setting("steps in which the learning rate rises to its highest", 2000, ge=0, le=_MOST_STEPS)
    total_steps: Integer = setting(
        "steps of the run; the learning rate falls by a cosine to its end", 100_000, ge=1, le=_MOST_STEPS
    )
    accumulation_steps: Integer = setting("micro batches of a step, divided over the data ranks", 1, ge=1, le=1 << 16)
    ewc: EWCSettings | None = None

    checkpoint_interval: Integer = setting("steps from one checkpoint to the next", 1000, ge=1, le=_MOST_STEPS)
    keep_last: Integer = setting("checkpoints that are kept", 3, ge=1, le=_MOST_STEPS)
    log_interval: Integer = setting(
        "steps from one line of progress to the next; metrics.jsonl has all", 10, ge=1, le=_MOST_STEPS
    )

    device: Literal["auto", "cpu", "cuda"] = setting("auto takes a GPU where there is one", "auto")
    activation_checkpointing: Annotated[bool, Field(strict=True)] = setting(
        "compute layers again in the backward pass, to keep less in memory", False
    )
    parallelism: ParallelismSettings = ParallelismSettings()
    peak_tflops: Number | None = setting("of one rank, for MFU; by default it is measured", None, gt=0, le=_LARGEST)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.warmup_steps > self.total_steps:
            raise ValueError(
                f"warmup_steps is {self.warmup_steps}; expected at most total_steps ({self.total_steps}), or the "
                "learning rate never reaches learning_rate"
            )
        return self

    @property
    def tokenizer_folder(self) -> Path:
        """Where tokenizer.json is."""
        return self.tokenizer or (self.model if self.model.is_dir() else self.model.parent)


SECTIONS: Mapping[str, type[Section]] = {
    "objective": AnyObjectiveSettings,
    "data": DataSettings,
    "validation": ValidationSettings,
    "ewc": EWCSettings,
    "parallelism": ParallelismSettings,
}
