"""Imports in every order, each in a process in which nothing of it has been imported; run by test_registered_late.py.

The orders form a tree: a process imports one thing and forks once for each thing that may come next, so that orders
share what they have in common. Usage: `python import_orders.py <folder of a face model> [--all]`; without `--all`,
orders are left out that differ only in what is loaded already.
"""

import gc
import itertools
import os
import sys
import traceback

# Most of the time goes into these.
import accelerate  # noqa: F401
import scipy.optimize  # noqa: F401
import torch._dynamo.aot_compile
import torch.distributed.checkpoint
import torch.distributed.fsdp
import torch.distributed.tensor
import transformers  # the list of its files only  # noqa: F401

assert not {"gs_lora_peft", "peft", "transformers.models.auto.configuration_auto"} & set(sys.modules)

STEPS = {
    "gs_lora_peft": "import gs_lora_peft",
    "peft": "import peft",
    "a class": "from transformers import ViTForImageClassification",
    "Auto": "from transformers import AutoImageProcessor, AutoModelForImageClassification",
    "pipeline": "from transformers import pipeline",
}
CLASSES = ["SwinModel", "DeiTModel", "BertModel", "DetrForObjectDetection", "CLIPModel", "Trainer", "PreTrainedModel"]


def main(folder: str, every: bool) -> None:
    ours, others = STEPS["gs_lora_peft"], [step for name, step in STEPS.items() if name != "gs_lora_peft"]
    if every:
        orders = [list(order) for order in itertools.permutations(STEPS.values())]
    else:  # what came before counts as a set, since all of it is loaded; of what comes after, the first loads most
        before = [list(chosen) for n in range(5) for chosen in itertools.combinations(others, n)]
        orders = [[*chosen, ours, step] for chosen in before for step in others if step not in chosen]
        orders.append([*others, ours])
    orders += [[ours, f"from transformers import {name}"] for name in CLASSES]
    orders += [["from gs_lora_peft import FaceTransformerConfig", STEPS["pipeline"]]]
    gc.freeze()
    failed = walk((), orders, folder)
    print(f"{len(orders)} orders, failed: {failed}")


def walk(done: tuple[str, ...], orders: list[list[str]], folder: str) -> int:
    """Takes every next step in a process of its own; returns how many orders failed."""
    failed = 0
    for step in dict.fromkeys(order[len(done)] for order in orders):
        following = [order for order in orders if order[len(done)] == step]
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            os._exit(go_on((*done, step), following, folder))
        failed += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return failed


def go_on(done: tuple[str, ...], orders: list[list[str]], folder: str) -> int:
    try:
        exec(done[-1], {})
        assert "gs_lora_peft.models.face.modeling" not in sys.modules or "FaceTransformerConfig" in done[0]
        failed = walk(done, [order for order in orders if len(order) > len(done)], folder)
        if any(len(order) == len(done) for order in orders):
            check(folder)
        return failed
    except Exception:
        print("\n".join(["", *done]), traceback.format_exc(), flush=True)
        return 1


def check(folder: str) -> None:
    """The Auto classes find the face model, and PEFT, where it was imported, the tuner type."""
    from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification
    from transformers.pipelines import check_task

    if "peft" in sys.modules:
        from peft import PeftType

        assert PeftType("GS_LORA") is PeftType.GS_LORA
    # The processor comes first: nothing has told transformers yet that there is a face model.
    processor = AutoImageProcessor.from_pretrained(folder)
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        models = [kind.from_config(config) for kind in (AutoModel, AutoModelForImageClassification)]
    names = [type(thing).__name__ for thing in (processor, config, *models)]
    assert names == [
        "FaceImageProcessor",
        "FaceTransformerConfig",
        "FaceTransformerModel",
        "FaceTransformerForRecognition",
    ], names
    (kind,) = check_task("image-classification")[1]["pt"]
    assert type(config) in kind._model_mapping


if __name__ == "__main__":
    main(sys.argv[1], every="--all" in sys.argv)
