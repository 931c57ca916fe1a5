"""What may cross the wire between server and client, and under which keys.

Both sides import these names, so that a key is never spelled twice. Everything else stays where it
is: a message holds the arrays, the configuration and the numbers listed here and nothing more.
"""

from __future__ import annotations

from typing import Final

# Kinds of message: `<category>.<action>` is routed by Flower to the function of that name.
INTRODUCE: Final = "query.introduce"
"""Ask a site for its name; it answers only if it holds the same study."""
STATISTICS: Final = "query.statistics"
"""Ask for the sums of federated preprocessing."""
TRAIN: Final = "train"
EVALUATE: Final = "evaluate"

# Records of a message.
ARRAYS: Final = "arrays"
CONFIG: Final = "config"
METRICS: Final = "metrics"

# Keys of the configuration record.
STUDY_HASH: Final = "study-hash"
SITE: Final = "site"
ROUND: Final = "server-round"
TRANSFORM: Final = "transform"
PROXIMAL_MU: Final = "proximal-mu"
LEVELS: Final = "levels"
ERROR_CODE: Final = "error-code"
"""Exit code of the error that stopped a site; only in a reply that refuses."""
ERROR_REASON: Final = "error-reason"
"""What the server may know about it; only in a reply that refuses."""

# Keys of the metric record.
WEIGHT: Final = "weight"
"""Aggregation weight. A site always says 1.0; the server puts in what the study prescribes."""
RELEASED: Final = "released"
"""1.0 if the site could release its evaluation counts, 0.0 if they were below the minimum cell."""
