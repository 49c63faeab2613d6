"""Calls to the Hub: what is tried again and for how long, and what refusals hold."""

import pickle
from types import SimpleNamespace

import pytest
from errors import refused
from huggingface_hub import errors

from gs_lora_peft.hub.client import calls as hub_calls, download as hub_sources
from gs_lora_peft.hub.client.calls import (
    HubRefusalError,
    HubUnreachableError,
    call_hub,
    checked_repo_id,
    status_of,
    writing_api,
)
from gs_lora_peft.hub.client.download import Source, find_source


@pytest.fixture
def waits(monkeypatch):
    """The seconds that were waited for, on a clock that nobody waits for."""
    waited = []
    monkeypatch.setattr(hub_calls.time, "sleep", waited.append)
    monkeypatch.setattr(hub_calls.time, "monotonic", lambda: sum(waited))
    return waited


def refusal(status, kind=errors.HfHubHTTPError, **headers):
    """An error as the client raises it for an answer with this status."""
    answer = SimpleNamespace(status_code=status, headers=headers, request=None)
    return kind(f"{status} for url\n\nsaid by the Hub", response=answer)


class Action:
    """Raises these errors, one at each call, and then returns 7."""

    def __init__(self, *problems):
        self.problems = list(problems)

    def __call__(self):
        if self.problems:
            raise self.problems.pop(0)
        return 7


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_busy_hub_is_asked_again(waits, status):
    """Four times, waiting longer and longer."""
    assert call_hub(Action(*[refusal(status)] * 4), "me/x") == 7
    assert waits == [1, 2, 4, 8]
    with pytest.raises(HubUnreachableError) as caught:
        call_hub(Action(*[refusal(status)] * 5), "me/x")
    assert (caught.value.repo_id, caught.value.status) == ("me/x", status)
    assert status_of(caught.value.__cause__) == status


def test_a_lost_connection_is_tried_again(waits):
    """An error without an answer is a network that broke."""
    assert call_hub(Action(errors.HTTPError("connection reset")), "me/x") == 7
    assert waits == [1]
    lost = errors.HTTPError("connection reset")
    with pytest.raises(HubUnreachableError) as caught:
        call_hub(Action(*[lost] * 5), "me/x")
    assert (caught.value.repo_id, caught.value.status, caught.value.__cause__) == ("me/x", None, lost)
    assert isinstance(caught.value, ConnectionError)
    assert "connection reset" in str(caught.value)


def test_a_busy_hub_behind_a_missing_file(waits):
    """Some versions of the client say that a file is not in the cache when the Hub was only busy."""
    busy, gone = errors.LocalEntryNotFoundError("not cached"), errors.LocalEntryNotFoundError("not cached")
    busy.__cause__ = refusal(503)
    assert call_hub(Action(busy, busy), "me/x") == 7
    assert waits == [1, 2]
    with pytest.raises(errors.LocalEntryNotFoundError):
        call_hub(Action(gone), "me/x")
    assert waits == [1, 2]


@pytest.mark.parametrize(
    ("cause", "kind", "status"),
    [
        (errors.HTTPError("connection reset"), HubUnreachableError, None),
        (None, HubUnreachableError, None),
        (refusal(403), HubRefusalError, 403),
    ],
)
def test_an_upload_that_the_client_gave_up(waits, cause, kind, status):
    """The client has tried often enough by itself; its RuntimeError becomes what every other failure is."""
    problem = RuntimeError("Error while uploading 'x' to the Hub.")
    problem.__cause__ = cause
    with pytest.raises(kind) as caught:
        call_hub(Action(problem), "me/x")
    assert caught.value.status == status
    assert not waits


def test_an_address_that_is_none(waits, monkeypatch):
    """A wrong HF_ENDPOINT is said at once: no waiting makes it an address."""
    monkeypatch.setattr(hub_calls.constants, "ENDPOINT", "hub.example")
    with refused("HF_ENDPOINT", "hub.example"):
        call_hub(Action(), "me/x")
    assert not waits


