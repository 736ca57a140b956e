"""Training in several processes: the process group that DeepSpeed needs, and checks of its config."""

from __future__ import annotations

import logging
import os
import socket
from typing import TYPE_CHECKING

from transformers.training_args import ParallelMode

from llava._compat import no_split_modules, set_no_split_modules
from llava.model.multimodal_encoder.base import VisionTower
from llava.train.plan import RATE_FLAGS, RunPlan, word_of
from llava.train.setup.compiling import clear_dead_locks, extension_folder, is_built
from llava.train.setup.noise import prints_as_messages
from llava.utils import UserError, import_optional, watched

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

SHARED_MEMORY = "deepspeed_shm_comm"  # what DeepSpeed compiles for processes on a CPU


def start(training_args: TrainingArguments) -> None:
    """Prepare for several processes before a model is loaded.

    DeepSpeed needs no launcher (deepspeed, torchrun) for a single process. On a CPU the processes talk
    through gloo; ZeRO-3 splits weights while they are loaded, so the group has to exist before. Raises
    UserError for a DeepSpeed config that would overrule flags of the command line, and for FSDP alone.
    """
    if training_args.fsdp and training_args.parallel_mode != ParallelMode.DISTRIBUTED:
        raise UserError("--fsdp splits a model over processes, and this is one; start it with torchrun")
    if training_args.fsdp and training_args.use_cpu:
        _allow_fsdp_on_cpu(training_args.distributed_state)
    if not training_args.deepspeed:
        return
    deepspeed = import_optional("deepspeed", needed_for="--deepspeed", install="llava[train]")
    check_deepspeed_config(training_args)
    if "LOCAL_RANK" not in os.environ:
        os.environ.update(_environment_of_one())
    clear_dead_locks()
    if training_args.use_cpu:
        if not is_built(SHARED_MEMORY):
            logger.info(
                "DeepSpeed compiles its communication (%s) at first use, which can take minutes; the result "
                "is kept in %s",
                SHARED_MEMORY,
                extension_folder(),
            )
        waited = watched(
            "DeepSpeed to compile its parts and to connect the processes of the run",
            f"see whether all processes were started, and whether a compiler works in {extension_folder()}",
        )
        with waited, prints_as_messages(training_args.verbose_libraries):
            deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)


def _allow_fsdp_on_cpu(state: TrainerState) -> None:
    """Make accelerate shard on a CPU: it reads FSDP settings for accelerators only, and would run DDP."""
    from accelerate.utils import DistributedType

    if state.distributed_type is DistributedType.MULTI_CPU:
        state.distributed_type = DistributedType.MULTI_GPU  # becomes FSDP when the Trainer is built


def split_by_layers(model: PreTrainedModel, plan: RunPlan) -> None:
    """Let FSDP shard the weights layer by layer.

    It takes the classes that a device map keeps whole, and stops at one that the model does not have; a whole
    tower is no layer.
    """
    if not plan.fsdp:
        return
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    present = {type(part).__name__ for part in model.modules() if not isinstance(part, VisionTower)}
    set_no_split_modules(model, [name for name in no_split_modules(model) if name in present])


def uses_fsdp_1(plan: RunPlan) -> bool:
    """Tell whether the old FSDP trains, which cannot hold frozen and trained weights together."""
    return bool(plan.fsdp) and (plan.fsdp_plugin_args or {}).get("fsdp_version") == 1


def _environment_of_one() -> dict[str, str]:
    """Return what a launcher would set for a single process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def check_deepspeed_config(training_args: TrainingArguments) -> None:
    """Raise UserError, or warn, where the DeepSpeed config has settings that replace those of the flags."""
    config = training_args.hf_deepspeed_config.config
    if training_args.bits != 16 and training_args.hf_deepspeed_config.is_zero3():
        raise UserError(
            f"--bits {training_args.bits} does not work under ZeRO-3, which splits weights before they are "
            "quantised; take ZeRO-2 (scripts/zero2.json)"
        )
    if "optimizer" in config:
        own = [name for name in RATE_FLAGS.values() if vars(training_args)[name]]
        if own:
            raise UserError(
                f"the DeepSpeed config {training_args.deepspeed} has its own optimizer, with one learning "
                f"rate: --{own[0]} would have no effect. Remove 'optimizer' and 'scheduler' from the config"
            )
        logger.warning("the optimizer in the DeepSpeed config replaces --optim")
    if "scheduler" in config:
        logger.warning(
            "the scheduler in the DeepSpeed config replaces --lr_scheduler_type %s",
            word_of(training_args.lr_scheduler_type),
        )
    if training_args.max_grad_norm and not config.get("gradient_clipping"):
        logger.warning(
            "the DeepSpeed config has no gradient_clipping, so --max_grad_norm %g has no effect; add "
            '"gradient_clipping": "auto"',
            training_args.max_grad_norm,
        )
