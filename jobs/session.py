"""The Ray that a job works on: one of its own, the submitted job's, or one at an address."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ramo_ray.errors import ConfigError, StoppedError
from ramo_ray.settings import RaySettings

RAY_ENVIRONMENT = {
    # Ray warns, in every process, that this will be its default.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # At every pool of actors that may restart, Ray's native side warns on the terminal of how Ray Data starts it.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    # When a driver is killed its Ray goes with it, but two of Ray's agents would look for the others a minute more.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
}
"""Of the Ray that a run starts, where the user has not set it otherwise."""
BUFFERED = 16
"""Blocks that a task makes ahead: with Ray Data's two, which it fetches some six times a second, a task that reads
would give about six a second."""
RESERVED = 0.1
"""Share of a cluster that Ray Data divides among the stages of a pipeline beforehand."""


def submitted() -> bool:
    """Whether this process is the entry point of a submitted Ray job."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


@contextlib.contextmanager
def ray_session(settings: RaySettings, stand_ins: Mapping[str, int] | None = None) -> Iterator[None]:
    """Have a Ray: the one that is up, the submitted job's, the one at `ray.address`, or a private one for this run.

    A private one says that it has the `stand_ins` (`num_cpus`, `num_gpus`), if there are any.
    """
    os.environ.update({key: value for key, value in RAY_ENVIRONMENT.items() if key not in os.environ})

    import ray

    if ray.is_initialized():
        yield
        return
    address = settings.address or ("auto" if submitted() else "local")
    private: dict[str, Any] = {"num_cpus": settings.num_cpus, "include_dashboard": False} | dict(stand_ins or {})
    if settings.object_store_gib:
        private["object_store_memory"] = int(settings.object_store_gib * 2**30)
    options = private if address == "local" else {}
    try:
        with _muted():
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **options)
    except (ConnectionError, ValueError, ray.exceptions.RayError) as error:
        raise ConfigError(f"`ray.address` = {address}: no Ray can be reached there: {error}") from None
    try:
        set_up_ray_data()
        with ended_by_sigterm():
            yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def at_sigterm(act: Callable[[], None]) -> Iterator[None]:
    """Act at SIGTERM instead of ending; elsewhere than in the main thread signals stay as they are."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda _, __: act())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def ended_by_sigterm() -> contextlib.AbstractContextManager[None]:
    """Have SIGTERM raise what a run says of a stop: Ray would exit with its number. Rounds of a run have better."""

    def end() -> None:
        raise StoppedError("stopped as asked; run the same command again to continue.")

    return at_sigterm(end)


@contextlib.contextmanager
def _muted() -> Iterator[None]:
    """Close the terminal to native code while Ray starts, which greets on it; its errors come as exceptions."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def set_up_ray_data() -> None:
    """Leave the terminal to our own progress, and errors as they were raised; Ray's log files keep everything.

    Of the CPUs, leave to the pools what Ray Data would set aside for the small stages around them: half, otherwise.
    """
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.verbose_progress = False
    context.enable_operator_progress_bars = False
    context.raise_original_map_exception = True
    context.op_resource_reservation_ratio = RESERVED
    # Nothing reads the memory of each batch, which would take a thread a batch to measure.
    context.memory_usage_poll_interval_s = None
    context._max_num_blocks_in_streaming_gen_buffer = BUFFERED
    # A source of few shards has no use for as many readers as it might have.
    warnings.filterwarnings("ignore", message="The maximum number of concurrent tasks")
    for name in ("ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
