"""Importing this module registers every data layer type; a new one is a file beside it, named here."""

from forcereg.data import lmdb_data

__all__ = ["lmdb_data"]
