"""How tensors compute and learn: one loop, optimisers, evaluation, ranks, faults, kernels.

task.py        what is learned: a batch, a model's answer, how wrong it is
job.py         what takes steps, a search or a training, and its state
loop.py        the loop that takes them; faults.py: where numbers are not finite, it goes back
train.py       the training of one network; averages.py, mixing.py: what belongs to some
evaluate.py    a network's score, and its statistics of batch normalisation anew
optimizers.py  rates, gradients, optimisers, and their states as named tensors
freezing.py    what must not change in a step; copying.py: copies of any module
device.py      where tensors live, in which format and precision; autotune.py: tried here
kernels/       layers that compute the same in less time on a CPU
ranks.py       many processes, one run
callbacks.py   what may watch a run; loggers.py: trackers of experiments
"""
