"""Documents become batches of tokens: cleaning, tokenising, padding, and a stream that resumes at a batch.

The way of a record: `files` and `chunks` (bytes), `records` and `documents` (what it says), `cleaning`, `tokenizing`,
`chats` and `examples` (rows of tokens), `batches` (micro batches). `train_tokenizer` makes a tokenizer first.
"""

from training.data.batches import BatchStream

__all__ = ["BatchStream"]
