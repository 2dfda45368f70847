"""vLLM, on GPUs or by its CPU build: prefix caching shares what prompts begin with. The only module that imports vllm.

The engine runs inside the process that owns it, so with one GPU (or none) there is no second process that could
outlive its owner. With tensor parallelism vLLM starts a worker per GPU, which ends when its owner's pipe closes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ramo_ray.engines.base import (
    Completion,
    TokenIds,
    Usage,
    check_labels,
    check_prompts,
    checked,
    context_within,
    end_ids,
    prompt_seed,
)
from ramo_ray.errors import EngineError
from ramo_ray.settings import EngineSettings, SamplingSettings

# The smallest that vLLM's attention on CPU takes: what follows a prompt's last whole block is not shared.
CPU_BLOCK_SIZE = 32
# Tokens a step. Above it, what a layer hands to the next falls out of the processor's caches.
CPU_BUDGET = 1024
MAX_LABELS = 128
"""Most ids that vLLM's `logprob_token_ids` takes."""

# What the user has set stands.
ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}
# This decides how the engine ends (see above), so it is always set.
IN_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}


class VLLMEngine:
    """An `Engine` on vLLM's offline `LLM`. Starts in 15 s on a CPU, first request included.

    Scores come from the generating runner's one next token. The pooling runner's `classify` reads the labels' rows of
    the head alone, so it never knows what they have of the whole vocabulary, which `label_logprobs` promises.

    Attributes:
        context_length: one less than the model's: vLLM keeps room for the token whose probability is asked.
        computed: tokens of scored prompts that went through the model since the start, and `cached` those that the
            prefix cache spared. Equal prompts of one call are sent once.
    """

    applies_chat_template = False
    usage = Usage()

    def __init__(self, settings: EngineSettings, model_path: Path) -> None:
        os.environ.update({key: value for key, value in ENVIRONMENT.items() if key not in os.environ} | IN_PROCESS)
        import torch
        from vllm.platforms import current_platform

        self.threads = settings.threads or os.cpu_count() or 1
        torch.set_num_threads(self.threads)
        self.llm = _start(settings, model_path)
        self.on_cpu = current_platform.is_cpu()
        model = self.llm.llm_engine.model_config
        self.context_length: int = model.max_model_len - 1
        self.vocabulary_size: int = model.get_vocab_size()
        self.computed = self.cached = 0
        self.ends = end_ids(model.try_get_generation_config().get("eos_token_id"), model.hf_text_config.eos_token_id)
        # The first request is slow; it should not look like a slow prompt.
        self.label_logprobs([[0]], [0])
        self.computed = self.cached = 0

    def label_logprobs(self, prompts: Sequence[TokenIds], labels: TokenIds) -> np.ndarray:
        """See `Engine.label_logprobs`. Takes at most 128 labels."""
        check_prompts(prompts, self.context_length)
        check_labels(labels, self.vocabulary_size)
        if len(labels) > MAX_LABELS:
            raise EngineError(f"{len(labels)} labels were asked for, vLLM answers at most {MAX_LABELS}; ask in parts.")
        from vllm import SamplingParams

        one_token = SamplingParams(temperature=0.0, max_tokens=1, logprob_token_ids=list(labels), detokenize=False)
        # In the prefix tree's order, prompts that begin alike run one after the other, while their beginning is in the
        # cache. A step's requests share as they are scheduled, so no first one has to run ahead of the others.
        distinct = sorted(set(map(tuple, prompts)))
        place = {prompt: row for row, prompt in enumerate(distinct)}
        rows = np.full((len(distinct), len(labels)), np.nan, dtype=np.float32)
        for row, output in enumerate(self._ask(distinct, one_token)):
            found = output.outputs[0].logprobs[0]
            rows[row] = [found[label].logprob for label in labels]
            self.cached += output.num_cached_tokens
            self.computed += len(distinct[row]) - output.num_cached_tokens
        return checked(rows[np.array([place[tuple(prompt)] for prompt in prompts], dtype=np.int64)])

    def generate(self, prompts: Sequence[TokenIds], sampling: SamplingSettings) -> list[Completion]:
        """See `Engine.generate`."""
        from vllm import SamplingParams

        check_prompts(prompts, self.context_length)
        outputs = []
        for wave in self._waves(prompts, sampling.max_tokens):
            if self.on_cpu and len(wave[0]) > CPU_BUDGET:
                # Into the cache, so that less than a block of it is left to compute.
                self._ask(wave, SamplingParams(temperature=0.0, max_tokens=1, detokenize=False))
            parameters = [
                SamplingParams(
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    max_tokens=sampling.max_tokens,
                    seed=prompt_seed(prompt, sampling),
                    stop_token_ids=sorted(self.ends),
                    detokenize=False,
                )
                for prompt in wave
            ]
            outputs += self._ask(wave, parameters)
        return [self._completion(output.outputs[0]) for output in outputs]

    def _waves(self, prompts: Sequence[TokenIds], max_tokens: int) -> Iterator[Sequence[TokenIds]]:
        """Prompts that are written on together: on a CPU, as many as go through one step and into the cache whole.

        Of a prompt that is computed in two steps, or again after the cache was full, vLLM rewinds the random numbers;
        those of a CPU cannot be rewound.
        """
        if not self.on_cpu:
            yield prompts
            return
        cache = self.llm.llm_engine.vllm_config.cache_config
        room = cache.num_gpu_blocks * cache.block_size
        wave: list[TokenIds] = []
        for prompt in prompts:
            wider = [*wave, prompt]
            tokens = sum(map(len, wider))
            if wave and (tokens > CPU_BUDGET or tokens + len(wider) * (max_tokens + cache.block_size) > room):
                yield wave
                wider = [prompt]
            wave = wider
        if wave:
            yield wave

    def _ask(self, prompts: Sequence[TokenIds], parameters: Any) -> list[Any]:
        import torch

        # OpenMP counts threads for each calling thread anew, and Ray Data calls from another than the constructor's.
        torch.set_num_threads(self.threads)
        asked = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        answers: list[Any] = self.llm.generate(asked, parameters, use_tqdm=False)
        return answers

    def _completion(self, output: Any) -> Completion:
        tokens = list(output.token_ids)
        if output.finish_reason == "stop" and tokens and tokens[-1] in self.ends:
            return Completion(tokens[:-1], "stop")
        return Completion(tokens, "length")

    def close(self) -> None:
        """See `Engine.close`."""
        self.llm.llm_engine.engine_core.shutdown()


