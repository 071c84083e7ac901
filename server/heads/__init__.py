"""The APIs of what a model has beside its generation: embeddings, classes and scores of texts.

protocol.py     requests for embeddings and classes
scores.py       requests for scores and ranks
cohere.py       Cohere's request for embeddings, and its answer
defaults.py     what a checkpoint says of its embeddings: how they are pooled, and prompts
texts.py        from texts to token ids, in threads
values.py       from a model's values to embeddings, probabilities and cosines
call.py         what their routes share
answers.py      what the answers look like
"""
