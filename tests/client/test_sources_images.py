"""Cohorts of pictures: folders and MedMNIST archives, mapped from disk and nothing left behind."""

from __future__ import annotations

import tempfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fedward.client.cohort import Cohort
from fedward.client.loading import load_cohort
from fedward.client.quality import check_quality
from fedward.client.site_config import SiteConfig
from fedward.common.errors import DataError, OutputError
from fedward.common.study import Study
from fedward.common.study.load import EXAMPLE
from fedward.common.table import ImageStack

COUNT = 24


def study(**image: Any) -> Study:
    table = tomllib.loads(EXAMPLE)
    table["data"] = {"modality": "image"}
    table["preprocess"] = {"image": {"height": 8, "width": 8, **image}}
    table["model"] = {"name": "cnn"}
    table["evaluation"] = {"holdout": 0.5}
    return Study.model_validate(table)


def pixels(count: int = COUNT, size: int = 8) -> NDArray[np.uint8]:
    generator = np.random.default_rng(3)
    return generator.integers(0, 256, (count, size, size), dtype=np.uint8)


def folder_site(folder: Path, images: NDArray[np.uint8], **changes: Any) -> SiteConfig:
    (folder / "pictures" / "deep").mkdir(parents=True)
    lines = ["name,patient,died"]
    for n, image in enumerate(images):
        name = f"{'deep/' if n % 2 else ''}{n}.png"
        Image.fromarray(image).save(folder / "pictures" / name)
        lines.append(f"{name},p{n // 2},{'yes' if n // 2 % 2 else 'no'}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    source = {
        "kind": "images",
        "path": str(folder / "pictures"),
        "labels": str(folder / "labels.csv"),
        "file": "name",
        **changes.pop("source", {}),
    }
    table = {"site": {"name": "n"}, "source": source, "patients": {"column": "patient"}, **changes}
    return SiteConfig.model_validate(table)


def load(protocol: Study, site: SiteConfig, cache: Path | None = None) -> Cohort:
    return load_cohort(protocol, site, key=b"key", cache=cache)


def seen(cohort: Cohort) -> NDArray[np.uint8]:
    stack = cohort.features
    assert isinstance(stack, ImageStack)
    assert isinstance(stack.pixels, np.memmap)
    return np.asarray(stack.pixels[stack.rows])


def test_folder(tmp_path: Path) -> None:
    cohort = load(study(), folder_site(tmp_path, pixels()))
    np.testing.assert_array_equal(seen(cohort)[:, :, :, 0], pixels())
    np.testing.assert_array_equal(cohort.patient, _dense([f"p{n // 2}" for n in range(COUNT)]))
    np.testing.assert_array_equal(cohort.target, np.arange(COUNT) // 2 % 2)


def _dense(ids: list[str]) -> NDArray[np.int64]:
    return np.unique(np.array(ids), return_inverse=True)[1].astype(np.int64)


def test_filtered_rows_keep_their_pictures(tmp_path: Path) -> None:
    site = folder_site(tmp_path, pixels(), source={"filter": "name NOT LIKE 'deep/%'"})
    np.testing.assert_array_equal(seen(load(study(), site))[:, :, :, 0], pixels()[::2])


def test_nothing_is_left_without_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    cohort = load(study(), folder_site(tmp_path, pixels()))
    assert list(scratch.iterdir()) == []
    np.testing.assert_array_equal(seen(cohort)[:, :, :, 0], pixels())


def test_cache_is_used_again_and_only_while_it_is_true(tmp_path: Path) -> None:
    site, cache = folder_site(tmp_path, pixels()), tmp_path / "cache"
    load(study(), site, cache)
    (made,) = cache.iterdir()
    assert made.stat().st_mode & 0o077 == 0
    content = made.read_bytes()
    made.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # visible only if the file is read
    assert (seen(load(study(), site, cache))[:, :, :, 0] != pixels()).sum() == 1
    load(study(denoise="median"), site, cache)
    assert len(list(cache.iterdir())) == 2
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "pictures" / "0.png")
    assert not seen(load(study(), site, cache))[0].any()


def test_unusable_pictures_name_the_row_and_no_more(tmp_path: Path) -> None:
    site, cache = folder_site(tmp_path, pixels()), tmp_path / "cache"
    (tmp_path / "pictures" / "4.png").write_bytes(b"no picture")
    with pytest.raises(DataError) as caught:
        load(study(), site, cache)
    text = str(caught.value)
    assert text.startswith("the picture of row 5 is corrupt")
    assert "4.png" not in text
    assert list(cache.iterdir()) == []  # nothing half-written
    report = check_quality(study(), site, key=b"key")
    assert report.pictures is not None
    assert report.pictures.unreadable == (5,)
    assert report.pictures.sizes == {"8×8": COUNT - 1}
    assert any("some pictures are missing, corrupt" in p for p in report.problems)


@pytest.mark.parametrize("name", ["none.png", "../labels.csv", "/etc/hostname", ""])
def test_files_must_lie_below_the_folder(tmp_path: Path, name: str) -> None:
    site = folder_site(tmp_path, pixels())
    labels = tmp_path / "labels.csv"
    labels.write_text(labels.read_text().replace("\n0.png,", f"\n{name},"))
    with pytest.raises(DataError, match="picture of row 1 is not a file below the folder"):
        load(study(), site)


