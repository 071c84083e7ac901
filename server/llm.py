"""The offline API: the same engine and text handling, without HTTP and without a second process."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.build import build
from engine.config import EngineConfig
from engine.errors import RequestError
from engine.loading.resolve import resolve_model
from engine.protocol import AbortRequest, FinishReason, GenerateRequest, SamplingParams, SchedulingParams, TokenLogprobs
from engine.resolve import resolve
from server.choice_text import ChoiceText, Delta
from server.tokenizer import Tokenizer


@dataclass
class Completion:
    """One prompt's output.

    Attributes:
        token_ids: the output's, the one that ended it included.
        logprobs: one entry a token, if SamplingParams.logprobs asked for them.
        prompt_logprobs: one for each prompt token but the first, if SamplingParams.prompt_logprobs did.
    """

    prompt_token_ids: list[int]
    text: str
    token_ids: list[int]
    finish_reason: FinishReason | None
    logprobs: list[TokenLogprobs]
    prompt_logprobs: list[TokenLogprobs] | None = None


class LLM:
    """A model loaded into this process.

    Example:
        llm = LLM()
        llm.generate(["The capital of France is"], SamplingParams(temperature=0.0))[0].text
    """

    def __init__(self, model: str | None = None, **options: Any) -> None:
        """Load.

        Args:
            model: as --model; None is the built-in SmolLM2-135M-Instruct.
            **options: the other fields of EngineConfig, such as dtype or num_kv_blocks.
        """
        config = EngineConfig(model=model, **options)
        source = resolve_model(model)
        self.tokenizer = Tokenizer.load(source)
        self.engine = build(resolve(config, source))
        self._numbers = itertools.count()
        self._knows_vocabulary = False  # the engine, of the tokenizer's

    def generate(
        self,
        prompts: str | Sequence[str | list[int]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Completion]:
        """Complete prompts (texts or token ids), batched together.

        Args:
            prompts: one or several.
            sampling_params: for all, or one for each; default SamplingParams().

        Raises:
            RequestError: a prompt can never be computed; nothing was started then.
        """
        prompts = [prompts] if isinstance(prompts, str) else prompts
        if sampling_params is None or isinstance(sampling_params, SamplingParams):
            sampling_params = [sampling_params or SamplingParams()] * len(prompts)
        texts: dict[str, ChoiceText] = {}
        answers: dict[str, Delta] = {}
        requests = []
        for prompt, params in zip(prompts, sampling_params, strict=True):
            token_ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
            if not isinstance(token_ids, list) or not all(isinstance(token_id, int) for token_id in token_ids):
                raise RequestError(f"a prompt is {prompt!r}; it must be a string or a list of token ids", "prompt")
            self.engine.info.check(token_ids, params)
            self._check_grammar(params)
            request = GenerateRequest(
                f"offline-{next(self._numbers)}", token_ids, params, 1, SchedulingParams(time.monotonic())
            )
            requests.append(request)
            answers[request.request_id] = Delta(0)
            texts[request.request_id] = ChoiceText(0, self.tokenizer.detokenizer(), params.stop)
        try:
            for request in requests:
                self.engine.add(request)
            self._finish(answers, texts)
        finally:  # whatever happened, and ctrl-C: the engine is to be idle again
            for request in requests:
                self.engine.abort(AbortRequest(request.request_id))
        return [
            Completion(
                request.prompt_token_ids,
                answer.text,
                answer.token_ids,
                answer.finish_reason,
                [report.logprobs for report in answer.reports],
                answer.prompt_logprobs,
            )
            for request, answer in zip(requests, answers.values(), strict=True)
        ]

    def _check_grammar(self, params: SamplingParams) -> None:
        if params.grammar is None:
            return
        if not self._knows_vocabulary:
            self.engine.grammars.learn(self.tokenizer.vocabulary())
            self._knows_vocabulary = True
        self.engine.grammars.check(params.grammar)

    def _finish(self, answers: dict[str, Delta], texts: dict[str, ChoiceText]) -> None:
        while self.engine.has_work:
            for output in self.engine.step().outputs:
                if (delta := texts[output.request_id].push(output)) is None:
                    continue
                answers[output.request_id].extend(delta)
                if delta.finish_reason is not None and output.finish_reason is None:
                    self.engine.abort(AbortRequest(output.request_id))
