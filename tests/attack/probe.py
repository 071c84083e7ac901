"""A process of its own that asks for /health fifty times a second and prints how many seconds each answer took.

The attacking process would measure its own delays. An answer that is none took for ever.
"""

from __future__ import annotations

import http.client
import sys
import time

_INTERVAL = 0.02  # seconds


def main(port: int) -> None:
    """Ask until killed."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    while True:
        started = time.monotonic()
        try:
            connection.request("GET", "/health")
            is_good = connection.getresponse().read().startswith(b'{"status"')
        except (OSError, http.client.HTTPException):
            connection.close()
            is_good = False
        print(time.monotonic() - started if is_good else "inf", flush=True)
        time.sleep(_INTERVAL)


if __name__ == "__main__":
    main(int(sys.argv[1]))
