"""The offline API: the same engine and text handling, without HTTP and without a second process."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from engine.build import build
from engine.config import EngineConfig
from engine.errors import RequestError
from engine.loading.resolve import resolve_model
from engine.protocol import AbortRequest, GenerateRequest, SamplingParams, SchedulingParams, TokenLogprobs
from engine.resolve import resolve
from server.chat.chat_template import ChatTemplate, named_template
from server.heads.defaults import read_embedding_defaults
from server.inputs import ModelInput, Prompt
from server.inputs.conversation import conversation_prompt
from server.llm_heads import HeadMethods, checked_prompt
from server.text.choice_text import ChoiceText, Delta, Ending
from server.text.tokenizer import Tokenizer

Messages = Sequence[Mapping[str, Any]]


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
    finish_reason: Ending | None
    logprobs: list[TokenLogprobs]
    prompt_logprobs: list[TokenLogprobs] | None = None


class LLM(HeadMethods):
    """A model loaded into this process.

    Example:
        llm = LLM()
        llm.generate(["The capital of France is"], SamplingParams(temperature=0.0))[0].text
        llm.embed(["three rivers", "a bicycle"])
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
        self._embedding_defaults = read_embedding_defaults("auto", source.path)
        self._numbers = itertools.count()
        self._knows_vocabulary = False  # the engine, of the tokenizer's

    def generate(
        self,
        prompts: str | Sequence[str | list[int]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        modality: str | None = None,
        use_tqdm: bool = True,
    ) -> list[Completion]:
        """Complete prompts (texts or token ids), batched together.

        Args:
            prompts: one or several.
            sampling_params: for all, or one for each; default SamplingParams().
            modality: "text" or "code", for models that tell them apart; None: code is what stands in fences.
            use_tqdm: show progress, if standard error is a terminal.

        Raises:
            RequestError: a prompt can never be computed; nothing was started then.
        """
        prompts = [prompts] if isinstance(prompts, str) else prompts
        requests = self._requests(prompts, sampling_params, modality, add_special_tokens=True)
        return self._complete(requests, use_tqdm=use_tqdm)

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        modality: str | None = None,
        use_tqdm: bool = True,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[Completion]:
        """Answer one conversation or several, batched together.

        Args:
            messages: a list of {"role": ..., "content": ...}, or several such lists.
            sampling_params: for all, or one for each; default SamplingParams().
            modality: as for `generate`; content parts of type code are code in any case.
            use_tqdm: show progress, if standard error is a terminal.
            chat_template: Jinja text, or a name that --chat-template takes, instead of the model's own.
            add_generation_prompt: whether the prompt ends with the beginning of an answer.
            continue_final_message: go on with the last message instead; without add_generation_prompt.
            chat_template_kwargs: further variables of the template, such as {"enable_thinking": False}.

        Raises:
            RequestError: a conversation can never be computed; nothing was started then.
        """
        conversations: Sequence[Any] = [messages] if _is_conversation(messages) else messages
        render = functools.partial(
            self.chat_template(chat_template).render,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            **(chat_template_kwargs or {}),
        )
        prompts = [conversation_prompt(conversation, render) for conversation in conversations]
        requests = self._requests(prompts, sampling_params, modality, add_special_tokens=False)
        return self._complete(requests, use_tqdm=use_tqdm)

    def stream(
        self,
        prompt: str | list[int],
        sampling_params: SamplingParams | None = None,
        *,
        modality: str | None = None,
        add_special_tokens: bool = True,
    ) -> Iterator[Delta]:
        """Complete one prompt and yield its text as it grows; closing the iterator ends it.

        Args:
            prompt: text or token ids.
            sampling_params: default SamplingParams().
            modality: as for `generate`.
            add_special_tokens: whether BOS is put in front of a text; a rendered conversation has it.

        Raises:
            RequestError: the prompt can never be computed.
        """
        (request,) = self._requests([prompt], sampling_params, modality, add_special_tokens=add_special_tokens)
        for _, delta in self._run([request]):
            yield delta

    def chat_template(self, choice: str | None = None) -> ChatTemplate:
        """Return the model's chat template, or another by its name or Jinja text.

        Raises:
            RequestError: the model has none.
            ConfigError: there is none of this name.
            ModelError: the text is too large, or not valid Jinja.
        """
        if choice is not None:
            source = choice if "{" in choice else named_template(choice)
            return ChatTemplate(source, self.tokenizer.special_tokens)
        if self.tokenizer.chat_template is None:
            raise RequestError("this model has no chat template: name one with chat_template", "chat_template")
        return self.tokenizer.chat_template

    def _requests(
        self,
        prompts: Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        modality: str | None,
        *,
        add_special_tokens: bool,
    ) -> list[GenerateRequest]:
        if sampling_params is None or isinstance(sampling_params, SamplingParams):
            sampling_params = [sampling_params or SamplingParams()] * len(prompts)
        pairs = zip(prompts, sampling_params, strict=True)
        read = self._reader(modality, add_special_tokens=add_special_tokens)
        return [self._request(read(checked_prompt(prompt)), params) for prompt, params in pairs]

    def _request(self, prompt: ModelInput, params: SamplingParams) -> GenerateRequest:
        self.engine.info.check(prompt.token_ids, params, prompt.modalities)
        self._check_grammar(params)
        number, scheduling = f"offline-{next(self._numbers)}", SchedulingParams(time.monotonic())
        return GenerateRequest(number, prompt.token_ids, params, 1, scheduling, prompt.modalities)

    def _check_grammar(self, params: SamplingParams) -> None:
        if params.grammar is None:
            return
        if not self._knows_vocabulary:
            self.engine.grammars.learn(self.tokenizer.vocabulary())
            self._knows_vocabulary = True
        self.engine.grammars.check(params.grammar)

    def _complete(self, requests: list[GenerateRequest], *, use_tqdm: bool) -> list[Completion]:
        answers = {request.request_id: Delta(0) for request in requests}
        disable = None if use_tqdm else True  # None: where standard error is no terminal
        num_tokens = 0
        with tqdm(total=len(requests), desc="prompts", unit="prompt", dynamic_ncols=True, disable=disable) as bar:
            for request_id, delta in self._run(requests):
                answers[request_id].extend(delta)
                num_tokens += len(delta.token_ids)
                if delta.finish_reason is not None:
                    bar.update()
                    seconds = bar.format_dict["elapsed"]
                    bar.set_postfix_str(f"{num_tokens / max(seconds, 1e-9):.0f} output tokens/s", refresh=False)
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

    def _run(self, requests: list[GenerateRequest]) -> Iterator[tuple[str, Delta]]:
        detokenizer = self.tokenizer.detokenizer
        texts = {r.request_id: ChoiceText(0, detokenizer(after=r.prompt_token_ids), r.sampling.stop) for r in requests}
        try:
            for request in requests:
                self.engine.add(request)
            while self.engine.has_work:
                for output in self.engine.step().outputs:
                    if (delta := texts[output.request_id].push(output)) is None:
                        continue
                    if delta.finish_reason is not None and output.finish_reason is None:
                        self.engine.abort(AbortRequest(output.request_id))
                    yield output.request_id, delta
        finally:  # whatever happened, and ctrl-C: the engine is to be idle again
            for request in requests:
                self.engine.abort(AbortRequest(request.request_id))


def _is_conversation(messages: Any) -> bool:
    """Tell one conversation from several.

    Raises:
        RequestError: it is neither.
    """
    is_list = isinstance(messages, Sequence) and not isinstance(messages, str | bytes)
    if is_list and messages and all(isinstance(message, Mapping) for message in messages):
        return True
    if is_list and all(
        isinstance(one, Sequence) and one and all(isinstance(message, Mapping) for message in one) for one in messages
    ):
        return False
    form = '[{"role": "user", "content": "..."}]'
    raise RequestError(f"messages is {messages!r:.100}; it must be {form}, or a list of such lists", "messages")
