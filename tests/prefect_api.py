"""Prefect's API as a program without Prefect's client calls it: with the password, and a token against forgery."""

from __future__ import annotations

import uuid
from typing import Any

import httpx

from infra.settings import Settings

CLIENT = str(uuid.uuid4())


def auth_of(settings: Settings) -> httpx.BasicAuth | None:
    """User and password of the stack's server."""
    user, _, password = settings.prefect_auth.partition(":")
    return httpx.BasicAuth(user, password) if user else None


def ask(settings: Settings, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
    """GET, or POST with a body."""
    url, auth = settings.prefect_api, auth_of(settings)
    headers = {}
    if body is not None:
        token = httpx.get(f"{url}/csrf-token", params={"client": CLIENT}, auth=auth, timeout=30)
        headers = {"Prefect-Csrf-Client": CLIENT, "Prefect-Csrf-Token": token.json().get("token", "")}
        if token.is_error:  # the server is busy
            return token
    method = "GET" if body is None else "POST"
    return httpx.request(method, url + path, json=body, headers=headers, auth=auth, timeout=30)
