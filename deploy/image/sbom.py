"""Writes the image's software bill of materials (CycloneDX, JSON) to stdout: Python, its packages, and Debian's.

Run with the Python that has cyclonedx-bom; that package lists the virtual environment.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from typing import Any

_FIELDS = "${Package}\t${Version}\t${Architecture}\n"


def main(venv: str, dpkg: str) -> None:
    """Write what a virtual environment and a dpkg database hold."""
    command = [sys.executable, "-m", "cyclonedx_py", "environment", "--output-format", "JSON", f"{venv}/bin/python3"]
    bill = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    command = ["dpkg-query", f"--admindir={dpkg}", f"--showformat={_FIELDS}", "--show"]
    packages = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    bill["components"] += [_component(*line.split("\t")) for line in packages.splitlines()]
    python = {"type": "application", "name": "python", "version": platform.python_version()}
    bill["components"].append(python | {"bom-ref": "python", "purl": f"pkg:generic/python@{python['version']}"})
    json.dump(bill, sys.stdout, indent=1)


def _component(name: str, version: str, architecture: str) -> dict[str, Any]:
    purl = f"pkg:deb/debian/{name}@{version.replace('+', '%2B').replace(':', '%3A')}?arch={architecture}"
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


if __name__ == "__main__":
    main(*sys.argv[1:])
