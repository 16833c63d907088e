"""The only orchestration: a problem, settings and a store in, stages that fill the store.

    problem.py    what is to be solved: model, task, batches, example inputs
    store.py      where results go: named files, in memory or in a directory
    records.py    finished stages, proven by the checksums of their files
    checkpoints.py  saving a loop's state, going on from it, stopping politely
    session.py    measure, tune, search, derive, train, evaluate, export
    tuning.py     how tensors compute here: what is tried once, and recorded
    budget.py     minutes to numbers of epochs

The Python call (`api.py`) and the command line (`runs/`, `cli/`) are thin doors to it.
"""

# In the order in which they follow from one another; evaluation and export follow from training.
STAGES = ("measure", "search", "derive", "train", "evaluate", "export")
