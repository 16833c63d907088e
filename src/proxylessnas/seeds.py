"""One way to turn names into random streams.

Everything random in a run derives from `(seed, purpose, epoch, step or sample)` by a hash,
never from the state of a worker, a rank or the global generator: the number of workers
changes nothing, and any step can be repeated alone.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager


def derive_seed(seed: int, *names: str | int) -> int:
    """A seed in [0, 2**63) for the stream called `names`, independent of every other name.

    Each part is hashed with its type and length, so that ("a", "bc") and ("ab", "c"), or 1 and
    "1", are different streams. The result is the same on every machine and Python version.

    >>> derive_seed(0, "gates", 3) == derive_seed(0, "gates", 3)
    True
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in (seed, *names):
        if isinstance(part, bool) or not isinstance(part, int | str):
            raise TypeError(f"a stream is named by int and str, not by {part!r}")
        data = str(part).encode()
        digest.update(f"{'s' if isinstance(part, str) else 'i'}{len(data)}:".encode() + data)
    return int.from_bytes(digest.digest(), "big") >> 1


@contextmanager
def undisturbed_generators() -> Iterator[None]:
    """The global generators of torch (CPU), numpy and Python are afterwards as they were."""
    import numpy
    import torch

    of_python, of_numpy = random.getstate(), numpy.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(of_python)
        numpy.random.set_state(of_numpy)


def seed_generators(seed: int) -> None:
    """Seed the same generators: augmentations use any of them."""
    import numpy
    import torch

    torch.default_generator.manual_seed(seed)
    numpy.random.seed(seed % 2**32)
    random.seed(seed)
