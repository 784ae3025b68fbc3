"""The base models of the embedded host's tests."""

from tests.embedded.conftest import sd1, sd1_folder, tinyworld

__all__ = ["sd1", "sd1_folder", "tinyworld"]
