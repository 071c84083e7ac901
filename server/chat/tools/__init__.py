"""Tool calls: how each family of models writes them, how they are read back from its text, and how they are forced.

A format (`ToolFormat`) is one small file; `server.chat.tools.formats` picks it by the chat template's content.
"""
