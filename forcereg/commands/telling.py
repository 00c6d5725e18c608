"""What commands make of the events that workflows tell: lines."""

from __future__ import annotations

from forcereg.system.events import Event
from forcereg.system.terminal import echo


def lines(event: Event) -> None:
    """Notes on standard output, warnings on standard error."""
    if event.kind == "note":
        echo(event.text)
    elif event.kind == "warning":
        echo(f"forcereg: warning: {event.text}", err=True)
