"""Reading shards: the sample schema, the index beside the shards, order, transforms and loading."""
