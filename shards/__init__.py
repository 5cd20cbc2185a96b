"""Build shards from raw MRI images, and verify and summarise them.

The order of a build: a source lists its records, :mod:`split` assigns each to a fold and each fold's samples to tars,
:mod:`writer` writes the tars in parallel, and :mod:`build` runs these steps and moves the finished folder into place.
"""
