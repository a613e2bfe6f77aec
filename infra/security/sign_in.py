"""The page behind the links of `anneal up`, which signs a browser in: <address>/sign-in#<secret>.

A browser sends nobody what stands behind the #, and the page takes it out of the address at once. Cookies would go to
every port of the machine; what is used here belongs to one address and port:

    prefect    the local storage in which Prefect's own pages keep the password that is typed there
    mlflow     the browser's memory for HTTP passwords (an XMLHttpRequest with user and password puts it there)
"""

from __future__ import annotations

from typing import Literal
from urllib.parse import quote

from infra.secret import USER
from infra.security.door import SIGN_IN, SIGNED_IN
from infra.settings import OF_TRAINING

TRAININGS = f"/#/experiments?{OF_TRAINING}"
"""MLflow's front page is about agents and prompts."""
STORES = {
    "prefect": """const password = btoa(secret);
  fetch("/api/admin/version", { headers: { Authorization: `Basic ${password}` } }).then((answer) => {
    if (!answer.ok) return complain();
    localStorage.setItem("prefect-password", password);
    location.replace("/");
  }).catch(complain);""",
    "mlflow": f"""const request = new XMLHttpRequest();
  request.open("GET", "{SIGNED_IN}", true, "{USER}", secret);
  request.onloadend = () => request.status === 204 ? location.replace("{TRAININGS}") : complain();
  request.send();""",
}
PAGE = """\
<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>Anneal: sign in</title>
<style>body { font: 16px/1.5 system-ui, sans-serif; max-width: 40rem; margin: 4rem auto; padding: 0 1rem; }</style>
</head>
<body><p id="state" role="status">Signing in ...</p>
<script>
"use strict";
let secret = "";
try { secret = decodeURIComponent(location.hash.slice(1)); } catch { /* a link that was cut */ }
history.replaceState(null, "", location.pathname);
function complain() {
  document.getElementById("state").textContent =
    "This link is not complete, or of an earlier start. Run `anneal up`: it prints one that signs in.";
}
if (!secret) complain();
else {
  %s
}
</script>
</body>
</html>
"""


def sign_in_page(service: Literal["prefect", "mlflow"]) -> str:
    """The page of a service."""
    return PAGE % STORES[service]


def sign_in_link(url: str, secret: str) -> str:
    """An address that signs in; without a secret there is nothing to sign in with."""
    return f"{url.rstrip('/')}{SIGN_IN}#{quote(secret, safe='')}" if secret else url
