"""OpenRLHF's PPO on a machine without a GPU: the same code, with a few calls to CUDA led elsewhere.

For trying a configuration before renting a cluster, and for tests. OpenRLHF (0.11.2) asks for CUDA in a handful of
places; each is redirected when its module is imported, in every process of a run: Ray's workers call `install` as they
start (`worker_process_setup_hook`), vLLM's own processes come by the entry point `vllm.general_plugins`. Nothing of the
algorithm is touched, and nothing at all where `RAMO_CPU_REHEARSAL` is not 1.
"""

from __future__ import annotations

import importlib.machinery
import os
import sys
import types
from typing import Any

from ramo_ray.errors import PlacementError
from ramo_ray.ppo.redirect import Change, on_import

SWITCH = "RAMO_CPU_REHEARSAL"
"""Environment variable; 1 has OpenRLHF run without a GPU."""
ANNOUNCEMENT = (
    "CPU rehearsal: OpenRLHF's own PPO without a GPU. GPUs are labels only, weights travel by gloo; "
    "what it learns is real, its speed says nothing about GPUs."
)


def wanted() -> bool:
    """Whether this process belongs to a rehearsal."""
    return os.environ.get(SWITCH) == "1"


def refuse_gpu() -> None:
    """Raise `PlacementError` where there is a GPU, which a rehearsal would leave idle."""
    import torch

    if torch.cuda.is_available():
        raise PlacementError("rehearsal=true, but this machine has a GPU: leave it out, and run PPO itself.")


def install() -> None:
    """Redirect, in this process, what OpenRLHF would ask CUDA for; nothing where no rehearsal is wanted.

    Raises:
        PlacementError: there is a GPU, which a rehearsal would leave idle.
    """
    if not wanted():
        return
    for name, members in STUBS.items():
        if name in sys.modules:
            continue
        sys.modules[name] = module = types.ModuleType(name)
        module.__dict__.update(dict.fromkeys(members, _never_called))
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
    on_import(REDIRECTIONS)


def _never_called(*_: Any, **__: Any) -> Any:
    raise NotImplementedError("flash-attn is not there in a CPU rehearsal: leave ds.packing_samples off")


STUBS = {
    # Imported by OpenRLHF's models at the top; called with packed samples only, which need flash attention.
    "flash_attn": (),
    "flash_attn.bert_padding": ("index_first_axis", "pad_input", "rearrange", "unpad_input"),
    "flash_attn.utils": (),
    "flash_attn.utils.distributed": ("all_gather",),
}


def _torch_cuda(module: Any) -> None:
    """Models and batches are sent to the current device, which is the processor; there is no stream to wait for."""
    import torch

    if module.is_available():
        raise PlacementError(f"{SWITCH}=1, but this machine has a GPU that a rehearsal would not use.")

    module.current_device = lambda: torch.device("cpu")
    for name in ("set_device", "synchronize", "empty_cache", "current_stream"):
        # Each a function of its own: torch's compiler keeps rules by function, and refuses one that has two.
        setattr(module, name, lambda *_, **__: None)


def _device_mesh(module: Any) -> None:
    """The mesh of ranks is made for "cuda", by name."""
    made_for = module.init_device_mesh
    module.init_device_mesh = lambda _, *given, **named: made_for("cpu", *given, **named)


class _TorchOfCpu:
    """`torch`, but whose `device("cuda:…")` is the processor."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._torch, name)

    def device(self, _: str) -> Any:
        return self._torch.device("cpu")


def _replay_buffer(module: Any) -> None:
    """The buffer spells its device as "cuda:" and the current device's number."""
    module.torch = _TorchOfCpu(module.torch)


class _Gloo:
    """What OpenRLHF asks of NCCL to bring weights to vLLM: `broadcast`."""

    def __init__(self, group: Any) -> None:
        self._group = group

    def broadcast(self, tensor: Any, src: int, stream: Any = None) -> None:  # noqa: ARG002 (NCCL's signature)
        from torch.distributed import BroadcastOptions

        options = BroadcastOptions()
        options.rootRank, options.rootTensor = src, 0
        self._group.broadcast([tensor], options).wait()


def _process_group(module: Any) -> None:
    """The group through which the actor's weights reach vLLM is one of NCCL, outside of torch's default group."""

    def stateless_init_process_group(address: str, port: int, rank: int, world_size: int, _: Any) -> _Gloo:
        from vllm.distributed.utils import stateless_init_torch_distributed_process_group

        return _Gloo(stateless_init_torch_distributed_process_group(address, port, rank, world_size, "gloo"))

    module.stateless_init_process_group = stateless_init_process_group


def _worker_wrap(module: Any) -> None:
    """vLLM's side of that makes room on "cuda", by name, and prints a line a tensor."""

    def update_weight(self: Any, name: str, dtype: Any, shape: Any, empty_cache: bool = False) -> None:  # noqa: ARG001
        import torch

        if dtype != self.model_config.dtype:
            raise TypeError(f"the policy's {name} is {dtype}, vLLM's {self.model_config.dtype}")
        weight = torch.empty(shape, dtype=dtype)
        self._model_update_group.broadcast(weight, src=0)
        self.model_runner.model.load_weights(weights=[(name, weight)])

    module.WorkerWrap.update_weight = update_weight


def _plain_linear(module: Any) -> None:
    """vLLM packs its layers' weights for the processor and drops the originals, so none could follow the policy."""

    def dispatch_cpu_unquantized_gemm(layer: Any, remove_weight: bool) -> None:  # noqa: ARG001 (vLLM's signature)
        import torch

        layer.cpu_linear = torch.nn.functional.linear

    module.dispatch_cpu_unquantized_gemm = dispatch_cpu_unquantized_gemm


REDIRECTIONS: dict[str, Change] = {
    "torch.cuda": _torch_cuda,
    "openrlhf.utils.deepspeed.deepspeed": _device_mesh,
    "openrlhf.trainer.ppo_utils.replay_buffer": _replay_buffer,
    "openrlhf.utils.distributed_util": _process_group,
    "openrlhf.trainer.ray.vllm_worker_wrap": _worker_wrap,
    "vllm.model_executor.layers.utils": _plain_linear,
}
