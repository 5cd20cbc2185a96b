"""Input pipeline: shard format and index, reading and caching, sample order, transforms, loading."""
