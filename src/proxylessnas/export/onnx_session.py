"""How ONNX Runtime opens a network: for an export's check, for measuring here, and in a kit.

Only onnxruntime and the standard library: a kit carries this file along.
"""

from __future__ import annotations

from typing import Any

CPU = "CPUExecutionProvider"


def open_session(
    content: bytes, *, threads: int = 1, provider: str = CPU, profile: str = ""
) -> Any:
    """A session of an ONNX file; operators that the provider lacks run on the CPU.

    profile: the prefix of the files that a profile of every node is written to; none if empty.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # errors
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
    return onnxruntime.InferenceSession(content, options, providers=providers)


def feed_of(session: Any, arrays: list[Any]) -> dict[str, Any]:
    """The inputs by name; the exporter drops inputs that the graph never reads, and their names."""
    return dict(zip([node.name for node in session.get_inputs()], arrays, strict=False))
