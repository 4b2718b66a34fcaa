"""The worker's side of `driftd run --workers N`: it tells the supervisor its port, and ends when that one ends."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading

PR_SET_PDEATHSIG = 1  # of prctl(2)


class Parent:
    """The supervisor, at the other end of a socket that this process inherited.

    Args:
        channel: the socket's file descriptor.
    """

    def __init__(self, channel: int) -> None:
        os.set_inheritable(channel, False)
        self._socket = socket.socket(fileno=channel)

    def follow(self) -> None:
        """End, from now on, as soon as the parent ends. Nothing is lost: what is not committed is read again."""
        if sys.platform == "linux":
            import ctypes

            # The kernel does it even where Python hangs or the process is stopped.
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        threading.Thread(target=self._wait_for_its_end, name="driftd-parent", daemon=True).start()

    def tell(self, port: int) -> None:
        """Say at which port of 127.0.0.1 this process answers."""
        try:
            self._socket.sendall(f"{port}\n".encode())
        except OSError:
            os._exit(1)  # it has ended in this moment

    def _wait_for_its_end(self) -> None:
        """Elsewhere than on Linux, and where it ended before the kernel was asked. It never sends anything."""
        try:
            while self._socket.recv(64):
                pass
        except OSError:
            pass
        os._exit(1)
