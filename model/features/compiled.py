"""Features computed by OpenVINO: the network as one compiled graph, on a CPU in float32."""

import threading
from pathlib import Path
from typing import Any

import torch

from moleflow.model.errors import BackboneError, describe
from moleflow.model.features.extractor import FeatureExtractor
from moleflow.model.features.patches import STAGE_TYPE, PatchFeatures
from moleflow.model.features.plain import PlainFeatures
from moleflow.model.runtime.conversion import LARGEST_BATCH, compile_options, converted, infer, kept_model
from moleflow.model.runtime.openvino_import import import_openvino

__all__ = ["CompiledFeatures", "features_model"]


class CompiledFeatures:
    """``(B, S, S, 3)`` in 0…255 to features of patches, as ``FeatureExtractor``; thread-safe.

    Args:
        extractor: of the plain network, in float32 on the CPU.
        identity: tells the network from others: its configuration, and the digest of its weights.
        folder: where the converted network is kept; see ``moleflow.model.runtime.conversion``.

    Attributes:
        grids: rows, columns and channels of the embeddings, and of each stage.

    Raises:
        BackboneError: OpenVINO cannot convert or compile the network.
    """

    def __init__(self, extractor: FeatureExtractor, identity: str, folder: Path) -> None:
        openvino = import_openvino()

        try:
            self._compiled = openvino.compile_model(
                features_model(extractor, identity, folder), "CPU", compile_options()
            )
        except Exception as error:  # exporting runs the network's own code
            raise BackboneError(
                f"OpenVINO cannot run the backbone ({describe(error)}); use engine torch, or another backbone."
            ) from error
        shapes = [output.partial_shape for output in self._compiled.outputs]
        self.grids = [(shape[1].get_length(), shape[2].get_length(), shape[3].get_length()) for shape in shapes]
        self._local: Any = threading.local()

    def __call__(self, images: torch.Tensor) -> PatchFeatures:
        if not hasattr(self._local, "request"):
            self._local.request = self._compiled.create_infer_request()
        embeddings, *stages = infer(self._local.request, [images])
        return PatchFeatures(embeddings, tuple(stage.to(STAGE_TYPE) for stage in stages))


def features_model(extractor: FeatureExtractor, identity: str, folder: Path) -> Any:
    """The OpenVINO model of ``CompiledFeatures``: images ``(B, S, S, 3)`` float32 to embeddings ``(B, H, W, D)`` and
    stages, finest first, ``(B, h, w, C)`` float32."""
    size = extractor.preprocessing.image_size

    def convert() -> Any:
        batch = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
        return converted(PlainFeatures(extractor), [torch.zeros(2, size, size, 3)], [{0: batch}])

    facts = {
        "network": identity,
        "preprocessing": extractor.preprocessing.model_dump(),
        "stages": extractor.pooled_stages,
    }
    return kept_model(folder, facts, convert)
