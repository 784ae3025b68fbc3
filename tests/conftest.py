"""For every test: threads that wait do not spin. On a machine whose cores are busy, spinning makes a second of work a
minute; on a quiet one it hardly matters. Must stand before torch is imported; processes that tests start inherit it."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
