"""The head that generates: logits of the next token, sampled; and logprobs of prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.sampler import sample, top_logprobs

if TYPE_CHECKING:
    import torch

    from engine.models.decoder import Decoder
    from engine.step import StepPlan, StepResult

_LOGPROB_ROWS = 64  # prompt positions whose logits are held at a time


class GenerateHead:
    """Reads the rows that prompt logprobs are reported of, then the last one of each sequence that samples."""

    def __init__(self, model: Decoder) -> None:
        self._model = model

    def rows(self, plan: StepPlan) -> list[int]:
        reported: list[int] = []
        last: list[int] = []
        first = 0
        for item in plan.scheduled:
            if (prompt := item.prompt_logprobs) is not None:
                reported += range(first + prompt.first, first + prompt.first + len(prompt.token_ids))
            first += item.num_tokens
            if item.sample is not None:
                last.append(first - 1)
        return reported + last

    def add(self, result: StepResult, plan: StepPlan, hidden_RH: torch.Tensor) -> None:
        num_rows = self._add_prompt_logprobs(result, plan, hidden_RH)
        samples = [item.sample for item in plan.scheduled if item.sample is not None]
        if samples:
            logits_RV = self._model.logits(hidden_RH[num_rows:])
            result.sampled.extend(sample(logits_RV, samples, self._model.ops.draw))

    def _add_prompt_logprobs(self, result: StepResult, plan: StepPlan, hidden_RH: torch.Tensor) -> int:
        """Report what the plan wants to know of prompts; how many of the rows that took."""
        row = 0
        for prompt in [item.prompt_logprobs for item in plan.scheduled if item.prompt_logprobs is not None]:
            result.prompt_logprobs.append(report := [])
            for first in range(0, len(prompt.token_ids), _LOGPROB_ROWS):
                token_ids = prompt.token_ids[first : first + _LOGPROB_ROWS]
                logits_RV = self._model.logits(hidden_RH[row : row + len(token_ids)])
                report += top_logprobs(logits_RV.float().log_softmax(-1), token_ids, [prompt.count] * len(token_ids))
                row += len(token_ids)
        return row
