"""
A process whose memory no other program of the same user may read, and of which no core file is left.

It holds the gateway's credential and, for as long as requests take, other people's tokens and Secrets;
an agent's own shell may run under the same user, on the same machine.
"""

import ctypes
import logging
import resource
import sys

logger = logging.getLogger(__name__)

_PR_SET_DUMPABLE = 4  # linux/prctl.h


def forbid_core_files() -> None:
    """For this process and what it becomes: execve keeps the limit."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def forbid_reading() -> None:
    """
    No ptrace, no /proc/PID/mem or environ, for anybody but root (prctl(2)). Linux only; elsewhere, and where
    it is not allowed, the log says so. execve forgets it, so it is for the process that works.
    """
    forbid_core_files()
    if not sys.platform.startswith("linux"):
        logger.info("other programs of this user may read the gateway's memory: only Linux can forbid it")
        return
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0):
        logger.warning("other programs of this user may read the gateway's memory: prctl, errno %d", ctypes.get_errno())
