"""Opens the records of a database folder, whichever kind it is."""

from __future__ import annotations

import os
from pathlib import Path

from forcereg.data.leveldb_records import LevelDbRecords
from forcereg.data.lmdb_records import LmdbRecords
from forcereg.data.records import Records
from forcereg.errors import ForceregError


def open_records(path: Path, named: str | None = None) -> Records:
    """The records of the LMDB or LevelDB folder `path`, called `named` in errors. Raises ForceregError."""
    named = named or str(path)
    if os.path.isfile(path):
        raise ForceregError(f"source '{named}' is a file; expected the folder that holds data.mdb or CURRENT")
    # a link to nothing is there: it is told by who opens it
    if not os.path.lexists(path):
        sets = {"mnist": f"mnist IDX_DIR {path.parent}", "cifar": f"cifar10 SRC {path.parent}"}
        maker = next((command for name, command in sets.items() if name in named), f"images LIST {path}")
        raise ForceregError(f"source '{named}': no LMDB at {path}; make one with `forcereg data {maker}`")
    # what is there counts, whatever `backend` says: its default is LEVELDB, and most nets don't write it
    if os.path.isfile(path / "CURRENT") and not os.path.exists(path / "data.mdb"):
        return LevelDbRecords(path)
    return LmdbRecords(path)
