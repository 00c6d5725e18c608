"""Importing this module registers every data layer type; a new one is a file beside it, named here."""

from forcereg.data import database, dummy_data, hdf5_data, image_data, memory_data, window_data

__all__ = ["database", "dummy_data", "hdf5_data", "image_data", "memory_data", "window_data"]
