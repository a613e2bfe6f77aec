"""What is a secret, which texts may hold one, and how such a text is shown.

In:   the name and value of a variable, an address, or the text of a message or a log line
Out:  whether it holds a secret; the text with what is secret in it as ***
Secret are the values of variables that are named like passwords and keys, what stands before the @ of an address, and
the values in its query that are named like signatures. Whatever is stored or shown goes through here: every AnnealError
when it is made, every log record of a process that has called `redact_logs`.
Standard library only: ranks import this file. On disk: nothing.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
import unicodedata
from functools import lru_cache
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

CONTAINED = ("signature", "secret", "token", "passw", "credential", "apikey", "api-key", "api_key", "accesskey",
             "access_key", "access-key")
WHOLE = ("sig", "sas", "key", "pass", "pwd", "auth", "jwt")
"""Names of secrets in a query, as Amazon, Google, Azure and others have them: parts of a name, and whole names."""
SECRET_NAME = re.compile(
    r"SECRET|PASSW|PASSPHRASE|CREDENTIAL|SIGNATURE|COOKIE|WEBHOOK|AUTHORIZATION|AUTH_STRING|APIKEY|"
    r"CONNECTION_(STRING|URL|URI)|_PWD|SSHPASS|"
    r"(^|_)(KEY|ACCESSKEY|TOKEN|SAS|PASS|AUTH|PAT|JWT|DSN|HEADER)S?(_|$)", re.I)
SCHEMELESS = re.compile(r"[^\s/@:]+:[^\s/@]+@[^\s/@]+(/.*)?")
"""Proxies may be written so."""
BEARER = re.compile(r"\b(Basic|Bearer|Token)\s+[\w+/=.~-]{8,}", re.I)
HIDDEN = "***"
VALUE_CHARACTERS = 12
"""Of the shortest value that is looked for in texts: a word such as "anneal" may stand there by itself."""

log = logging.getLogger(__name__)


def _any_case(word: str) -> str:
    """In JavaScript, which reads the form's patterns too, no flag can stand inside of a pattern."""
    return "".join(f"[{letter}{letter.upper()}]" if letter.isalpha() else letter for letter in word)


_LETTERS = r"[^=&;#?\s/]{0,60}"  # without a bound, a long text would take time by its length squared
_NAMED = rf"(?:{_LETTERS}(?:{'|'.join(map(_any_case, CONTAINED))}){_LETTERS}|{'|'.join(map(_any_case, WHOLE))})"
_WEB = rf"\s*(?:[a-z]+:)*{_any_case('http')}[sS]?:"
USER = r"(?![\s\S]*:[\\/]{2,}[^\\/?#]*@)" + rf"(?!{_WEB}[\\/]?[^\\/?#]*@)" + (
    rf"(?!{_WEB}[\\/]{{2}}[^\\/?#\[]*:(?![0-9]*(?:[\\/?#]|$)))")
"""Nothing before an @ in front of a host, and after the host's colon a port: no password with a slash in it."""
SIGNED = rf"(?!\s*[A-Za-z][\w+.:-]*:[\\/]{{2}}[\s\S]*[?&;#]{_NAMED}=)"
NO_SECRETS = f"^{USER}{SIGNED}"
"""A JSON schema's pattern for addresses without secrets in them."""
_USER, _SIGNED = re.compile(USER), re.compile(SIGNED)
IN_USER = re.compile(r"(:[\\/]{2,})[^\s\\/?#\"'<>]*@")
IN_QUERY = re.compile(rf"(?<=[?&;#])({_NAMED}=)[^\s&;#\"'<>]+")


def is_secret(name: str, value: str) -> bool:
    """Whether a variable holds a password, a key, or an address with one in it."""
    return bool(SECRET_NAME.search(name) or secret_in(value) or SCHEMELESS.fullmatch(value) or BEARER.search(value))


def secret_in(address: str) -> str:
    """What is secret in an address, in words; empty: nothing. However it is spelled."""
    spellings = {address, unquote(address), unicodedata.normalize("NFKC", address)}
    if not all(_USER.match(one) for one in spellings):
        return "a user name, a password or an @ before its host"
    if not all(_SIGNED.match(one) for one in spellings):
        return "a signature or a key in its query"
    return ""


def redacted(text: str) -> str:
    """A text without the secrets of addresses in it, and without those of this process's environment."""
    text = IN_QUERY.sub(rf"\1{HIDDEN}", IN_USER.sub(r"\1", text))
    for value in _values(tuple(os.environ.items())):
        text = text.replace(value, HIDDEN)
    return text


@lru_cache(maxsize=4)
def _values(environment: tuple[tuple[str, str], ...]) -> list[str]:
    """What is secret in these variables, the longest first: one may be a part of another."""
    found = set()
    for name, value in environment:
        if SECRET_NAME.search(name) and "://" not in value and not os.path.exists(value):
            found |= {value.strip(), value.strip().partition(":")[2]}  # user:password
        if password := _password_of(value):
            found |= {password, unquote(password)}
    return sorted((one for one in found if len(one) >= VALUE_CHARACTERS), key=len, reverse=True)


def _password_of(address: str) -> str:
    try:
        return urlsplit(address).password or ""
    except ValueError:
        return ""


def redact_logs() -> None:
    """From now on, no log record of this process holds a secret, nor does the traceback that ends it."""
    make = logging.getLogRecordFactory()
    if getattr(make, "redacts", False):
        return

    def made(*args: Any, **kwargs: Any) -> logging.LogRecord:
        return _redacted_record(make(*args, **kwargs))

    made.redacts = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(made)
    sys.excepthook = _print_redacted


def _redacted_record(record: logging.LogRecord) -> logging.LogRecord:
    try:
        text = record.getMessage()
    except Exception:  # noqa: BLE001  # its handler reports it, as without us
        return record
    if (shown := redacted(text)) != text:
        record.msg, record.args = shown, None
    if record.exc_info and record.exc_info[1]:
        trace = "".join(traceback.format_exception(record.exc_info[1])).rstrip("\n")
        if (shown := redacted(trace)) != trace:
            record.exc_text = shown  # formatters take it as it is
    return record


def _print_redacted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    print(redacted("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)
