"""``saccade eval``: what interventions do to answers about scenes whose content is known."""
