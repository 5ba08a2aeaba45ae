"""The command line's way to a server, and its in-process graph without one."""
