"""What all chat APIs share: messages become a prompt, and the output becomes a message's pieces.

Each API (server.routes) only says what its requests and answers look like.
"""
