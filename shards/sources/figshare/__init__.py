"""Jun Cheng's brain tumor dataset: where its files lie, what MATLAB put into them, whose they are."""
