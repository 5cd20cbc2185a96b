"""Sources of images. Each lists records at once and reads their pixels one at a time (see ``shards/source.py``)."""
