"""HTTP, the OpenAI protocol, text, streaming, metrics. Knows nothing of tensors.

For use without HTTP: `from server import LLM, SamplingParams`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.protocol import SamplingParams
    from server.llm import LLM, Completion

__all__ = ["LLM", "Completion", "SamplingParams"]


def __getattr__(name: str) -> Any:
    """Import the offline API, and torch with it, only where it is used: the command and the API process stay light."""
    if name not in __all__:
        raise AttributeError(f"module 'server' has no attribute {name!r}")
    return getattr(import_module("engine.protocol" if name == "SamplingParams" else "server.llm"), name)
