"""Nets as torch modules: built from a spec, loaded, fed, run, scored, timed and described."""
