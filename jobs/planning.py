"""`ramo plan`: what labelling a source will take, on all rules and with the Rule Adapter, from measured rates."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from jobs.changes import differences
from jobs.display import console
from jobs.inputs import check_judge, open_source, rule_pool
from jobs.label import LabelConfig
from jobs.rate import RateConfig
from jobs.stage import locate, read_json
from ramo_ray.config import load
from ramo_ray.engines import build_engine, radix
from ramo_ray.errors import ConfigError
from ramo_ray.judging.fitting import fit_or_cut
from ramo_ray.judging.prompts import JudgePrompts, by_chat
from ramo_ray.models.resolve import resolve
from ramo_ray.models.templates import load_tokenizer
from ramo_ray.pipelines.grouping import make_group
from ramo_ray.pipelines.reading import count_rows
from ramo_ray.pipelines.sources import Source, read_rows
from ramo_ray.settings import ActorSettings, JudgeSettings, Split, SplitSettings

SAMPLED_ROWS = 2000
"""Rows that are read to learn how many responses and trios a prompt has, and how long they are."""
SECONDS_A_DAY = 86_400


class Size(NamedTuple):
    """A source: its rows (exact, or estimated from a sample's bytes), and what they come to."""

    rows: int
    exact: bool
    prompts: float
    conversations: float
    trios: float


class Cost(NamedTuple):
    """What a way of labelling takes. Hours are an actor's."""

    calls: float
    tokens: float
    computed: float
    actor_hours: float
    gpu_hours: float
    days: float
    price: float


class Rate(NamedTuple):
    """Tokens a second of one actor, and where that was measured.

    Tokens are those that no prompt of a batch shares, as an engine with a prefix cache computes them; `all_tokens` says
    that they are all of the prompts', where what is shared is not known to be computed once.
    """

    tokens_a_second: float
    measured: str
    all_tokens: bool = False


class Plan(NamedTuple):
    """The source's size, the rate, and the costs of both ways if all of it were labelled so.

    `configured` is what `rate` and `label` take together, each of its splits: `rated` and `labelled` of the prompts.
    """

    size: Size
    rate: Rate
    actors: int
    all_rules: Cost
    adapter: Cost
    rated: float
    labelled: float
    configured: Cost


def make_plan(source: Path, overrides: Sequence[str], measured: str, sample: int) -> Plan:
    """Plan a job before it is started.

    Args:
        source: a configuration's file or folder; `overrides` are its `key=value` words.
        measured: folder of a pipeline or of `rate` whose manifest says how fast the judge is. Empty: it is measured
            here, on `sample` prompt groups.
        sample: prompt groups whose tokens are counted.

    Raises:
        ConfigError: the folder holds no measured rate.
    """
    config = load(RateConfig, source, [w for w in overrides if not w.startswith(("selection.", "labelled="))])
    pool, judge = rule_pool(config, 1), check_judge(config.judge, rule_pool(config, 1)).settings
    opened = open_source(config)
    groups, size = _size(opened)
    if not groups:
        raise ConfigError(f"{opened.files[0]}: none of its first {SAMPLED_ROWS} rows can be used.")
    label = load(LabelConfig, source, [w for w in overrides if not w.startswith("rated=")])
    # A conversation is asked the rules of all its trios.
    k = min(len(pool), math.ceil(2 * label.selection.r * size.trios / size.conversations)) if size.trios else 1
    chosen = [groups[i] for i in np.linspace(0, len(groups) - 1, min(sample, len(groups))).astype(int)]
    path = resolve(judge.model, judge.revision)
    prompts = JudgePrompts(load_tokenizer(path), judge, pool, bare=by_chat(judge))
    every, some = range(len(pool)), np.linspace(0, len(pool) - 1, k).astype(int).tolist()
    asked = [_asked(prompts, judge, chosen, rules) for rules in (every, some)]
    rate = _from_run(config, measured) if measured else _measure(judge, path, prompts, asked[0])
    sampled = sum(len(group["conversations"]) for group in chosen)
    all_rules, adapter = (
        _cost(judge, rate, size.conversations * len(rules), size.conversations / sampled, batches)
        for rules, batches in zip((every, some), asked, strict=True)
    )
    rated = _share(config.splits, config.rated)
    labelled = 1.0 if label.labelled == "all" else _share(config.splits, label.labelled)
    configured = Cost(*(rated * one + labelled * other for one, other in zip(all_rules, adapter, strict=True)))
    return Plan(size, rate, judge.actors.max, all_rules, adapter, rated, labelled, configured)


def _share(splits: SplitSettings, wanted: Sequence[Split]) -> float:
    """Of all prompts, those of some splits."""
    shares = splits.model_dump()
    return float(sum(shares[split] for split in set(wanted)) / sum(shares.values()))


def _size(source: Source) -> tuple[list[dict[str, Any]], Size]:
    """Groups of the first rows, and the whole source's size by them."""
    sampled = list(itertools.islice(read_rows(source), SAMPLED_ROWS))
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for row in sampled:
        if not row.get("reason"):
            by_prompt.setdefault(row["prompt_id"], []).append({"reason": None, **row})
    groups = [make_group(rows, []) for rows in by_prompt.values()]
    rows, exact = count_rows(source.files, source.limit, source.split)
    scale = rows / len(sampled) if sampled else 0.0
    conversations, trios = (sum(len(group[kind]) for group in groups) for kind in ("conversations", "trios"))
    return groups, Size(rows, exact, len(groups) * scale, conversations * scale, trios * scale)


def _asked(
    prompts: JudgePrompts, judge: JudgeSettings, groups: Sequence[dict[str, Any]], rules: Sequence[int]
) -> list[list[list[int]]]:
    """Questions of each batch of groups."""
    batches = []
    for first in range(0, len(groups), judge.batch_size):
        fitted = [
            fit_or_cut(prompts, group["prompt"], conversation["response"], rules, 2**31)
            for group in groups[first : first + judge.batch_size]
            for conversation in group["conversations"]
        ]
        batches.append(prompts.answers.questions([ids for own in fitted for ids in own.prompts]))
    return batches


def _measure(judge: JudgeSettings, path: Path, prompts: JudgePrompts, batches: Sequence[list[list[int]]]) -> Rate:
    engine = build_engine(judge, path)
    fitting = [kept for batch in batches if (kept := [ids for ids in batch if len(ids) <= engine.context_length])]
    if not fitting:
        engine.close()
        raise ConfigError("nothing could be measured here, as no prompt fits: name a run with --measured.")
    engine.label_logprobs(fitting[0][:8], prompts.labels)
    started = time.perf_counter()
    for batch in fitting:
        engine.label_logprobs(batch, prompts.labels)
    seconds = time.perf_counter() - started
    engine.close()
    distinct = sum(len(radix.build(batch)) for batch in fitting)
    return Rate(distinct / seconds, f"here, on {sum(map(len, fitting)):,} calls")


def _from_run(config: RateConfig, measured: str) -> Rate:
    folder = locate(config, "measured", measured)
    for place in (folder, folder / "rate", folder / "label"):
        judge = read_json(place / "manifest.json").get("judge", {})
        if judge.get("computed") and judge.get("seconds"):
            other = read_json(place / "config.json").get("judge", {})
            if changed := list(differences(other, config.judge.model_dump(mode="json"))):
                raise ConfigError(f"`measured` = {measured}: {place} ran another judge: {'; '.join(changed[:5])}.")
            # These count what they were sent, or what a server's cache happened to hold.
            all_tokens = config.judge.engine in ("scripted", "openai")
            tokens = judge["tokens" if all_tokens else "computed"]
            return Rate(tokens / judge["seconds"], f"in {place}, on {judge['calls']:,} calls", all_tokens)
    raise ConfigError(f"`measured` = {measured}: no manifest there says what a judge has computed in how long.")


def _cost(
    judge: JudgeSettings, rate: Rate, calls: float, scale: float, batches: Sequence[Sequence[Sequence[int]]]
) -> Cost:
    """Of all, what some batches take times `scale`."""
    tokens = sum(len(ids) for batch in batches for ids in batch) * scale
    computed = sum(len(radix.build(batch)) for batch in batches) * scale
    hours = (tokens if rate.all_tokens else computed) / rate.tokens_a_second / 3600
    gpus = _gpus_an_actor(judge.actors)
    server = judge.openai.input_price * tokens / 1e6 if judge.engine == "openai" else 0.0
    return Cost(
        calls=calls,
        tokens=tokens,
        computed=computed,
        actor_hours=hours,
        gpu_hours=hours * gpus,
        days=hours * 3600 / SECONDS_A_DAY / judge.actors.max,
        price=hours * judge.actors.price_per_hour + server,
    )


def _gpus_an_actor(actors: ActorSettings) -> float:
    """GPUs of an actor; on average, where a pool fills its kinds of machines."""
    if not actors.kinds:
        return actors.num_gpus
    gpus = [actors.num_gpus if kind.num_gpus is None else kind.num_gpus for kind in actors.kinds]
    return sum(kind.max * own for kind, own in zip(actors.kinds, gpus, strict=True)) / sum(k.max for k in actors.kinds)


def show_plan(plan: Plan, *, as_json: bool) -> None:
    """Print a plan."""
    if as_json:
        print(json.dumps({key: v._asdict() if hasattr(v, "_asdict") else v for key, v in plan._asdict().items()}))
        return
    size = plan.size
    console.print(
        f"{'' if size.exact else 'about '}{size.rows:,} rows: {size.prompts:,.0f} prompts, "
        f"{size.conversations:,.0f} conversations, {size.trios:,.0f} trios"
    )
    console.print(f"one actor computes {plan.rate.tokens_a_second:,.0f} tokens/s (measured {plan.rate.measured})")
    table = Table("", "all rules", "with the adapter", "as configured")
    for column in table.columns[1:]:
        column.justify = "right"
    ways = (plan.all_rules, plan.adapter, plan.configured)
    for name, key, form in (
        ("judge calls", "calls", ",.0f"),
        ("prompt tokens", "tokens", ",.0f"),
        ("of them computed", "computed", ",.0f"),
        ("actor-hours", "actor_hours", ",.2f"),
        ("GPU-hours", "gpu_hours", ",.2f"),
        (f"days with {plan.actors} actors", "days", ",.3f"),
        ("cost", "price", ",.2f"),
    ):
        table.add_row(name, *(format(getattr(cost, key), form) for cost in ways))
    console.print(table)
    console.print(
        f"As configured: all rules for {plan.rated:.0%} of the prompts (rate), the adapter for {plan.labelled:.0%} "
        "(label). The adapter's own work, and loading models, come on top."
    )
