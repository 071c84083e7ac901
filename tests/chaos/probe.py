"""A process of its own that asks one thing ten times a second and prints each status and how many seconds it took.

A client that is busy itself would measure its own delays. Status 0 is no answer.
"""

from __future__ import annotations

import http.client
import sys
import time

_INTERVAL = 0.1  # seconds


def main(host: str, port: int, path: str) -> None:
    """GET it until killed."""
    connection = http.client.HTTPConnection(host, port, timeout=20)
    while True:
        started, status = time.monotonic(), 0
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            response.read()
            status = response.status
        except (OSError, http.client.HTTPException):
            connection.close()
        print(f"{status} {time.monotonic() - started:.6f}", flush=True)
        time.sleep(_INTERVAL)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
