"""Seeds: fixed for ever, and distinct."""

from __future__ import annotations

import pytest

from proxylessnas.seeds import derive_seed


def test_seeds_are_fixed_and_distinct() -> None:
    assert derive_seed(0, "order", "train", 3) == 1251335620697765796
    streams = [(0, "a", "bc"), (0, "ab", "c"), (0, 1), (0, "1"), (1,), (0, "a", 1), (0, "a1")]
    assert len({derive_seed(*names) for names in streams}) == len(set(streams))
    assert all(0 <= derive_seed(*names) < 2**63 for names in streams)


@pytest.mark.parametrize("name", [1.0, None, True])
def test_seed_names_are_int_or_str(name: object) -> None:
    with pytest.raises(TypeError):
        derive_seed(0, name)  # type: ignore[arg-type]
