"""What PEFT offers around plain LoRA and GS-LoRA trains with: its optimizers, scalings and initialisations."""

import pytest
import tasks
import torch
from peft import PeftModel
from peft.optimizers import create_lorafa_optimizer, create_loraplus_optimizer

from gs_lora_peft import LoraGroups, export_lora

OPTIMIZERS = {
    "LoRA+": lambda model: create_loraplus_optimizer(model, torch.optim.AdamW, lr=1e-2, loraplus_lr_ratio=4.0),
    "LoRA-FA": lambda model: create_lorafa_optimizer(model, r=4, lora_alpha=1, lr=1e-2),
    "AdamW": lambda model: None,
}
CASES = [("LoRA+", {}), ("LoRA-FA", {}), ("AdamW", {"use_rslora": True}), ("AdamW", {"init_lora_weights": "mica"})]


@pytest.mark.parametrize(("optimizer", "options"), CASES, ids=str)
@pytest.mark.parametrize("strength", [0.0, 3.0])
def test_trains_shrinks_and_exports(tmp_path, optimizer, options, strength):
    """The matrices that are meant to train do, groups shrink or vanish as a whole, and the plain form is equal."""
    model = tasks.peft_vit(r=4, **options)
    before = tasks.adapter_state(model)
    trainer = tasks.trainer_for(
        model,
        tmp_path / "run",
        kwargs={"optimizers": (OPTIMIZERS[optimizer](model), None)},
        sparsity_weight=strength,
        learning_rate=1e-2,
    )
    if optimizer == "LoRA-FA" and strength:  # a limit that docs/peft.md names
        with pytest.raises(TypeError, match="NoneType"):
            trainer.train()
        return
    trainer.train()
    model.eval()
    changed = {name.split(".lora_")[1][0] for name in tasks.differences(before, tasks.adapter_state(model))}
    fixed = {"LoRA-FA": "A"}.get(optimizer) or ("B" if "init_lora_weights" in options else "")
    if strength == 0.0:
        assert changed == {"A", "B"} - {fixed}
    else:  # what does not train shrinks along with the rest of its group
        assert changed == {"A", "B"}
    assert len(LoraGroups(model).zero_groups()) == (2 if strength else 0)  # the last one is never dropped
    export_lora(model, tmp_path / "plain")
    loaded = PeftModel.from_pretrained(tasks.knowing_vit(), tmp_path / "plain").eval()
    images = tasks.scoring_set()[:]["pixel_values"]
    with torch.no_grad():
        assert torch.equal(loaded(images).logits, model(images).logits)
