"""The recipe: every setting of a run, its default (the article's) and its bounds. Imports no torch.

Owns reading the YAML file and `KEY=VALUE` of the command line; each mistake is one line that names its key.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, ValidationError, model_validator

from engine.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic_core import ErrorDetails

Count = Annotated[int, Field(strict=True, ge=1)]
Amount = Annotated[float, Field(strict=True, ge=0)]
Fraction = Annotated[float, Field(strict=True, ge=0, lt=1)]


class Section(BaseModel):
    """A part of the recipe: frozen, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LanguageModelSettings(Section):
    """Next tokens of documents."""

    kind: Literal["language_model"] = "language_model"


class SFTSettings(Section):
    """Next tokens of the assistant's messages in chats."""

    kind: Literal["sft"]


class DPOSettings(Section):
    """Preference pairs (arXiv 2305.18290); `beta` is how firmly the model is held to the one it started from."""

    kind: Literal["dpo"]
    beta: Annotated[float, Field(strict=True, gt=0)] = 0.1


class ClassificationSettings(Section):
    """Labels of texts, for the classification head."""

    kind: Literal["classification"]


class ReasoningSettings(Section):
    """How sound a chain of thought is, for the reasoning head."""

    kind: Literal["reasoning"]


ObjectiveSettings = Annotated[
    LanguageModelSettings | SFTSettings | DPOSettings | ClassificationSettings | ReasoningSettings,
    Discriminator("kind"),
    BeforeValidator(lambda value: {"kind": value} if isinstance(value, str) else value),
]


class DataSettings(Section):
    """Which documents, and how they become micro batches.

    Attributes:
        files: JSONL (.jsonl), plain text, or folders with both.
        max_length: tokens of a row at most; what is longer is cut.
        micro_batch_size: rows of one forward pass.
        pad_to: the width of a micro batch: its longest row's, or always max_length (pipelines need one width).
    """

    files: Annotated[tuple[Path, ...], Field(min_length=1)]
    max_length: Annotated[int, Field(strict=True, ge=2)] = 4096
    micro_batch_size: Count = 8
    pad_to: Literal["longest", "max_length"] = "longest"


class ValidationSettings(Section):
    """Held-out documents, whose loss is taken every `interval` steps over at most `micro_batches` micro batches."""

    files: Annotated[tuple[Path, ...], Field(min_length=1)]
    interval: Count = 1000
    micro_batches: Count = 16


class ParallelismSettings(Section):
    """The number of ranks along each axis; their product is the number of processes."""

    tensor: Count = 1
    pipeline: Count = 1
    data: Count = 1

    @property
    def num_ranks(self) -> int:
        """Processes in all."""
        return self.tensor * self.pipeline * self.data


class EWCSettings(Section):
    """Elastic weight consolidation: the old task's file, and how firmly its weights are held."""

    fisher: Path
    strength: Amount = 1.0


