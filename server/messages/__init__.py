"""Anthropic's Messages API over chat completions: its requests, its blocks, its events.

`protocol` is the request, `blocks` are what messages are made of, `output` writes an answer's blocks and their events,
`call` is one request. Routes: server.routes.messages.
"""
