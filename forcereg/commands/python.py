"""forcereg python"""

from __future__ import annotations

import sys

import click


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    epilog="\b\nExample: forcereg python classify_cat.py cat.jpg",
)
@click.argument("script", metavar="SCRIPT", type=click.Path())
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def command(script: str, args: tuple[str, ...]) -> None:
    """Run a Python script that imports caffe, unchanged.

    As `python SCRIPT ARGS...`, but that `import caffe` gives forcereg.pycaffe, and that Python layers of its nets may
    run. Names of Python 2 that a script may lack (xrange, cPickle, ...) are there, its syntax isn't.
    """
    from forcereg.pycaffe.launch import main

    if code := main(script, args):
        sys.exit(code)
