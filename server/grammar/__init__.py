"""Structured output: grammars from schemas, expressions and choices (`lark`, `json_schema`), each tried (`checker`).

One representation everywhere: llguidance's Lark text. What requests can ask for is in server.protocol; the engine
follows the grammar (engine.grammars).
"""
