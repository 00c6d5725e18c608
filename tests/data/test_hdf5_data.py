"""HDF5Data: Caffe's recorded batches, order and shuffling, both ways of reading, resume, and every refusal."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import forcereg.data.hdf5_data as hdf5_data
from forcereg.data.feed import DEFAULT_BUDGET, FeedContext
from forcereg.data.hdf5_data import HDF5Feed, Order
from forcereg.errors import ForceregError
from forcereg.net.load import load_net
from forcereg.solver.loop import Solver
from tests.data.lmdbs import batches, data_spec
from tests.golden_cases import Case, golden_cases

STREAM = 0  # a budget that nothing fits
BUDGETS = pytest.mark.parametrize("budget", [DEFAULT_BUDGET, STREAM], ids=["resident", "one-file-at-a-time"])


def write_files(root: Path, rows: Sequence[int], names: str = "part{}.h5") -> np.ndarray:
    """Files of `rows` rows each with data (rows, 2, 3) of noise and label (rows,) counting up; list.txt. All data."""
    random = np.random.default_rng(0)
    data = random.standard_normal((sum(rows), 2, 3)).astype(np.float32)
    ends = np.cumsum(rows)
    for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        with h5py.File(root / names.format(number), "w") as file:
            file["data"] = data[start:end]
            file["label"] = np.arange(start, end)
    (root / "list.txt").write_text("\n".join(names.format(i) for i in range(len(rows))))
    return data


def make_feed(
    root: Path,
    param: str = "batch_size: 3",
    budget: int = DEFAULT_BUDGET,
    seed: int | None = 1,
    tops: str = 'top: "data" top: "label"',
    source: str = "list.txt",
    extra: str = "",
) -> HDF5Feed:
    text = f'layer {{ name: "d" type: "HDF5Data" {tops} {extra} hdf5_data_param {{ source: "{source}" {param} }} }}'
    return HDF5Feed(data_spec(text), FeedContext(root, torch.device("cpu"), seed, budget))


def labels(feed: HDF5Feed, count: int) -> list[int]:
    return [int(x) for batch in batches(feed, count) for x in batch[1]]


@BUDGETS
@pytest.mark.parametrize("case", golden_cases("data", lambda case: case.id.startswith("hdf5_")))
def test_batches_are_caffes(case: Case, budget: int, tmp_path: Path) -> None:
    for path, array in case.tree("files").items():
        name, _, top = path.partition("/")
        with h5py.File(tmp_path / name, "a") as file:
            file[top] = array
    (tmp_path / "list.txt").write_text(case.attrs["list_txt"])
    spec = data_spec(case.attrs["prototxt"], case.attrs["phase"])
    feed = HDF5Feed(spec, FeedContext(tmp_path, torch.device("cpu"), 1, budget))
    for number in (1, 2, 3):
        for top, shape, tensor in zip(feed.tops, feed.shapes, feed.next(), strict=True):
            expected = case.load(f"pass_{number}/{top}")
            assert shape == expected.shape and tensor.dtype == torch.float32
            np.testing.assert_array_equal(tensor.numpy(), expected)


@BUDGETS
@pytest.mark.parametrize("batch", [1, 4, 9, 25])
def test_rows_run_on_over_files_and_around(batch: int, budget: int, tmp_path: Path) -> None:
    data = write_files(tmp_path, [5, 1, 3])
    feed = make_feed(tmp_path, f"batch_size: {batch}", budget)
    for number, (rows, marks) in enumerate(batches(feed, 7)):
        index = np.arange(number * batch, (number + 1) * batch) % 9
        assert marks.tolist() == index.tolist()
        np.testing.assert_array_equal(rows.numpy(), data[index])


@BUDGETS
def test_a_batch_belongs_to_the_caller(budget: int, tmp_path: Path) -> None:
    write_files(tmp_path, [3])
    feed = make_feed(tmp_path, budget=budget)
    first = [tensor.clone() for tensor in feed.next()]
    for tensor in feed.next():
        tensor.zero_()
    assert all(torch.equal(a, b) for a, b in zip(first, feed.next(), strict=True))


# -- shuffling


@given(
    rows=st.lists(st.integers(1, 6), min_size=1, max_size=5), batch=st.integers(1, 9), seed=st.integers(0, 2**63 - 1)
)
def test_shuffled_passes_hold_every_row_once_and_files_stay_together(rows: list[int], batch: int, seed: int) -> None:
    order = Order(rows, True, seed)
    total = sum(rows)
    taken: list[tuple[int, int]] = []
    while len(taken) < 3 * total:
        taken += [(file, int(row)) for file, picked in order.take(batch) for row in picked]
    everything = [(file, row) for file, n in enumerate(rows) for row in range(n)]
    for loop in range(3):
        one = taken[loop * total : (loop + 1) * total]
        assert sorted(one) == everything
        files = [file for i, (file, _) in enumerate(one) if i == 0 or one[i - 1][0] != file]
        assert len(files) == len(rows)


@BUDGETS
def test_files_and_rows_are_shuffled_anew_in_each_loop(budget: int, tmp_path: Path) -> None:
    data = write_files(tmp_path, [6, 6, 6])
    feed = make_feed(tmp_path, "batch_size: 6 shuffle: true", budget)
    loops = []
    for _ in range(4):
        whole = [feed.next() for _ in range(3)]
        for rows, marks in whole:
            np.testing.assert_array_equal(rows.numpy(), data[marks.long().numpy()])
        loops.append([[int(x) for x in marks] for _, marks in whole])
    assert len({tuple(part[0] // 6 for part in loop) for loop in loops}) > 1
    assert len({tuple(part) for loop in loops for part in loop}) == 12


def test_one_file_is_shuffled_anew_in_each_loop(tmp_path: Path) -> None:
    write_files(tmp_path, [30])
    feed = make_feed(tmp_path, "batch_size: 30 shuffle: true")
    one, two = labels(feed, 1), labels(feed, 1)
    assert sorted(one) == sorted(two) == list(range(30))
    assert one != two and one != sorted(one)


def test_the_seed_decides_the_order_and_reading_does_not(tmp_path: Path) -> None:
    write_files(tmp_path, [5, 7, 4])
    param = "batch_size: 5 shuffle: true"
    one = labels(make_feed(tmp_path, param), 9)
    assert one == labels(make_feed(tmp_path, param), 9) == labels(make_feed(tmp_path, param, STREAM), 9)
    assert one != labels(make_feed(tmp_path, param, seed=2), 9)
    assert one != labels(make_feed(tmp_path, param, seed=None), 9)


# -- resume


@BUDGETS
@pytest.mark.parametrize("shuffle", ["", "shuffle: true"], ids=["in-order", "shuffled"])
@pytest.mark.parametrize("done", [0, 1, 2, 5])
def test_resume_is_exact(done: int, shuffle: str, budget: int, tmp_path: Path) -> None:
    write_files(tmp_path, [5, 1, 6])
    param = f"batch_size: 5 {shuffle}"
    feed = make_feed(tmp_path, param, budget)
    batches(feed, done)
    state = {key: np.asarray(value) for key, value in feed.state_dict().items()}
    copies = [copy.deepcopy(feed), pickle.loads(pickle.dumps(feed)), make_feed(tmp_path, param, budget, seed=None)]
    copies[-1].next()
    copies[-1].load_state_dict(state)
    expected = labels(feed, 8)
    assert all(labels(other, 8) == expected for other in copies)


def test_a_position_behind_the_end_is_wrapped(tmp_path: Path) -> None:
    write_files(tmp_path, [5, 4])
    feed = make_feed(tmp_path)
    feed.load_state_dict({"seed": 1, "loop": 3, "file": 3, "row": 6})
    assert feed.next()[1].tolist() == [7, 8, 0]


def test_one_file_at_a_time_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, [4, 2, 3])
    feed = make_feed(tmp_path, "batch_size: 2", 4 * 9 * 7 - 1)
    read, held = HDF5Feed._read, []

    def watched(self: HDF5Feed, number: int) -> list[torch.Tensor]:
        assert self._one is None and self._all is None
        held.append(number)
        return read(self, number)

    monkeypatch.setattr(HDF5Feed, "_read", watched)
    assert labels(feed, 9) == [i % 9 for i in range(18)]
    assert held == [0, 1, 2, 0, 1, 2]
    feed.close()
    assert labels(feed, 1) == [0, 1]


def test_a_set_within_the_budget_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, [4, 2, 3])
    feed = make_feed(tmp_path, "batch_size: 2", 4 * 9 * 7)
    feed.next()
    monkeypatch.setattr(hdf5_data, "_opened", None)
    assert labels(feed, 8) == [i % 9 for i in range(2, 18)]


# -- what a dataset may be


@pytest.mark.parametrize(
    "dtype", ["f2", "f4", "f8", ">f4", "i1", "u1", "i4", "i8", "u8", "bool"], ids=lambda name: f"dtype-{name}"
)
@BUDGETS
def test_numbers_become_float32(dtype: str, budget: int, tmp_path: Path) -> None:
    values = np.arange(8).reshape(4, 2) % 2 if dtype == "bool" else np.arange(8).reshape(4, 2) * 3
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=values.astype(dtype), chunks=(2, 1), compression="gzip")
    (tmp_path / "list.txt").write_text("a.h5")
    (batch,) = make_feed(tmp_path, "batch_size: 4", budget, tops='top: "x"').next()
    assert batch.dtype == torch.float32 and batch.tolist() == values.tolist()


@pytest.mark.parametrize("item", [(), (1,), (2, 1, 3, 1, 2, 2)], ids=str)
def test_any_number_of_axes_and_tops(item: tuple[int, ...], tmp_path: Path) -> None:
    values = np.arange(3 * int(np.prod(item)), dtype=np.float32).reshape(3, *item)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"], file["deep/y"], file["z"] = values, values + 1, values * 2
    (tmp_path / "list.txt").write_text(" a.h5\t\n")
    feed = make_feed(tmp_path, tops='top: "x" top: "deep/y" top: "z"')
    assert feed.shapes == ((3, *item),) * 3
    for tensor, expected in zip(feed.next(), (values, values + 1, values * 2), strict=True):
        np.testing.assert_array_equal(tensor.numpy(), expected)


def test_names_in_the_list_start_at_the_root_and_blanks_separate_them(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write_files(tmp_path / "sub", [2, 2])
    (tmp_path / "sub/list.txt").write_text(f"sub/part0.h5 \t {tmp_path}/sub/part1.h5\n\n")
    assert labels(make_feed(tmp_path, source="sub/list.txt"), 2) == [0, 1, 2, 3, 0, 1]


# -- labels

NET = """
layer { name: "d" type: "HDF5Data" top: "data" top: "label" hdf5_data_param { source: "list.txt" batch_size: 3 } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: %d } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" %s }
"""
TWO = """
layer { name: "d" type: "HDF5Data" top: "fine" top: "data" top: "coarse"
  hdf5_data_param { source: "list.txt" batch_size: 2 } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 2 } }
