"""What the template of the section about the paper quotes."""

import math
from typing import Any

from sweeps.report import wording
from sweeps.report.paper import PLAIN, claims
from sweeps.report.profiled import Profiled, Verdict
from sweeps.report.reported_run import ReportedRun
from sweeps.report.tables import number


def paper_section(run: ReportedRun, profiled: Profiled) -> dict[str, Any]:
    """The claims, and whether types do what they say."""
    return {"claims": claims(run, profiled), "verdicts": [_row(verdict) for verdict in profiled.verdicts]}


def _row(verdict: Verdict) -> dict[str, Any]:
    def percent(log_ratio: float) -> float:
        return 100 * math.expm1(log_ratio)

    tested = math.isfinite(verdict.excess)
    return {
        "dataset": verdict.dataset,
        "type": PLAIN[verdict.type],
        "leading": not verdict.assigned,
        "heads": verdict.heads,
        "own": verdict.own.replace("_", " ") or "none",
        "excess": number(percent(verdict.excess), wording.percent),
        "ci": wording.interval(percent(verdict.ci_low), percent(verdict.ci_high)) if tested else "–",
        "q": number(verdict.q, wording.probability),
        "p_sets": number(verdict.p_sets, wording.probability),
        "most": verdict.most.replace("_", " ") or "–",
        "controls": verdict.controls,
        "beyond": f"{verdict.beaten} of {verdict.others}" if tested else "–",
        "says": verdict.says,
        "why": verdict.why,
    }
