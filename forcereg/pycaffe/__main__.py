"""`python -m forcereg.pycaffe SCRIPT ARGS...`: a script that imports caffe, run unchanged."""

from __future__ import annotations

import sys

from forcereg.errors import ForceregError
from forcereg.system.isolation import leave_out_working_directory

if __name__ == "__main__":
    # python -m puts it in front, python SCRIPT doesn't
    leave_out_working_directory()
    from forcereg.pycaffe.launch import main
    from forcereg.system.terminal import echo

    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        asked = len(sys.argv) > 1
        echo("usage: python -m forcereg.pycaffe SCRIPT [ARGS]...", err=not asked)
        sys.exit(0 if asked else 2)
    try:
        sys.exit(main(sys.argv[1], sys.argv[2:]))
    except ForceregError as error:
        sys.exit(f"forcereg: {error}")
