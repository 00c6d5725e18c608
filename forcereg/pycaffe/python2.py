"""Names of Python 2 and of the packages of its time, for scripts that else run on Python 3: the launcher's alone.

What only another parser could help with (`print x`, `except E, e`) stays a SyntaxError, and `/` is Python 3's.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import io
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, spec_from_loader
from types import ModuleType
from typing import Any

import numpy as np

BUILTINS: dict[str, Any] = {
    "basestring": str,
    "file": open,
    "long": int,
    "raw_input": input,
    "reduce": functools.reduce,
    "reload": importlib.reload,
    "unichr": chr,
    "unicode": str,
    "xrange": range,
}
MODULES = {
    "ConfigParser": "configparser",
    "Queue": "queue",
    "__builtin__": "builtins",
    "cPickle": "pickle",
    "urllib2": "urllib.request",
    "urlparse": "urllib.parse",
}
"""Modules by their old names."""
STRING_IO = ("StringIO", "cStringIO")
"""Modules of a class that took texts and bytes alike."""
NUMPY: dict[str, Any] = {"float": float, "int": int, "bool": bool, "object": object, "str": str, "complex": complex}
"""Types that NumPy had names for."""


def install() -> None:
    """Adds whatever of this isn't there: names to builtins and NumPy, modules that are found last."""
    for name, value in BUILTINS.items():
        if not hasattr(builtins, name):
            setattr(builtins, name, value)
    for name, value in NUMPY.items():
        # some NumPys have a module attribute that warns or raises
        if name not in vars(np):
            setattr(np, name, value)
    if getattr(np.fromstring, "__module__", "") != __name__:
        np.fromstring = _fromstring(np.fromstring)
    if not any(isinstance(finder, _OldNames) for finder in sys.meta_path):
        sys.meta_path.append(_OldNames())
    if "yaml" in sys.modules:
        _relax(sys.modules["yaml"])
    elif not any(isinstance(finder, _Yaml) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Yaml())


class _OldNames(MetaPathFinder, Loader):
    """Finds modules by their old names; the user's own of that name come first."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return spec_from_loader(fullname, self) if fullname in MODULES or fullname in STRING_IO else None

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        if name in STRING_IO:
            vars(module).update(StringIO=_string_io)
        else:
            sys.modules[name] = importlib.import_module(MODULES[name])


class _Yaml(MetaPathFinder):
    """Finds PyYAML as ever, once, and has its `load` relaxed: when a script imports it, since few do."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "yaml":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run(module)
                _relax(module)

            vars(spec.loader)["exec_module"] = exec_module
        return spec


def _relax(yaml: Any) -> None:
    """`yaml.load(self.param_str)`, as Python layers read their settings, needed no loader once; a file of the script's
    own that has this name stays."""
    own, loader = getattr(yaml, "load", None), getattr(yaml, "FullLoader", None)
    if own is None or loader is None or own.__defaults__:
        return

    @functools.wraps(own)
    def load(stream: Any, Loader: Any = loader) -> Any:
        return own(stream, Loader)

    yaml.load = load


def _string_io(initial: str | bytes = "") -> io.StringIO | io.BytesIO:
    return io.BytesIO(initial) if isinstance(initial, bytes) else io.StringIO(initial)


def _fromstring(own: Any) -> Any:
    """NumPy's `fromstring` that takes bytes again, as loops over Datums call it."""

    def fromstring(string: Any, dtype: Any = float, count: int = -1, *, sep: str = "", **more: Any) -> np.ndarray:
        if sep == "":
            return np.frombuffer(string, dtype, count).copy()
        found: np.ndarray = own(string, dtype, count, sep=sep, **more)
        return found

    return fromstring
