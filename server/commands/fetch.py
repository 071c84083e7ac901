"""Download a model of the hub into a folder, once: a folder that is there is left as it is."""

from __future__ import annotations

import sys
from pathlib import Path

from engine.errors import ModelError
from engine.loading.hub_folder import fetch
from engine.logs import configure
from server.arguments import Parser


def main(argv: list[str]) -> int:
    """Run the command; the exit status."""
    parser = Parser("deepseek-serve fetch", __doc__)
    parser.add_argument("--model", required=True, metavar="HUB_ID", help="the model, as org/name")
    parser.add_argument("--revision", default="main", metavar="NAME", help="branch, tag or commit (default: main)")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="the folder to make, then for --model")
    args = parser.parse_args(argv)
    configure("fetch", "info", "text")
    try:
        fetch(args.model, args.out, args.revision)
    except ModelError as error:
        sys.stderr.write(f"deepseek-serve fetch: error: {error}\n")
        return 2
    return 0
