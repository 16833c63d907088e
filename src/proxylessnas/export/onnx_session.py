"""How ONNX Runtime opens a network: for an export's check, for measuring here, and in a kit.

Only onnxruntime and the standard library: a kit carries this file along.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

CPU = "CPUExecutionProvider"


def open_session(
    model: bytes | str, *, threads: int = 1, provider: str = CPU, profile: str = ""
) -> Any:
    """A session of an ONNX file; operators that the provider lacks run on the CPU.

    model: its content, or its path, beside which external weights are looked for.
    profile: the prefix of the files that a profile of every node is written to; none if empty.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # Errors come as exceptions; what keeps a provider from starting is in the log alone.
    options.log_severity_level = 4 if provider == CPU else 3
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    # Activations of untrained networks can be denormal, which is slow and no fault of the device.
    # The setting holds on the session's own threads. Of the calling thread it is set only where
    # the session is the first of its process: `timing.py` sees to that.
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    if threads > 1:
        # Spin within an inference, but not after it: other sessions are measured then.
        options.add_session_config_entry("session.intra_op.allow_spinning", "1")
        options.add_session_config_entry("session.force_spinning_stop", "1")
    providers = list(dict.fromkeys([provider, CPU]))
    return onnxruntime.InferenceSession(model, options, providers=providers)


def names_of(base: str, count: int) -> list[str]:
    """The names that exported files have for inputs and outputs, in the module's order."""
    return [base] if count == 1 else [f"{base}_{i}" for i in range(count)]


def named_inputs(arrays: Sequence[Any]) -> dict[str, Any]:
    """The arrays of a module's inputs by their names in the exported graph."""
    return dict(zip(names_of("input", len(arrays)), arrays, strict=True))


def feed_of(session: Any, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Those inputs that the graph has: the exporter leaves out what the module never reads."""
    return {node.name: arrays[node.name] for node in session.get_inputs()}
