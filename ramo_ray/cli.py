"""`ramo`: look at rules, prompts and runs, and send jobs to a cluster. Numpy and Ray are imported on use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Label preferences by data-adaptive safety rules, train the reward model, align the policy.",
)


@app.command()
def rules(pool: Annotated[str, typer.Argument(help="A pool in YAML; empty for the paper's.")] = "") -> None:
    """List a rule pool: index, id and text."""
    from ramo_ray.core.rules import load_pool

    for rule in load_pool(pool).rules:
        typer.echo(f"{rule.index:>3}  {rule.id}  {rule.text}")


@app.command()
def prompt(
    question: Annotated[str, typer.Argument(help="What the human says.")],
    response: Annotated[str, typer.Argument(help="What the assistant answers.")],
    rule: Annotated[int, typer.Option(help="Index of the rule in the pool.")] = 0,
    layout: Annotated[Literal["paper", "rule_last"], typer.Option(help="Where the rule stands.")] = "paper",
    rule_prefix: Annotated[
        Literal["keep", "strip"], typer.Option(help='"Accept the response that": keep or strip.')
    ] = "keep",
    method: Annotated[
        Literal["three_labels", "two_labels", "number"], typer.Option(help="What the judge may answer (Appendix D).")
    ] = "three_labels",
    pool: Annotated[str, typer.Option(help="A pool in YAML; empty for the paper's.")] = "",
) -> None:
    """Print what the judge is asked on one rule."""
    from ramo_ray.core.prompts import RatingTemplate, check_prompt, check_response
    from ramo_ray.core.rules import load_pool
    from ramo_ray.errors import ConfigError

    loaded = load_pool(pool)
    if not 0 <= rule < len(loaded):
        raise ConfigError(f"--rule {rule}: the pool has rules 0 to {len(loaded) - 1}.")
    messages = [{"role": "user", "content": question}]
    try:
        check_prompt(messages)
        check_response(response)
    except ValueError as error:
        raise ConfigError(f"{error}.") from None
    typer.echo(RatingTemplate(layout, rule_prefix, method).render(messages, response, loaded.texts[rule]))  # type: ignore[arg-type]


@app.command()
def status(
    run: Annotated[Path, typer.Argument(help="A run's folder, of one job or of a pipeline.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifests as JSON.")] = False,
) -> None:
    """Say how far a run is, from its manifests."""
    from jobs.overview import show_status

    show_status(run, as_json=as_json)


@app.command()
def report(run: Annotated[Path, typer.Argument(help="A pipeline's folder.")]) -> None:
    """Write report.html of a run, also while it goes on."""
    from jobs.reporting import write_report

    typer.echo(str(write_report(run)))


@app.command()
def compare_layouts(
    words: Annotated[list[str], typer.Argument(help="CONFIG [key=value ...], as for python -m jobs.compare_layouts.")],
) -> None:
    """Rate conversations in several layouts and methods; say how far they agree and what each costs."""
    from jobs.compare_layouts import main
    from ramo_ray.config import run

    run(main, words)


@app.command()
def plan(
    words: Annotated[list[str], typer.Argument(help="CONFIG [key=value ...], as for python -m jobs.rate.")],
    measured: Annotated[str, typer.Option(help="A run whose manifest has the judge's rate; empty: measure here.")] = "",
    sample: Annotated[int, typer.Option(min=1, help="Prompt groups whose tokens are counted, or measured.")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Say what labelling a source will take: calls, tokens, hours, days and cost, on all rules and with the adapter."""
    from jobs.planning import make_plan, show_plan

    show_plan(make_plan(Path(words[0]), words[1:], measured, sample), as_json=as_json)


@app.command()
def reward(
    url: Annotated[str, typer.Argument(help="The endpoint's address, such as http://127.0.0.1:8000.")],
    file: Annotated[Path, typer.Argument(help="JSON lines with prompt and response, or messages.")],
    output: Annotated[Path | None, typer.Option(help="Where to; empty: FILE with the ending .rewards.jsonl.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests under way at a time.")] = 8,
    token_env: Annotated[
        str, typer.Option(help="The environment variable that holds the endpoint's token.")
    ] = "RAMO_REWARD_TOKEN",
) -> None:
    """Ask an endpoint for the rewards of a whole file. Run it again to continue."""
    from jobs.rewarding import reward_file

    target = output or file.with_suffix(".rewards.jsonl")
    reward_file(url, file, target, concurrency=concurrency, token_env=token_env)


@app.command(context_settings={"ignore_unknown_options": True})
def submit(
    job: Annotated[str, typer.Argument(help="A job, such as pipeline or rate.")],
    words: Annotated[list[str], typer.Argument(help="CONFIG [key=value ...], as for python -m jobs.JOB.")],
    address: Annotated[
        str, typer.Option(help="The cluster's dashboard.", envvar="RAY_ADDRESS")
    ] = "http://127.0.0.1:8265",
    detach: Annotated[bool, typer.Option("--detach", help="Return at once and leave the job running.")] = False,
) -> None:
    """Send a job to a Ray cluster, show its output, end with its status. RAY_AUTH_TOKEN is the cluster's token."""
    from jobs.submit import submit_job

    raise typer.Exit(submit_job(job, words, address=address, detach=detach))


def main() -> None:
    """Entry point of the `ramo` command."""
    try:
        app()
    except Exception as error:  # noqa: BLE001 (what is not ours is raised again)
        # Only now: configuration's packages would be a third of what `--help` takes.
        from ramo_ray.config import fail

        fail(error)


if __name__ == "__main__":
    main()
