"""What `doctor` does: look at one thing after the other, and say of each `ok` or what to do.

`findings` runs checks, `command` shows what they found, `machine` looks at files, disk and limits,
`network` at the way to the server. Which checks there are, server and client know.
"""

from fedward.common.diagnosis.findings import (
    Advice,
    Check,
    Finding,
    diagnose,
    exit_code,
    line,
    summary,
)

__all__ = ["Advice", "Check", "Finding", "diagnose", "exit_code", "line", "summary"]
