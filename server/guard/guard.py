"""The guard: says which label of its model flags one of some texts. Its engine is a process of its own.

Whoever asks waits; nothing passes unchecked. While the guard's engine is not there, all that would be checked is
refused (503).
"""

from __future__ import annotations

import time
from array import array
from typing import TYPE_CHECKING

from msgspec.structs import replace

from engine.errors import ContentFilterError, DeadlineError, EngineUnavailableError
from engine.protocol import PoolingParams, PoolRequest
from server.heads.values import joined
from server.http.request_record import engine_id
from server.inputs import preprocess
from server.memory import Trimming
from server.text.long_texts import LongTexts, num_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from engine.engine_info import EngineInfo
    from engine.protocol import SchedulingParams
    from server.admission import Admission
    from server.guard.metrics import Checked, GuardMetrics, Result
    from server.guard.model import GuardModel
    from server.guard.safety import Safety
    from server.inputs import ModelInput, Prompt

_CLASSIFY = PoolingParams(task="classify")
_LONG_TEXT = 4096  # characters of all texts together; more are tokenised in threads
_LATE = "The request was ended unfinished while the guard was reading: its time was over."


class Guard:
    """One running guard.

    Attributes:
        admission: counts what waits at /v1/moderations, which the guard answers too; prompts and answers under way
            hold places in the served model's own queue.
        texts: its long texts, of whichever route.
        window: tokens of an answer that wait for a check at most, while it grows.
    """

    def __init__(self, model: GuardModel, safety: Safety, window: int, admission: Admission, metrics: GuardMetrics):
        self.model, self.client, self.window, self.admission = model, model.client, window, admission
        self.texts = LongTexts(model.tokenizer, Trimming())
        self._safety, self._metrics = safety, metrics

    async def check_prompt(self, texts: Sequence[str], scheduling: SchedulingParams) -> bool:
        """Return True once all texts of a prompt have passed.

        Raises:
            ContentFilterError: one is flagged.
            EngineUnavailableError, DeadlineError: nobody could say in time.
        """
        label = await self._timed("prompt", [(text, "") for text in texts], scheduling)
        if label is not None:
            raise ContentFilterError(f"This server's guard has flagged the prompt as '{label}'.", "prompt")
        return True

    async def flags_output(self, text: str, preceding: str, scheduling: SchedulingParams) -> bool:
        """Whether the end of an answer is flagged, behind what precedes it.

        Raises:
            EngineUnavailableError, DeadlineError: nobody could say in time.
        """
        return await self._timed("output", [(text, preceding)], scheduling) is not None

    @property
    def context(self) -> int:
        """Characters of an answer that are read at least, when it has so many: about half of the guard's context."""
        return 2 * self.client.require_info().max_seq_len

    async def _timed(self, what: Checked, texts: list[tuple[str, str]], scheduling: SchedulingParams) -> str | None:
        started = time.monotonic()
        result: Result = "failed"
        try:
            label = await self._first_hit(texts, replace(scheduling, start_deadline=None))
            result = "passed" if label is None else "flagged"
        except TimeoutError:  # its engine hangs
            raise DeadlineError(_LATE) from None
        finally:
            self._metrics.count(what, result, time.monotonic() - started)
        return label

    async def _first_hit(self, texts: list[tuple[str, str]], scheduling: SchedulingParams) -> str | None:
        """Return the label that flags one of the texts, if one does; texts are (text, what precedes it)."""
        info, some = self.client.require_info(), []
        are_long = sum(len(text) for text, _ in texts) > _LONG_TEXT
        for text, preceding in texts:
            arguments = info, text, preceding
            if are_long:
                some += await self.texts.run(num_bytes(text), self._pieces, *arguments)
            else:
                some += self._pieces(*arguments)
            while len(some) >= 2 * info.max_batch_size:  # thousands of texts take the guard from nobody
                now, some = some[: 2 * info.max_batch_size], some[2 * info.max_batch_size :]
                if (label := await self._hit(info, now, scheduling)) is not None:
                    return label
        return await self._hit(info, some, scheduling)

    async def _hit(self, info: EngineInfo, pieces: list[ModelInput], scheduling: SchedulingParams) -> str | None:
        requests = [PoolRequest(engine_id(), p.token_ids, _CLASSIFY, scheduling, p.modalities) for p in pieces]
        with self.client.submit(requests) as stream:  # leaving it ends what still runs
            async for output in stream:
                if output.finish_reason == "timeout":
                    raise DeadlineError(_LATE)
                if output.pooled is None:
                    raise EngineUnavailableError("The guard could not read this text: its values are not finite.")
                verdict = self._safety.judge(info.labels, info.label_activation, array("f", output.pooled))
                if verdict.hits:
                    return verdict.hits[0]
        return None

    def _pieces(self, info: EngineInfo, text: str, preceding: str) -> list[ModelInput]:
        """Return a text as the guard reads it: in one piece, or in several that overlap by half."""
        tokenizer = self.model.tokenizer

        def read(prompt: Prompt) -> ModelInput:
            return preprocess(tokenizer, prompt, info.modalities, add_special_tokens=False, preceding=preceding)

        whole = read(text) if text else None
        room = info.max_seq_len - tokenizer.num_special_tokens(1)
        return [joined(tokenizer, read, piece) for piece in _cut(whole, room)] if whole else []


def _cut(whole: ModelInput, room: int) -> Iterator[ModelInput]:
    """Yield pieces of at most `room` tokens, each of which begins in the middle of the one before; the last is full."""
    start = 0
    while start + room < len(whole):
        yield whole[start : start + room]
        start += max(1, room // 2)
    yield whole[max(0, len(whole) - room) :]
