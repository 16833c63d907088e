"""The only orchestration: a problem, settings and a store in, stages that fill the store.

Read in this order:

    problem.py      what is to be solved: model, task, batches, example inputs
    memory.py       what a stage will take at its peak, within what is free
    store.py        where results go: named files, in memory or in a directory
    records.py      finished stages, proven by the checksums of their files
    costed.py       the three together: parts made once, costs within the limits
    session.py      with that, loops and the finished search
    pipeline.py     the order of the stages, from a run's first line to its last
      early.py        before all: a batch of each loader through everything, so that it fails early
      batch_trial.py    one batch of them
      loaders.py        what loaders tell without an epoch
      tuning.py       before them: how tensors compute here, tried once and recorded
      measuring.py    `measure`: the latency table
      trials.py       searches that may be spoiled, to see how long steps take
      budget.py       minutes by the clock, divided among the stages that are left
      durations.py    how long steps and stages will take
      fitting.py      their settings, fitted to that as they begin
      searching.py    `search`: weights and α in turn
      untrained.py    scores beside figures of untrained networks
      deploying.py    the network as its device computes it: in int8, the file that ships
      deriving.py     `derive`: one network, and others under other limits
      finishing.py    `train`, `evaluate` (mistakes.py: the worst ones), and baselines
      exporting.py    `export`: files, compared with eager and measured
    checkpoints.py  saving a loop's state, going on from it, stopping politely
    inputs.py       example inputs as plain values
    identity.py     whether a model is the one that was searched

The Python call (`api/`) and the command line (`runs/`, `cli/`) are thin doors to it.
"""

# In the order in which they follow from one another; evaluation and export follow from training.
STAGES = ("measure", "search", "derive", "train", "evaluate", "export")
