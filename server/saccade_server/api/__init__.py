"""The HTTP API. It talks to the engine through submit, abort and stats only."""
