"""A second model with a classification head that reads prompts and answers (--guard); docs/guard.md says what it does.

safety.py    which labels mean that a text is safe, and what a text's logits say of it
model.py     the guard's checkpoint, found and checked before anything is started, and its engine's settings
guard.py     the guard: texts become pieces of its context, and it says which label flags one of them
checked.py   an answer's deltas, held back until the guard has read them
metrics.py   how often it passed and flagged, how long that took
"""
