"""A script that imports caffe, run unchanged: `forcereg python`."""

from __future__ import annotations

from collections.abc import Sequence

from forcereg.pycaffe.launch import lent, run
from forcereg.system.arguments import checked
from forcereg.system.paths import StrPath


@checked
def run_script(script: StrPath, args: Sequence[str] = ()) -> None:
    """Runs a Python file as `python SCRIPT ARGS...` does, but that `import caffe` gives forcereg.pycaffe.

    Behind it sys.path, sys.argv, `__main__` and `caffe` are what they were. (The command adds names of Python 2, too.)
    Raises ForceregError for a file that can't be read, ImportError if another Caffe is imported already, and whatever
    the script raises, SystemExit too.

    >>> import pathlib
    >>> _ = pathlib.Path("count.py").write_text("import sys, caffe; print(caffe.TEST, sys.argv)")
    >>> forcereg.run_script("count.py", ["-v"])
    1 ['count.py', '-v']
    """
    with lent():
        run(str(script), args)
