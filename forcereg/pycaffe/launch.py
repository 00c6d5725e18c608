"""`import caffe` gives forcereg.pycaffe: in this process (`install`), or for one script (`run`)."""

from __future__ import annotations

import builtins
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType, TracebackType
from typing import Any

from forcereg.errors import ForceregError
from forcereg.system.files import read_file
from forcereg.system.isolation import put_back

HOME = __name__.rpartition(".")[0]
NAMES = (
    "proto", "proto.caffe_pb2", "_caffe", "pycaffe", "io", "net_spec", "classifier", "detector", "draw", "coord_map",
)  # fmt: skip
"""Modules of `caffe`."""


def install() -> ModuleType:
    """Puts `caffe` and its modules into sys.modules; returns it. Twice is once.

    Raises ImportError if another Caffe is imported already.
    """
    caffe, there = importlib.import_module(HOME), sys.modules.get("caffe")
    # a folder of that name can be imported too
    if there is not None and there is not caffe and hasattr(there, "Net"):
        place = getattr(there, "__file__", None) or "somewhere"
        raise ImportError(f"another caffe is imported already, from {place}; call forcereg.pycaffe.install() before")
    sys.modules.update(modules())
    return caffe


def modules() -> dict[str, ModuleType]:
    """Name -> module, of `caffe` and all of its modules."""
    found = {f"caffe.{name}": importlib.import_module(f"{HOME}.{name}") for name in NAMES}
    return {"caffe": importlib.import_module(HOME), **found}


def load_ipython_extension(shell: Any) -> None:
    """`%load_ext forcereg.pycaffe` in a notebook is `install()`."""
    install()


def run(script: str, args: Sequence[str] = ()) -> None:
    """Runs a Python file as `python SCRIPT ARGS...` does, with our `caffe`.

    The process is the script's from then on: sys.argv, sys.path, `__main__`. Raises ForceregError for a file that can't
    be read, and whatever the script raises.
    """
    try:
        source = read_file(script)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ForceregError(f"{script}: {reason}; expected a Python file") from None
    install()
    main = ModuleType("__main__")
    vars(main).update(__file__=script, __builtins__=builtins)
    sys.modules["__main__"] = main
    sys.argv = [script, *args]
    sys.path.insert(0, os.path.dirname(os.path.realpath(script)))
    exec(compile(source, script, "exec", dont_inherit=True), vars(main))


def main(script: str, args: Sequence[str] = ()) -> int:
    """`run` as a process: the exit code; the script's exceptions are shown as Python shows them.

    The names of Python 2 are there too. Raises SystemExit where the script does, and ForceregError for a file that
    can't be read.
    """
    from forcereg.pycaffe import python2

    try:
        python2.install()
        put_back()
        run(script, args)
    except SystemExit:
        raise
    except BaseException as error:
        trace = _theirs(error.__traceback__)
        if trace is None and isinstance(error, ForceregError):
            raise
        sys.excepthook(type(error), error.with_traceback(trace), trace)
        # 128 + SIGINT, as shells have it
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    return 0


@contextmanager
def lent() -> Iterator[None]:
    """What `run` does to the process is undone behind."""
    names = ("__main__", "caffe", *(f"caffe.{name}" for name in NAMES))
    modules = {name: sys.modules[name] for name in names if name in sys.modules}
    path, argv = list(sys.path), sys.argv
    try:
        yield
    finally:
        sys.path[:], sys.argv = path, argv
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(modules)


def _theirs(trace: TracebackType | None) -> TracebackType | None:
    """The part of a traceback that begins in the script; None for one that never got there, as of its syntax."""
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return trace
