"""The page, and the policy that lets a browser run its own script and style and nothing else."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources


def read_page() -> tuple[str, str]:
    """(the HTML, its Content-Security-Policy)."""
    html = resources.files("distrib.serve").joinpath("page.html").read_text(encoding="utf-8")
    return html, policy(html)


def policy(html: str) -> str:
    """Scripts and styles by their SHA-256 (Content Security Policy Level 3, section 2.3.1); nothing from elsewhere."""

    def sources(tag: str) -> str:
        contents = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        hashes = (base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() for content in contents)
        return " ".join(f"'sha256-{digest}'" for digest in hashes) or "'none'"

    return "; ".join(["default-src 'none'", f"script-src {sources('script')}", f"style-src {sources('style')}",
                      "img-src data: blob:", "connect-src 'self'", "base-uri 'none'", "form-action 'none'",
                      "frame-ancestors 'none'"])
