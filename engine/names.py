"""What ps, top and py-spy call the processes of the server and their threads."""

from __future__ import annotations

import setproctitle


def name_process(role: str, detail: str = "") -> None:
    """Call this process `deepseek-serve: ROLE DETAIL` in ps, and `serve-ROLE` in top; flags are seen no more."""
    setproctitle.setproctitle(f"deepseek-serve: {role} {detail}".rstrip())
    setproctitle.setthreadtitle(f"serve-{role}")  # of 15 characters; threads that begin after this inherit it


def name_thread(name: str) -> None:
    """Call the thread that runs this so in top and py-spy's native view, of 15 characters."""
    setproctitle.setthreadtitle(name)
