"""How a request is refused."""

from __future__ import annotations

import math


class RefusedError(Exception):
    """An answer of 4xx or 503, with one sentence of what is wrong and what to do."""

    def __init__(self, code: int, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.code, self.message = code, message
        self.headers = {} if retry_after_s is None else {"Retry-After": str(max(1, math.ceil(retry_after_s)))}
