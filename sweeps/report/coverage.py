"""How much of a sweep a report covers: a page can be written while trials are still missing."""

from dataclasses import dataclass

from sweeps.report.reported_run import ReportedRun, mapping


@dataclass(frozen=True)
class Coverage:
    """
    Attributes:
        planned: trials that are findings themselves, controls not among them. measured: those with an effect.
        failed: trials that failed for good. finished: whether the run says that all of its trials are recorded.
    """

    planned: int
    measured: int
    failed: int
    finished: bool

    @property
    def partial(self) -> bool:
        return not self.finished and self.measured + self.failed < self.planned

    @property
    def sentence(self) -> str:
        failed = f", {self.failed:,} failed" if self.failed else ""
        return (
            f"Partial report: {self.measured:,} of {self.planned:,} trials are measured{failed}. Estimates and "
            "verdicts can still change, since the correction is over all trials."
        )


def coverage(run: ReportedRun) -> Coverage:
    planned = set(run.trials["trial_id"])
    counts = mapping(run.run.get("counts"))
    done = [counts.get(key) for key in ("trials", "recorded", "failed")]
    trials, recorded, failed = (part if isinstance(part, int) else 0 for part in done)
    return Coverage(
        planned=len(planned),
        measured=len(planned & set(run.effects["trial_id"])),
        failed=len(planned & set(run.failures["trial_id"])),
        finished="finished" in run.run and 0 < trials <= recorded + failed,
    )
