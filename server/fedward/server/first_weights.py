"""The weights that training starts from, drawn from the study's seed.

Making them needs torch, which a service that only adds numbers up has no other use for: it takes
three times the memory of everything else. So the service has them made by a process that ends.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from fedward.common.errors import FedwardError, RoundError, error_for_exit_code
from fedward.common.models.state import build_module, get_weights
from fedward.common.preprocess import Transform
from fedward.common.study import Study, canonical_json
from fedward.common.tensors import Weights
from fedward.common.wire.body import Body, Content, write_body

TIMEOUT_S = 600.0
_MODULE = "fedward.server.first_weights"


def first_weights(study: Study, transform: Transform) -> Weights:
    """Weights of the study's model before training, drawn from the study's seed."""
    image = study.preprocess.image
    shape: tuple[int, ...] = (transform.width,)
    if image is not None:
        shape = (image.channels, image.height, image.width)
    module = build_module(study.model, shape, study.task.outputs, study.training.seed)
    return get_weights(module)


def first_weights_in_subprocess(study: Study, transform: Transform) -> Weights:
    """The same, made by another process, so that torch never enters this one.

    Raises:
        FedwardError: as the other process said; or a `RoundError` if it ended or took too long
            without a word.
    """
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "weights"
        question = json.dumps({"study": canonical_json(study), "transform": transform.to_json()})
        command = [sys.executable, "-P", "-m", _MODULE, str(made)]
        try:
            done = subprocess.run(  # noqa: S603  (our own interpreter and module)
                command,
                input=question.encode(),
                capture_output=True,
                timeout=TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise _failed() from error
        if done.returncode != 0:
            raise _said(done.returncode, done.stdout) from None
        with Body.open(made) as body:
            return dict(body.content().arrays)


def _said(code: int, output: bytes) -> FedwardError:
    kind = error_for_exit_code(code)
    try:
        said = json.loads(output)
        if kind is not None:
            return kind(str(said["problem"]), hint=str(said["hint"]))
    except (KeyError, TypeError, ValueError):
        pass
    return _failed()


def _failed() -> RoundError:
    return RoundError(
        "the first weights could not be made",
        hint="see that torch is installed and that there is memory for the model, then start again",
    )


def main(arguments: list[str], question: bytes) -> int:
    """Be the other process: write the weights to the file that is named.

    Returns:
        The exit code: 0, or that of the error, which is printed as JSON.
    """
    asked = json.loads(question)
    study = Study.model_validate_json(asked["study"])
    try:
        weights = first_weights(study, Transform.from_json(asked["transform"]))
        write_body(Path(arguments[0]), Content(arrays=weights))
    except FedwardError as error:
        sys.stdout.write(json.dumps({"problem": error.problem, "hint": error.hint}))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], sys.stdin.buffer.read()))
