"""The reward endpoint as a Ray Serve application, for `serve run`, `serve deploy`, KubeRay and `jobs.serve_reward`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ramo_ray.config import validate
from ramo_ray.serving.settings import ServingSettings

if TYPE_CHECKING:
    from ray.serve import Application

NAME, EXPLAINER = "ramo-reward", "ramo-explainer"
ONE_AND_NEXT = 2
"""Explanations under way: the one that is computed, and the next, at hand."""


def build_app(args: Mapping[str, Any]) -> Application:
    """Build the application: `import_path: ramo_ray.serving.app:build_app`, with `ServingSettings` as `args`.

    Raises:
        ConfigError: an unknown key, a value that cannot be, or neither a file of tokens nor insecure=true; and a file
            of tokens or a model that is not there, on the machine that builds.
    """
    from ray import serve

    from ramo_ray.serving.explain import Explainer
    from ramo_ray.serving.replica import Replica

    settings = validate(ServingSettings, dict(args), "build_app")
    _check(settings)
    own: dict[str, Any] = settings.model_dump(mode="json")
    explainer = []
    if settings.explain is not None:
        needs = {"num_cpus": settings.explain.num_cpus, "num_gpus": settings.explain.num_gpus}
        deployed = serve.deployment(Explainer).options(
            name=EXPLAINER,
            ray_actor_options=needs,
            max_ongoing_requests=ONE_AND_NEXT,
            max_queued_requests=settings.explain.queued_requests,
        )
        explainer = [deployed.bind(own["explain"])]
    deployment = serve.deployment(serve.ingress(_asgi)(Replica))
    bound: Application = deployment.options(name=NAME, **_options(settings)).bind(own, *explainer)
    return bound


def _asgi() -> Any:
    # Serve carries this function by value: what it returns is looked up in the replica's process.
    from ramo_ray.serving.replica import running_app

    return running_app()


def _check(settings: ServingSettings) -> None:
    from ramo_ray.models.reward import check_reward_model
    from ramo_ray.models.templates import end_of_turn_id, load_tokenizer
    from ramo_ray.serving.tokens import TokenFile

    if not settings.insecure:
        TokenFile(Path(settings.tokens_file))
    folder = Path(settings.model)
    check_reward_model(folder)
    end_of_turn_id(load_tokenizer(folder))
    if settings.explain is not None:
        from ramo_ray.serving.explain import check_explain

        check_explain(settings.explain)


def _options(settings: ServingSettings) -> dict[str, Any]:
    """How Serve runs it."""
    replicas = settings.replicas
    scale: dict[str, Any] = {"num_replicas": replicas.min}
    if replicas.max > replicas.min:
        scale = {
            "autoscaling_config": {
                "min_replicas": replicas.min,
                "max_replicas": replicas.max,
                "target_ongoing_requests": replicas.target_requests,
            }
        }
    return scale | {
        "ray_actor_options": {"num_cpus": replicas.num_cpus, "num_gpus": replicas.num_gpus},
        "max_ongoing_requests": replicas.most_requests,
        "max_queued_requests": replicas.queued_requests,
        "graceful_shutdown_wait_loop_s": 1.0,
        "graceful_shutdown_timeout_s": replicas.drain_seconds,
        "health_check_period_s": 5.0,
    }
