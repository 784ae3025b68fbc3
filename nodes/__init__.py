"""The pack's nodes. This list is all there is."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import routes
from .advisor import CheckpointAdvisor
from .apt import APTTrain
from .attention_patch import InfusionAttentionPatch
from .dreamblend import DreamBlendGuidance
from .inspect_maps import InfusionInspectMaps, InfusionMapImages
from .loaders import InfusionLoadConcept, InfusionLoadConcepts, InfusionLoadSnapshot
from .many import InfusionTrainMany
from .metrics import InfusionOverfitMetrics
from .photos import InfusionLoadPhotos
from .prompt_batch import InfusionPromptBatch
from .save import InfusionSaveConcept
from .similarity import InfusionSimilarity
from .snapshot_grid import InfusionSnapshotGrid
from .train import InfusionTrain


class InfusionExtension(ComfyExtension):  # type: ignore[misc]
    """What ComfyUI loads."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Every node of the pack; also registers the model folder and the page's route."""
        routes.register()
        return [
            InfusionLoadPhotos,
            InfusionTrain,
            InfusionTrainMany,
            APTTrain,
            InfusionSaveConcept,
            InfusionLoadConcept,
            InfusionLoadConcepts,
            InfusionLoadSnapshot,
            InfusionAttentionPatch,
            InfusionPromptBatch,
            DreamBlendGuidance,
            CheckpointAdvisor,
            InfusionSnapshotGrid,
            InfusionInspectMaps,
            InfusionMapImages,
            InfusionOverfitMetrics,
            InfusionSimilarity,
        ]
