"""Names that replicas and proxies share."""

REPLICA = "x-saccade-replica"
"""Header of every answer that a replica gave; what has none is Ray's own."""

LATE = "late"
"""Of the statistics that a replica records: true while it wants requests to go elsewhere."""
