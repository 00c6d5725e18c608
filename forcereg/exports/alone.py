"""Runs programs of torch.export where forcereg can't be imported: `python -P alone.py THREADS ANEW PROGRAM...`.

Run by its path, which shuts forcereg out. ANEW, 1 or 0: whether programs are loaded anew for each call. For each number
N on standard input all programs are called with the arrays of N.in.npz, in their order; what they give goes to
N.out.npz, with its names, and N to standard output.
"""

from __future__ import annotations

import sys
from typing import Any

if __name__ == "__main__":
    sys.modules["forcereg"] = None  # type: ignore[assignment]  # whatever asks for it fails

import numpy as np
import torch


def main(threads: int, anew: bool, paths: list[str]) -> None:
    torch.set_num_threads(threads)
    programs = [torch.export.load(path).module() for path in paths]
    for line in sys.stdin:
        number = line.strip()
        with np.load(f"{number}.in.npz", allow_pickle=False) as file:
            inputs = [torch.from_numpy(file[name]) for name in file.files]
        found: dict[str, Any] = {}
        with torch.no_grad():
            for path, program in zip(paths, programs, strict=True):
                found.update((torch.export.load(path).module() if anew else program)(*inputs))
        values = {str(index): value.numpy() for index, value in enumerate(found.values())}
        np.savez(f"{number}.out.npz", names=np.array(list(found), str), **values)
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2] == "1", sys.argv[3:])
