"""Starting runs: the command line, the processes of a run on this machine, shipped recipes."""
