"""Reports as self-contained documents: the page of a run, its model card, and the comparison of several runs."""
