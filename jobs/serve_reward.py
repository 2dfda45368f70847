"""The reward model behind HTTP, by Ray Serve, until it is stopped."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, PositiveFloat, model_validator

from jobs.display import console, heading
from jobs.inputs import RuleConfig, check_judge, earlier, rule_pool
from jobs.session import ray_session
from jobs.stage import locate, read_json
from ramo_ray.config import Config, run, validate
from ramo_ray.errors import ConfigError, ServerError, StoppedError
from ramo_ray.serving.settings import (
    TURN_ENDS,
    CalibrationSettings,
    ExplainSettings,
    LimitSettings,
    ReplicaSettings,
    ServingSettings,
)
from ramo_ray.settings import AdapterSettings, DType, JudgeSettings, SelectionSettings

if TYPE_CHECKING:
    from ray.serve import Application

APP = "ramo_reward"
LOOK_S = 1.0
SERVE_CONTROLLER_NAME, SERVE_NAMESPACE = "SERVE_CONTROLLER_ACTOR", "serve"
"""What Serve's one actor is called in any cluster that has a Serve."""


class HTTPSettings(Config):
    """Where Serve's proxies listen."""

    host: str = "127.0.0.1"
    """Loopback unless told otherwise: 0.0.0.0 listens on all of a machine's addresses."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    every_node: bool = False
    """A proxy on each node of a cluster, instead of the head's alone."""
    timeout_s: PositiveFloat = 150.0
    """Until Serve gives a request up; more than `limits.seconds`."""
    ssl_certfile: str = ""
    """TLS: the certificate; with it, `ssl_keyfile`."""
    ssl_keyfile: str = ""

    @model_validator(mode="after")
    def _both_or_none(self) -> HTTPSettings:
        if bool(self.ssl_certfile) != bool(self.ssl_keyfile):
            raise ValueError("ssl_certfile and ssl_keyfile belong together; give both, or none.")
        return self


class ServeRewardConfig(RuleConfig):
    job: ClassVar[str] = "serve_reward"
    model: str = ""
    """Folder of the reward model. Empty: what train_reward wrote in `run`."""
    run: str = ""
    """Output of the pipeline whose reward model is served. What evaluate_reward wrote there calibrates rewards."""
    name: str = "reward"
    """What the model is called in replies."""
    dtype: DType = "float32"
    threads: Annotated[int, Field(gt=0)] | None = None
    """Threads of torch in one replica on CPU. Empty: all cores of the machine."""
    batch_tokens: Annotated[int, Field(gt=0)] = 2_048
    """Tokens that are scored together: more of them are quicker, and each waits longer."""
    tokens_file: str = ""
    """File of the bearer tokens that may ask, one a line; read again when it changes. On every node."""
    insecure: bool = False
    """Answer whoever asks. Without it, and without a token, nothing is served."""
    explain: bool = False
    """Have `/explain` say why a response is preferred: with the adapter below, and the judge. Takes a process more."""
    adapter_model: str = ""
    """Folder of the Rule Adapter. Empty: what train_adapter wrote in `run`."""
    judge: JudgeSettings = JudgeSettings()
    adapter: AdapterSettings = AdapterSettings()
    selection: SelectionSettings = SelectionSettings()
    turn_ends: tuple[str, ...] = TURN_ENDS
    """What policies end a turn with, beside all of the form `<|...|>`: taken off the answers given to `/get_reward`."""
    calibration: CalibrationSettings | None = None
    """Mean and deviation of rewards. Empty: those of evaluate_reward in `run`, if it is there."""
    limits: LimitSettings = LimitSettings()
    replicas: ReplicaSettings = ReplicaSettings()
    http: HTTPSettings = HTTPSettings()


def serving_settings(config: ServeRewardConfig) -> ServingSettings:
    """The arguments of the application, with what an earlier run has."""
    shared = ("name", "dtype", "threads", "batch_tokens", "insecure", "turn_ends", "limits", "replicas")
    values: dict[str, Any] = {key: getattr(config, key) for key in shared}
    model = earlier(config, "model", config.model, config.run, "train_reward/model")
    values["model"] = str(model)
    if config.tokens_file:
        values["tokens_file"] = str(locate(config, "tokens_file", config.tokens_file))
    values["calibration"] = config.calibration or _measured(config, model)
    if config.explain:
        values["explain"] = _explaining(config)
    return validate(ServingSettings, values, "serve_reward")


def _explaining(config: ServeRewardConfig) -> ExplainSettings:
    """What explains, with the judge's route found where it is behind a server."""
    pool = rule_pool(config, config.selection.r)
    return ExplainSettings(
        adapter_model=str(earlier(config, "adapter_model", config.adapter_model, config.run, "train_adapter/model")),
        rules=str(locate(config, "rules", config.rules)) if config.rules else "",
        judge=check_judge(config.judge, pool).settings,
        adapter=config.adapter,
        selection=config.selection,
        num_cpus=config.judge.actors.num_cpus,
        num_gpus=config.judge.actors.num_gpus,
    )


