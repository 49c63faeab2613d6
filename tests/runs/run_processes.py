"""What two processes of one launch see; started by test_run_distributed.py."""

import errno
import gc
import json
import os
import sys
from pathlib import Path

import run_cases as cases
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import TrainerCallback
from weight_methods import Anchored

from gs_lora_peft import ForgetRequest, weights_fingerprint
from gs_lora_peft.compat import is_shard, local
from gs_lora_peft.io import writing
from gs_lora_peft.ledger import ForgettingLedger

# As `accelerate launch` sets it; see tests/training/test_distributed.py.
FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}


class Stopped(BaseException):
    """The end of all processes, as far as they can play it."""


class StoppedAt(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if args.output_dir.endswith("task_002") and state.global_step == 5:
            raise Stopped


class Trained(TrainerCallback):
    """Notes the adapter that each process has trained."""

    def __init__(self):
        self.seen = []

    def on_train_end(self, args, state, control, model=None, **kwargs):
        lora = {name: tensor for name, tensor in model.state_dict().items() if "lora_" in name}
        self.seen.append(weights_fingerprint(lora))


def told(action):
    """The error that an action ends with, as this process sees it."""
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def main(base, folder):
    gc.freeze()  # each training collects garbage, which need not look at what was imported
    folder = Path(folder)
    requests = cases.requests(["cassowary"], ["aardvark", 4])
    args = cases.make_args(per_device_train_batch_size=8, ddp_backend="gloo")
    rank = PartialState().process_index
    seen = {"processes": PartialState().num_processes}

    trained = Trained()
    forgetter = cases.make_forgetter(base, folder / "whole", args=args, callbacks=[trained])
    forgetter.run(requests)
    seen["trained"] = trained.seen
    seen["whole"] = weights_fingerprint(forgetter.model)
    seen["ledger"] = forgetter.ledger.to_dict()

    # The same with a sharded base model, and one more request; it is stopped and resumed, too.
    os.environ.update(FSDP2)
    longer = [*requests, ForgetRequest(["flamingo"])]
    try:
        cases.make_forgetter(base, folder / "sharded", args=args, callbacks=[StoppedAt()]).run(longer)
    except Stopped:
        PartialState().wait_for_everyone()
    sharded = cases.make_forgetter(base, folder / "sharded", args=args)
    sharded.run(longer)
    seen["sharded"] = weights_fingerprint(sharded.model)
    shards = [parameter for parameter in sharded.model.parameters() if is_shard(parameter)]
    own, every = sum(local(shard).numel() for shard in shards), sum(p.numel() for p in sharded.model.parameters())
    seen["shares"] = gather_object([own / every])
    for key in FSDP2:
        del os.environ[key]

    forgetter = cases.make_forgetter(base, folder / "stopped", args=args, callbacks=[StoppedAt()])
    try:
        forgetter.run(requests)
    except Stopped:
        seen["stopped_with"] = len(forgetter.ledger.tasks)
    PartialState().wait_for_everyone()
    forgetter = cases.make_forgetter(base, folder / "stopped", args=args)
    forgetter.run(requests)
    seen["stopped"] = weights_fingerprint(forgetter.model)

    # Weights of the model train, and the method keeps something of each task.
    settings = {
        "args": cases.make_args(Anchored(), per_device_train_batch_size=8, learning_rate=1e-2, ddp_backend="gloo")
    }
    weights = cases.make_forgetter(base, folder / "weights", method=Anchored(), **settings)
    weights.run(requests)
    seen["weights"] = weights_fingerprint(weights.model)
    try:
        weights = cases.make_forgetter(
            base, folder / "weights-stopped", method=Anchored(), callbacks=[StoppedAt()], **settings
        )
        weights.run(requests)
    except Stopped:
        PartialState().wait_for_everyone()
    weights = cases.make_forgetter(base, folder / "weights-stopped", method=Anchored(), **settings)
    weights.run(requests)
    seen["weights-stopped"] = weights_fingerprint(weights.model)

    seen["unknown"] = told(lambda: forgetter.forget(ForgetRequest(["flamengo"])))
    other = ForgettingLedger.load(folder / "stopped")
    with other.lock() if rank == 0 else open(os.devnull):
        seen["locked"] = told(lambda: forgetter.forget(ForgetRequest(["flamingo"])))
    write_bytes = writing.write_bytes_atomic
    if rank == 0:

        def full(path, data, **options):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

        writing.write_bytes_atomic = full
    seen["full"] = told(lambda: forgetter.forget(ForgetRequest(["flamingo"])))
    writing.write_bytes_atomic = write_bytes
    seen["after_errors"] = weights_fingerprint(forgetter.model)

    forgetter.revoke("task_001")
    seen["revoked"] = weights_fingerprint(forgetter.model)
    seen["revoked_ledger"] = forgetter.ledger.to_dict()
    (folder / f"seen-{rank}.json").write_text(json.dumps(seen))
    PartialState().wait_for_everyone()


if __name__ == "__main__":
    main(*sys.argv[1:])
