"""Errors are one line, whatever is in them."""

from __future__ import annotations

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forcereg.errors import LONGEST, ForceregError, UsageError, did_you_mean, printable, slip


@given(st.text(max_size=60))
def test_any_text_becomes_one_line(text: str) -> None:
    shown = str(ForceregError(text))
    assert shown.isprintable() and len(shown.splitlines()) <= 1
    assert printable(shown) == shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\nb", "a\\nb"),
        ("\x1b[2Ja", "\\x1b[2Ja"),
        ("a\u2028b\x85c", "a\\u2028b\\x85c"),
        ("\ud800", "\\ud800"),
        ("Größe 3×3 ✓", "Größe 3×3 ✓"),
        ("a\\n", "a\\n"),
    ],
)
def test_what_breaks_a_line_is_escaped(text: str, expected: str) -> None:
    assert str(ForceregError(text)) == expected


def test_the_middle_of_a_long_error_is_left_out() -> None:
    text = str(ForceregError("begin " + "x" * 10_000_000 + " end"))
    assert text.startswith("begin xxx") and text.endswith("xxx end") and " ... " in text
    assert len(text) <= LONGEST
    assert str(ForceregError("x" * LONGEST)) == "x" * LONGEST


@pytest.mark.parametrize("kind", [ForceregError, UsageError])
def test_errors_are_copied_as_they_are(kind: type[ForceregError]) -> None:
    error = kind("a\nb" * LONGEST)
    for other in (copy.copy(error), pickle.loads(pickle.dumps(error)), type(error)(str(error))):
        assert type(other) is kind and str(other) == str(error)


def test_no_hint_for_what_is_no_name() -> None:
    assert did_you_mean("Convolutoin", ["Convolution", "ReLU"]) == '; did you mean "Convolution"?'
    assert did_you_mean("Convolution" * 1_000_000, ["Convolution"]) == ""


@pytest.mark.parametrize(
    ("found", "meant"),
    [
        ("force_decya", "force_decay"),
        ("Force_Decay", "force_decay"),
        ("forcedecay", "force_decay"),
        ("relo_param", "relu_param"),
        ("gpus", "GPU"),
        ("bn_param", ""),
        ("roi_pooling_param", ""),
        ("eval_type", ""),
        ("ip", ""),
        ("GPU6", ""),
        ("CPU3D", ""),
        ("force_typo", "force_type"),
        ("x" * 5000, ""),
    ],
)
def test_slips_of_one_or_two_letters(found: str, meant: str) -> None:
    known = ("force_decay", "force_type", "relu_param", "mvn_param", "pooling_param", "GPU", "CPU", "lp")
    assert slip(found, known) == (f'; did you mean "{meant}"?' if meant else "")
