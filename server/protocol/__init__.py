"""The requests that the API takes, and their translation to SamplingParams.

A field that is not listed here is refused by name, never ignored. docs/parameters.md has a verdict for each.
"""

from server.protocol.chat import ChatCompletionRequest
from server.protocol.completions import CompletionRequest
from server.protocol.fields import Strict, fault
from server.protocol.generation import GenerationRequest
from server.protocol.messages import ContentPart, Message, ToolCall

__all__ = [
    "ChatCompletionRequest",
    "CompletionRequest",
    "ContentPart",
    "GenerationRequest",
    "Message",
    "Strict",
    "ToolCall",
    "fault",
]
