"""The first weights made by another process are those made here, and its refusals are said."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedward.common.errors import ModelError, RoundError
from fedward.common.preprocess import fit
from fedward.common.study import canonical_json
from fedward.server import first_weights as module
from fedward.server.first_weights import first_weights, first_weights_in_subprocess, main
from fedward.simulations.fakes import small_study


@pytest.mark.parametrize("model", [{"name": "logistic"}, {"name": "mlp", "hidden": [5, 3]}])
def test_another_process_draws_the_same_weights(model: dict[str, Any]) -> None:
    study = small_study(model=model, categorical=1)
    expected = first_weights(study, fit(study))
    found = first_weights_in_subprocess(study, fit(study))
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == np.float32
        assert found[name].shape == value.shape
        assert found[name].tobytes() == value.tobytes()


def test_torch_does_not_enter_the_process_that_asks(tmp_path: Path) -> None:
    study = small_study()
    (tmp_path / "study").write_text(canonical_json(study))
    (tmp_path / "transform").write_text(fit(study).to_json())
    code = """if True:
        import sys
        from pathlib import Path
        from fedward.common.preprocess import Transform
        from fedward.common.study import Study
        from fedward.server.first_weights import first_weights_in_subprocess
        study = Study.model_validate_json(Path("study").read_text())
        transform = Transform.from_json(Path("transform").read_text())
        weights = first_weights_in_subprocess(study, transform)
        sys.exit(100 if "torch" in sys.modules else len(weights))
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False)
    assert done.returncode == 2


def test_a_refusal_of_the_other_process_keeps_its_kind(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def refuse(*_: object) -> None:
        raise ModelError("too wide", hint="make it smaller")

    study = small_study()
    question = json.dumps({"study": canonical_json(study), "transform": fit(study).to_json()})
    monkeypatch.setattr(module, "first_weights", refuse)
    code = main([str(tmp_path / "w")], question.encode())
    assert code == ModelError.exit_code
    said = module._said(code, capsys.readouterr().out.encode())
    assert type(said) is ModelError
    assert str(said) == "too wide: make it smaller"


@pytest.mark.parametrize("program", ["/bin/false", "/nowhere/python"])
def test_a_process_that_ends_without_a_word_is_a_round_error(
    program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.sys, "executable", program)
    study = small_study()
    with pytest.raises(RoundError, match="first weights could not be made"):
        first_weights_in_subprocess(study, fit(study))


def test_no_wait_is_unbounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT_S", 0.01)
    study = small_study()
    with pytest.raises(RoundError, match="first weights could not be made"):
        first_weights_in_subprocess(study, fit(study))
