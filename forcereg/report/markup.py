"""HTML as a tree of elements, so that no text can become markup: layers, runs and files may have any name."""

from __future__ import annotations

from xml.etree.ElementTree import Element, tostring

from forcereg.errors import printable

LONGEST = 200
"""Characters of a name or cell; of a longer one the middle is left out."""

Child = Element | str


def element(tag: str, *children: Child, **attributes: str) -> Element:
    """An element; texts among its children and attributes, named as in `class_`, are shown as they are."""
    made = Element(tag, {name.rstrip("_"): shown(value) for name, value in attributes.items()})
    for child in children:
        if isinstance(child, Element):
            made.append(child)
        elif len(made):
            made[-1].tail = (made[-1].tail or "") + shown(child)
        else:
            made.text = (made.text or "") + shown(child)
    return made


def shown(text: str) -> str:
    """What can't be seen, or would turn the text around, as backslash sequences; line breaks stay."""
    return "\n".join(map(printable, text.split("\n")))


def short(text: str) -> str:
    """The text on one line, its middle left out if it is long."""
    line = printable(text)
    half = LONGEST // 2 - 2
    return line if len(line) <= LONGEST else f"{line[:half]} … {line[-half:]}"


def html(tree: Element) -> str:
    """The document of a tree."""
    return "<!doctype html>\n" + tostring(tree, encoding="unicode", method="html") + "\n"