def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    site = folder_site(tmp_path, pixels())
    link = tmp_path / "pictures" / "0.png"
    link.rename(tmp_path / "outside.png")
    link.symlink_to(tmp_path / "outside.png")
    with pytest.raises(DataError, match="not a file below the folder"):
        load(study(), site)


def test_same_picture_of_same_patient_counts_once(tmp_path: Path) -> None:
    images = pixels()
    images[1], images[3] = images[0], images[5]  # 0 and 1 are one patient; 3 and 5 are two
    cohort = load(study(), folder_site(tmp_path, images))
    np.testing.assert_array_equal(seen(cohort)[:, :, :, 0], np.delete(images, 1, axis=0))


def test_wrong_columns_and_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column file"):
        load(study(), folder_site(tmp_path, pixels(), source={"file": None}))
    site = folder_site(tmp_path / "b", pixels(), source={"path": str(tmp_path / "none")})
    with pytest.raises(DataError, match="the data folder none does not exist"):
        load(study(), site)


def archive(path: Path, **arrays: Any) -> SiteConfig:
    images = pixels(30)
    outcome = (np.arange(30) % 2).reshape(-1, 1).astype(np.uint8)
    parts = {"train": slice(0, 16), "val": slice(16, 20), "test": slice(20, 30)}
    content: dict[str, Any] = {}
    for name, part in parts.items():
        content[f"{name}_images"], content[f"{name}_labels"] = images[part], outcome[part]
    content = {key: v for key, v in {**content, **arrays}.items() if v is not None}
    np.savez_compressed(path, **content)
    return medmnist(path)


def medmnist(path: Path, **changes: Any) -> SiteConfig:
    source = {"kind": "medmnist", "path": str(path), **changes.pop("source", {})}
    alone = {"one_row_per_patient": True}
    table = {"site": {"name": "n"}, "source": source, "patients": alone, **changes}
    return SiteConfig.model_validate(table)


def test_archive_keeps_the_published_division(tmp_path: Path) -> None:
    cohort = load(study(), archive(tmp_path / "a.npz"))
    np.testing.assert_array_equal(seen(cohort)[:, :, :, 0], pixels(30))
    np.testing.assert_array_equal(cohort.test, np.arange(30) >= 20)
    np.testing.assert_array_equal(cohort.target, np.arange(30) % 2)


def test_archive_subset_is_divided_by_hash(tmp_path: Path) -> None:
    archive(tmp_path / "a.npz")
    cohort = load(study(), medmnist(tmp_path / "a.npz", source={"subset": "train"}))
    np.testing.assert_array_equal(seen(cohort)[:, :, :, 0], pixels(30)[:16])
    assert 0 < cohort.test.sum() < 16


def test_archive_labels_can_be_mapped(tmp_path: Path) -> None:
    archive(tmp_path / "a.npz")
    values = {"values": {"0": "yes", "1": "no"}}
    cohort = load(study(), medmnist(tmp_path / "a.npz", target=values))
    np.testing.assert_array_equal(cohort.target, 1 - np.arange(30) % 2)


def test_archive_with_patients_and_colours(tmp_path: Path) -> None:
    images = {"train_images": np.zeros((16, 8, 8, 3), np.uint8)}
    images["train_images"][:, :, :, 2] = np.arange(16)[:, None, None]
    ids = {"train_patients": np.arange(16) // 2}
    outcome = {"train_labels": np.arange(16) // 2 % 2}
    archive(tmp_path / "a.npz", **images, **ids, **outcome)
    site = medmnist(tmp_path / "a.npz", source={"subset": "train"}, patients={"column": "patients"})
    cohort = load(study(channels=3), site)
    assert cohort.patients == 8
    np.testing.assert_array_equal(seen(cohort)[:, 0, 0, 2], np.arange(16))


class Trap:
    """Fails the test if it is ever unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("an archive ran code",)


def test_archives_cannot_run_code(tmp_path: Path) -> None:
    traps = np.array([Trap()] * 16, dtype=object)
    site = archive(tmp_path / "a.npz", train_labels=traps)
    with pytest.raises(DataError, match="holds Python objects"):
        load(study(), site)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"train_images": np.zeros((16, 8, 8), np.float32)}, "not uint8"),
        ({"train_images": np.zeros((16, 8), np.uint8)}, "not uint8"),
        ({"train_labels": np.zeros(15, np.uint8)}, "not one number for each image"),
        ({"train_labels": None}, "not one number for each image"),
        ({"train_labels": np.full(16, 7)}, "none of the study's labels"),
        ({"test_images": None}, "no patient is in the testing data"),
        ({"train_images": np.zeros((16, 8, 8, 5), np.uint8)}, "picture of row 1"),
    ],
)
def test_archives_of_another_layout(tmp_path: Path, arrays: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(study(), archive(tmp_path / "a.npz", **arrays))


def test_damaged_archives(tmp_path: Path) -> None:
    site = archive(tmp_path / "a.npz")
    content = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="damaged"):
        load(study(), site)
    (tmp_path / "a.npz").write_bytes(content[:200] + b"zz" + content[202:])
    with pytest.raises(DataError, match="damaged"):
        load(study(), site)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as empty:
        empty.writestr("../evil.npy", b"x")
    with pytest.raises(DataError, match="has no arrays"):
        load(study(), site)


def test_no_room_is_an_output_error(tmp_path: Path) -> None:
    site = folder_site(tmp_path, pixels())
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(OutputError):
        load(study(), site, tmp_path / "cache")