def _start(settings: EngineSettings, path: Path) -> Any:
    import torch
    from transformers import AutoConfig
    from vllm import LLM
    from vllm.platforms import current_platform

    own = settings.vllm
    on_cpu = current_platform.is_cpu()
    # Compiling takes a minute on a CPU and makes small models hardly faster there.
    places = {
        "kv_cache_memory_bytes": int(own.kv_cache_gib * 2**30),
        "max_num_batched_tokens": CPU_BUDGET,
        "enforce_eager": True,
    }
    threads_setter = torch.set_num_threads
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True).get_text_config()
        return LLM(
            str(path),
            skip_tokenizer_init=True,
            dtype=settings.dtype,
            max_model_len=context_within(config, settings.max_length, path),
            block_size=own.block_size or (CPU_BLOCK_SIZE if on_cpu else None),
            enable_prefix_caching=True,
            tensor_parallel_size=own.tensor_parallel_size,
            # Left to itself, vLLM would start Ray actors of its own inside a Ray actor.
            distributed_executor_backend="mp" if own.tensor_parallel_size > 1 else "uni",
            gpu_memory_utilization=own.gpu_memory_utilization,
            disable_log_stats=True,
            use_tqdm_on_load=False,
            **(places if on_cpu else {}),
        )
    except (ValueError, RuntimeError, OSError, AssertionError) as error:
        reason = " ".join(str(error).split())[:300]
        raise EngineError(f"vLLM could not start on {path}: {reason}") from error
    finally:
        # Its CPU worker replaces this function for the whole process.
        torch.set_num_threads = threads_setter
