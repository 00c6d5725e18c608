"""A solver state in which an entry is another: it is gone on from, or refused in one line and nothing has changed."""

from __future__ import annotations

import functools
import io
import random
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from PIL import Image

from forcereg.errors import ForceregError
from forcereg.snapshot import StateFile, read_state
from forcereg.snapshot.hdf5 import pack_extra
from forcereg.solver.loop import Solver
from tests.data.lmdbs import put_lmdb
from tests.fuzz.edits import VALUES, edit
from tests.solver.nets import Recorder, image_records

NET = """
layer { name: "records" type: "Data" top: "a" top: "label" transform_param { crop_size: 6 mirror: true }
  data_param { source: "lmdb" batch_size: 4 backend: LMDB } }
layer { name: "rows" type: "HDF5Data" top: "b" hdf5_data_param { source: "rows.txt" batch_size: 4 shuffle: true } }
layer { name: "noise" type: "DummyData" top: "c"
  dummy_data_param { shape { dim: 4 dim: 2 } data_filler { type: "gaussian" } } }
layer { name: "images" type: "ImageData" top: "d" top: "unused" transform_param { mirror: true }
  image_data_param { source: "images.txt" batch_size: 4 shuffle: true } }
layer { name: "s" type: "Silence" bottom: "unused" }
layer { name: "cont" type: "DummyData" top: "cont"
  dummy_data_param { shape { dim: 2 dim: 2 } data_filler { value: 1 } } }
layer { name: "steps" type: "Reshape" bottom: "c" top: "steps" reshape_param { shape { dim: 2 dim: 2 dim: -1 } } }
layer { name: "lstm" type: "LSTM" bottom: "steps" bottom: "cont" top: "lstm"
  recurrent_param { num_output: 2 weight_filler { type: "uniform" min: -0.1 max: 0.1 } } }
layer { name: "rows_again" type: "Reshape" bottom: "lstm" top: "e" reshape_param { shape { dim: 4 dim: 2 } } }
layer { name: "fa" type: "Flatten" bottom: "a" top: "fa" }
layer { name: "fd" type: "Flatten" bottom: "d" top: "fd" }
layer { name: "all" type: "Concat" bottom: "fa" bottom: "b" bottom: "fd" bottom: "e" top: "all" }
layer { name: "ip" type: "InnerProduct" bottom: "all" top: "ip"
  inner_product_param { num_output: 3 weight_filler { type: "gaussian" std: 0.001 } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""
SOLVER = """
net: "net.prototxt" base_lr: 0.0001 lr_policy: "multistep" gamma: 0.5 stepvalue: 1 stepvalue: 4
type: "TYPE" momentum: 0.9
average_loss: 3 max_iter: 3 random_seed: 3 solver_mode: CPU snapshot_prefix: "s" snapshot: 2 snapshot_format: FORMAT
"""
KINDS = [(form, kind) for form in ("HDF5", "BINARYPROTO") for kind in ("SGD", "Adam")]


def prepare(folder: Path) -> None:
    """Data, nets and, for each kind, two snapshots."""
    put_lmdb(folder / "lmdb", image_records(20))
    with h5py.File(folder / "rows.h5", "w") as file:
        file["b"] = np.random.default_rng(0).standard_normal((9, 2)).astype(np.float32)
    (folder / "rows.txt").write_text("rows.h5\n")
    for index in range(3):
        image = Image.new("RGB", (5, 5), (index, 0, 90))
        image.save(buffer := io.BytesIO(), "PNG")
        (folder / f"{index}.png").write_bytes(buffer.getvalue())
    (folder / "images.txt").write_text("".join(f"{index}.png {index}\n" for index in range(3)))
    for form, kind in KINDS:
        place = folder / f"{form}_{kind}"
        place.mkdir()
        solver = made(folder, form, kind)
        solver.solve()


def made(folder: Path, form: str, kind: str, prefix: str = "") -> Solver:
    (folder / "net.prototxt").write_text(NET)
    text = SOLVER.replace("FORMAT", form).replace("TYPE", kind)
    text = text.replace("momentum: 0.9", "momentum: 0.9" if kind == "SGD" else "momentum: 0.9 momentum2: 0.99")
    file = folder / f"{form}_{kind}.prototxt"
    file.write_text(text.replace('"s"', f'"{prefix or f"{form}_{kind}"}/s"'))
    return Solver(file, observers=[Recorder()], workers=1, amp="fp16" if kind == "Adam" else None)


@functools.cache
def solver_of(folder: Path, form: str, kind: str) -> Solver:
    return made(folder, form, kind)


def edited(path: Path, chance: random.Random) -> list[str]:
    """One to three edits of a state file, in its own format and without a checksum."""
    count = chance.choice((1, 1, 1, 2, 3))
    if path.suffix == ".h5":
        path.write_bytes(path.read_bytes()[:-16])
        with h5py.File(path, "r+") as file:
            return edits(file, count, chance, chance.choice(("/", "/", "/forcereg")))
    state = read_state(path)
    image = io.BytesIO(pack_extra(state.extra or {}, state.path))
    with h5py.File(image, "r+") as file:
        done = edits(file, count, chance)
    rewrite(path, state, image.getvalue(), chance)
    return done


def edits(file: h5py.File, count: int, chance: random.Random, where: str = "/") -> list[str]:
    with np.errstate(all="ignore"):
        return [edit(file, chance, VALUES, where) for _ in range(count) if isinstance(file.get(where), h5py.Group)]


def rewrite(path: Path, state: StateFile, image: bytes, chance: random.Random) -> None:
    """The binary state with another image of `extra`."""
    from forcereg.schema import wire
    from forcereg.snapshot import binary, container

    pieces = binary.state_pieces(
        StateFile(path, state.iteration, state.current_step, state.learned_net, state.history, None)
    )
    container.write(path, [*pieces[:-1], *wire.message(16002, [image]), pieces[-1]])


def fingerprint(solver: Solver) -> list[Any]:
    """All that going on from a state changes."""
    tensors = [blob.detach() for blobs in solver.net.params.values() for blob in blobs]
    tensors += [tensor for slot in solver.updater.history for tensor in slot]
    return [solver.iter, solver.current_step, solver.last_snapshot, plain([*tensors, solver._snapshots.extra()])]


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value if isinstance(value, int | float | str) else np.array(value).tobytes()


def attempt(chance: random.Random, folder: Path) -> None:
    form, kind = chance.choice(KINDS)
    solver = solver_of(folder, form, kind)
    end = ".h5" if form == "HDF5" else ""
    good, bad = folder / f"{form}_{kind}/s_iter_2.solverstate{end}", folder / f"{form}_{kind}/t_iter_3.solverstate{end}"
    solver.restore(good)
    solver.net.zero_grad()
    torch.manual_seed(chance.getrandbits(32))
    before = fingerprint(solver)
    shutil.copy(good.with_name(f"s_iter_3.solverstate{end}"), bad)
    done = edited(bad, chance)
    try:
        solver.restore(bad)
    except ForceregError as error:
        assert "\n" not in str(error), done
        assert fingerprint(solver) == before, f"{done}: {error}: it has changed"
        return
    except Exception as error:
        raise AssertionError(f"{done}: {error!r}") from error
    try:
        solver.step(2)
    except ForceregError as error:
        raise AssertionError(f"{done}: gone on from, then {error}") from error
    except Exception as error:
        raise AssertionError(f"{done}: gone on from, then {error!r}") from error
