"""What a site accepts as preprocessing, judged by the study alone and never by its data.

A server that chose means and deviations freely could ask questions with them: an input that
overflows says that some patient has a value above a threshold. So whatever does not follow from the
study is refused before a row is looked at, and what is accepted cannot overflow on values that the
study's cleaning lets through.
"""

from __future__ import annotations

from fedward.common.errors import RoundError
from fedward.common.preprocess.layout import needs_site
from fedward.common.preprocess.transform import (
    CategoricalInput,
    Channel,
    NumericInput,
    Transform,
)
from fedward.common.study.schema import Feature, Study

LARGEST_INPUT = 1e6
"""No value within the public bounds may become an input beyond this."""


def check_transform(study: Study, transform: Transform) -> None:
    """Refuse a transform that the study could not have led to.

    Names, order, handling of missing values and listed levels must be the study's. Under
    differential privacy a mean and a fill must lie within the public bounds and a deviation must
    not blow them up beyond `LARGEST_INPUT`; a feature without bounds must be left as it is.

    Raises:
        RoundError: it does not fit; the message is about the transform, not about the site.
    """
    image = study.preprocess.image
    fits = (
        [n.name for n in transform.numeric] == [f.name for f in study.data.numeric]
        and [c.name for c in transform.categorical] == [f.name for f in study.data.categorical]
        and len(transform.channels) == (image.channels if image else 0)
        and transform.complete != needs_site(study)
    )
    if not fits:
        raise _misfit("does not fit the study")
    for feature, number in zip(study.data.numeric, transform.numeric, strict=True):
        _check_number(feature, number, private=study.private)
    for feature, category in zip(study.data.categorical, transform.categorical, strict=True):
        _check_category(feature, category)
    for channel in transform.channels:
        _check_channel(channel)


def _check_number(feature: Feature, number: NumericInput, *, private: bool) -> None:
    if number.missing != feature.missing:
        raise _misfit(f"treats missing values of {feature.name} in another way than the study")
    if not private:
        return
    low, high = (0.0, 1.0) if feature.type == "boolean" else (feature.min, feature.max)
    if low is None or high is None:
        if (number.mean, number.deviation) != (0.0, 1.0):
            raise _misfit(f"changes {feature.name}, which has no public bounds")
        return
    unchanged = (number.mean, number.deviation) == (0.0, 1.0)
    filled = low <= number.fill <= high or feature.missing == "refuse"  # then nothing is filled in
    if not (filled and (unchanged or low <= number.mean <= high)):
        raise _misfit(f"takes values of {feature.name} from outside its public bounds")
    if (high - low) / number.deviation > LARGEST_INPUT:
        raise _misfit(f"blows {feature.name} up")


def _check_category(feature: Feature, category: CategoricalInput) -> None:
    listed = category.listed and category.levels == feature.categories
    free = not category.listed and not feature.categories
    if category.missing != feature.missing or not (listed or free):
        raise _misfit(f"treats {feature.name} in another way than the study")
    if category.fill is not None and not 0 <= category.fill < len(category.levels):
        raise _misfit(f"fills {feature.name} with a level that it does not have")


def _check_channel(channel: Channel) -> None:
    if not 0.0 <= channel.mean <= 1.0 or 1.0 / channel.deviation > LARGEST_INPUT:
        raise _misfit("takes pixel values from outside their range")


def _misfit(what: str) -> RoundError:
    return RoundError(
        f"the preprocessing that the server sent {what}",
        hint="server and site must run the same study with the same version",
    )
