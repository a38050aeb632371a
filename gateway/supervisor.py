"""Several processes of one gateway, and who looks after them.

The supervisor serves nothing: it has the sockets, makes the processes, passes signals on, and starts one anew that has
ended by itself. Processes are forks of it, so that what they have in common is in memory once, and a new one is there in
the time it takes to open a database. So it has no threads, no event loop and no connections of its own.

Each process accepts connections from a socket of its own. The supervisor keeps all of them open: those that come while a
process is gone are accepted by the others, and none is lost with it but what it had accepted itself. A supervisor that
dies leaves processes that see it, and drain.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import shutil
import signal
import socket
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from gateway.process_metrics import bury

if TYPE_CHECKING:
    from gateway.listeners import Listeners

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 30.0
"""Before a process that ends again and again is started anew. The others serve meanwhile."""
WELL_S = 10.0
"""For so long it has to have served to be started anew at once."""
OVERTIME_S = 30.0
"""Beyond the time for running calls: what a process takes to move its last rows. Then it is killed."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
_READY = b"ready"
MESSAGE_BYTES = 4096


class Seat(Struct):
    """What a process is given by its supervisor."""

    number: int
    """From 0 on: that of its own socket."""
    name: str
    """Which none before it has had."""
    listeners: Listeners
    """Those of all of them."""
    control: socket.socket
    """To the supervisor, which says there from which sockets to accept. It ends with it."""
    folder: Path
    """Where processes leave things for each other."""
    replaces_another: bool

    def ready(self) -> None:
        self.control.send(_READY)


def numbers_in(said: bytes) -> list[int]:
    """Of the sockets to accept from, in a message of the supervisor."""
    return [int(number) for number in said.split()]


class _Process(Struct):
    name: str
    pid: int
    control: socket.socket
    started_s: float
    ready: bool = False


