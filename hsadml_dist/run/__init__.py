"""The run folder: attempts that never share a file, append-only rows, merged views."""
