"""What a block gives a run; with a server: tests/e2e/test_infrastructures.py. pytest tests/tasks/runs/test_blocks.py"""

from __future__ import annotations

import pytest

from infra.errors import UserError
from infra.settings import Settings
from tasks.runs.blocks import adopt_secrets, secrets_in


def test_a_secret_block_gives_the_names_that_are_known_and_no_others() -> None:
    value = {"AWS_ACCESS_KEY_ID": "key", "HF_TOKEN": "", "LD_PRELOAD": "/tmp/x.so", "PATH": "/tmp"}
    assert secrets_in("secret", {"value": value}) == {"AWS_ACCESS_KEY_ID": "key"}


def test_aws_credentials_become_variables() -> None:
    data = {"aws_access_key_id": "key", "aws_secret_access_key": "word", "aws_session_token": None,
            "region_name": "eu-west-1", "profile_name": "other"}
    assert secrets_in("aws-credentials", data) == {
        "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "word", "AWS_DEFAULT_REGION": "eu-west-1"}


def test_plain_text_is_refused() -> None:
    with pytest.raises(UserError, match="holds plain text"):
        secrets_in("secret", {"value": "word"})


@pytest.mark.parametrize("name", ["anneal-run", "secret/", "json/anneal-run"])
def test_a_name_without_a_type_is_refused(settings: Settings, name: str) -> None:
    with pytest.raises(UserError, match=r"ANNEAL_SECRETS_BLOCK: .*expected secret/NAME or aws-credentials/NAME"):
        adopt_secrets(settings.model_copy(update={"secrets_block": name}), {})
