"""Any trained model, narrowed by surgery: channels are taken out, and what reads them is refitted.

graph.py        the model as a graph of known operations
coupling.py     elements of tensors that go together, or stay
relations.py    what each operation binds; moves.py: of those that move dimensions
pairs.py        channels that can be taken out, and every tensor that is cut then
finding.py      the pairs of a model
norms.py        layer normalisation over some of the channels
narrow.py       a copy of the model with some channels alone
proof.py        what can be cut is tried
moments.py      of what layers read
kernels.py      a smaller kernel, in closed form
lowrank.py      two thin layers in place of a wide one, in closed form
fits.py         which channels remain, and the weights of what reads them, in closed form
candidates.py   the choices and their candidates
space.py        the plain network of every choice
latency.py      what is measured: layers alone, and a few whole networks
cost_model.py   what networks take by that; corrections.py: by others that are measured later
scores.py       what candidates are worth: how far the model's outputs move
in_place.py     many networks out of one copy, and passes that share their beginning
brought.py      the model and the batches that a user brings
blocks.py       which layers may be narrowed, and the table of them
found.py        all of that of a model
around.py       the stages up to a space that is measured, fitted and scored
starting.py     prices under a limit, and where the choice begins; climbing.py: better ones nearby
rounds.py       of choosing, measuring and believing; choosing.py: the best network within a limit
features.py     distances inside, for fine-tuning
specialise.py   from a model and a limit to a network, and its fine-tuning
saved.py        a network as files, and what stages leave
"""
