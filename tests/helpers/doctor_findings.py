"""What tests of the doctor share."""

from jobs.checks.findings import Finding


class Answered:
    """Stands in for a probe that has answered."""

    def __init__(self, **answer):
        self.value = answer

    def answer(self):
        return self.value


def only(findings) -> Finding:
    (finding,) = findings
    return finding


def verdicts_of(findings) -> list[tuple[str, str]]:
    return [(finding.check, finding.verdict) for finding in findings]
