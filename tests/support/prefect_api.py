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
    """GET at the stack's server, or POST with a body."""
    return ask_at(settings.prefect_api, auth_of(settings), path, body)


def ask_at(api: str, auth: httpx.BasicAuth | None, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
    """The same at any server."""
    if not body:
        return httpx.get(api + path, auth=auth, timeout=30)
    token = httpx.get(f"{api}/csrf-token", params={"client": CLIENT}, auth=auth, timeout=30)
    if token.is_error:  # the server is busy
        return token
    headers = {"Prefect-Csrf-Client": CLIENT, "Prefect-Csrf-Token": token.json()["token"]}
    return httpx.post(api + path, json=body, headers=headers, auth=auth, timeout=30)
