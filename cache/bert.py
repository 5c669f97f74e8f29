"""MiniLM's graph in ONNX, from its published weights: the tokens of one text in, a vector of length 1 out.

One text at a time has no padding, so nothing is masked. The products with weights are of floats, or of whole numbers:
the activations are rounded to 8 bits of the range that they have, the weights to 7, so that no sum of two products
overflows the 16 bits that processors without VNNI add them in, and all processors get the same. A few channels reach
ten times as far as the others and would leave these nothing of the 8 bits. So each is divided by a power of two near
the root of how far it reaches, and its weights multiplied by it (SmoothQuant, arXiv 2211.10438).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Floats = npt.NDArray[np.float32]

LAYERS, WIDTH, HEADS = 6, 384, 12
#: Tokens, of which two say where the text begins and ends.
LENGTH = 256
EPSILON = 1e-12
#: The second domain has onnxruntime's own operators.
OPSETS = (("", 20), ("com.microsoft", 1))


class Graph:
    """The graph with products of floats."""

    def __init__(self, weights: Mapping[str, Floats]) -> None:
        self._weights = weights
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def model(self, *, watched: bool = False) -> onnx.ModelProto:
        """Input "tokens" of shape (count,), at most `LENGTH`; output "vector" of shape (384,).

        With ``watched``, also what goes into each product by the names of `inputs`, of shape (1, count, channels).
        """
        self._embed()
        for layer in range(LAYERS):
            self._layer(layer)
        self._op("ReduceMean", [f"{LAYERS}.in", self._constant("outer", np.array([0, 1]))], "mean", keepdims=0)
        self._op("LpNormalization", ["mean"], "vector", axis=0, p=2)
        outputs = [helper.make_tensor_value_info("vector", TensorProto.FLOAT, [WIDTH])]
        if watched:
            outputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inputs()]
        tokens = helper.make_tensor_value_info("tokens", TensorProto.INT64, ["count"])
        graph = helper.make_graph(self._nodes, "minilm", [tokens], outputs, list(self._constants.values()))
        opsets = [helper.make_opsetid(domain, version) for domain, version in OPSETS]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10, producer_name="imgen")

    def _embed(self) -> None:
        table, places, kinds = (
            self._weights[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type")
        )
        self._look_up(table, "words")
        self._op("Shape", ["tokens"], "count")
        first = self._constant("first", np.array([0]))
        # All tokens are of the first kind: the second is for a second text.
        self._op("Slice", [self._constant("places", places[:LENGTH] + kinds[0]), first, "count", first], "placed")
        self._op("Unsqueeze", ["placed", first], "placed.one")
        self._norm("embeddings.LayerNorm", "words", "placed.one", "0.in")

    def _layer(self, number: int) -> None:
        at, name = f"{number}.", f"encoder.layer.{number}."
        attention = [f"{name}attention.self.{part}" for part in ("query", "key", "value")]
        weight, bias = (
            np.concatenate([self._weights[f"{p}.{part}"] for p in attention]) for part in ("weight", "bias")
        )
        self._product(f"{at}in", weight, bias, f"{at}qkv")
        thirds = self._constant("thirds", np.array([WIDTH] * 3))
        parts = [f"{at}{part}" for part in "qkv"]
        self._op("Split", [f"{at}qkv", thirds], *parts, axis=2)
        self._op("MultiHeadAttention", parts, f"{at}heads", domain="com.microsoft", num_heads=HEADS)
        self._linear(f"{name}attention.output.dense", f"{at}heads", f"{at}seen")
        self._norm(f"{name}attention.output.LayerNorm", f"{at}seen", f"{at}in", f"{at}middle")
        self._linear(f"{name}intermediate.dense", f"{at}middle", f"{at}wide")
        self._op("Gelu", [f"{at}wide"], f"{at}bent")
        self._linear(f"{name}output.dense", f"{at}bent", f"{at}thought")
        self._norm(f"{name}output.LayerNorm", f"{at}thought", f"{at}middle", f"{number + 1}.in")

    def _linear(self, name: str, source: str, target: str) -> None:
        self._product(source, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"], target)

    def _norm(self, name: str, source: str, other: str, target: str) -> None:
        """The norm of a sum: in two steps, which onnxruntime does in a fifth of the time of its one step for both."""
        parts = [self._constant(f"{target}.{part}", self._weights[f"{name}.{part}"]) for part in ("weight", "bias")]
        self._op("Add", [source, other], f"{target}.sum")
        self._op("LayerNormalization", [f"{target}.sum", *parts], target, epsilon=EPSILON)

    def _look_up(self, table: Floats, target: str) -> None:
        self._op("Gather", [self._constant("table", table), "tokens"], target)

    def _product(self, source: str, weight: Floats, bias: Floats, target: str) -> None:
        """``weight`` is (to, from), as torch has it."""
        self._op("MatMul", [source, self._constant(f"{target}.weight", weight.T)], f"{target}.bare")
        self._op("Add", [f"{target}.bare", self._constant(f"{target}.bias", bias)], target)

    def _constant(self, name: str, values: npt.NDArray[Any]) -> str:
        if name not in self._constants:
            self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(values), name)
        return name

    def _op(self, kind: str, sources: list[str], *targets: str, domain: str = "", **options: Any) -> str:
        self._nodes.append(helper.make_node(kind, sources, targets, domain=domain, **options))
        return targets[0]


class SmallGraph(Graph):
    """The graph with products of whole numbers; ``reach`` says how far from 0 the channels of `inputs` were seen."""

    def __init__(self, weights: Mapping[str, Floats], reach: Mapping[str, Floats]) -> None:
        super().__init__(weights)
        self._reach = reach

    def _look_up(self, table: Floats, target: str) -> None:
        """Rows of 8 bits, each with its own step: a quarter of the memory."""
        steps = np.abs(table).max(1, keepdims=True) / np.float32(127)
        self._op("Gather", [self._constant("table", np.rint(table / steps).astype(np.int8)), "tokens"], "rows")
        self._op("Gather", [self._constant("steps", steps), "tokens"], "row steps")
        self._op("Cast", ["rows"], "row floats", to=TensorProto.FLOAT)
        self._op("Mul", ["row floats", "row steps"], target)

    def _product(self, source: str, weight: Floats, bias: Floats, target: str) -> None:
        if source in self._reach:
            powers = np.exp2(np.rint(np.log2(np.maximum(self._reach[source], 1e-3)) / 2)).astype(np.float32)
            source = self._op("Mul", [source, self._constant(f"{target}.powers", 1 / powers)], f"{source}.even")
            weight = weight * powers
        steps = np.abs(weight).max(1) / np.float32(63)
        parts = {
            "weight": np.rint(weight / steps[:, None]).astype(np.int8).T,
            "steps": steps,
            "zeros": np.zeros(len(steps), np.int8),
            "bias": bias,
        }
        constants = [self._constant(f"{target}.{part}", values) for part, values in parts.items()]
        self._op("DynamicQuantizeMatMul", [source, *constants], target, domain="com.microsoft")


def inputs() -> list[str]:
    """What goes into the products and reaches unevenly: all but what comes of attention, where nothing is gained."""
    return [f"{layer}.{part}" for layer in range(LAYERS) for part in ("in", "middle", "bent")]
