"""Training of DynamicMoE: data, model, recipe, parallelism, alignment, evaluation. Needs the extra `train`.

It makes checkpoints that the server serves. Nothing in server/, engine/ or kernels/ imports it.
"""
