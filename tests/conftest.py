"""For every test: threads that wait soon sleep. On a machine whose cores are busy, spinning makes a second of work a
minute. Must stand before torch is imported; processes that tests start inherit it."""

from __future__ import annotations

import os

os.environ.setdefault("GOMP_SPINCOUNT", "3000")
