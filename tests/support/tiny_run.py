"""The words of a run of some seconds, and the files that must come out the same."""

from __future__ import annotations

WORDS = [
    "--data=digits",
    "--space=macro",
    "--space-settings={widths: [8, 16], depths: [1, 2], stem: 8, head: 16}",
    "--runtime=fake",
    "--target-latency=0.7x",
    "--search.warmup-epochs=1",
    "--search.epochs=2",
    "--train.epochs=2",
    "--derive.top-k=3",
    "--loading.limit=400",
    "--machine.memory-format=contiguous",
    "--machine.depthwise_strips=false",
    "--machine.threads=1",
    "--quiet",
]
SAME = ("architecture.json", "weights.safetensors", "metrics.jsonl", "inherited.safetensors")