def test_the_hub_says_when_to_come_back(waits):
    """`Retry-After` is obeyed, but not beyond the patience of a minute; nonsense in it counts for nothing."""
    assert call_hub(Action(refusal(429, **{"Retry-After": "20"}), refusal(503, **{"Retry-After": "soon"})), "x") == 7
    assert waits == [20, 2]
    with pytest.raises(ConnectionError):
        call_hub(Action(refusal(429, **{"Retry-After": "3600"})), "me/x")
    assert waits == [20, 2]


@pytest.mark.parametrize(
    "error",
    [
        refusal(404, errors.RepositoryNotFoundError),
        refusal(401, errors.RepositoryNotFoundError),
        refusal(404, errors.RevisionNotFoundError),
        refusal(401),
        refusal(403),
    ],
)
def test_refusals(waits, error):
    """What will not change by waiting is raised at once, with the repository, the status and the Hub's own words."""
    with refused("repo_id", "me/x", HubRefusalError) as caught:
        call_hub(Action(error), "me/x")
    assert caught.value.status == error.response.status_code
    assert "said by the Hub" in caught.value.fix
    assert caught.value.__cause__ is error
    assert not waits


def test_errors_survive_a_process():
    """Workers pickle what they raise."""
    parts = {"name": "repo_id", "value": "me/x", "expected": "a repository", "fix": "Check it.", "status": 404}
    error = pickle.loads(pickle.dumps(HubRefusalError(*parts.values())))
    assert {name: getattr(error, name) for name in parts} == parts
    away = pickle.loads(pickle.dumps(HubUnreachableError("away", "me/x", 503)))
    assert (str(away), away.repo_id, away.status) == ("away", "me/x", 503)


def test_other_refusals_stay_as_they_are(waits):
    """A conflict is for the caller; so is an error that is none of the Hub's."""
    conflict = refusal(412)
    with pytest.raises(errors.HfHubHTTPError) as caught:
        call_hub(Action(conflict), "me/x")
    assert caught.value is conflict
    with pytest.raises(KeyError):
        call_hub(Action(KeyError("x")), "me/x")
    assert not waits


@pytest.mark.parametrize("name", ["", "a/b/c", "../x", "a b", "/abs", "-x", "x.git", "a--b", 7, None])
def test_names_that_cannot_be_repositories(name):
    """Malformed names are refused before anything is sent."""
    with refused("repo_id", name):
        checked_repo_id(name)


def test_a_token_is_needed_to_write(monkeypatch):
    """Without one it is said what to do; one that is given counts."""
    monkeypatch.setattr(hub_calls, "get_token", lambda: None)
    for token in (None, True, False, ""):
        with refused("token") as caught:
            writing_api(token)
        assert not caught.value.value
    assert writing_api("hf_x").token == "hf_x"


@pytest.mark.parametrize(
    ("answer", "exists"),
    [
        (None, True),
        (refusal(404, errors.RemoteEntryNotFoundError), True),  # the repository is there, without this file
        (refusal(503), True),  # a busy Hub has not said that anything is missing
        (refusal(401, errors.RepositoryNotFoundError), False),
        (refusal(404, errors.RepositoryNotFoundError), False),
        (refusal(404, errors.RevisionNotFoundError), False),
        (refusal(403, errors.GatedRepoError), False),
    ],
)
def test_a_name_is_looked_up_in_one_request(monkeypatch, answer, exists):
    """What does not exist is refused under the name of its option; everything else is left to the library."""
    asked = []
    monkeypatch.setattr(hub_sources, "first_answer", lambda *args, **more: asked.append(args) or answer)
    if exists:
        assert find_source("nowhere", "--model", "a folder", filename="config.json") == Source("nowhere", False, False)
    else:
        with refused("--model", "nowhere", HubRefusalError) as caught:
            find_source("nowhere", "--model", "a folder", filename="config.json")
        assert caught.value.status == answer.response.status_code
    assert asked == [("nowhere", "config.json")]
