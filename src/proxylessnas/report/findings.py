"""What was found, in words: every sentence is computed from a run's facts.

The paper reads insights for design off its networks (section 4.2: GPU networks are shallow and
wide with large kernels late, CPU networks deep with small ones, blocks that down-sample are
larger). These are the same questions, asked of the network that was found here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import mean

from proxylessnas.report.facts import Choice, Facts, Latency
from proxylessnas.report.shapes import Layer

GAP = 0.05  # of accuracies: more between training and test images is learning by heart
KEPT = 0.01  # of a latency: nearer to the limit counts as at it
MANY = 5  # points of accuracy by hand: fewer do not tell what limits the network
LATENCY = "latency"


def found(facts: Facts) -> list[str]:
    """What the network is like, and why by the prices."""
    return [*_shape(facts.layers), *_prices(facts), *_certainty(facts)]


def limited_by(facts: Facts) -> list[str]:
    """What holds the accuracy back now, and what to do next."""
    return [*_problems(facts), *_accuracy(facts), *_limit(facts.latency, facts.directory)]


# --- what it is like ---


def _shape(layers: Sequence[Layer]) -> Iterator[str]:
    there = [layer for layer in layers if layer.kernel]
    if len(there) < 2:
        return
    left_out = len(layers) - len(there)
    deep = f"{len(there)} of {len(layers)} searched blocks stay"
    yield f"{deep}; {left_out} are left out{_where_left_out(layers)}." if left_out else f"{deep}."
    half = len(there) // 2
    early, late = (mean(x.kernel for x in part) for part in (there[:half], there[half:]))
    counts = {k: sum(x.kernel == k for x in there) for k in sorted({x.kernel for x in there})}
    words = ", ".join(f"{count} of {k} × {k}" for k, count in counts.items())
    if len(counts) == 1:
        yield f"All kernels are {there[0].kernel} × {there[0].kernel}."
    else:
        how = "larger late" if late > early else "larger early" if early > late else "alike"
        yield f"Kernels: {words}; {how} (mean {early:.1f} in the first half, {late:.1f} after)."
    down = [x.expansion for x in there if x.halves]
    others = [x.expansion for x in there if not x.halves]
    if down and others:
        a, b = mean(down), mean(others)
        how = "wider than" if a > 1.05 * b else "narrower than" if b > 1.05 * a else "as wide as"
        yield (
            f"Blocks that halve the resolution are {how} the others: hidden channels are "
            f"{a:.1f} times the block's input there, {b:.1f} elsewhere."
        )


def _where_left_out(layers: Sequence[Layer]) -> str:
    places = [i for i, layer in enumerate(layers) if not layer.kernel]
    middle = (len(layers) - 1) / 2
    early = sum(i < middle for i in places)
    if early == len(places):
        return ", all in the first half"
    return ", all in the second half" if early == 0 else f", {early} of them in the first half"


def _prices(facts: Facts) -> Iterator[str]:
    """Where the time goes, and what a millisecond bought."""
    paid = [(c, c.cost(LATENCY) or 0.0) for c in facts.choices if LATENCY in c.costs]
    fixed = facts.fixed.get(LATENCY, 0.0)
    total = sum(ms for _, ms in paid) + fixed
    if not paid or total <= 0:
        return
    (top, ms), *_ = sorted(paid, key=lambda pair: -pair[1])
    yield (
        f"Of the predicted {total:.3g} ms, {100 * fixed / total:.0f} % belong to what all networks "
        f"share; the costliest block is {top.name} ({top.chosen}, {ms:.2g} ms)."
    )
    low = fixed + sum(min(c.costs[LATENCY]) for c, _ in paid)
    high = fixed + sum(max(c.costs[LATENCY]) for c, _ in paid)
    if high > low:
        share = 100 * (total - low) / (high - low)
        yield (
            f"Between the fastest network of the space ({low:.3g} ms) and the slowest "
            f"({high:.3g}), it spends {share:.0f} % of the difference."
        )
    odd = _dear_but_few_macs(facts.choices)
    if odd:
        yield odd


def _dear_but_few_macs(choices: Sequence[Choice]) -> str:
    """A pair of candidates whose order by MACs is not that by milliseconds, the widest such."""
    best: tuple[float, str] = (0.0, "")
    for choice in choices:
        if "macs" not in choice.costs:
            continue
        rows = list(
            zip(choice.candidates, choice.costs[LATENCY], choice.costs["macs"], strict=True)
        )
        for name, ms, macs in rows:
            for other, ms2, macs2 in rows:
                if macs < macs2 and ms > ms2 > 0 and ms / ms2 > max(1.05, best[0]):
                    words = (
                        f"MACs mislead on this device: in {choice.name}, {name} has "
                        f"{100 * (1 - macs / macs2):.0f} % fewer MACs than {other} and takes "
                        f"{100 * (ms / ms2 - 1):.0f} % longer."
                    )
                    best = (ms / ms2, words)
    return best[1]


def _certainty(facts: Facts) -> Iterator[str]:
    several = [c for c in facts.choices if len(c.candidates) > 1]
    if not several:
        return
    sure = sum(max(c.probabilities) >= 0.9 for c in several)
    yield (
        f"{sure} of {len(several)} choices were decided (a candidate with a probability of 0.9 or "
        f"more)"
        + (
            f"; mean entropy {facts.entropy:.2f}, where 1 is nothing and 0 everything decided."
            if facts.entropy is not None
            else "."
        )
    )
    changed = [
        c.name
        for c in several
        if c.chosen in c.candidates
        and c.probabilities[c.candidates.index(c.chosen)] < max(c.probabilities)
    ]
    if changed:
        yield (
            f"In {len(changed)} of them the network has not the most probable candidate: together "
            "these would break the limit, or scored less."
        )


# --- what limits it ---


def _problems(facts: Facts) -> Iterator[str]:
    for kind in ("problems", "remarks"):
        for line in (facts.verdict or {}).get(kind, ()):
            yield line[0].upper() + line[1:] + "."


def _accuracy(facts: Facts) -> Iterator[str]:
    outcome = facts.outcome
    if outcome is None or outcome.accuracy is None:
        return
    if facts.paid:
        yield facts.paid[0].upper() + facts.paid[1:] + "."
    useless = bool((facts.verdict or {}).get("problems"))  # which says its cause itself
    training = None if useless else outcome.training_accuracy
    low, high = outcome.interval
    if training is not None and training - outcome.accuracy > GAP:
        yield (
            f"Data limit it: {100 * training:.1f} % on training images against "
            f"{100 * outcome.accuracy:.1f} % on test images. More images, or stronger augmentation "
            "(--train.augment crop+flip+randaugment), help more than more epochs."
        )
    elif training is not None and training < 1 - GAP:
        yield (
            f"Training limits it: only {100 * training:.1f} % on training images themselves. "
            "Train longer (--train.epochs), or allow a larger network."
        )
    teacher = next((r for r in outcome.rows if r.name in ("teacher", "largest")), None)
    if teacher is not None and teacher.accuracy is not None:
        points = 100 * (teacher.accuracy - outcome.accuracy)
        if points > 100 * (high - outcome.accuracy):
            yield (
                f"The limit costs {points:.1f} points against the {teacher.name} network "
                f"({100 * teacher.accuracy:.1f} %): a larger limit buys them back."
            )
        else:
            yield (
                f"The limit costs nothing that the test images can tell: the {teacher.name} "
                f"network has {100 * teacher.accuracy:.1f} %. A smaller limit may be had as well."
            )
    if high - low > 2 * GAP:
        yield (
            f"{outcome.images:,} test images leave {100 * (high - low):.0f} points of doubt: bring "
            "more before you compare networks."
        )


def _limit(latency: Latency, directory: str) -> Iterator[str]:
    if latency.target is None or latency.measured is None:
        return
    over = latency.measured / latency.target - 1
    if over > KEPT:
        yield (
            f"Measured at the end the network takes {100 * over:.1f} % more than its limit: "
            f"measure again on a quiet machine (proxylessnas measure {directory}/{latency.file}), "
            "or give a limit smaller by as much."
        )
    elif over < -MANY * KEPT:
        yield (
            f"The network is {-100 * over:.0f} % under its limit: candidates come in steps, and "
            "the next larger ones did not fit, or did not score better."
        )


# --- between runs ---


def differences(runs: Sequence[Facts]) -> list[str]:
    """How the networks of several runs differ, as far as they are of one kind."""
    lines = []
    for facts in runs:
        there = [layer for layer in facts.layers if layer.kernel]
        if len(there) < 2:
            continue
        half = len(there) // 2
        early, late = (mean(x.kernel for x in part) for part in (there[:half], there[half:]))
        lines.append(
            f"{facts.name}: {len(there)} of {len(facts.layers)} blocks, mean kernel {early:.1f} in "
            f"the first half and {late:.1f} after, mean expansion "
            f"{mean(x.expansion for x in there):.1f}."
        )
    first, *others = runs
    for other in others:
        if _space(first) != _space(other):
            lines.append(f"{other.name} and {first.name} are of different spaces.")
            continue
        mine = {c.name: c.chosen for c in first.choices}
        theirs = {c.name: c.chosen for c in other.choices}
        common = mine.keys() & theirs.keys()
        if common:
            same = sum(mine[name] == theirs[name] for name in common)
            lines.append(
                f"{other.name} and {first.name} choose the same candidate in {same} of "
                f"{len(common)} common positions."
            )
    return lines


def _space(facts: Facts) -> str:
    return "" if facts.architecture is None else facts.architecture.space
