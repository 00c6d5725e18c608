"""How real processes over gloo average gradients: by every scheme, to the same bits, on from a snapshot exactly."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from forcereg.solver.distributed import Group
from tests.conftest import TOP
from tests.solver import averaging, ranks
from tests.solver.nets import blobs_of
from tests.solver.test_distributed import ENV, SIZES, assert_close

LOSSY = {"bf16": 0.05, "fp16": 0.01, "powersgd": 1.0, "ternary": 3.0}
"""How far weights may be from those of dense gradients behind 12 iterations at a rate of 0.1."""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """By number of ranks what each of `averaging.RUNS` returned on rank 0."""
    root = ranks.write_data(tmp_path_factory.mktemp("averaging"))
    command = [sys.executable, "-m", "tests.solver.averaging", str(root), "2", "4"]
    done = subprocess.run(command, cwd=TOP, env={**os.environ, **ENV}, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return {size: pickle.loads((root / f"results_{size}.pickle").read_bytes()) for size in (2, 4)}


@SIZES
@pytest.mark.parametrize("scheme", averaging.SCHEMES)
def test_all_ranks_have_the_same_bits_and_go_on_to_them(
    scheme: str, size: int, results: dict[int, dict[str, Any]]
) -> None:
    """With two batches an iteration, clipping, force and decay behind the averaging, and tests in between."""
    same, whole, again = results[size][f"trained-{scheme}"]
    assert same
    assert_close(again, whole, 0)


@SIZES
@pytest.mark.parametrize("scheme", LOSSY)
def test_what_schemes_lose(scheme: str, size: int, results: dict[int, dict[str, Any]]) -> None:
    """They differ from dense ones, no more than they should."""
    dense, found = (results[size][f"trained-{name}"][1] for name in ("dense", scheme))
    off = max(float((blob - dense[name]).abs().max()) for name, blob in found.items())
    assert 0 < off < LOSSY[scheme]


@SIZES
def test_signs_are_carried_in_any_type(size: int, results: dict[int, dict[str, Any]]) -> None:
    """Packed and gathered, or summed as int8, float16 or float32: the same bits come out."""
    packed, *summed = results[size]["carriers"]
    for found in summed:
        assert_close(found, packed, 0)


@SIZES
def test_means_lie_on_the_grid_of_the_ranks(size: int, results: dict[int, dict[str, Any]]) -> None:
    """s j / N; of the last layer, and of tensors of fewer than 5 values, the exact mean."""
    seen = set[str]()
    for bucket in results[size]["hooked"]:
        for place, name in enumerate(bucket["names"]):
            own = torch.stack([rank[place] for rank in bucket["before"]])
            after = bucket["after"][place]
            if name.startswith("idle") or own[0].numel() < 5:
                torch.testing.assert_close(after, own.mean(0))
                continue
            seen.add(name)
            bounds = own.flatten(1).std(1, correction=0) * 2.5
            scaler = torch.minimum(own.abs().flatten(1).amax(1), bounds).max()
            steps = after * size / scaler
            torch.testing.assert_close(steps, steps.round(), atol=1e-3, rtol=0)
            assert 0 < steps.abs().max() < size + 0.5
    assert seen == {"conv/0", "ip/0"}


@SIZES
def test_as_much_is_sent_as_messages_say(size: int, results: dict[int, dict[str, Any]]) -> None:
    for bucket in results[size]["hooked"]:
        planned = {kind: sum(bytes for other, bytes in bucket["planned"] if other == kind) for kind in bucket["sent"]}
        assert planned == bucket["sent"] and bucket["sent"]["gathered"] > 0


@SIZES
def test_the_mean_of_many_draws_is_the_mean_gradient(size: int, results: dict[int, dict[str, Any]]) -> None:
    found, own = results[size]["draws"]
    scaler = float(torch.stack(own).abs().max())
    error = sum(scaler * one.abs() - one.square() for one in own).clamp(min=0).sqrt() / size / 100
    assert ((found - torch.stack(own).mean(0)).abs() <= 4 * error + 1e-5).all()


@SIZES
def test_ranks_draw_by_themselves(size: int, results: dict[int, dict[str, Any]]) -> None:
    alike, of = results[size]["different"]
    assert alike < of / 100


@SIZES
def test_a_rank_s_gradient_that_is_not_finite_is_all_ranks(size: int, results: dict[int, dict[str, Any]]) -> None:
    """Of that tensor: as with dense ones, the loss scale of float16 leaves the step out everywhere."""
    assert results[size]["bad"] == [[False, True]] * size


@SIZES
def test_powersgd_sends_factors_and_forgets_nothing(size: int, results: dict[int, dict[str, Any]]) -> None:
    """40 x 75 as rank 2, 40 + 1 values as they are; what is lost comes later: 60 of them add up to 60 means."""
    sizes, planned, off = results[size]["powersgd"]
    assert sizes == planned == [4 * 41, 4 * 40 * 2, 4 * 75 * 2]
    assert off < 0.35


@SIZES
def test_settings_that_do_not_fit(size: int, results: dict[int, dict[str, Any]]) -> None:
    layer, scheme, amp = results[size]["refused"]
    assert layer == ("--dense-layers has 'ipp', but no such layer of the net learns; did you mean \"ip\"?")
    assert scheme.startswith("unknown way to average gradients 'sparse'")
    assert amp.startswith("gradients are powersgd and amp is fp16, whose steps that overflow spoil")


@SIZES
def test_going_on_by_another_scheme_is_told(size: int, results: dict[int, dict[str, Any]]) -> None:
    assert [text.partition(": ")[2] for text in results[size]["other_scheme"]] == [
        "its run's gradients were ternary, this one's are bf16",
        "its run's gradients were ternary, this one's are dense",
    ]


@SIZES
def test_what_the_paper_advises_is_told(size: int, results: dict[int, dict[str, Any]]) -> None:
    said = [text.partition("are ternary: ")[2] for text in results[size]["remarked"]]
    assert said == [
        "2 blobs' gradients are sent in two bits a value, those of 4 others whole",
        "their noise regularizes: if the score falls behind that of dense ones, lower dropout_ratio (it is 0.5 in "
        "drop), weight_decay (it is 0.01)",
        "clip_gradients looks at their mean, whose norm the draws enlarge: it acts more often",
    ]


@SIZES
def test_a_rank_that_the_state_does_not_know_is_where_the_others_are(
    size: int, results: dict[int, dict[str, Any]]
) -> None:
    """Else one would send factors, the other all, and both wait for ever."""
    assert results[size]["joined"] == ([6] * size, True)


@SIZES
def test_a_report_leaves_the_run_as_it_was(size: int, results: dict[int, dict[str, Any]]) -> None:
    """Weights, history, data, and what its scheme draws next."""
    for found, told, same in results[size]["reported"]:
        assert same and told == ["gradients"] and found.ranks == size
        cosines = {one.scheme: one.cosine for one in found.schemes}
        assert list(cosines) == ["dense", "bf16", "fp16", "powersgd", "ternary"]
        # two bits say less of the mean than sixteen do
        assert cosines["dense"] == 1 and min(cosines["bf16"], cosines["fp16"]) > 0.999 > cosines["ternary"] > 0.2
        zeros = {one.scheme: one.zeros for one in found.schemes}
        assert zeros["dense"] == zeros["powersgd"] < 0.5 < zeros["ternary"] < 1


@SIZES
def test_a_scheme_of_one_s_own(size: int, results: dict[int, dict[str, Any]]) -> None:
    """The solver's page's, of float64: dense but for rounding."""
    assert results[size]["own"] < 1e-5


def test_one_process_trains_as_always(tmp_path: Path) -> None:
    """Whatever the scheme is: there is nothing to average."""
    ranks.write_data(tmp_path)
    plain, _ = ranks.make(tmp_path, Group(), ranks.CONV, averaging.EXTRA)
    alone = averaging.solver_of(tmp_path, Group(), "ternary")
    for solver in (plain, alone):
        solver.step(6)
    assert alone.passes.scheme is None
    assert_close(blobs_of(alone), blobs_of(plain), 0)
