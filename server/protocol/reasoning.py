"""The fields of a chat request that switch a model's reasoning, beside `reasoning_effort`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from server.protocol.fields import Strict


class Thinking(Strict):
    """Whether the model reasons before it answers."""

    type: Literal["enabled", "disabled"]


class ReasoningFields(BaseModel):
    """Whether the model reasons, and whether the client is shown it."""

    thinking: Thinking | None = Field(
        None, description="DeepSeek's own API: switches reasoning on or off, where the chat template has a switch"
    )
    include_reasoning: bool = Field(True, description="false leaves reasoning out of the answer; it is still computed")
