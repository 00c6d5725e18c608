"""What the command line does as calls: one file a command, whose function is public as `forcereg.<name>`.

Each opens what it is given, calls the rooms that do the work, and returns a result. None prints: remarks, warnings and
progress go to `observer`, which gets the `Event`s that commands make lines and bars of; without one a warning is a
Python warning. Options have the names that the command gives them, with the same defaults. Paths may be text or
PathLike. All raise ForceregError, one line, for bad input, and UsageError, a kind of it, for options that don't fit.
"""
