"""The paper, and nothing else: gates, supernet, estimators, objective, decode, search, derive."""
