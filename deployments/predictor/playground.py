"""The page at / on which a person tries prompts: one file without foreign parts, playground.html.

In:   nothing     Out: the page, and headers under which a browser runs the page's own script and style and no others
The page asks GET /models and POST /predictions as any client does, with the key that the person types.
"""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

PAGE = (Path(__file__).parent / "playground.html").read_text(encoding="utf-8")


def _hash_of(tag: str) -> str:
    """What a Content-Security-Policy calls the only element of that tag (CSP Level 3, section 6.7.3)."""
    (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", PAGE, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


HEADERS = {
    "Content-Security-Policy": "; ".join([
        "default-src 'none'", f"script-src {_hash_of('script')}", f"style-src {_hash_of('style')}",
        "connect-src 'self'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"]),
    "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}