class Settings(Section):
    """The whole recipe.

    Attributes:
        output: the run's folder: checkpoints/, tensorboard/, metrics.jsonl, export/.
        model: a config.json, for new weights; or a folder, for its weights.
        tokenizer: a folder with tokenizer.json; by default the model's.
        accumulation_steps: micro batches of a step, on each data rank.
        gradient_clipping: the gradients' norm at most; 0 is no limit.
        checkpoint_interval: steps between checkpoints, of which the newest `keep_last` are kept.
        log_interval: steps between lines of progress; metrics.jsonl has every step.
        peak_tflops: of one rank, for MFU; measured by default.
    """

    output: Path
    model: Path
    tokenizer: Path | None = None
    seed: Annotated[int, Field(strict=True, ge=0, lt=1 << 63)] = 0
    objective: ObjectiveSettings = LanguageModelSettings()
    data: DataSettings
    validation: ValidationSettings | None = None

    precision: Literal["bfloat16", "float32"] = "bfloat16"
    optimizer: Literal["Lion", "AdamW"] = "Lion"
    learning_rate: Annotated[float, Field(strict=True, gt=0)] = 3e-5
    weight_decay: Amount = 0.01
    beta1: Fraction = 0.9
    beta2: Fraction = 0.99
    gradient_clipping: Amount = 1.0
    warmup_steps: Annotated[int, Field(strict=True, ge=0)] = 2000
    total_steps: Count = 100_000
    accumulation_steps: Count = 1
    ewc: EWCSettings | None = None

    checkpoint_interval: Count = 1000
    keep_last: Count = 3
    log_interval: Count = 10

    device: Literal["auto", "cpu", "cuda"] = "auto"
    activation_checkpointing: Annotated[bool, Field(strict=True)] = False
    parallelism: ParallelismSettings = ParallelismSettings()
    peak_tflops: Annotated[float, Field(strict=True, gt=0)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.warmup_steps > self.total_steps:
            raise ValueError(
                f"warmup_steps is {self.warmup_steps}; expected at most total_steps ({self.total_steps}), or the "
                "learning rate never reaches learning_rate"
            )
        if self.parallelism.pipeline > 1 and self.data.pad_to == "longest":
            raise ValueError(
                f"data.pad_to is longest and parallelism.pipeline is {self.parallelism.pipeline}; expected "
                "data.pad_to: max_length, since the stages of a pipeline pass tensors of one size"
            )
        return self

    @property
    def tokenizer_folder(self) -> Path:
        """Where tokenizer.json is."""
        return self.tokenizer or (self.model if self.model.is_dir() else self.model.parent)


def read_settings(path: Path, overrides: Sequence[str] = ()) -> Settings:
    """Settings of a YAML file, with `KEY=VALUE` put over it (`data.max_length=512`; a value is YAML).

    Raises:
        ConfigError: naming the key, its value and what is valid.
    """
    try:
        values = _parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold settings, as in 'learning_rate: 3.0e-5'")
    for text in overrides:
        _override(values, text)
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{path}: {'; '.join(map(_explain, error.errors()))}") from None


def _override(values: dict[str, Any], text: str) -> None:
    """Put one KEY=VALUE of the command line into the file's values."""
    key, equals, value = text.partition("=")
    *parents, name = key.split(".")
    if not equals or not all((*parents, name)):
        raise ConfigError(f"{text!r} is no setting; expected KEY=VALUE, as in total_steps=500 or data.max_length=512")
    for parent in parents:
        inner = values.get(parent)
        if isinstance(inner, str) and parent == "objective":
            inner = {"kind": inner}
        if inner is not None and not isinstance(inner, dict):
            raise ConfigError(f"{text!r}: {parent} is {inner!r} and has no keys")
        values[parent] = dict(inner or {})
        values = values[parent]
    try:
        values[name] = _parse(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"{text!r} cannot be read as YAML: {' '.join(str(error).split())}") from None


class _Loader(yaml.SafeLoader):
    """YAML whose numbers may have an exponent without a point: 3e-5 is a number, as in YAML 1.2."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _parse(text: str) -> Any:
    return yaml.load(text, _Loader)  # noqa: S506  # a SafeLoader


_EXPECTED = {  # by pydantic's kind of mistake
    "float_type": "a number",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "path_type": "a path",
    "tuple_type": "a list",
    "model_type": "keys with values",
    "model_attributes_type": "keys with values",
    "finite_number": "a finite number",
    "too_short": "a list that is not empty",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
}


def _explain(mistake: ErrorDetails) -> str:
    """One of pydantic's errors in this project's words."""
    kind, context = mistake["type"], mistake.get("ctx", {})
    if kind == "value_error":  # of Settings' own check
        return str(context["error"])
    places = [str(place) for place in mistake["loc"]]
    if places[0] == "objective" and len(places) > 2:
        del places[1]  # the kind, which pydantic puts in
    key = ".".join(places)
    if kind == "missing":
        return f"{key} is missing"
    if kind == "extra_forbidden":
        return f"there is no setting {key}; {_nearest(places)}"
    if kind == "union_tag_invalid":
        return f"objective is {context['tag']}; expected one of {_listed(context['expected_tags'])}"
    if kind == "union_tag_not_found":
        return "objective needs a kind, as in {kind: dpo, beta: 0.1}"
    if kind == "literal_error":
        return f"{key} is {mistake['input']!r}; expected one of {_listed(context['expected'])}"
    expected = _EXPECTED.get(kind, mistake["msg"]).format(**context)
    return f"{key} is {mistake['input']!r}; expected {expected}"


def _listed(words: str) -> str:
    return words.replace("'", "").replace(" or ", ", ")


def _nearest(places: Sequence[str]) -> str:
    """The setting that was probably meant, or those that are there."""
    section: type[BaseModel] = Settings
    for place in places[:-1]:
        section = _SECTIONS.get(place, section)
    known = list(section.model_fields)
    nearest = difflib.get_close_matches(places[-1], known, 1, 0.6)
    return f"did you mean {'.'.join([*places[:-1], nearest[0]])}?" if nearest else f"there are {', '.join(known)}"


_SECTIONS: Mapping[str, type[BaseModel]] = {
    "data": DataSettings,
    "validation": ValidationSettings,
    "parallelism": ParallelismSettings,
    "ewc": EWCSettings,
    "objective": DPOSettings,
}
