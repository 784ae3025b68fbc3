"""The base models of the embedded host's tests, and small networks that judge."""

from tests.embedded.conftest import sd1, sd1_folder, tinyworld
from tests.lab.conftest import places

__all__ = ["places", "sd1", "sd1_folder", "tinyworld"]
