"""Former place of :func:`configure_rank_logging`."""

from hsadml_dist.run.trackers import configure_rank_logging as configure_rank_logging  # noqa: PLC0414
