"""Documents become batches of tokens: cleaning, tokenising, padding, and a stream that resumes at a batch."""
