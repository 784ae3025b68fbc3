"""The launcher, beside a torchvision that can load and beside one whose operators are missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from comfyui_process.host import LAUNCHER

FAKE = "torch.library.register_fake('torchvision::nms')(lambda dets, scores, threshold: dets)"
OWN = "kept = torch.library.Library('torchvision', 'DEF')\nkept.define('nms(Tensor a, Tensor b, float c) -> Tensor')"


@pytest.mark.parametrize("contents", [FAKE, f"{OWN}\n{FAKE}"], ids=["operators missing", "operators of its own"])
def test_torchvision_can_be_imported(tmp_path: Path, contents: str) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(f"import torch\n{contents}\n")
    (tmp_path / "torchaudio.py").write_text("raise OSError('another build')\n")
    script = tmp_path / "script.py"
    script.write_text("import sys, torchvision, torchaudio.functional\nprint(sys.argv, 'torchvision' in sys.modules)\n")
    done = subprocess.run(
        [sys.executable, str(LAUNCHER), str(tmp_path), str(script), "one"], env={"PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == [f"{[str(script), 'one']} True"], done.stderr
