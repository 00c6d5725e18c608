"""Window files, and where R-CNN's rule puts a window in its crop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from forcereg.data.images import resize
from forcereg.data.windows import Crop, Span, read_windows
from forcereg.errors import ForceregError
from tests.data.pictures import noise

WHOLE = Span(0, 8, 0, 8)

# Worked by hand. Crops of 8 with 2 of context: the region is twice the window, scaled by 8 / (its pixels).
PLACES = {
    # window 8..11, centre 10 +- 4: pixels 6..14
    "inside": ((2, False), (8, 8, 11, 11), Span(6, 15, 0, 8), Span(6, 15, 0, 8), Span(6, 15, 0, 8)),
    # 2 +- 4: -2..6, two of nine pixels are missing: 2 * 8/9 rounds to 2, 7 * 8/9 to 6; mirrored, they miss on the right
    "top left": ((2, False), (0, 0, 3, 3), Span(0, 7, 2, 6), Span(0, 7, 2, 6), Span(0, 7, 0, 6)),
    # x: 18 +- 4: 14..22, three missing; y: 18.5 +- 3: 15.5..21.5, away from zero 16..22, three of seven missing
    "bottom right": ((2, False), (16, 17, 19, 19), Span(16, 20, 0, 5), Span(14, 20, 0, 5), Span(14, 20, 3, 5)),
    # the whole image: 10 +- 20: -10..30, 41 pixels, 10 and 11 missing, 20 * 8/41 rounds to 4
    "all": ((2, False), (0, 0, 19, 19), Span(0, 20, 2, 4), Span(0, 20, 2, 4), Span(0, 20, 2, 4)),
    # 8x4 pixels at x 2..9, y 4..7, so 6 +- 4 both ways
    "square": ((0, True), (2, 4, 9, 7), Span(2, 11, 0, 8), Span(2, 11, 0, 8), Span(2, 11, 0, 8)),
    # a square of 4 +- 1: x 1 +- 2, -1..3, one of five missing: 1.6 and 6.4; y 10 +- 2
    "square at the edge": ((0, True), (0, 8, 1, 11), Span(8, 13, 0, 8), Span(0, 4, 2, 6), Span(0, 4, 0, 6)),
    # both: 4 * 2 about x 6 and y 6
    "square with context": ((2, True), (2, 4, 9, 7), Span(0, 15, 1, 7), Span(0, 15, 1, 7), Span(0, 15, 0, 7)),
    "plain": ((0, False), (2, 4, 9, 7), Span(4, 8, 0, 8), Span(2, 10, 0, 8), Span(2, 10, 0, 8)),
    "one pixel": ((0, False), (19, 0, 19, 0), Span(0, 1, 0, 8), Span(19, 20, 0, 8), Span(19, 20, 0, 8)),
}


@pytest.mark.parametrize("name", PLACES)
def test_places_worked_by_hand(name: str) -> None:
    (pad, square), window, rows, columns, mirrored = PLACES[name]
    crop = Crop(8, pad, square, True)
    assert crop.place(window, 20, 20, False) == (rows, columns)
    assert crop.place(window, 20, 20, True) == (rows, mirrored)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("name", PLACES)
def test_what_is_cut_is_resized_and_put_in_place(name: str, mirrored: bool) -> None:
    (pad, square), window, rows, columns, other = PLACES[name]
    columns = other if mirrored else columns
    image, found = noise(3, (3, 20, 20)), np.zeros((3, 8, 8), np.uint8)
    filled = Crop(8, pad, square, True).cut(image, window, mirrored, found)
    part = resize(image[:, rows.start : rows.stop, columns.start : columns.stop], rows.length, columns.length)
    expected = np.zeros((3, 8, 8), np.uint8)
    top, bottom, left, right = rows.offset, rows.offset + rows.length, columns.offset, columns.offset + columns.length
    expected[:, top:bottom, left:right] = part[:, :, ::-1] if mirrored else part
    np.testing.assert_array_equal(found, expected)
    assert filled == [top, bottom, left, right]


@st.composite
def cases(draw: st.DrawFn) -> tuple[Crop, tuple[int, int, int, int], int, int, bool]:
    height, width = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    xs, ys = (sorted(draw(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)))) for n in (width, height))
    size = draw(st.integers(1, 30))
    crop = Crop(size, draw(st.integers(0, (size - 1) // 2)), draw(st.booleans()), True)
    return crop, (xs[0], ys[0], xs[1], ys[1]), height, width, draw(st.booleans())


@given(cases())
def test_places_fit_image_and_crop(case: tuple[Crop, tuple[int, int, int, int], int, int, bool]) -> None:
    crop, window, height, width, mirrored = case
    x1, y1, x2, y2 = window
    for span, first, last, limit in zip(
        crop.place(window, height, width, mirrored), (y1, x1), (y2, x2), (height, width), strict=True
    ):
        assert 0 <= span.start <= first <= last < span.stop <= limit
        assert 0 <= span.offset <= span.offset + span.length <= crop.size


@given(cases())
def test_the_window_is_context_pad_away_from_the_sides(
    case: tuple[Crop, tuple[int, int, int, int], int, int, bool],
) -> None:
    crop, window, height, width, _ = case
    crop = Crop(crop.size, crop.pad, False, False)
    for span, first, last in zip(crop.place(window, height, width, False), window[1::-1], window[:1:-1], strict=True):
        assume(crop.pad and span.length and last - first >= 6)
        scale = span.length / (span.stop - span.start)
        before = span.offset + (first - span.start) * scale
        after = crop.size - span.offset - (last + 1 - span.start) * scale
        # R-CNN's region has one pixel more at the end, and everything is rounded to pixels of image and crop
        slack = 1.5 * crop.size / (last - first + 1) + 1.5
        assert abs(before - crop.pad) < slack and abs(after - crop.pad) < slack


def test_a_sliver_that_would_be_no_pixel_wide_leaves_the_crop_empty() -> None:
    image, found = noise(1, (3, 200, 1)), np.zeros((3, 9, 9), np.uint8)
    assert Crop(9, 0, True, False).cut(image, (0, 0, 0, 199), False, found) == [0, 9, 4, 4]
    assert not found.any()


FILE = """# 0
a.png
3
20
30
3
2 0.7 0 0 29 19
1 0.49999 3 4 5 6
7 .1 1.0 2 3 4
# 1

