"""The virtual hospitals of a simulation: one site.toml each, or one table divided by a rule."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedward.client.cohort import Cohort
from fedward.client.loading import load_cohort
from fedward.client.site_config import SiteConfig, load_site_config
from fedward.common.errors import DataError, SiteConfigError, StudyError
from fedward.common.study.schema import Study
from fedward.simulations.partition import partition


def load_cohorts(study: Study, folder: Path, *, cache: Path | None = None) -> list[Cohort]:
    """Load and, if the study says so, divide the data of all virtual sites.

    Which patients are kept for testing is decided by keyed hash, as at a hospital, but with a key
    made from the study's seed, so that an experiment repeats.

    Args:
        study: with a `[simulation]` section.
        folder: that its paths are relative to.
        cache: where decoded images are kept; a temporary folder if None.

    Returns:
        Cohorts with different site names, at least one.

    Raises:
        FedwardError: the study has no simulation, or a site's data cannot be used.
    """
    simulation = study.simulation
    if simulation is None:
        raise StudyError(
            "the study has no [simulation] section",
            hint="say where the data of the virtual hospitals are; see `fedward study new`",
        )
    key = f"fedward simulation, seed {study.training.seed}".encode()
    if simulation.source is None:
        return _separate(study, [folder / site for site in simulation.sites], key, cache)
    rule = simulation.partition
    if rule is None:
        raise StudyError("[simulation] source has no partition", hint="say how to divide it")
    config = load_site_config(folder / simulation.source)
    keep = [rule.column] if rule.column and not _is_feature(study, rule.column) else []
    whole = _load(study, config, key, cache, keep)
    return partition(
        whole,
        rule,
        seed=study.training.seed,
        numeric=[feature.name for feature in study.data.numeric],
        regression=study.task.kind == "regression",
        two_classes=study.task.kind != "regression" and study.data.single_class == "refuse",
    )


def _separate(study: Study, paths: Sequence[Path], key: bytes, cache: Path | None) -> list[Cohort]:
    configs = [load_site_config(path) for path in paths]
    names = [config.name for config in configs]
    for name in names:
        if names.count(name) > 1:
            raise SiteConfigError(
                f"two site files are called {name}", hint="give every [site] its own name"
            )
    return [_load(study, config, key, cache) for config in configs]


def _load(
    study: Study, config: SiteConfig, key: bytes, cache: Path | None, keep: Sequence[str] = ()
) -> Cohort:
    own_cache = cache / config.name if cache else None
    try:
        return load_cohort(study, config, key=key, keep=keep, cache=own_cache)
    except DataError as error:
        raise DataError(f"site {config.name}: {error.problem}", hint=error.hint) from error


def _is_feature(study: Study, column: str) -> bool:
    return column == "brightness" or any(f.name == column for f in study.data.features)
