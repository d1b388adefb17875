"""What a process finds around it: the operating system, its files, the processor, a Ray."""
