"""From raw MRI to shards: sources, grouped folds, the plan of the tars, writing, verifying.

The order of a build: a source lists its records, :mod:`split` gives each a fold, :mod:`plan` each a place in a tar,
:mod:`writer` writes the tars in parallel, :mod:`build` puts it together and moves the finished folder into place.
"""
