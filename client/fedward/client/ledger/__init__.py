"""The site's privacy ledger: what was released about its patients, across all studies and runs.

Read `ledger` (what it promises), `account` (what it counts), `store` (how it is kept).
"""

from fedward.client.ledger.account import Caps, Members, Totals
from fedward.client.ledger.ledger import Ledger
from fedward.client.ledger.report import LedgerReport, report
from fedward.client.ledger.spending import LedgerSpending, ledger_spending, plan_hash

__all__ = [
    "Caps",
    "Ledger",
    "LedgerReport",
    "LedgerSpending",
    "Members",
    "Totals",
    "ledger_spending",
    "plan_hash",
    "report",
]
