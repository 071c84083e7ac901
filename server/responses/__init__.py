"""OpenAI's Responses API over chat completions: its requests, its items, its events, and what is kept of it.

`protocol` is the request; `items` are what a conversation is made of, and become chat messages; `output` writes an
answer's items and their events; `call` is one request; `history` is what a later request finds. Routes:
server.routes.responses.
"""
