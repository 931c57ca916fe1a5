"""The privacy promise: what is released about patients, what it costs, and how noise is made.

Read in this order: `events` (what was released), `accounting` (what that costs), `calibration`
(how much noise a budget asks for), `randomness` and `mechanisms` (sampling, clipping, noise), and
`plan`, which ties them together so that what runs and what is accounted are one value.
"""
