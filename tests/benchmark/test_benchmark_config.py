"""What a benchmark cannot do is refused before any work, by the name of the key."""

import bench_cases as cases
import pytest
import yaml
from errors import refused

from gs_lora_peft.benchmark import BenchmarkConfig, run_benchmark
from gs_lora_peft.methods import METHODS, get_method


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"colour": 1}, "config"),
        ({"methods": ["nothing"]}, "method"),
        ({"methods": [{"method": "random_labels", "weight": 1}]}, "methods"),
        (
            {"methods": [{"method": "random_labels", "hyper_parameters": {"x": 1}}]},
            "hyper-parameter of 'random_labels'",
        ),
        ({"methods": [{"method": "random_labels", "training": {"x": 1}}]}, "methods['random_labels'].training"),
        (
            {"methods": [{"method": "random_labels", "trains": "adapter", "adapter": {"x": 1}}]},
            "methods['random_labels'].adapter",
        ),
        ({"methods": [{"method": "random_labels", "adapter": {"r": 16}}]}, "methods['random_labels'].adapter"),
        ({"methods": [{"method": "ffn", "adapter": {"r": 16}}]}, "methods['ffn'].adapter"),
        ({"methods": [{"method": "ffn", "trains": "adapter"}]}, "methods['ffn'].trains"),
        ({"methods": ["random_labels", "random_labels"]}, "methods"),
        ({"methods": [{"method": "random_labels", "name": "original"}]}, "methods.name"),
        ({"methods": [{"method": "random_labels", "name": "../away"}]}, "methods.name"),
        ({"training": {"output_dir": "x"}}, "training"),
        ({"audit": {"attacks": ["nothing"]}}, "attacks"),
        ({"audit": {"attacks": ["answer"], "budgets": {"knn": {}}}}, "audit.budgets"),
        ({"audit": {"budgets": {"knn": {"x": 1}}}}, "audit.budgets['knn']"),
        ({"audit": {"recipe": {"x": 1}}}, "recipe"),
        ({"audit": {"given": {"another setting": ["folder"]}}}, "audit.given"),
        ({"audit": {"given": {"continual": []}}}, "audit.given['continual']"),
        ({"settings": [{"name": "a", "requests": [[1]], "train_fraction": 0}]}, "settings['a'].train_fraction"),
        ({"model_config": 3}, "model_config"),
        ({"search": {"trials": 9, "learning_rates": [1e-3]}}, "search.trials"),
        ({"settings": [{"name": "a", "requests": [[1]], "protocol": [2]}]}, "settings['a']"),
        (
            {"settings": [{"name": "a", "requests": [[1]], "shots": 2, "replay_ratio": 0.5}]},
            "settings['a'].replay_ratio",
        ),
        ({"seeds": [-1]}, "seeds[0]"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [0, 0]}, "seeds"),
        ({"seeds": 3}, "seeds"),
        ({"methods": "gs_lora"}, "methods"),
        ({"settings": {"name": "a", "requests": [[1]]}}, "settings"),
        ({"settings": [{"name": "a", "requests": ["quokka"]}]}, "settings['a'].requests[0]"),
        ({"settings": [{"name": "a", "requests": [[True]]}]}, "settings['a'].requests[0][0]"),
        ({"settings": [{"name": "a", "protocol": 3}]}, "settings['a'].protocol"),
        ({"settings": [{"name": "a", "requests": [[1]], "missing_classes": -2}]}, "settings['a'].missing_classes"),
        ({"settings": [{"name": "a", "requests": [[1]], "missing_classes": True}]}, "settings['a'].missing_classes"),
        ({"settings": [{"name": "a", "requests": [[1]], "missing_classes": "kiwi"}]}, "settings['a'].missing_classes"),
        ({"settings": [{"name": "search", "requests": [[1]]}]}, "settings"),
        ({"settings": [{"name": "a b", "requests": [[1]]}, {"name": "a_b", "requests": [[2]]}]}, "settings"),
        (
            {"methods": [{"method": "salun", "name": "a b"}, {"method": "salun", "name": "a+b"}]},
            "methods",
        ),
    ],
)
def test_wrong_keys_and_values(changes, name, tmp_path):
    with refused(name):
        cases.config(tmp_path, **changes)


