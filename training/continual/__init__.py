"""Learning another task without forgetting the first: elastic weight consolidation (arXiv 1612.00796).

`fisher` measures what a task needs of each weight; `ewc` holds the weights to where they were, by that much.
"""
