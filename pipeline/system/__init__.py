"""The environment of a process: operating system, files, processor, Ray."""
