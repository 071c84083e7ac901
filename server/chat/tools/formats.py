"""Which format of tool calls a model writes: by its chat template's content, or by --tool-parser."""

from __future__ import annotations

from server.chat.tools.deepseek import DeepseekV3Format, DeepseekV31Format
from server.chat.tools.dsml import DsmlFormat
from server.chat.tools.format import ToolFormat
from server.chat.tools.hermes import HermesFormat
from server.chat.tools.llama import LlamaFormat
from server.chat.tools.mistral import MistralFormat

FORMATS: dict[str, ToolFormat] = {
    tool_format.name: tool_format
    for tool_format in (
        DeepseekV3Format(),
        DeepseekV31Format(),
        DsmlFormat(),
        HermesFormat(),
        LlamaFormat(),
        MistralFormat(named=False),
    )
}


def format_of(template: str) -> ToolFormat | None:
    """Return the format that a chat template's source shows; None if it shows none that is known."""
    if "｜DSML｜" in template:
        return DsmlFormat("function_calls" if "function_calls" in template else "tool_calls")
    if "<｜tool▁call▁begin｜>" in template:
        return FORMATS["deepseek-v3" if "```json" in template else "deepseek-v3.1"]
    if "[TOOL_CALLS]" in template:
        return MistralFormat(named="[ARGS]" in template)
    if "<tool_call>" in template and "<function=" not in template and "<arg_key>" not in template:
        return FORMATS["hermes"]
    if "<|start_header_id|>" in template and '"parameters"' in template:
        return FORMATS["llama3"]
    return None
