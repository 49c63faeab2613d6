"""Results of a benchmark as a data set on the Hub: what leaves the machine, and what a reader loads."""

import pytest
from client_process import ClientError
from loopback import OWNER, STRANGER

from gs_lora_peft.benchmark import BenchmarkResults


def row(method, seed, task, gap):
    facts = {"method": method, "setting": "continual", "seed": seed, "task": task, "tasks": 2, "final": task == 2}
    scores = {"acc_retain": 0.9, "acc_forget": 0.1 * seed, "h_mean": 0.8, "cpu_seconds": 2.0}
    return facts | scores | {"outcome": "forgotten"} | ({"recovery_gap": gap} if task == 2 else {})


RESULTS = BenchmarkResults([row("gs_lora", seed, task, 9.0 + seed) for seed in (0, 1) for task in (1, 2)])


@pytest.fixture
def folder(tmp_path):
    RESULTS.save(tmp_path)
    (tmp_path / "errors").mkdir()
    (tmp_path / "errors" / "gs_lora.txt").write_text("quokka")
    return tmp_path


def test_what_is_published_is_loaded_again(hub, client, folder, repo_id):
    """Rows as they are, in a private data set whose card has the table; nothing else leaves the machine."""
    url = client("push_results", OWNER, folder=folder, repo_id=repo_id, license="apache-2.0")
    assert f"/datasets/{repo_id}/commit/" in url
    files = hub.files(f"datasets/{repo_id}")
    assert hub.repo(f"datasets/{repo_id}").private
    tables = [
        f"tables/{name}.{suffix}" for name in ("continual", "continual-tasks") for suffix in ("csv", "md", "tex")
    ]
    figures = ["figures/gap-continual.png", "figures/h-continual.png"]
    assert sorted(files) == sorted(["README.md", "results.jsonl", "results.parquet", *tables, *figures])
    card = files["README.md"].decode()
    assert "config_name: results" in card
    assert RESULTS.table().to_markdown().splitlines()[2] in card
    loaded = client("loaded_rows", OWNER, repo_id=repo_id)
    assert [{name: value for name, value in found.items() if value is not None} for found in loaded] == RESULTS.rows


def test_publishing_again_replaces_and_removes(hub, client, folder, repo_id):
    """Tables of a setting that the results no longer have are gone."""
    client("push_results", OWNER, folder=folder, repo_id=repo_id)
    BenchmarkResults([{**found, "setting": "other"} for found in RESULTS.rows]).save(folder)
    client("push_results", OWNER, folder=folder, repo_id=repo_id)
    assert {path for path in hub.files(f"datasets/{repo_id}") if path.endswith(".md")} == {
        "README.md", "tables/other.md", "tables/other-tasks.md"
    }  # fmt: skip


def test_another_data_set_is_not_overwritten(hub, client, folder, repo_id):
    hub.create(f"datasets/{repo_id}", {"data.csv": b"1"}, private=True)
    with pytest.raises(ClientError, match="repo_id"):
        client("push_results", OWNER, folder=folder, repo_id=repo_id)
    with pytest.raises(ClientError):
        client("push_results", STRANGER, folder=folder, repo_id=repo_id)
    assert set(hub.files(f"datasets/{repo_id}")) == {"data.csv"}
