"""Records that cannot be changed unnoticed: `chain` is the hash chain, `log` the signed audit log.

`verify` checks a log offline.
"""

from fedward.common.audit.chain import Head, canonical, empty, extend
from fedward.common.audit.entries import Entry, current_key, read_entries
from fedward.common.audit.log import AuditLog
from fedward.common.audit.verify import Report, verify_log

__all__ = [
    "AuditLog",
    "Entry",
    "Head",
    "Report",
    "canonical",
    "current_key",
    "empty",
    "extend",
    "read_entries",
    "verify_log",
]
