"""Processes that end when those above them do: however a sweep is killed, nothing of it stays.

    python workflow/guard.py MODULE ARGUMENTS

runs a module like that. A process that is killed cannot take those along that it began: bash,
notebooks and kernels would go on writing. So each looks up, twice a second. The topmost process of
a sweep says who it is in an environment variable.
"""

import contextlib
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable

import psutil

TOP = "CTT_SWEEP"  # the process id of the topmost process
SECONDS = 0.5


def line_above() -> list[psutil.Process]:
    """The processes above this one, up to the topmost of the sweep; none if that is not there."""
    top = os.environ.get(TOP)
    line = psutil.Process().parents()
    pids = [str(process.pid) for process in line]
    return line[: pids.index(top) + 1] if top in pids else []


def follow() -> bool:
    """End this process and all below it as soon as one of those above it has ended.

    Returns:
        False where no sweep is above it (any more).
    """
    line = line_above()

    def watch() -> None:
        while all(map(is_alive, line)):
            time.sleep(SECONDS)
        end()

    if line:
        threading.Thread(target=watch, daemon=True).start()
    return bool(line)


def lead_if_alone() -> None:
    """Be the topmost process of a sweep, unless there is one above."""
    if not line_above():
        os.environ[TOP] = str(os.getpid())


def is_alive(process: psutil.Process) -> bool:
    """Whether a process still runs. One that has ended and was not asked how does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def when_told(do: Callable) -> None:
    """Call this at Ctrl-C, TERM and HUP; but HUP stays ignored where `nohup` made it so."""
    signal.signal(signal.SIGINT, do)
    signal.signal(signal.SIGTERM, do)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, do)


def end_those_below() -> None:
    """Kill what this process began, and what that began."""
    while below := [each for each in psutil.Process().children(recursive=True) if is_alive(each)]:
        for process in below:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(below, timeout=1)


def end(*_: object) -> None:
    """Kill what this process began, and end."""
    end_those_below()
    os._exit(1)


if __name__ == "__main__":
    if TOP in os.environ and not follow():
        sys.exit("What began this has ended.")
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
