"""The Python door: from trained weights, or put a `MixedOp` into any model and search that.

    result = search(pretrained="efficientnet_lite0", data="photos/", target_latency="0.6x",
                    out="runs/photos")
    net = result.derive()          # plain PyTorch, fine-tuned
    result.summary["baselines"]    # what one would do by hand

    result = search(Net(), train=loader, valid=loader, loss=fn, example_inputs=(x,),
                    target_latency="12ms", out="runs/mine")
    net = result.derive()          # plain PyTorch, with the weights the search trained
    result = load("runs/mine", model=Net())    # later, in another process

    result = specialise(trained, train=loader, valid=loader, loss=fn, example_inputs=(x,),
                        target_latency="0.5x")
    result.finetune()
    net = result.derive()          # plain PyTorch, narrower inside

What happens is the session's, see `session/`: the command line uses the same one.

calls.py      `search`
specialised.py  `specialise`
result.py     what they return, and `load`
arguments.py  what their arguments may be
"""

from proxylessnas.api.calls import search
from proxylessnas.api.result import Result, load
from proxylessnas.api.specialised import specialise
from proxylessnas.surgery.specialise import Specialised

__all__ = ["Result", "Specialised", "load", "search", "specialise"]
