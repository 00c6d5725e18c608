"""Processes forked from one that has torch already: loading it takes two seconds, most of them need a tenth of that.

Each is what `python -m MODULE ...` or `python -c CODE ...` would be, with a folder, environment, output, signals and
exit code of its own, and imports forcereg itself; only what torch reads from the environment while it is loaded is set
here: there is one thread. At their end most leave memory to the system, see `end`.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

TOP = Path(__file__).resolve().parents[1]


class Child:
    """A process of a nursery; like subprocess.Popen."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self.pid, self.returncode = pid, None
        self._nursery = nursery

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        if self.returncode is None:
            self.returncode = self._nursery._ask(self.pid)
        return self.returncode

    def wait(self, timeout: float = 300) -> int:
        """The exit code; raises TimeoutExpired after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.002)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Nothing happens if it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(9)


class Nursery:
    """The process that the others are forked from; it loads `modules`. `frees`: they end as Python does."""

    def __init__(self, *modules: str, frees: bool = False) -> None:
        self._server, self._frees = _server("", *modules), frees

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.__exit__(None, None, None)

    def start(
        self, *args: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None, out: Path, err: Path
    ) -> Child:
        """`python ARGS` with its output behind files `out` and `err`; `env` adds to the environment."""
        path = os.pathsep.join(filter(None, (str(TOP), os.environ.get("PYTHONPATH"))))
        whole = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "COLUMNS": "200", **(env or {})}
        for file in (out, err):
            file.touch()
        files = [os.devnull, str(out), str(err)]
        asked = {"args": [*map(str, args)], "cwd": str(cwd or Path.cwd()), "env": whole, "files": files}
        return Child(self, self._ask({**asked, "frees": self._frees}))

    def run(
        self, *args: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None, timeout: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """`python ARGS` from start to end; its output is captured, its exit code is the caller's to check."""
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            child = self.start(*args, cwd=cwd, env=env, out=out, err=err)
            try:
                code = child.wait(timeout)
            finally:
                child.kill()
            return subprocess.CompletedProcess(args, code, out.read_text(), err.read_text())

    def _ask(self, request: Any) -> Any:
        assert self._server.stdin is not None and self._server.stdout is not None
        print(json.dumps(request), file=self._server.stdin, flush=True)
        answer = self._server.stdout.readline()
        assert answer, "the nursery has ended"
        return json.loads(answer)


def _server(path: str, *modules: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.nursery", path, *modules]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=TOP, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


CLIENT = """#!{python} -ISs
import json, os, socket, sys
door = socket.socket(socket.AF_UNIX)
door.connect({path!r})
request = json.dumps({{"args": {first!r} + sys.argv[1:], "cwd": os.getcwd(), "env": dict(os.environ)}}).encode()
socket.send_fds(door, [len(request).to_bytes(8, "big")], [0, 1, 2])
door.sendall(request)
code = int(door.makefile().readline() or 1)
sys.exit(code if code >= 0 else 128 - code)
"""


class Door:
    """Programs `forcereg` and `python` in a folder, for shell scripts: what they run is forked, too."""

    def __init__(self, *modules: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.folder = Path(self._folder.name)
        path = str(self.folder / "door")
        for name, first in (("forcereg", ["-m", "forcereg"]), ("python", [])):
            program = self.folder / name
            program.write_text(CLIENT.format(python=sys.executable, path=path, first=first))
            program.chmod(0o755)
        self._server = _server(path, *modules)
        assert self._server.stdout is not None and self._server.stdout.readline()

    def __enter__(self) -> Door:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.__exit__(None, None, None)
        self._folder.cleanup()


def serve_at(path: str) -> None:
    """Answers whoever comes to the socket `path` with the exit code of what it asks for, until input ends."""
    door = socket.socket(socket.AF_UNIX)
    door.bind(path)
    door.listen(64)
    print("open", flush=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while sys.stdin not in select.select([door, sys.stdin], [], [])[0]:
        peer, _ = door.accept()
        if os.fork():
            peer.close()
            continue
        door.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        data, files, *_ = socket.recv_fds(peer, 8, 3)
        request = json.loads(peer.makefile("rb").read(int.from_bytes(data, "big")))
        child = os.fork()
        if not child:
            peer.close()
            return become(**request, files=files)
        for file in files:
            os.close(file)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        peer.sendall(f"{code}\n".encode())
        os._exit(0)


def serve() -> None:
    """Answers each line of input: a process's id with its exit code or null, what is to be started with its id."""
    for line in sys.stdin:
        request = json.loads(line)
        if isinstance(request, int):
            done, status = os.waitpid(request, os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if done else None
        else:
            answer = os.fork()
            if not answer:
                return become(**request)
        print(json.dumps(answer), flush=True)


def become(args: list[str], cwd: str, env: dict[str, str], files: Sequence[str | int], frees: bool = False) -> None:
    """Makes this the process `python ARGS`, and runs it; `files`: its streams, paths or open files."""
    for number, path in enumerate(files):
        file = path if isinstance(path, int) else os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    # what a shell starts in the background ignores it, and so would all that is started from there
    signal.signal(signal.SIGINT, signal.default_int_handler)
    option, what, *rest = args if args[0] in ("-m", "-c") else ("", *args)
    (run if frees else end)(option, what, *rest)


def run(option: str, what: str, *args: str) -> None:
    """What `python OPTION WHAT ARGS` does between its start and its end."""
    sys.path[:1] = ["" if option else str(Path(what).parent), str(TOP)]
    sys.argv[:] = [option, *args]
    if option == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    elif not option:
        sys.argv[0] = what
        runpy.run_path(what, run_name="__main__")
    else:
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(what, "<string>", "exec"), main.__dict__)


def end(option: str, what: str, *args: str) -> NoReturn:
    """Runs a program and ends the process as Python does, but leaves what torch has loaded to the system.

    To free it, object by object, takes longer than most programs run.
    """
    code, interrupted = 0, False
    try:
        run(option, what, *args)
    except SystemExit as exit:
        code = exit.code if isinstance(exit.code, int) else 0 if exit.code is None else 1
        if code and not isinstance(exit.code, int):
            print(exit.code, file=sys.stderr)
    except BaseException as error:
        code, interrupted = 1, isinstance(error, KeyboardInterrupt)
        shown = error.__traceback__
        while shown and shown.tb_frame.f_code.co_filename in (__file__, "<frozen runpy>"):
            shown = shown.tb_next
        sys.excepthook(type(error), error.with_traceback(shown), shown)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            code = 120
    if interrupted:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code & 0xFF)


if __name__ == "__main__":
    socket_path, *names = sys.argv[1:]
    for module in names:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # so that a collection in a child doesn't copy all of it
    serve_at(socket_path) if socket_path else serve()
