"""The privacy promise: what is released about patients, what it costs, and how noise is made.

Read in this order: `events` (what was released), `accounting` (what that costs), `calibration`
(how much noise a budget asks for), `randomness` and `mechanisms` (sampling, clipping, noise), and
`plan`, which ties them together so that what runs and what is accounted are one value.
"""

from fedward.common.privacy.events import GaussianRelease, PrivacyEvent, SampledGaussian
from fedward.common.privacy.plan import PrivacyPlan, make_plan
from fedward.common.privacy.randomness import Randomness, SecureRandomness, SeededRandomness

__all__ = [
    "GaussianRelease",
    "PrivacyEvent",
    "PrivacyPlan",
    "Randomness",
    "SampledGaussian",
    "SecureRandomness",
    "SeededRandomness",
    "make_plan",
]
