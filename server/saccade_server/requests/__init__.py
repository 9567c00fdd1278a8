"""What a request asks of the engine and what came of it, without HTTP."""
