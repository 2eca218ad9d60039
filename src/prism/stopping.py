"""One way to stop: Ctrl-C, SIGTERM or a closed terminal ends a command within two seconds, with one line.

The signal raises no exception. One that comes out of nowhere ends in the traceback of whatever library it hits, or is
caught there and the work goes on. Instead the process does what `at_stop` was told, says what is kept, and is gone.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator

SIGNALS = {getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)}
LIMIT = 1.6  # s from the signal to the end, even if something hangs

_pending: list[Callable[[], object]] = []
_ending = threading.RLock()
_received: list[int] = []
_listening: list[int] = []  # the process's id


def listen() -> None:
    """From now on the signals end this process, with the exit status that a shell gives: 130 for Ctrl-C, 143, 129.

    For a command's own process only, as early as can be: imports alone take seconds.
    """
    if signal.getsignal(signal.SIGTERM) is _on_signal:
        return
    _listening.append(os.getpid())
    for number in SIGNALS:
        if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:  # nohup's wish is respected
            signal.signal(number, _on_signal)
    import socket  # only now, as even this takes a moment

    # Python runs a handler between two of its own steps; a thread that hears of the signal at once covers long ones.
    heard, told = socket.socketpair()
    told.setblocking(False)
    threading.Thread(target=_watch, args=(heard,), daemon=True).start()
    wake = functools.partial(_wake, told.detach())
    wake()
    if hasattr(os, "register_at_fork"):  # a child's signals are not its parent's
        os.register_at_fork(before=functools.partial(_wake, -1), after_in_parent=wake, after_in_child=_forget)


@contextlib.contextmanager
def at_stop(function: Callable[[], object]) -> Iterator[None]:
    """`function()` is called if the command is stopped inside; text that it returns is said then.

    Several are called from the innermost outwards. It must be quick, and works at any moment.
    """
    _pending.append(function)
    try:
        yield
    except KeyboardInterrupt as stop:  # where nobody listens, such as in a test
        with contextlib.suppress(Exception):
            stop.args = (*stop.args, function())
        raise
    finally:
        _pending.remove(function)


@contextlib.contextmanager
def at_end(function: Callable[[], object]) -> Iterator[None]:
    """`function()` is called when the block ends, or the command inside it."""
    try:
        with at_stop(function):
            yield
    finally:
        function()


@contextlib.contextmanager
def ending_children() -> Iterator[None]:
    """If the command is stopped inside, the processes that it started end, and those that they started."""
    import subprocess

    import psutil  # now, so that it is there when a signal comes

    def end() -> None:
        if _received:  # a thread may be about to start one: from here on it cannot, and one just started shows up
            subprocess.Popen.__init__ = _refuse
        for wait in (0.0, 0.05):
            time.sleep(wait)
            for child in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    child.kill()

    with at_stop(end):
        yield


@contextlib.contextmanager
def deaf() -> Iterator[None]:
    """Processes that are started inside never hear Ctrl-C, so that none of them has a last word."""
    blocked = hasattr(signal, "pthread_sigmask") and signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        if blocked is not False:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def line(kept: Iterable[object] = ()) -> str:
    """What is said at the end."""
    return "; ".join(["prism: stopped", *(words for words in kept if isinstance(words, str))])


def _refuse(*arguments: object, **settings: object) -> None:
    raise OSError("this process is being stopped")


def _on_signal(number: int, frame: object) -> None:
    _end(number)


def _watch(heard) -> None:
    """Ends the process where the main thread does not get to it, or hangs while it does."""
    while (number := heard.recv(1)[0]) not in SIGNALS:
        pass
    with contextlib.suppress(RuntimeError):  # at the very end of a program no thread can be started, nor hangs one
        threading.Timer(LIMIT, os._exit, (128 + number,)).start()
    time.sleep(LIMIT / 2)
    _end(number)


def _wake(socket_number: int) -> None:
    """Which socket hears of signals; -1 for none. Another thread than the main one has no say in it."""
    with contextlib.suppress(ValueError):
        signal.set_wakeup_fd(socket_number, warn_on_full_buffer=False)


def _forget() -> None:
    """A forked child is ended by the signals as any process is."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def _end(number: int) -> None:
    if os.getpid() not in _listening:  # a child, a moment after its birth
        os._exit(128 + number)
    if not _ending.acquire(blocking=False):
        threading.Event().wait()  # another thread is about it
    _received.append(number)
    if len(_received) > 1:  # pressed twice
        return
    kept = []
    for function in reversed(_pending):
        with contextlib.suppress(Exception):
            kept.append(function())
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    with contextlib.suppress(OSError):  # a closed terminal
        os.write(2, os.fsencode(("\n" if _inside_a_line() else "") + line(kept) + "\n"))
    os._exit(128 + number)


def _inside_a_line() -> bool:
    """Whether the cursor may stand behind something: a progress bar, or the `^C` of a terminal."""
    bars = getattr(sys.modules.get("tqdm.std"), "tqdm", None)
    return os.isatty(2) or bool(getattr(bars, "_instances", None))
