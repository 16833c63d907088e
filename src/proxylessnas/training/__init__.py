"""How tensors compute and learn: one loop, optimisers, evaluation, ranks, faults, kernels."""
