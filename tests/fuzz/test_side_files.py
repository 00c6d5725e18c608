"""What forcereg keeps beside nets, in every other form: nothing known, or one line, and never an error of ours."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forcereg.errors import ForceregError
from forcereg.lowrank.account import provenance
from forcereg.lowrank.config import read_config
from forcereg.schema.text import parse_net, parse_solver
from forcereg.snapshot import ModelFile
from forcereg.solver.jsonlog import JsonLog
from forcereg.study import frontier_report, sweep_report
from forcereg.study.accounting import accounts
from forcereg.study.scores import Cache, Evaluation
from forcereg.study.sweep_plan import RUN, Asked, Kept, KeptFailure, Plan, Result, Run, check_same
from forcereg.system import sidefiles
from forcereg.system.claims import Owner, Watch, _system, claim
from forcereg.system.events import Event
from tests.fuzz.hostile import mangled, variants
from tests.long_forms import Rounds

Use = Callable[[Path], Any]
RESULT = Result(
    {"force_decay": "0"}, 1, 0.5, 2.5, None, [14, 46], [20, 50], ["whole", "46"], 2293000, 2287080, 0.25, None, 0.3
)
KEPT = Kept(Asked(0.05, 0, {"max_macs": "0.3"}), RESULT)
OURS = Run('type: "SGD"', ["a" * 64, "b" * 64], ["c" * 64])
OWNER = Owner("here", _system(), 1 << 30, 1, "a" * 32, "call")
SCORES = {"a" * 8: Evaluation(0.5, 1.0), "b" * 8: Evaluation(None, float("nan"))}
RANKS = {"//": "what for", "conv1": 8, "conv2": {"method": "vh", "rank": 8}, "ip": {"error": 0.05}, "t": [4, 2]}
NET = """
layer { name: "data" type: "Data" top: "data" top: "label" data_param { source: "none" batch_size: 2 } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 2 } }
"""


def use_result(path: Path) -> None:
    found = sidefiles.known(path, Kept)
    if found is not None:
        sweep_report.as_csv([found.result])
        sweep_report.table([found.result, RESULT], Plan(parse_solver(""), (), 0.05, found.asked.finetune))
        assert sweep_report.by_setting([found.result])
        assert found.result.macs is None or found.result.macs / 1e6 >= 0
        assert 0 < sum(found.result.ranks_at_error) / sum(found.result.full_ranks) <= 1


def use_failure(path: Path) -> None:
    found = sidefiles.known(path, KeptFailure)
    if found is not None:
        failed = Result(**vars(found.result))
        sweep_report.as_csv([failed])
        sweep_report.table([failed, RESULT], Plan(parse_solver(""), (), 0.05, found.asked.finetune))
        assert failed.failed


def use_claim(path: Path) -> None:
    watch = Watch()
    assert watch.is_held(path.with_suffix("")) is not watch.is_dead(path)
    own = claim(path.with_suffix(""), watch, OWNER.group)
    if own is not None:
        assert own.deaths in (0, 1)
        own.release()


def use_run(path: Path) -> None:
    with contextlib.suppress(ForceregError):
        check_same(path.parent, OURS)


def use_scores(path: Path) -> None:
    cache = Cache(path)
    for key in SCORES:
        found = cache.get(key)
        if found is not None:
            f"{found.accuracy or 0:.2%} {found.loss:g}"
            assert np.isfinite(frontier_report.stretched(np.nan_to_num(found.accuracy or 0.0)))
    cache.put("new", Evaluation(0.25, 1.0))
    assert Cache(path).get("new") == Evaluation(0.25, 1.0)


def use_ranks(path: Path) -> None:
    with contextlib.suppress(ForceregError):
        assert read_config(path).layers


def use_shapes(path: Path) -> None:
    model = ModelFile(path, {}, {"forcereg_input_shapes": path.read_text(errors="replace")})
    accounts(parse_net(NET), known=model.input_shapes)


def use_decomposed(path: Path) -> None:
    model = ModelFile(path, {}, {"forcereg_decomposed": path.read_text(errors="replace")})
    *before, last = provenance([], path.name, model.attrs)
    assert all(isinstance(one, dict) for one in before) and last["layers"] == []
    json.dumps(before)


def use_log(path: Path) -> None:
    log = JsonLog(path)
    log(Event("restore", {"state": "s", "iteration": 1}))
    log.close()
    *_, last = path.read_bytes().split(b"\n")[:-1]
    assert json.loads(last)["event"] == "restore"


KINDS: dict[str, tuple[str, Any, Use]] = {
    "result": ("result.json", asdict(KEPT), use_result),
    "failure": ("failed.json", asdict(replace(KEPT, result=replace(RESULT, failed="why", ranks=[]))), use_failure),
    "claim": ("claim.0", asdict(OWNER), use_claim),
    "run": (RUN, asdict(OURS), use_run),
    "scores": ("f.scores.json", {key: asdict(value) for key, value in SCORES.items()}, use_scores),
    "ranks": ("r.json", RANKS, use_ranks),
    "shapes": ("shapes.json", {"data": [2, 3, 4], "label": [2]}, use_shapes),
    "decomposed": (
        "made.json",
        [{"snapshot": "a", "version": "1", "layers": [{"name": "c", "rank": 2}]}],
        use_decomposed,
    ),
    "log": ("log.json", {"event": "train", "iteration": 1, "loss": 0.5, "outputs": []}, use_log),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_entry_changed(kind: str, tmp_path: Path) -> None:
    name, whole, use = KINDS[kind]
    path = tmp_path / name
    path.write_text(json.dumps(whole) + "\n")
    use(path)
    for text in variants(whole):
        path.write_text(text)
        use(path)


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_changed(kind: str, tmp_path: Path, rounds: Rounds) -> None:
    name, whole, use = KINDS[kind]
    path, data = tmp_path / name, json.dumps(whole, indent=1).encode() + b"\n"
    for chance in rounds(300):
        path.write_bytes(mangled(chance, data))
        use(path)


def test_what_is_ours_is_known(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(asdict(KEPT)))
    assert sidefiles.known(path, Kept) == KEPT
