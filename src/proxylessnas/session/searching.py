"""The stage `search`: warm-up, then weight and architecture steps in turn."""

from __future__ import annotations

from proxylessnas.core.search import Search
from proxylessnas.session.budget import Deadline
from proxylessnas.session.session import Session


def search(session: Session) -> Search:
    """The search to its last step; `session.search` keeps it."""
    job, limit = session.new_search(), session.target_ms
    target = "no latency limit" if limit is None else f"limit {limit:.4g} ms"
    steps = job.schedule.architecture_steps
    words = f"{job.total} weight and {steps}" if job.schedule.weights else f"{steps}"
    title = f"{words} architecture steps, {target}"
    with session.records.stage("search", title, session.callbacks) as facts:
        budget, planned = session.budget, job.total
        ends = [] if budget is None else [Deadline(budget, "search", job)]
        checkpoint = session.drive("search", job, "searching", *ends)
        if job.total < planned:  # it was ended early
            steps = sum(map(job.schedule.architecture_due, range(job.step)))
            session.reporter.say(f"  ended after {job.step} of {planned} steps")
        entropy = job.entropy()
        session.reporter.say(f"  mean entropy of alpha {entropy:.2f} (1: nothing decided)")
        facts |= {"entropy": entropy, "multipliers": job.objective.state()}
        facts["straightness"] = job.straightness()
        weight_steps = job.step if job.schedule.weights else 0
        facts |= {"weight_steps": weight_steps, "architecture_steps": steps}
        facts["files"] = [checkpoint] if checkpoint else []
    session.search = job
    return job
