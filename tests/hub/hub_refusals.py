"""Refusals of a ledger, here or in a client, which name what they are about."""

from contextlib import contextmanager

import pytest
from client_process import ClientError

from gs_lora_peft import LedgerError


@contextmanager
def ledger_refused(*named):
    """What runs inside raises a LedgerError, whose message has these names and values."""
    with pytest.raises((LedgerError, ClientError)) as error:
        yield error
    assert "LedgerError" in getattr(error.value, "kinds", ["LedgerError"])
    said = str(error.value)
    assert not [text for text in named if text not in said], said
