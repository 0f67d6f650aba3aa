"""Runs by name: what each leaves on record, and how several are trained at a time, each in a process."""
