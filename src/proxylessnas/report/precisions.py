"""Whether a lower precision pays on a device: facts of a comparison as lines and a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from proxylessnas.hardware.host import INTEGER_FLAGS, integer_instructions, needs_reduced_range
from proxylessnas.hardware.precisions import WORTH, Compared, Ratio
from proxylessnas.hardware.runtimes.base import FloatShare
from proxylessnas.io.console import table_of

MOST_NAMED = 6
MOST_LOST = 0.5  # points of accuracy


def precision_table(title: str, compared: Sequence[Compared]) -> Table:
    """A row for the whole network and for every block, in paired rounds."""
    first, *others = compared[0].measured
    columns = [f"{first} ms", *(c for p in others for c in (f"{p} ms", f"{p} / {first}"))]
    table = table_of(title, columns)
    for row in compared:
        cells = [f"{row.measured[first].median_ms:.3f}"]
        for precision in others:
            cells += [f"{row.measured[precision].median_ms:.3f}", str(row.ratio(precision, first))]
        table.add_row(row.name, *cells)
    return table


def verdicts(compared: Sequence[Compared]) -> Iterator[str]:
    """What the table means, a line each; those that begin with `warning` want attention."""
    whole, *blocks = compared
    first, *others = whole.measured
    for precision in others:
        ratio = whole.ratio(precision, first)
        if ratio.high < WORTH:
            yield f"{precision} pays here: {ratio} of {first}"
        elif ratio.low > WORTH:
            yield f"warning: {precision} does not pay here: {ratio} of {first}"
        else:
            yield (
                f"warning: {precision} is as fast as {first} here, within the noise: {ratio}; "
                "measure again with --measure.network-rounds 60"
            )
        slower = [b.name for b in blocks if b.ratio(precision, first).low > 1]
        if slower:
            yield f"slower in {precision}: {named(slower)}"
        if precision == "int8":
            yield from float_lines(whole.floats)
    tails = {p: m.tail_words for p, m in whole.measured.items()}
    if all(tails.values()):
        yield "; ".join(f"{p}: {words} ms" for p, words in tails.items())
    if "int8" in whole.measured:
        yield from processor_lines()


def processor_lines() -> Iterator[str]:
    """A warning where the processor has no instructions for int8."""
    if not integer_instructions():
        seven = ", and weights take 7 bits so that sums do not overflow"
        yield (
            f"warning: this processor has no integer instructions ({', '.join(INTEGER_FLAGS)}): "
            f"int8 gains less than on one that has{seven if needs_reduced_range() else ''}"
        )


def float_lines(floats: FloatShare | None) -> Iterator[str]:
    """What computes in float in the int8 network, as its runtime runs it."""
    if floats is None:
        return
    words = named([f"{count} {operator}" for operator, (count, _) in floats.items()]) or "nothing"
    shares = [share for _, share in floats.values() if share is not None]
    yield f"stays in float: {words}" + (f", {100 * sum(shares):.0f} % of the time" * bool(shares))


def int8_lines(facts: Mapping[str, Any] | None, directory: str) -> Iterator[str]:
    """What a run in int8 says of it beside float; see `session.deploying.facts_of`."""
    if facts is None:
        return
    loss = facts["loss_points"]
    if loss is not None:
        yield (
            f"int8: test accuracy {100 * facts['test_accuracy']:.2f} % of the file, "
            f"{100 * facts['float_test_accuracy']:.2f} % in float ({0 - loss:+.2f} points)"
        )
    if "ratio" in facts:
        ratio = Ratio(**facts["ratio"])
        words = f"{facts['int8_ms']:.3f} ms, {facts['float_ms']:.3f} in float: {ratio}"
        yield (
            f"int8: {words}" if ratio.high < WORTH else f"warning: int8 does not pay here: {words}"
        )
        yield from float_lines(facts.get("in_float"))
        yield from processor_lines()
    if loss is not None and round(loss, 6) > MOST_LOST:
        yield from remedies(facts, directory)


def remedies(facts: Mapping[str, Any], directory: str) -> Iterator[str]:
    """What helps where int8 costs too much, each a command that evaluates and exports again."""
    images, blocks = max(200, 5 * facts["calibration_images"]), 2 + facts.get("float_blocks", 0)
    again = f"proxylessnas evaluate {directory} --quantise"
    yield f"int8 costs more than {MOST_LOST} points; what may help, and `run --resume` after it:"
    if not facts.get("all_images"):
        yield f"  {again}.images {images}   ranges of more training images"
    if facts["file"].endswith(".onnx"):
        words = f"the {blocks} blocks that quantise worst stay in float, which takes time"
        yield f"  {again}.float-blocks {blocks}   {words}"
    if not facts.get("aware"):
        yield f"  {again}.aware-epochs 1   an epoch of quantisation-aware fine-tuning"


def named(words: Sequence[str]) -> str:
    """Some words in a line, and how many more there are."""
    rest = len(words) - MOST_NAMED
    return ", ".join(words[:MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")