def _evaluated_model(config: ServeRewardConfig) -> Path:
    """The reward model whose rewards evaluate_reward has measured in `run`."""
    folder = locate(config, "run", config.run)
    named = read_json(folder / "evaluate_reward" / "config.json").get("model")
    return locate(config, "model", named) if named else folder / "train_reward" / "model"


def _measured(config: ServeRewardConfig, model: Path) -> CalibrationSettings | None:
    """Where the rewards of the run's test pairs lie, if they are this model's."""
    import numpy as np
    import pyarrow.parquet as pq

    file = locate(config, "run", config.run) / "evaluate_reward" / "data" / "rewards.parquet" if config.run else Path()
    if not file.is_file() or _evaluated_model(config).resolve() != model.resolve():
        # Another model's rewards have another scale.
        return None
    table = pq.read_table(file, columns=["reward_chosen", "reward_rejected"])
    rewards = np.concatenate([table[side].drop_null().to_numpy() for side in table.column_names])
    if len(rewards) < 2 or not rewards.std() > 0:
        return None
    return CalibrationSettings(mean=float(rewards.mean()), deviation=float(rewards.std(ddof=1)))


def main(config: ServeRewardConfig) -> list[str]:
    """Serve the reward model until Ctrl-C or SIGTERM; what is under way then is answered first."""
    from ramo_ray.serving.app import build_app

    heading("Reward endpoint")
    settings = serving_settings(config)
    # It checks all that can be known before anything starts.
    application = build_app(settings.model_dump(mode="json"))
    with contextlib.ExitStack() as stack:
        stack.enter_context(ray_session(config.ray))
        _refuse_other_serve()
        stack.enter_context(_ended(config.replicas.drain_seconds))
        _serve(config.http, application)
        console.print(f"  ready: {address(config.http)}", soft_wrap=True, markup=False)
        if settings.insecure:
            console.print("  it answers whoever reaches the port (insecure=true)", markup=False)
        try:
            while True:
                time.sleep(LOOK_S)
                _check_up()
        except (KeyboardInterrupt, StoppedError):
            console.print("  stopping: what is under way is answered first", markup=False)
    return []


@contextlib.contextmanager
def _ended(drain_seconds: float) -> Iterator[None]:
    """Take the application away in the end, however far it came."""
    from ray import serve

    try:
        yield
    finally:
        if _running():
            serve.delete(APP, _blocking=False)
            end = time.monotonic() + drain_seconds + LOOK_S
            while APP in serve.status().applications and time.monotonic() < end:
                time.sleep(LOOK_S / 5)


def _refuse_other_serve() -> None:
    """Raise `ConfigError` where there is a Serve already: an application of ours may run there, by the same name."""
    if _running():
        raise ConfigError(
            "this cluster has a Serve already, whose address and TLS are not ours to set. Deploy to it with "
            "`serve run ramo_ray.serving.app:build_app`, or end it with `serve shutdown`."
        )


def _running() -> bool:
    """Whether there is a Serve in this cluster."""
    import ray

    try:
        ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    except ValueError:
        return False
    return True


def address(http: HTTPSettings) -> str:
    """Where a client on this machine finds the endpoint."""
    host = "127.0.0.1" if http.host in ("0.0.0.0", "::") else http.host
    return f"{'https' if http.ssl_certfile else 'http'}://{host}:{http.port}"


def _serve(http: HTTPSettings, application: Application) -> None:
    from ray import serve

    # It tells at each start that it has started, and that it is there already.
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    try:
        serve.start(
            proxy_location="EveryNode" if http.every_node else "HeadOnly",
            http_options={
                "host": http.host,
                "port": http.port,
                "request_timeout_s": http.timeout_s,
                "ssl_certfile": http.ssl_certfile or None,
                "ssl_keyfile": http.ssl_keyfile or None,
            },
        )
        serve.run(application, name=APP, route_prefix="/")
    except (RuntimeError, TimeoutError, ValueError) as error:
        raise ServerError(
            f"the endpoint did not start on {http.host}:{http.port}: {_why() or ' '.join(str(error).split())[:500]}"
        ) from None


def _why() -> str:
    """What the replicas that did not start said last."""
    from ray import serve

    found = serve.status().applications.get(APP)
    told = [one.message for one in found.deployments.values() if one.message] if found else []
    lines = [line for message in told for line in message.splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""


def _check_up() -> None:
    """Raise `ServerError` when Serve has given the deployment up."""
    from ray import serve

    state = serve.status().applications[APP]
    if state.status in ("DEPLOY_FAILED", "NOT_STARTED"):
        raise ServerError(f"the endpoint is down: {_why() or state.message}")


if __name__ == "__main__":
    run(main)