layer { name: "ip2" type: "InnerProduct" bottom: "data" top: "ip2" inner_product_param { num_output: 9 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "coarse" top: "loss" }
layer { name: "loss2" type: "SoftmaxWithLoss" bottom: "ip2" bottom: "fine" top: "loss2" }
layer { name: "acc" type: "Accuracy" bottom: "ip2" bottom: "fine" top: "acc" }
"""


@BUDGETS
def test_a_net_reads_it_and_checks_its_labels(budget: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, [4, 4])
    monkeypatch.chdir(tmp_path)
    net = load_net(NET % (8, ""), phase="TRAIN", budget=budget, seed=0)
    assert net(blobs=["label"])["label"].tolist() == [0, 1, 2]
    net = load_net(NET % (7, ""), budget=budget)
    with pytest.raises(ForceregError) as caught:
        batches(net.feeds["d"], 4)
    assert str(caught.value) == (
        "<text>:2: layer 'd': part1.h5: dataset 'label', row 3: label 7 found, "
        "expected 0 to 6 for <text>:4: layer 'loss'"
    )
    net = load_net(NET % (7, "loss_param { ignore_label: 7 }"), budget=budget)
    batches(net.feeds["d"], 4)


@pytest.mark.parametrize(("top", "value"), [("coarse", 2), ("fine", 9), ("fine", np.nan), ("coarse", -1)])
def test_each_label_has_its_own_range(top: str, value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content = {"fine": np.array([8.0, 3.0]), "coarse": np.array([1.0, 0.0]), "data": np.ones((2, 2))}

    def forward() -> None:
        with h5py.File("a.h5", "w") as file:
            for name, values in content.items():
                file[name] = values
        load_net(TWO, seed=0)()

    Path("list.txt").write_text("a.h5")
    forward()
    content[top][1] = value
    with pytest.raises(ForceregError, match=rf"a\.h5: dataset '{top}', row 1: label {value:g} found, expected 0 to "):
        forward()


def test_a_bad_label_in_a_map_is_found_by_its_row(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = file["label"] = np.zeros((4, 1, 3, 3))
        file["label"][2, 0, 1, 1] = 5
    (tmp_path / "list.txt").write_text("a.h5")
    feed = make_feed(tmp_path)
    feed.limit_labels(5, None, "layer 'loss'", "label")
    for _ in range(2):  # it stays where it is
        with pytest.raises(ForceregError, match="row 2: label 5 found, expected 0 to 4"):
            feed.next()
    assert feed.state_dict()["row"] == 0


# -- refusals


def fails(root: Path, *expected: str, **options) -> None:
    with pytest.raises(ForceregError) as caught:
        batches(make_feed(root, **options), 9)
    line = str(caught.value)
    assert line.startswith("net.prototxt:1: layer 'd': ") and "\n" not in line
    for text in expected:
        assert text in line


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"tops": ""}, ["has no tops"]),
        ({"extra": "transform_param { scale: 2 }"}, ["has a transform_param", "write the files with the final values"]),
        ({"extra": "transform_param { }"}, ["has a transform_param"]),
        ({"param": ""}, ["batch_size is missing or 0"]),
        ({"source": ""}, ["source is missing", "text file that lists"]),
        ({"source": "none.txt"}, ["source 'none.txt'", "No such file"]),
        ({"source": "part0.h5"}, ["source 'part0.h5' is an HDF5 file itself", "text file that lists HDF5 files"]),
        ({"source": "noise"}, ["source 'noise' is not a text file"]),
        ({"source": "blank.txt"}, ["source 'blank.txt' is empty"]),
        ({"tops": 'top: "data" top: "lable"'}, ["part0.h5: no dataset 'lable'", 'did you mean "label"']),
        ({"tops": 'top: "qqq"'}, ["part0.h5: no dataset 'qqq'; it has data, label"]),
    ],
)
def test_bad_parameters_are_refused(options: dict, expected: list[str], tmp_path: Path) -> None:
    write_files(tmp_path, [3])
    (tmp_path / "noise").write_bytes(b"\xff\xfe\x00\xff")
    (tmp_path / "blank.txt").write_text(" \n\n")
    fails(tmp_path, *expected, **options)


def rewrite(root: Path, **datasets: object) -> None:
    with h5py.File(root / "part1.h5", "w") as file:
        for name, values in datasets.items():
            if values is dict:
                file.create_group(name)
            else:
                file[name] = values


GOOD = {"data": np.zeros((2, 2, 3)), "label": np.zeros(2)}


@pytest.mark.parametrize(
    ("datasets", "expected"),
    [
        ({"data": GOOD["data"]}, "part1.h5: no dataset 'label'; it has data"),
        ({**GOOD, "label": dict}, "part1.h5: 'label' is a group; expected a dataset"),
        ({**GOOD, "label": np.zeros(3)}, "part1.h5: dataset 'label' has 3 rows, 'data' has 2; expected as many"),
        ({**GOOD, "data": np.zeros((2, 3, 3))}, "dataset 'data' has rows of [3, 3], expected [2, 3] as in part0.h5"),
        ({**GOOD, "label": ["a", "b"]}, "part1.h5: dataset 'label' holds text; expected integers or floats"),
        ({**GOOD, "label": np.zeros(2, "c8")}, "'/label' holds neither numbers nor text; expected integers"),
        ({**GOOD, "label": np.zeros(2, "i4,f4")}, "part1.h5: '/label' holds neither numbers nor text"),
        ({**GOOD, "label": 1.0}, "part1.h5: dataset 'label' is a single value; expected one row or more"),
        ({"data": np.zeros((0, 2, 3)), "label": np.zeros(0)}, "part1.h5: dataset 'data' is [0, 2, 3], without values"),
    ],
)
def test_files_that_do_not_fit_are_named(datasets: dict, expected: str, tmp_path: Path) -> None:
    write_files(tmp_path, [3, 2])
    rewrite(tmp_path, **datasets)
    fails(tmp_path, expected)


@pytest.mark.parametrize("content", [b"", b"not hdf5" * 100, None, "cut"], ids=["empty", "garbage", "missing", "cut"])
def test_a_file_that_cannot_be_read_is_named(content: bytes | str | None, tmp_path: Path) -> None:
    write_files(tmp_path, [3, 400])
    path = tmp_path / "part1.h5"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:3000] if isinstance(content, str) else content)
    fails(tmp_path, "part1.h5: no such file" if content is None else "part1.h5: not a readable HDF5 file")


@BUDGETS
def test_a_file_that_changed_since_is_named(budget: int, tmp_path: Path) -> None:
    write_files(tmp_path, [3, 2])
    feed = make_feed(tmp_path, budget=budget)
    rewrite(tmp_path, data=np.zeros((5, 2, 3)), label=np.zeros(5))
    with pytest.raises(ForceregError, match=r"part1\.h5: dataset 'data' is \[5, 2, 3\], was \[2, 2, 3\] at the start"):
        batches(feed, 2)


def test_damaged_values_are_named(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        values = np.random.default_rng(0).standard_normal((64, 64))
        file.create_dataset("x", data=values, chunks=(64, 64), compression="gzip", fletcher32=True)
        offset = file["x"].id.get_chunk_info(0).byte_offset
    raw = bytearray((tmp_path / "a.h5").read_bytes())
    raw[offset + 1000] ^= 255
    (tmp_path / "a.h5").write_bytes(raw)
    (tmp_path / "list.txt").write_text("a.h5")
    fails(tmp_path, "a.h5: dataset 'x' cannot be read", tops='top: "x"')


def test_a_dataset_that_only_promises_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", (1 << 44,), "f4", chunks=(1024,))
    (tmp_path / "list.txt").write_text("a.h5")
    fails(
        tmp_path,
        "a.h5: '/x' declares 70,368,744,177,664 bytes of values, in shape [17592186044416], but the file holds 0",
        tops='top: "x"',
    )


# -- in a solver

TRAINED = """
layer { name: "d" type: "HDF5Data" top: "data" top: "label"
  hdf5_data_param { source: "list.txt" batch_size: 4 shuffle: true } }
layer { name: "n" type: "DummyData" top: "noise"
  dummy_data_param { shape { dim: 4 dim: 2 dim: 3 } data_filler { type: "gaussian" std: 0.1 } } }
layer { name: "sum" type: "Concat" bottom: "data" bottom: "noise" top: "sum" }
layer { name: "ip" type: "InnerProduct" bottom: "sum" top: "ip"
  inner_product_param { num_output: 9 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""
SOLVER = """
net: "net.prototxt" base_lr: 0.1 lr_policy: "fixed" momentum: 0.9 max_iter: 9 random_seed: 3 display: 1
snapshot: 5 snapshot_prefix: "s" snapshot_format: HDF5 solver_mode: CPU
"""


def test_training_goes_on_exactly_from_a_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path, [5, 4])
    Path("net.prototxt").write_text(TRAINED)
    Path("solver.prototxt").write_text(SOLVER)

    def train(resume: str | None) -> torch.Tensor:
        solver = Solver("solver.prototxt", observers=[lambda event: None])
        if resume:
            solver.restore(resume)
        solver.solve()
        return solver.net.params["ip"][0].detach().clone()

    whole = train(None)
    assert torch.equal(train("s_iter_5.solverstate.h5"), whole)
