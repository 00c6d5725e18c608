"""The command line in this process."""

from tests.commands.conftest import cli

__all__ = ["cli"]
