"""HTTP, the OpenAI protocol, text, streaming, metrics. Knows nothing of tensors.

For use without HTTP: `from server import LLM, SamplingParams`.
"""

from typing import TYPE_CHECKING, Any

from engine.protocol import SamplingParams

if TYPE_CHECKING:
    from server.llm import LLM, Completion

__all__ = ["LLM", "Completion", "SamplingParams"]


def __getattr__(name: str) -> Any:
    """Import the offline API, and torch with it, only where it is used: the API process stays light."""
    if name in ("LLM", "Completion"):
        from server import llm

        return getattr(llm, name)
    raise AttributeError(f"module 'server' has no attribute {name!r}")