b c.png
3
10
11
0
# 1
c.png
3
10
11
2
0 0.0 0 0 10 9
5 1 1 1 1 1
"""


def put(root: Path, text: str) -> Path:
    (root / "w.txt").write_text(text)
    return root / "w.txt"


def test_a_window_file_is_read(tmp_path: Path) -> None:
    found = read_windows(put(tmp_path, FILE), "w.txt", 0.5, 0.5)
    assert (found.name, found.channels) == ("w.txt", 3)
    assert [(i.line, i.path, i.height, i.width) for i in found.images] == [
        (2, "a.png", 20, 30),
        (12, "b c.png", 10, 11),
        (18, "c.png", 10, 11),
    ]
    assert found.foreground.tolist() == [(0, 7, 2, 0, 0, 29, 19), (2, 24, 5, 1, 1, 1, 1)]
    assert found.background.tolist() == [(0, 8, 0, 3, 4, 5, 6), (0, 9, 0, 1, 2, 3, 4), (2, 23, 0, 0, 0, 10, 9)]


def test_a_file_of_many_images(tmp_path: Path) -> None:
    text = "".join(f"# {i}\n{i}.png\n3\n4\n5\n1\n1 1 0 0 4 3\n" for i in range(20_000))
    found = read_windows(put(tmp_path, text), "w.txt", 0.5, 0.5)
    assert found.foreground["image"].tolist() == list(range(20_000))
    assert found.images[-1].path == "19999.png"


@pytest.mark.parametrize(
    ("least", "below", "foreground", "background"),
    [
        (0.7, 0.1, [7, 24], [23]),  # compared in float32: 0.7 reaches 0.7, 0.1 is not below 0.1
        (0.70001, 0.10001, [24], [9, 23]),
        (0.5, 2.0, [7, 24], [8, 9, 23]),  # never both
        (0.4, 0.3, [7, 8, 24], [9, 23]),
    ],
)
def test_thresholds(least: float, below: float, foreground: list[int], background: list[int], tmp_path: Path) -> None:
    least, below = float(np.float32(least)), float(np.float32(below))  # as a message holds them
    found = read_windows(put(tmp_path, FILE), "w.txt", least, below)
    assert found.foreground["line"].tolist() == foreground
    assert found.background["line"].tolist() == background


@pytest.mark.parametrize(
    ("old", "new", "line", "expected"),
    [
        ("# 0", "0", 1, "is '0'; expected '# INDEX'"),
        ("a.png\n3\n", "a.png\n4\n", 3, "is '4'; expected the image's channels, 3 or 1"),
        ("c.png\n3\n10\n11\n2", "c.png\n1\n10\n11\n2", 19, "1 channels, but 3 in the images above"),
        ("\n20\n", "\n-20\n", 4, "is '-20'; expected the image's height"),
        ("\n30\n", "\n3e1\n", 5, "is '3e1'; expected the image's width"),
        ("30\n3\n", "30\nx\n", 6, "is 'x'; expected the number of windows"),
        ("30\n3\n", "30\n9999999999\n", 6, "is '9999999999'; expected the number of windows"),
        ("30\n3\n", "30\n2\n", 9, "is '7 .1 1.0 2 3 4'; expected '# INDEX' of the next image, or a larger count"),
        ("30\n3\n", "30\n4\n", 10, "is '# 1'; expected class overlap x1 y1 x2 y2"),
        ("11\n2\n", "11\n3\n", 22, "3 windows announced, but the file ends after 2"),
        ("11\n2\n", "11\n999999999\n", 22, "999999999 windows announced, but the file ends after 2"),
        ("0 0 29 19", "0 0 29", 7, "is '2 0.7 0 0 29'"),
        ("0 0 29 19", "0 0 29 19 20", 7, "is '2 0.7 0 0 29 19 20'"),
        ("0 0 29 19", "0 0 29 b\a", 7, r"is '2 0.7 0 0 29 b\x07'"),
        ("0 0 29 19", "0 0 30 19", 7, "the window leaves its image, 30 wide and 20 high; clip it"),
        ("0 0 29 19", "-1 0 29 19", 7, "leaves its image"),
        ("0 0 29 19", "0 0 29 20", 7, "leaves its image"),
        ("3 4 5 6", "6 4 5 6", 8, "ends before it begins"),
        ("3 4 5 6", "3 7 5 6", 8, "ends before it begins"),
        ("3 4 5 6", "3 4 5.5 6", 8, "not integers"),
        ("3 4 5 6", "3 nan 5 6", 8, "not integers"),
        ("3 4 5 6", "3 4 5 inf", 8, "not integers"),
        ("2 0.7", "1e30 0.7", 7, "not integers"),
        ("2 0.7", "0 1e300", 7, "a foreground window has class 0 or less"),
        ("5 1 1 1 1 1\n", "", 22, "2 windows announced, but the file ends after 1"),
        (FILE[FILE.index("c.png\n3\n10\n11\n2") :], "", 17, "is where the file ends; expected the path of an image"),
    ],
)
def test_a_bad_line_is_named(old: str, new: str, line: int, expected: str, tmp_path: Path) -> None:
    assert FILE.count(old) == 1 or old == "# 0"
    with pytest.raises(ForceregError) as caught:
        read_windows(put(tmp_path, FILE.replace(old, new, 1)), "w.txt", 0.5, 0.5)
    assert str(caught.value).startswith(f"w.txt:{line}: ") and "\n" not in str(caught.value)
    assert expected in str(caught.value)


@pytest.mark.parametrize(("text", "expected"), [("", "lists no images"), (None, "cannot be read (No such file")])
def test_a_file_without_images_is_refused(text: str | None, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "w.txt" if text is None else put(tmp_path, text)
    with pytest.raises(ForceregError, match=r"w\.txt: ") as caught:
        read_windows(path, "w.txt", 0.5, 0.5)
    assert expected in str(caught.value)
