"""The command line, with which the calls are compared."""

from tests.commands.conftest import cli as cli
