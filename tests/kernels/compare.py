"""How close a fast kernel must come to its reference, and the native libraries that this CPU can run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from kernels import native
from kernels.native.build import ISAS

if TYPE_CHECKING:
    from collections.abc import Callable

DTYPES = (torch.float32, torch.bfloat16)
_TOLERANCES = {torch.float32: (1e-5, 1e-5), torch.bfloat16: (2e-2, 2e-2)}
_LIBRARIES = {isa: library for isa in ISAS if (library := native.load(isa)) is not None}


def dtype_id(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Same shape and dtype, and values within the dtype's tolerance."""
    rtol, atol = _TOLERANCES[expected.dtype]
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def randn(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def natives(make: Callable[[torch.dtype], Any]) -> dict[str, Callable[[torch.dtype], Any]]:
    """What `make` binds, from each library that is built and that this CPU can run (not only from the best one)."""

    def bind(isa: str, dtype: torch.dtype) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(native, "library", lambda: _LIBRARIES[isa])
            return make(dtype)

    return {isa: lambda dtype, isa=isa: bind(isa, dtype) for isa in _LIBRARIES}
