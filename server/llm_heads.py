"""What LLM does beside generating: embeddings, classes and scores of texts, the same as over HTTP."""

from __future__ import annotations

import functools
import itertools
import time
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from engine.errors import GenerationError, RequestError
from engine.protocol import AbortRequest, PoolingParams, PoolRequest, SchedulingParams
from server.heads.values import cosine, is_cross_encoder, joined, pair_score, paired, scores_of, shortened
from server.inputs import MarkedText, ModelInput, Prompt, preprocess

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engine.engine import Engine
    from server.heads.defaults import EmbeddingDefaults, Pooling
    from server.text.tokenizer import Tokenizer


@dataclass
class TextClass:
    """What a classification head says of a text.

    Attributes:
        label: the likeliest.
        probs: of each label, in the checkpoint's order; logits, if it is a regression.
    """

    label: str
    probs: list[float]


class HeadMethods:
    """The part of LLM that needs no output tokens."""

    tokenizer: Tokenizer
    engine: Engine
    _embedding_defaults: EmbeddingDefaults
    _numbers: itertools.count[int]

    def embed(
        self,
        prompts: str | Sequence[str | list[int]],
        *,
        pooling: Pooling | None = None,
        normalize: bool | None = None,
        dimensions: int | None = None,
        modality: str | None = None,
        use_tqdm: bool = True,
    ) -> list[list[float]]:
        """Return an embedding for each prompt (texts or token ids), computed together.

        Args:
            prompts: one or several.
            pooling: "last" or "mean"; default: as the checkpoint says, else "last".
            normalize: scale to length 1; default: as the checkpoint says, else true.
            dimensions: keep the first so many numbers, for models that were trained for that.
            modality: "text" or "code", for models that tell them apart; None: code is what stands in fences.
            use_tqdm: show progress, if standard error is a terminal.

        Raises:
            RequestError: a prompt can never be computed; nothing was started then.
        """
        size = self.engine.info.hidden_size
        if dimensions is not None and not 1 <= dimensions <= size:
            raise RequestError(f"dimensions is {dimensions}; this model's embeddings have {size} numbers", "dimensions")
        params = PoolingParams(task="embed", pooling=self._embedding_defaults.pooling_for(pooling))
        wants_length_1 = self._embedding_defaults.normalize if normalize is None else normalize
        vectors = self._pool(self._inputs(prompts, modality), params, use_tqdm=use_tqdm)
        return [shortened(vector, dimensions, normalize=wants_length_1).tolist() for vector in vectors]

    def classify(
        self, prompts: str | Sequence[str | list[int]], *, modality: str | None = None, use_tqdm: bool = True
    ) -> list[TextClass]:
        """Return what the model's classification head says of each prompt; arguments as for `embed`.

        Raises:
            RequestError: the model has no such head, or a prompt can never be computed; nothing was started then.
        """
        info = self.engine.info
        logits = self._pool(self._inputs(prompts, modality), PoolingParams(task="classify"), use_tqdm=use_tqdm)
        return [
            TextClass(info.labels[max(range(len(row)), key=row.__getitem__)], scores_of(row, info.label_activation))
            for row in logits
        ]

    def score(
        self,
        queries: str | Sequence[str],
        documents: str | Sequence[str],
        *,
        modality: str | None = None,
        use_tqdm: bool = True,
    ) -> list[float]:
        """Return how well texts fit together: one query with each document, or each with the document at its place.

        A model whose head has one label reads both texts at once; of any other it is the cosine of embeddings.

        Raises:
            RequestError: there are not as many queries as documents, or a text can never be computed.
        """
        documents = [documents] if isinstance(documents, str) else documents
        queries = [queries] if isinstance(queries, str) else queries
        if len(queries) not in (1, len(documents)):
            raise RequestError(f"{len(queries)} queries and {len(documents)} documents make no pairs", "queries")
        read, info = self._reader(modality, add_special_tokens=False), self.engine.info
        texts = [list(map(read, side)) for side in (queries, documents)]
        join = functools.partial(joined, self.tokenizer, read)
        if is_cross_encoder(info):
            pairs = [join(*pair) for pair in paired(*texts)]
            logits = self._pool(pairs, PoolingParams(task="classify"), use_tqdm=use_tqdm)
            return [pair_score(row, info) for row in logits]
        params = PoolingParams(task="embed", pooling=self._embedding_defaults.pooling_for(None))
        vectors = self._pool([join(text) for side in texts for text in side], params, use_tqdm=use_tqdm)
        unit = [shortened(vector, None, normalize=True) for vector in vectors]
        return [cosine(*pair) for pair in paired(unit[: len(queries)], unit[len(queries) :])]

    def _reader(self, modality: str | None, *, add_special_tokens: bool) -> Callable[[Prompt], ModelInput]:
        """Return what makes the model's input of a prompt."""
        return functools.partial(
            preprocess,
            self.tokenizer,
            known=self.engine.info.modalities,
            modality=modality,
            add_special_tokens=add_special_tokens,
        )

    def _inputs(self, prompts: str | Sequence[str | list[int]], modality: str | None) -> list[ModelInput]:
        prompts = [prompts] if isinstance(prompts, str) else prompts
        return list(map(self._reader(modality, add_special_tokens=True), map(checked_prompt, prompts)))

    def _pool(self, inputs: list[ModelInput], params: PoolingParams, *, use_tqdm: bool) -> list[array[float]]:
        """Compute values of all inputs, in their order."""
        for item in inputs:
            self.engine.info.check_pooling(item.token_ids, params, item.modalities)
        scheduling = SchedulingParams(time.monotonic())
        numbers = [f"offline-{next(self._numbers)}" for _ in inputs]
        values: dict[str, array[float]] = {}
        disable = None if use_tqdm else True  # None: where standard error is no terminal
        try:
            for number, item in zip(numbers, inputs, strict=True):
                self.engine.add(PoolRequest(number, item.token_ids, params, scheduling, item.modalities))
            with tqdm(total=len(inputs), desc="prompts", unit="prompt", dynamic_ncols=True, disable=disable) as bar:
                while self.engine.has_work:
                    for output in self.engine.step().outputs:
                        if output.pooled is None:
                            raise GenerationError("The model's values of a prompt are not finite.")
                        values[output.request_id] = array("f", output.pooled)
                        bar.update()
        finally:  # whatever happened, and ctrl-C: the engine is to be idle again
            for number in numbers:
                self.engine.abort(AbortRequest(number))
        return [values[number] for number in numbers]


def checked_prompt(prompt: Any) -> Prompt:
    """Return a prompt that is one.

    Raises:
        RequestError: it is neither a text nor token ids.
    """
    if isinstance(prompt, str | MarkedText):
        return prompt
    if not isinstance(prompt, list) or not all(isinstance(token_id, int) for token_id in prompt):
        raise RequestError(f"a prompt is {prompt!r:.100}; it must be a string or a list of token ids", "prompt")
    return prompt
