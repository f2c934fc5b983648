"""``clmoe`` for shell lines without its start: a server that has imported everything forks for each command.

A command has its own process, folder, environment and streams, as it has when a shell starts it. Only the imports
are shared, which would take seconds each time.
"""

from __future__ import annotations

import array
import gc
import importlib
import json
import os
import pkgutil
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import clmoe_cli

CLIENT = """#!{python} -IS
import array, json, os, socket, sys
with socket.socket(socket.AF_UNIX) as peer:
    peer.connect({address!r})
    request = json.dumps([{name!r}, sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    streams = array.array("i", [0, 1, 2]).tobytes()
    peer.sendmsg([len(request).to_bytes(4)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
    peer.sendall(request)
    sys.exit(int(peer.recv(16) or b"99"))
"""
"""Hands its streams to the server, and takes the exit code from it."""


@contextmanager
def commands(*preloaded: str) -> Iterator[Path]:
    """A folder for PATH with ``clmoe`` and ``python``, both served by forks."""
    with tempfile.TemporaryDirectory() as name:  # not pytest's folder: addresses of sockets are short
        folder, address = Path(name), str(Path(name) / "socket")
        for command in ("clmoe", "python"):
            client = folder / command
            client.write_text(CLIENT.format(python=sys.executable, address=address, name=command))
            client.chmod(0o755)
        # Without this folder on the path, where tests of a package would hide it.
        server = subprocess.Popen([sys.executable, "-P", __file__, address, *preloaded], stdout=subprocess.PIPE)
        assert server.stdout
        try:
            assert server.stdout.readline() == b"ready\n"
            yield folder
        finally:
            server.terminate()
            server.wait()
            server.stdout.close()


def serve(address: str) -> None:
    """Forks for each request until it is terminated."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        print("ready", flush=True)
        while True:
            peer, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                supervise(peer)
            peer.close()


def supervise(peer: socket.socket) -> None:
    """Runs one request in a child of its own and reports how that ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, ancillary, *_ = peer.recvmsg(4, socket.CMSG_SPACE(12))
    streams = array.array("i")
    streams.frombytes(ancillary[0][2])
    text = b""
    while len(text) < int.from_bytes(size):
        text += peer.recv(1 << 16)
    child = os.fork()
    if child == 0:
        peer.close()
        name, args, folder, environment = json.loads(text)
        perform(name, args, folder, environment, list(streams))
    for stream in streams:
        os.close(stream)
    peer.sendall(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())
    os._exit(0)


def perform(name: str, args: list[str], folder: str, environment: dict[str, str], streams: list[int]) -> None:
    """Becomes the command."""
    code = 1
    try:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        for number, mode in enumerate(("r", "w", "w")):
            encoded = open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, ("stdin", "stdout", "stderr")[number], encoded)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        try:
            sys.argv = ["clmoe", *args] if name == "clmoe" else args
            if name == "clmoe":
                runpy.run_module("clmoe_cli", run_name="__main__")
            else:
                runpy.run_path(args[0], run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    for module in (*sys.argv[2:], *(found.name for found in pkgutil.walk_packages(clmoe_cli.__path__, "clmoe_cli."))):
        if not module.endswith("__main__"):
            importlib.import_module(module)
    gc.freeze()
    serve(sys.argv[1])
