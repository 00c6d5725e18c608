"""Types of arguments that are words with commas."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection

import forcereg


def several(known: Collection[str]) -> Callable[[str], list[str]]:
    """The type of an argument: words with commas, all of them among these."""

    def read(text: str) -> list[str]:
        words = text.split(",")
        if wrong := [word for word in words if word not in known]:
            raise argparse.ArgumentTypeError(f"{wrong[0]!r} is none of {', '.join(known)}")
        return words

    return read


def shares_in(text: str) -> list[str]:
    """Budgets with commas, as they were written."""
    for word in text.split(","):
        try:
            forcereg.MaxMacs(float(word))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{word!r} is no number") from None
        except forcereg.UsageError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    return text.split(",")
