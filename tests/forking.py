"""``clmoe`` and ``python`` without their start: a server that has imported everything forks for each command.

A command has its own process, folder, environment and streams, as it has when a shell starts it; signals reach it and
its exit code comes back. Only the imports are shared, which would take seconds each time. What the interpreter itself
does at its start is not seen like this: for that there are commands of :mod:`shells` that start anew.
"""

from __future__ import annotations

import array
import gc
import importlib
import io
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path

CLIENT = """#!{python} -IS
import array, json, os, signal, socket
own = []
for number in range(3):
    try:
        os.fstat(number)
        own.append(number)
    except OSError:
        pass
peer = socket.socket(socket.AF_UNIX)
peer.connect({address!r})
import sys
request = json.dumps([{name!r}, sys.argv[1:], os.getcwd(), dict(os.environ), own]).encode()
streams = array.array("i", own).tobytes()
ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)] if own else []
peer.sendmsg([len(request).to_bytes(4)], ancillary)
peer.sendall(request)
with peer.makefile() as answers:
    child = int(answers.readline())
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: os.kill(child, number))
    code = int(answers.readline() or 99)
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
"""
"""Hands its streams to the server, hands signals on, and ends as the command ends."""

LIGHT = ("clmoe_cli.cli.app", "clmoe_cli.cli.process", "clmoe_cli.api.inspect", "clmoe_cli.report.render")
_running = ExitStack()


@cache
def served(light: bool = False) -> Path:
    """The folder with the two commands, for as long as the tests run; ``light``: without torch and what needs it."""
    return _running.enter_context(commands(*LIGHT) if light else commands(everything=True))


def stop() -> None:
    """Ends the servers of :func:`served`."""
    served.cache_clear()
    _running.close()


@contextmanager
def commands(*preloaded: str, everything: bool = False) -> Iterator[Path]:
    """A folder for PATH with ``clmoe`` and ``python``, both served by forks; ``everything`` of clmoe is preloaded."""
    with tempfile.TemporaryDirectory() as name:  # not pytest's folder: addresses of sockets are short
        folder, address = Path(name), str(Path(name) / "socket")
        for command in ("clmoe", "python"):
            client = folder / command
            client.write_text(CLIENT.format(python=sys.executable, address=address, name=command))
            client.chmod(0o755)
        # Without this folder on the path, where tests of a package would hide it.
        command = [sys.executable, "-P", __file__, address, *preloaded, *(["everything"] if everything else [])]
        environment = {
            key: value for key, value in os.environ.items() if key == "CLMOE_CACHE" or not key.startswith("CLMOE_")
        }
        server = subprocess.Popen(command, stdout=subprocess.PIPE, env={**environment, "OMP_NUM_THREADS": "1"})
        assert server.stdout
        try:
            assert server.stdout.readline() == b"ready\n"
            yield folder
        finally:
            server.terminate()
            server.wait()
            server.stdout.close()


def serve(address: str, starter: int) -> None:
    """Forks for each request, until it is terminated or who has started it is gone."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        signal.signal(signal.SIGCHLD, reap)  # waited for, so that their processor time counts
        print("ready", flush=True)
        while listener in select.select([listener, starter], [], [])[0]:
            peer, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                os.close(starter)
                supervise(peer)
            peer.close()


def reap(*_: object) -> None:
    """Takes leave of those that have ended."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def supervise(peer: socket.socket) -> None:
    """Runs one request in a child of its own and reports how that ended; the child does not outlive its client."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, ancillary, *_ = peer.recvmsg(4, socket.CMSG_SPACE(12))
    streams = array.array("i")
    for _, _, data in ancillary:
        streams.frombytes(data)
    text = b""
    while len(text) < int.from_bytes(size):
        text += peer.recv(1 << 16)
    child = os.fork()
    if child == 0:
        peer.close()
        name, args, folder, environment, numbers = json.loads(text)
        perform(name, args, folder, environment, dict(zip(numbers, streams, strict=True)))
    for stream in streams:
        os.close(stream)
    with suppress(OSError):
        peer.sendall(b"%d\n" % child)
    ended = os.pidfd_open(child)
    if ended not in select.select([ended, peer], [], [])[0]:
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with suppress(OSError):
        peer.sendall(b"%d\n" % code)
    os._exit(0)


def perform(name: str, args: list[str], folder: str, environment: dict[str, str], streams: dict[int, int]) -> None:
    """Becomes the command."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        take(streams, environment.get("PYTHONIOENCODING", "utf-8"))
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        try:
            if name == "clmoe":
                sys.argv = ["clmoe", *args]
                runpy.run_module("clmoe_cli", run_name="__main__")
            elif args[0] == "-c":
                sys.argv = ["-c", *args[2:]]
                exec(compile(args[1], "<string>", "exec"), {"__name__": "__main__"})  # noqa: S102
            else:
                sys.argv = args
                runpy.run_path(args[0], run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename in (__file__, "<frozen runpy>"):
            trace = trace.tb_next
        traceback.print_exception(error.with_traceback(trace))
        code = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                if stream is not None:
                    stream.flush()
            except OSError:
                code = code or 120  # as the interpreter ends that cannot flush
        if code < 0:
            signal.signal(-code, signal.SIG_DFL)
            os.kill(os.getpid(), -code)
        os._exit(code)


def take(streams: dict[int, int], encoding: str) -> None:
    """Makes these the standard streams; those that are missing are closed."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if number not in streams:
            os.close(number)
            setattr(sys, name, None)
            continue
        os.dup2(streams[number], number)
        os.close(streams[number])
        binary = open(number, f"{mode}b", closefd=False)  # noqa: SIM115
        errors = "backslashreplace" if name == "stderr" else "strict"
        at_once = name == "stderr" or os.isatty(number)
        text = io.TextIOWrapper(binary, encoding, errors, line_buffering=at_once)
        setattr(sys, name, text)


def main(address: str, *preloaded: str) -> None:
    names = [name for name in preloaded if name != "everything"]
    if len(names) < len(preloaded):
        import clmoe_cli

        names += [found.name for found in pkgutil.walk_packages(clmoe_cli.__path__, "clmoe_cli.")]
        names.append("torch.distributed.run")
    starter = os.pidfd_open(os.getppid())
    for module in names:
        if not module.endswith("__main__"):
            importlib.import_module(module)
    gc.freeze()
    serve(address, starter)


if __name__ == "__main__":
    main(*sys.argv[1:])
