"""A backward pass in Python, for graphs of tensors whose device this machine does not have.

torch's engine asks the driver for a stream of the device. This one calls the same nodes in the same
order. Like torch's, it adds up gradients that meet, sums those of what was broadcast, and fills in
those of unused outputs.
"""

import heapq
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

Entering = Callable[[Any], AbstractContextManager[object]]


class Backward:
    """Fills the gradients of the leaves below some roots.

    Args:
        entering: Called with each node; its work is done in the context that is returned.
    """

    def __init__(self, entering: Entering) -> None:
        self._entering = entering
        # for each node: gradients of its outputs, and users of the node that have not run yet
        self._grads: dict[Any, dict[int, Tensor]] = defaultdict(dict)
        self._users: dict[Any, int] = {}

    @torch.no_grad()
    def run(self, roots: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
        """Run every node once, those that were made last first."""
        edges = [(root.grad_fn, root.output_nr) for root in roots]
        self._count_users([node for node, _ in edges])
        for root, edge, grad in zip(roots, edges, grads, strict=True):
            with self._entering(edge[0]):
                grad = torch.ones_like(root) if grad is None else grad
            self._add(edge, grad)
        order, ready = count(), list[tuple[int, int, Any]]()
        for node in dict.fromkeys(node for node, _ in edges if self._users[node] == 0):
            heapq.heappush(ready, (-node._sequence_nr(), next(order), node))
        while ready:
            *_, node = heapq.heappop(ready)
            for edge, grad in self._call(node):
                if grad is not None:
                    self._add(edge, grad)
                self._users[edge[0]] -= 1
                if self._users[edge[0]] == 0:
                    heapq.heappush(ready, (-edge[0]._sequence_nr(), next(order), edge[0]))

    def _count_users(self, nodes: list[Any]) -> None:
        self._users = dict.fromkeys(nodes, 0)
        nodes = list(self._users)
        while nodes:
            for node, _ in _edges(nodes.pop()):
                if node not in self._users:
                    self._users[node] = 0
                    nodes.append(node)
                self._users[node] += 1

    def _add(self, edge: tuple[Any, int], grad: Tensor) -> None:
        node, number = edge
        held, wanted = self._grads[node], node._input_metadata[number]
        with self._entering(node):
            if grad.shape != tuple(wanted.shape):
                grad = grad.sum_to_size(tuple(wanted.shape))
            grad = grad.to(wanted.dtype)
            held[number] = held[number] + grad if number in held else grad

    def _call(self, node: Any) -> list[tuple[tuple[Any, int], Tensor | None]]:
        """Run a node; return the edges below it with their gradients."""
        edges, held = _edges(node), self._grads.pop(node, {})
        if not held:
            return [(edge, None) for edge in edges]
        with self._entering(node):
            grads = [held.get(number) for number in range(len(node._input_metadata))]
            if hasattr(node, "variable"):
                _accumulate(node.variable, held[0])
                return []
            if isinstance(node, BackwardCFunction):
                grads = [
                    torch.zeros(tuple(meta.shape), dtype=meta.dtype, device=meta.device)
                    if grad is None
                    else grad
                    for grad, meta in zip(grads, node._input_metadata, strict=True)
                ]
                given = _as_tuple(node.apply(*grads))
                wanted = zip(given, node.needs_input_grad, strict=True)
                return list(zip(edges, [grad for grad, needed in wanted if needed], strict=True))
            given = _as_tuple(node(*grads))
        pairs = zip(node.next_functions, given, strict=True)
        return [(edge, grad) for edge, grad in pairs if edge[0] is not None]


def _edges(node: Any) -> list[tuple[Any, int]]:
    return [edge for edge in node.next_functions if edge[0] is not None]


def _as_tuple(grads: Any) -> tuple[Tensor | None, ...]:
    return grads if isinstance(grads, tuple) else (grads,)


def _accumulate(leaf: Tensor, grad: Tensor) -> None:
    if leaf.grad is not None:
        leaf.grad.add_(grad)
    else:
        strides = zip(leaf.shape, leaf.stride(), grad.stride(), strict=True)
        fits = all(size == 1 or ours == theirs for size, ours, theirs in strides)
        leaf.grad = grad if fits else torch.empty_like(leaf).copy_(grad)
