"""Settings from the command line: as if the solver file said so, and one clear line where they can't be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forcereg.errors import ForceregError, UsageError
from forcereg.schema import SolverParameter
from forcereg.schema.settings import with_settings
from forcereg.schema.text import SolverFile, parse_solver, parse_text, to_text

SOLVER = 'net: "net.prototxt" base_lr: 0.1 stepvalue: 3 stepvalue: 4 type: "SGD" train_state { stage: "a" level: 1 }'


def changed(*settings: str) -> SolverFile:
    return with_settings(parse_solver(SOLVER), settings)


@pytest.mark.parametrize(
    ("settings", "field", "value"),
    [
        pytest.param(["base_lr=0.5"], "base_lr", 0.5, id="number"),
        pytest.param(["base_lr=0.5", "base_lr=0.25"], "base_lr", 0.25, id="later-wins"),
        pytest.param([" max_iter = 7 "], "max_iter", 7, id="spaces"),
        pytest.param(["stepvalue=[5000,7000]"], "stepvalue", [5000, 7000], id="list-replaces"),
        pytest.param(["stepvalue=5"], "stepvalue", [5], id="single-replaces"),
        pytest.param(["stepvalue=[]"], "stepvalue", [], id="empty-list"),
        pytest.param(["stepvalue="], "stepvalue", [], id="unset"),
        pytest.param(["force_type=Constant"], "force_type", "Constant", id="bare-string"),
        pytest.param(['force_type="Constant"'], "force_type", "Constant", id="quoted-string"),
        pytest.param(["snapshot_prefix=a=b/c"], "snapshot_prefix", "a=b/c", id="equals-in-value"),
        pytest.param(["weights=[a.h5, b.h5]"], "weights", ["a.h5", "b.h5"], id="strings"),
        pytest.param(['weights=["a,b.h5", c.h5]'], "weights", ["a,b.h5", "c.h5"], id="comma-in-quotes"),
        pytest.param(["solver_mode=GPU"], "solver_mode", 1, id="enum"),
        pytest.param(["snapshot_after_train=false"], "snapshot_after_train", False, id="bool"),
        pytest.param(["solver_type=ADAM"], "type", "Adam", id="old-name-of-type"),
    ],
)
def test_fields(settings: list[str], field: str, value: object) -> None:
    found = getattr(changed(*settings).message, field)
    assert (list(found) if isinstance(value, list) else found) == (
        pytest.approx(value) if isinstance(value, float) else value
    )


def test_message_is_replaced_whole() -> None:
    state = changed('train_state={stage: "b"}').message.train_state
    assert (list(state.stage), state.HasField("level")) == (["b"], False)
    assert len(changed("test_state=[{level: 1}, {level: 2}]").message.test_state) == 2


def test_the_file_stays_and_all_else_too() -> None:
    file = parse_solver(SOLVER)
    after = with_settings(file, ["max_iter=9"])
    assert not file.message.HasField("max_iter")
    after.message.ClearField("max_iter")
    assert after.message == file.message
    assert (after.name, after.text) == (file.name, file.text)


@pytest.mark.parametrize(
    ("setting", "error", "says"),
    [
        pytest.param("max_itr=3", ForceregError, r'no field of SolverParameter; did you mean "max_iter"\?', id="name"),
        pytest.param("max_iter=ten", ForceregError, "--set max_iter=ten: found 'ten', expected an integer", id="kind"),
        pytest.param("max_iter=[1,2]", ForceregError, "found '\\[', expected one value", id="not-repeated"),
        pytest.param("stepvalue=1,2", ForceregError, r"in brackets, as in stepvalue=\[1,2\]", id="no-brackets"),
        pytest.param("train_state.level=1", ForceregError, r"give train_state whole, as in train_state=\{", id="inner"),
        pytest.param("max_iter=9999999999", ForceregError, "expected an integer from -2147483648 to", id="range"),
        pytest.param("solver_mode=GPUs", ForceregError, 'did you mean "GPU"', id="enum"),
        pytest.param("train_state={stag: 'a'}", ForceregError, 'did you mean "stage"', id="inner-name"),
        pytest.param("max_iter=3 display: 4", ForceregError, "more than one setting", id="two"),
        pytest.param("base_lr", UsageError, "expected FIELD=VALUE", id="no-value"),
        pytest.param("=3", UsageError, "expected FIELD=VALUE", id="no-field"),
    ],
)
def test_what_cannot_be(setting: str, error: type[ForceregError], says: str) -> None:
    with pytest.raises(error, match=says) as caught:
        changed(setting)
    assert type(caught.value) is error
    assert str(caught.value).startswith(f"--set {setting}: ")
    assert ":1:" not in str(caught.value).removeprefix(f"--set {setting}")


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20))
def test_any_text_is_a_prefix(text: str) -> None:
    """Whatever a shell hands over, but spaces around it and quotes and brackets that are taken for syntax."""
    plain = text.strip()
    if plain[:1] in "\"'[" and plain:
        return
    solver = changed(f"snapshot_prefix={text}").message
    assert solver.snapshot_prefix == plain
    assert parse_text(to_text(solver), SolverParameter).snapshot_prefix == plain
