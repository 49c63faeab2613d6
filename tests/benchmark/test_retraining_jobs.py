"""Runs that go on at a time share retrained models: each is trained once, by one of them."""

import threading

import bench_cases as cases

from gs_lora_peft.audit.retraining import plan
from gs_lora_peft.benchmark import running
from gs_lora_peft.benchmark.plan import Bench
from gs_lora_peft.io import exclusive_lock


def test_settings_with_the_same_forgotten_classes_share_a_job(tmp_path, model, data):
    settings = [
        {"name": "all", "requests": [[0], [1]]},
        {"name": "few", "requests": [[1, 0]], "shots": 4},
        {"name": "other", "requests": [[2]]},
    ]
    jobs = running._retraining(Bench(cases.config(tmp_path, settings=settings), model, data))
    asked = [(job.keywords["scenario"], job.keywords["number"]) for job in jobs]
    assert len(set(asked)) == len(asked)
    assert set(asked) == {(name, number) for name in ("all", "other") for number in range(3)}


def test_a_model_that_another_process_trains_is_waited_for(tmp_path, model, data, monkeypatch):
    """While another one holds the folder nothing is trained; its model is then read."""
    trained, found = [], []
    monkeypatch.setattr(plan, "_WAIT", 0.01)

    def train(self, folder, seed, disable_tqdm):
        trained.append(folder)
        model.save_pretrained(folder)

    monkeypatch.setattr(plan.Plan, "_train", train)
    same = plan.Plan.of(model, data["train"], [0], cache=tmp_path)
    same.carry_out(0, True)
    (folder,) = trained
    aside = folder.rename(tmp_path / "aside")
    with exclusive_lock(folder.parent / "training.lock"):
        waiting = threading.Thread(target=lambda: found.append(same.carry_out(0, True)))
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
        aside.rename(folder)
    waiting.join(30)
    assert len(found) == len(trained) == 1
