"""The quantization_config that compressed-tensors writes. Its formats are read by engine.models.*_scheme."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

METHOD = "compressed-tensors"


def to_config(
    format_: str,
    groups: Iterable[tuple[Iterable[str], Mapping[str, Any], Mapping[str, Any] | None]],
    ignore: Iterable[str],
) -> dict[str, Any]:
    """For layers of one format: groups of targets, with the schemes of their weights and inputs; and what to ignore."""
    return {
        "quant_method": METHOD,
        "format": format_,
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{number}": {
                "targets": list(targets),
                "weights": dict(weights),
                "input_activations": None if inputs is None else dict(inputs),
                "output_activations": None,
                "format": format_,
            }
            for number, (targets, weights, inputs) in enumerate(groups)
        },
        "ignore": list(ignore),
        "kv_cache_scheme": None,
    }
