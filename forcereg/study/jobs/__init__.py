"""Processes that share the runs of a sweep or search: here, by Slurm, by Ray. By the folder they see what is whose."""
