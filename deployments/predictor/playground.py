"""The page at / on which a person tries prompts: one file without foreign parts, playground.html.

In:   nothing     Out: the page, and headers under which a browser runs the page's own script and style and no others
The page asks GET /models and POST /predictions as any client does, with the key that the person types, or that the
link of `anneal up` brings behind its #, which a browser sends nobody. The latter stays in the local storage of the
page's origin until the predictor refuses it, as Prefect's pages keep their password.
"""

from __future__ import annotations

from pathlib import Path

from infra.security.door import page_headers

PAGE = (Path(__file__).parent / "playground.html").read_text(encoding="utf-8")
HEADERS = page_headers(PAGE)
