"""What touches the machine: files, paths, memory, devices, terminals, other processes."""
