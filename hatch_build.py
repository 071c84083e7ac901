"""Build hook: compiles the native CPU kernels when the package is installed; without a compiler, goes on without."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeKernels(BuildHookInterface):  # type: ignore[type-arg]
    """Adds the extension modules kernels/native/_kernels_* to wheels and editable installs."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Compile; called by hatchling before it packs."""
        build = runpy.run_path(str(Path(self.root) / "kernels" / "native" / "build.py"))["build"]
        modules = build()
        if not modules:
            self.app.display_warning(
                "no C++ compiler for x86-64, or no Python headers: the CPU kernels fall back to torch's operators"
            )
            return
        build_data["artifacts"] += [str(path.relative_to(self.root)) for path in modules]
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
