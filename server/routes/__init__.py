"""The HTTP routes, one file for each API. An API that generates text is an `ApiCall` (server.pipeline)."""
