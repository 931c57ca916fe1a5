"""A session of Ray: of this machine's processors alone, or with a cluster that is running.

A local session listens on the loopback device, asks everybody who connects for a secret that only
this process and its children know, sends no statistics of use, keeps its files where nobody else
looks, and is gone with all of its processes when it is left, or when this process is.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from fedward.common.errors import LinkError, MissingExtraError, RoundError, StateError

ADDRESS = "RAY_ADDRESS"
"""Environment variable that Ray itself reads an address from."""
_ANSWERS_S = 20.0
_ATTEMPTS = 3
"""How often to start Ray: it gives itself half a minute, too little on a busy machine."""
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else it announces that this will change
}
_PATIENT = {
    "RAY_worker_niceness": "0",  # Ray's 15 leaves a worker next to nothing on a busy machine
    "RAY_worker_register_timeout_seconds": "300",
}
"""Of a session of this machine."""
_FOLDER = "/tmp"  # noqa: S108  (names of sockets are short: no longer folder can be used)
_LOOPBACK = ("127.0.0.1", "localhost")


def address_of(given: str | None) -> str | None:
    """Where the cluster is: as given, else as the environment says; None for this machine."""
    return given or os.environ.get(ADDRESS) or None


def check(address: str | None) -> None:
    """Refuse what cannot become a session, before anything is begun.

    Args:
        address: `HOST:PORT` of a cluster; None for this machine.

    Raises:
        MissingExtraError: Ray is not installed.
        LinkError: the address is none, or nobody answers there.
    """
    if find_spec("ray") is None:
        raise MissingExtraError(
            "the engine ray needs the package ray, which is not installed",
            hint="pip install 'fedward[ray]'",
        )
    if address is not None:
        _reach(*_parts(address))


def _parts(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise LinkError(
            "the address of a Ray cluster is HOST:PORT, and another one was given",
            hint="see what `ray start --head` printed",
        )
    return host, int(port)


def _reach(host: str, port: int) -> None:
    nobody = LinkError(
        f"no Ray cluster answers at {host}:{port}",
        hint="start one with `ray start --head`, or leave the address out",
    )
    try:
        socket.create_connection((host, port), timeout=_ANSWERS_S).close()
    except OSError as error:
        raise nobody from error
    from fedward.simulations.engines.cluster.internals import speaks

    if not speaks(f"{host}:{port}", _ANSWERS_S):
        raise nobody


@contextmanager
def connected(address: str | None, *, processors: int) -> Iterator[None]:
    """Be connected to Ray.

    Args:
        address: `HOST:PORT` of a cluster; None to start Ray on this machine.
        processors: to use on this machine.

    Raises:
        MissingExtraError, LinkError: see `check`.
        StateError: this process has a session already.
        RoundError: Ray did not start.
    """
    check(address)
    local = address is None
    folder = tempfile.mkdtemp(prefix="fedward-ray-", dir=_FOLDER) if local else None
    asked = dict(_QUIET)
    if local:
        secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        asked |= {**_PATIENT, **secret}
    try:
        with _environment(asked):
            _start(address, folder, processors)
            try:
                yield
            finally:
                _end()
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _start(address: str | None, folder: str | None, processors: int) -> None:
    import ray

    from fedward.simulations.engines.cluster.internals import read_token_anew, stay_on_loopback

    if ray.is_initialized():
        raise StateError(
            "this process is connected to Ray already", hint="call ray.shutdown() before"
        )
    stay_on_loopback(address is None or _parts(address)[0] in _LOOPBACK)
    read_token_anew()
    if address is not None:
        error = _tried(address=address)
        if error is not None:
            _end()
            raise LinkError(
                f"the Ray cluster at {address} cannot be joined",
                hint="check its versions of Python and Ray, and RAY_AUTH_TOKEN",
            ) from error
        return
    for _ in range(_ATTEMPTS):
        error = _tried(
            address="local",
            num_cpus=processors,
            num_gpus=0,
            include_dashboard=False,
            _temp_dir=folder,
        )
        if error is None:
            return
    _end()
    raise RoundError(
        "Ray did not start on this machine",
        hint="see whether memory and processors are left; `--engine pool` needs less",
    ) from error


def _tried(**options: Any) -> Exception | None:
    """What kept Ray from starting, or from being joined; None if it is there."""
    import ray

    from fedward.simulations.engines.cluster.internals import end_what_started

    try:
        with _own_signals(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Ray's, about files that it leaves to the system
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    except Exception as error:  # noqa: BLE001  (Ray has no class for what may happen here)
        end_what_started(error)
        return error
    return None


def _end() -> None:
    import ray

    from fedward.simulations.engines.cluster.internals import stay_on_loopback

    ray.shutdown()
    stay_on_loopback(False)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """What Ray and its processes find in their environment, and then as it was."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _own_signals() -> Iterator[None]:
    """Take back the handler of SIGTERM: Ray's would end with an exit code that means another."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
