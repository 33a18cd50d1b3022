"""The networks that are tried, and the table of them in docs/networks.md.

`python -m tests.support.network_matrix` writes the table anew.
"""

from tests.support.small import REPOSITORY
from udaseg.models.backbones.build import build_backbone

PAGE = REPOSITORY / "docs" / "networks.md"
HEADING = "## Tested networks\n"
FAMILIES = {
    "ResNet": ("resnet18", "resnet50", "timm:resnet26"),
    "MobileNet": ("mobilenet_v2", "mobilenet_v3_large", "timm:mobilenetv4_conv_small"),
    "EfficientNet-Lite": ("efficientnet_lite0",),
    "VGG": ("vgg16", "vgg16_bn", "timm:vgg11_bn"),
    "ConvNeXt": ("timm:convnext_tiny", "timm:convnextv2_atto"),
    "ConvNeXt, DINOv3": ("timm:convnext_tiny.dinov3_lvd1689m",),
    "PVTv2": ("timm:pvt_v2_b0",),
    "Swin": ("timm:swin_tiny_patch4_window7_224", "timm:swinv2_tiny_window8_256"),
    "ViT": ("timm:vit_tiny_patch16_224",),
    "ViT, DINOv2": ("timm:vit_small_patch14_dinov2", "timm:vit_small_patch14_reg4_dinov2"),
    "ViT, DINOv3": ("timm:vit_small_patch16_dinov3",),
    "ViT, EVA02": ("timm:eva02_tiny_patch14_224",),
    "ViT, SigLIP": ("timm:vit_base_patch16_siglip_224",),
}
REFUSED = {
    "timm:maxvit_tiny_tf_224": "cannot take images of another size than it was built for",
    "timm:hiera_tiny_224": "cannot take images of another size than it was built for",
}
NAMES = [name for names in FAMILIES.values() for name in names]


def table() -> str:
    """Return the rows of the table: what each network is, with random weights."""
    lines = _row("`model.backbone`", "family", "M parameters", "strides", "channels", "blocks")
    lines += _row(*["---"] * 6)
    for family, names in FAMILIES.items():
        for name in names:
            body = build_backbone(name, output_stride=32, weights="random")
            millions = sum(each.numel() for each in body.parameters()) / 1e6
            maps = (", ".join(map(str, each)) for each in (body.strides, body.channels))
            lines += _row(f"`{name}`", family, f"{millions:.1f}", *maps, str(body.depth))
    lines += ["", "Refused:", "", *_row("`model.backbone`", "because it"), *_row("---", "---")]
    lines += [line for name, why in REFUSED.items() for line in _row(f"`{name}`", why)]
    return "\n".join(lines)


def _row(*cells: str) -> list[str]:
    return ["| " + " | ".join(cells) + " |"]


def table_of_page() -> str:
    """Return the tables that the page has now."""
    _, _, section = PAGE.read_text(encoding="utf-8").partition(HEADING)
    return section[section.index("|") : section.rindex("|") + 1]


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(page.replace(table_of_page(), table()), encoding="utf-8")
