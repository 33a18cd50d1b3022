"""The blocks of a network, in the order in which images pass them.

Layer-wise learning rates, frozen stages and activation checkpointing go by blocks.
"""

import re
from collections.abc import Sequence

from torch import nn

_NUMBERED = re.compile(r"(b|denselayer|\w+_)?\d+")
"""Names of blocks in what holds them: `0` nearly everywhere, `b1` in timm's RegNet."""
_STEMS = ("stem", "patch_embed")
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def find_blocks(network: nn.Module) -> tuple[str, ...]:
    """Return the names of the blocks of a network; those of its layers if it has no blocks.

    A block is a numbered module with at least two layers (convolutions, linear layers) that is no
    mere sequence or stage of blocks.

    Example:
        >>> from torchvision.models import resnet18
        >>> find_blocks(resnet18())[:3]
        ('layer1.0', 'layer1.1', 'layer2.0')
    """
    return tuple(_blocks_in(network, "")) or tuple(
        name for name, part in network.named_modules() if _is_layer(part)
    )


def _blocks_in(module: nn.Module, prefix: str) -> list[str]:
    found: list[str] = []
    for name, child in module.named_children():
        if _NUMBERED.fullmatch(name) and _is_block(child):
            found.append(prefix + name)
        elif not name.startswith(_STEMS):
            found += _blocks_in(child, f"{prefix}{name}.")
    return found


def _is_block(module: nn.Module) -> bool:
    # timm's stages call their sequence of blocks so
    is_stage = type(getattr(module, "blocks", None)) in _CONTAINERS
    if is_stage or type(module) in _CONTAINERS:
        return False
    return sum(map(_is_layer, module.modules())) > 1


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d | nn.Linear)


def blocks_up_to(network: nn.Module, blocks: Sequence[str], part: str) -> int:
    """Return how many blocks images have passed at the end of a part of the network."""
    names = [name for name, _ in network.named_modules()]
    end = max(at for at, name in enumerate(names) if f"{name}.".startswith(f"{part}."))
    return sum(names.index(block) <= end for block in blocks)


def layers_of_parameters(network: nn.Module, blocks: Sequence[str]) -> dict[str, int]:
    """Return the number of the block of each parameter, counted from 1.

    0 is for what is before the first block. What is between two blocks counts as a part of the one
    whose stage it is in, or else of the second; what is after the last, as a part of the last.
    """
    layers, done = {}, 0
    numbers = {block: number for number, block in enumerate(blocks, 1)}
    for name, _ in network.named_parameters():
        own = next((numbers[start] for start in _starts(name) if start in numbers), None)
        if own is not None:
            layers[name] = done = max(done, own)
        elif 0 < done < len(blocks):
            before, after = blocks[done - 1], blocks[done]
            is_before = _common_parts(name, before) > _common_parts(name, after)
            layers[name] = done if is_before else done + 1
        else:
            layers[name] = done
    return layers


def _starts(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _common_parts(one: str, other: str) -> int:
    pairs = zip(_starts(one), _starts(other), strict=False)
    return sum(first == second for first, second in pairs)
