"""Federated preprocessing: from sums over sites to a frozen transform, never from pooled rows."""

from fedward.common.preprocess.check import check_transform
from fedward.common.preprocess.fit import fit, fit_site
from fedward.common.preprocess.layout import Layout, layout, needs_federated, needs_site
from fedward.common.preprocess.statistics import Statistics, merge
from fedward.common.preprocess.transform import Transform

__all__ = [
    "Layout",
    "Statistics",
    "Transform",
    "check_transform",
    "fit",
    "fit_site",
    "layout",
    "merge",
    "needs_federated",
    "needs_site",
]