@pytest.mark.parametrize("part", ["training", "fixed_training"])
def test_common_arguments_are_for_the_methods_that_read_them(part, tmp_path):
    """One file trains them all: the others get none of it. What nobody reads is refused, as in one's own part."""
    config = cases.config(tmp_path, **{part: {"forget_weight": 0.7, "adam_beta1": 0.8}})
    of = {entry.name: config.training_of(entry) for entry in config.methods}
    assert (of["gs_lora"]["forget_weight"], of["gs_lora"]["adam_beta1"]) == (0.7, 0.8)
    assert "forget_weight" not in of["random_labels"]
    assert of["random_labels"]["adam_beta1"] == 0.8
    with refused(part, ["forget_weight"]):
        cases.config(tmp_path, methods=["random_labels"], **{part: {"forget_weight": 0.7}})
    with refused("forget_weight", 0.7):
        cases.config(tmp_path, methods=[{"method": "random_labels", "training": {"forget_weight": 0.7}}])


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"requests": [["unicorn"]]}, "classes"),
        ({"requests": [[1], [1]]}, "settings['a'].requests"),
        ({"requests": [[0, 1, 2, 3, 4, 5]]}, "settings['a']"),
        ({"requests": [[0]], "missing_classes": [0]}, "settings['a'].missing_classes"),
    ],
)
def test_wrong_classes(settings, name, tmp_path, model, data):
    config = cases.config(tmp_path, settings=[{"name": "a", **settings}])
    with refused(name):
        run_benchmark(config, model, data)
    assert not (tmp_path / "out").exists()


def test_a_search_needs_classes_that_no_setting_forgets(tmp_path, model, data):
    first, second = {"name": "a", "requests": [[0, 1, 2, 3]], "missing_classes": [4]}, {"name": "b", "requests": [[5]]}
    config = cases.config(tmp_path, settings=[first, second], search={"trials": 2})
    with refused("search"):
        run_benchmark(config, model, data, disable_tqdm=True)


def test_a_file_is_read_and_changed(tmp_path):
    file = tmp_path / "bench.yaml"
    file.write_text(
        yaml.safe_dump({"settings": [{"name": "one", "protocol": [4]}], "methods": ["gs_lora"], "audit": None})
    )
    config = BenchmarkConfig.read(file, seeds=[4])
    assert (config.seeds, config.audit) == ([4], None)
    more = config.with_methods(["random_labels", "gs_lora"])
    assert [entry.name for entry in more.methods] == ["random_labels", "gs_lora"]
    assert [entry.name for entry in config.with_methods(["salun"], only=True).methods] == ["salun"]


@pytest.mark.parametrize("file", ["faces.yaml", "faces_first_request.yaml"])
def test_every_method_has_the_same_budget_on_faces(file):
    """As the file says: also those that publish another number of steps. Only one starts anew."""
    config = BenchmarkConfig.read(cases.ROOT / "examples" / "benchmarks" / file)
    steps = {entry.name: config.training_of(entry)["max_steps"] for entry in config.methods}
    assert set(METHODS) <= set(steps)
    assert {name for name, count in steps.items() if count != 60} == {"retrain"}


def test_later_settings_win(tmp_path):
    """Common arguments, those that a method publishes, fixed ones, its own, those of the search."""
    method = get_method("random_labels")
    entry = {"method": "random_labels", "training": {"weight_decay": 0.5}}
    config = cases.config(tmp_path, methods=[entry], training={"weight_decay": 0.1, "learning_rate": 0.7})
    own = config.training_of(config.methods[0], {"learning_rate": 0.3})
    assert own == {
        **method.published,
        "max_steps": 6,
        "per_device_train_batch_size": 12,
        "weight_decay": 0.5,
        "learning_rate": 0.3,
    }


def test_the_fix_for_a_seed_that_is_given_twice(tmp_path):
    with refused("seeds", 0) as error:
        cases.config(tmp_path, seeds=[0, 0])
    assert "name" not in error.value.fix.replace("Name each seed once.", "")


def test_an_adapter_of_a_method_that_can_train_either(tmp_path):
    """The fix says how it gets one."""
    with refused("methods['random_labels'].adapter") as error:
        cases.config(tmp_path, methods=[{"method": "random_labels", "adapter": {"r": 16}}])
    assert "trains: adapter" in error.value.fix
    (entry,) = cases.config(
        tmp_path, methods=[{"method": "random_labels", "trains": "adapter", "adapter": {"r": 16}}]
    ).methods
    assert (entry.make().trains, entry.adapter["r"]) == ("any", 16)


@pytest.mark.parametrize("name", ["no_such_module:Method", "json:JSONDecoder", "json:nothing", "random_labels:", 3])
def test_what_is_no_method_of_anybody(name):
    with refused("method", name):
        get_method(name)
