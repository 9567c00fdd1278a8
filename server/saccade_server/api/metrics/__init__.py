"""What /metrics says: counts of requests, of interventions, and of the engine."""