class Supervisor:
    def __init__(self, listeners: Listeners, ending_s: float, serving: str) -> None:
        """`ending_s`: for so long at the most a process serves after SIGTERM. `serving` is to be said once all do."""
        self._listeners = listeners
        self._said_serving = serving
        self._ending_s = ending_s
        self._folder = Path(tempfile.mkdtemp(prefix="tidegate-"))
        """Only we may look into it."""
        self._processes: dict[int, _Process] = {}
        """By number."""
        self._due_s = dict.fromkeys(range(len(listeners.calls)), 0.0)
        """When those are to be started that are not there."""
        self._pauses_s: dict[int, float] = {}
        self._started = 0
        self._proved = False
        """Whether one of them has been ready: what is wrong from the start is found, and said, by the first alone."""
        self._serving = False
        """Whether all of them have been."""
        self._stop_until_s: float | None = None
        self._code = 0
        self._selector = selectors.DefaultSelector()

    def run(self) -> Seat | int:
        """Returns in each of the processes, with its seat; and here, with the exit code, when the last of them has ended."""
        wakes, woken = socket.socketpair()
        for each in (wakes, woken):
            each.setblocking(False)
        signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, _note)
        self._selector.register(wakes, selectors.EVENT_READ)
        while self._processes or self._stop_until_s is None:
            seat = self._start_due()
            if seat is not None:
                wakes.close()
                woken.close()
                return seat
            for key, _ in self._selector.select(self._pause_s()):
                if key.fileobj is wakes:
                    for sent in wakes.recv(MESSAGE_BYTES):
                        self._signalled(signal.Signals(sent))
                else:
                    self._heard(key.data)
            self._reap()
            self._kill_late()
        shutil.rmtree(self._folder, ignore_errors=True)
        return self._code

    # Starting

    def _start_due(self) -> Seat | None:
        """In a process that has just been made, its seat."""
        now_s = time.monotonic()
        for number, due_s in sorted(self._due_s.items()):
            if self._stop_until_s is not None or not (self._proved or number == 0):
                break
            seat = self._start(number, now_s) if due_s <= now_s else None
            if seat is not None:
                return seat
        return None

    def _start(self, number: int, now_s: float) -> Seat | None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._started += 1
        name = f"{number}-{self._started}"
        # A signal that came in between would be taken by a process that is not yet itself.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        pid = os.fork()
        if pid == 0:
            self._become_a_process(ours)
            return Seat(number, name, self._listeners, theirs, self._folder, self._serving)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        theirs.close()
        ours.setblocking(False)
        del self._due_s[number]
        self._processes[number] = _Process(name, pid, ours, now_s)
        self._selector.register(ours, selectors.EVENT_READ, number)
        return None

    def _become_a_process(self, ours: socket.socket) -> None:
        """Be rid of all that is the supervisor's."""
        ours.close()
        self._selector.close()
        for process in self._processes.values():
            process.control.close()
        signal.set_wakeup_fd(-1)
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        # A terminal's Ctrl-C is for the supervisor, which passes it on: twice would cut calls short.
        os.setpgid(0, 0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)

    # While they run

    def _pause_s(self) -> float | None:
        if self._stop_until_s is not None:
            until_s = self._stop_until_s
        elif self._due_s and self._proved:
            until_s = min(self._due_s.values())
        else:
            return None
        return max(0.0, until_s - time.monotonic())

    def _heard(self, number: int) -> None:
        process = self._processes[number]
        with contextlib.suppress(OSError):
            if process.control.recv(MESSAGE_BYTES) == _READY:
                self._is_ready(number, process)
                return
        self._selector.unregister(process.control)  # it is ending

    def _is_ready(self, number: int, process: _Process) -> None:
        process.ready = self._proved = True
        log.info("process %d is ready (pid %d)", number, process.pid)
        self._assign()
        ready = sum(each.ready for each in self._processes.values())
        if ready == len(self._listeners.calls) and not self._serving and self._stop_until_s is None:
            self._serving = True
            log.info("%s by %d processes", self._said_serving, ready)

    def _assign(self) -> None:
        """Tell each process from which sockets to accept: its own, and those that nobody else does."""
        if self._stop_until_s is not None:
            return
        ready = {number for number, process in self._processes.items() if process.ready}
        vacant = set(range(len(self._listeners.calls))) - ready
        for number in ready:
            with contextlib.suppress(
                OSError
            ):  # it has just ended, or is too busy to read: the next word says it all anew
                self._processes[number].control.send(" ".join(map(str, sorted({number, *vacant}))).encode())

    def _reap(self) -> None:
        for number, process in list(self._processes.items()):
            pid, status = os.waitpid(process.pid, os.WNOHANG)
            if pid:
                self._ended(number, process, os.waitstatus_to_exitcode(status))

    def _ended(self, number: int, process: _Process, code: int) -> None:
        del self._processes[number]
        with contextlib.suppress(KeyError):
            self._selector.unregister(process.control)
        process.control.close()
        bury(self._folder, process.name)
        if self._stop_until_s is not None:
            if code not in (0, -signal.SIGTERM, -signal.SIGINT):
                log.error("process %d has ended %s", number, _said(code))
                self._code = self._code or 1
            return
        if not self._proved:
            self._code = code if code > 0 else 1  # it has said why
            self._signalled(signal.SIGTERM)
            return
        now_s = time.monotonic()
        if process.ready and now_s - process.started_s >= WELL_S:
            self._pauses_s.pop(number, None)
        pause_s = self._pauses_s.get(number, 0.0)
        self._pauses_s[number] = min(LONGEST_PAUSE_S, max(FIRST_PAUSE_S, 2 * pause_s))
        self._due_s[number] = now_s + pause_s
        log.error("process %d has ended %s, and is started anew in %.1f s", number, _said(code), pause_s)
        self._assign()

    # Signals

    def _signalled(self, number: signal.Signals) -> None:
        if number == signal.SIGCHLD:
            return  # they are looked at after each turn
        if number != signal.SIGHUP:
            if self._stop_until_s is None:
                self._stop_until_s = time.monotonic() + self._ending_s + OVERTIME_S
                for listener in self._listeners.all:
                    listener.close()  # kept open here, it would take connections that nobody serves
            elif number == signal.SIGTERM:
                return
        for process in self._processes.values():
            if number != signal.SIGHUP or process.ready:
                os.kill(process.pid, number)

    def _kill_late(self) -> None:
        if self._stop_until_s is not None and time.monotonic() >= self._stop_until_s:
            for number, process in self._processes.items():
                log.error("process %d does not end, and is killed", number)
                os.kill(process.pid, signal.SIGKILL)
            self._stop_until_s += OVERTIME_S


def _note(_number: int, _frame: object) -> None:
    """Whatever is to be done is done when the loop wakes up."""


def _said(code: int) -> str:
    return f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
