"""Where a model comes from: which study made it, with which versions, and whether it is releasable.

No date and no machine: the same study and seed give the same bytes.

    >>> Provenance(simulated=True, study_hash="0" * 64, seed=7).notice
    'simulated: noise and sampling were reproducible; not for release'
"""

from __future__ import annotations

import json
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field

from fedward.common.study.load import study_hash
from fedward.common.study.schema import Study
from fedward.common.version import versions

NOTICE = "simulated: noise and sampling were reproducible; not for release"


class Provenance(BaseModel):
    """Origin of a model.

    Attributes:
        simulated: trained in a simulation, so that noise and sampling can be repeated by anyone
            who knows the seed; the differential privacy then protects nobody.
        study_hash: SHA-256 that names the study, 64 hexadecimal digits.
        seed: what made a simulation repeatable, or None.
        versions: of the programs that can change a result, by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    simulated: bool
    study_hash: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    seed: Annotated[int, Field(ge=0)] | None = None
    versions: dict[str, str] = {}

    @property
    def notice(self) -> str:
        """What must be said wherever the model is shown; empty if nothing."""
        return NOTICE if self.simulated else ""

    @classmethod
    def of(cls, study: Study, *, simulated: bool) -> Self:
        """Provenance of a model that this installation trained."""
        return cls(
            simulated=simulated,
            study_hash=study_hash(study),
            seed=study.training.seed if simulated else None,
            versions=versions(),
        )

    def to_json(self) -> str:
        """One readable object, keys sorted, with the notice."""
        content = {**self.model_dump(mode="json"), "notice": self.notice}
        return json.dumps(content, sort_keys=True, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `to_json`.

        Raises:
            ValueError: the text is something else, or its notice does not fit its contents.
        """
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError("provenance is not an object")
        notice = content.pop("notice", None)
        found = cls.model_validate(content)
        if notice != found.notice:
            raise ValueError("the notice does not fit the provenance")
        return found
