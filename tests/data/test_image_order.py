"""Image lists, and the order in which a shuffled one is gone through."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forcereg.data.image_data import order, read_list


@pytest.mark.parametrize("batch", [3, 10, 25])
@pytest.mark.parametrize("count", [1, 10, 11])
@pytest.mark.parametrize("shuffle", [False, True])
def test_every_round_has_every_image(shuffle: bool, count: int, batch: int) -> None:
    found = np.concatenate([order(count, shuffle, 3, position, batch) for position in range(0, 40 * batch, batch)])
    rounds = found[: len(found) // count * count].reshape(-1, count)
    np.testing.assert_array_equal(np.sort(rounds, 1), np.tile(np.arange(count), (len(rounds), 1)))
    if shuffle and count > 1:
        assert len(np.unique(rounds, axis=0)) > len(rounds) // 2
    else:
        assert (rounds == np.arange(count)).all()


def test_shuffled_orders_are_uniform() -> None:
    """Each image comes at each place within 5 sigma of its share, whatever the round and seed."""
    count, rounds = 6, 6000
    found = np.array([order(count, True, turn % 7, turn * count, count) for turn in range(rounds)])
    hits = np.array([[np.sum(found[:, place] == image) for place in range(count)] for image in range(count)])
    share = rounds / count
    assert abs(hits - share).max() < 5 * (share * (1 - 1 / count)) ** 0.5


def test_a_list_is_split_at_the_last_space_or_tab(tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(b"a b.png -3\r\n\n  \nc.png  12 \nd\xff.png +2147483647\ne f.png\t5\n1 2\t3 \t4\t")
    found = read_list(tmp_path / "list", "list")
    assert found.paths == ("a b.png", "c.png", "d\udcff.png", "e f.png", "1 2\t3")
    assert found.labels.tolist() == [-3, 12, 2147483647, 5, 4]
    assert found.lines.tolist() == [1, 4, 5, 6, 7]


NAMES = st.from_regex(r"[a-z0-9.]([a-z0-9. \t]{0,12}[a-z0-9.])?", fullmatch=True)
GAPS = st.sampled_from([" ", "\t", "  ", " \t"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(NAMES, st.integers(1 - 2**31, 2**31 - 1), GAPS), min_size=1))
def test_any_list_is_read_as_it_was_written(tmp_path: Path, rows: list[tuple[str, int, str]]) -> None:
    (tmp_path / "list").write_text("\ufeff" + "\r\n".join(f"{name}{gap}{label} " for name, label, gap in rows))
    found = read_list(tmp_path / "list", "list")
    assert list(zip(found.paths, found.labels.tolist(), strict=True)) == [(name, label) for name, label, _ in rows]
