"""Exporters at work without a word on the user's terminal."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import torch
from torch import nn

from proxylessnas.errors import ExportError, foreign
from proxylessnas.io.native import native_away


@contextlib.contextmanager
def exporting(module: nn.Module, form: str) -> Iterator[None]:
    """An export without gradients and without a word; what the exporter raises is one line."""
    failure = f"{type(module).__name__} cannot be exported {form}"
    with foreign(ExportError, failure), quietly(), torch.no_grad(), _no_fast_path():
        yield


@contextlib.contextmanager
def _no_fast_path() -> Iterator[None]:
    """Attention and transformer layers as the operations that exporters know."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """No deprecation notes, tracer warnings and native log lines on the user's terminal."""
    before = logging.root.manager.disable
    stdout_away = contextlib.redirect_stdout(io.StringIO())
    python_away = contextlib.redirect_stderr(io.StringIO())  # which a notebook shows elsewhere
    with one_thread(), warnings.catch_warnings(), stdout_away, native_away(), python_away:
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """torch on one thread, for much small work such as exports.

    Threads that wait for each other on a busy machine make it ten times slower.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def denormal_mode(*, flushed: bool | None = None) -> Iterator[None]:
    """How the calling thread treats denormal numbers, put back to the mode before.

    flushed: whether they become 0 meanwhile; None leaves the mode as it is. The first session that
    ONNX Runtime opens in a process sets the mode of the calling thread, and for good.
    """
    before = bool((torch.tensor([1e-40]) * 1.0 == 0).item())
    if flushed is not None:
        torch.set_flush_denormal(flushed)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
