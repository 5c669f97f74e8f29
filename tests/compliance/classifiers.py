"""Small ONNX classifiers for the tests: what they answer is the mean of each colour, times a gain."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

KINDS = {"float": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "uint8": TensorProto.UINT8}


def means(path, *, gain=1.0, size=("height", "width"), layout="nchw", kind="float", outputs=3, inputs=1):
    """Writes a model whose outputs are the mean red, green and blue, `outputs` of them, times `gain`."""
    axes, sides = ([2, 3], [3, *size]) if layout == "nchw" else ([1, 2], [*size, 3])
    nodes = [
        helper.make_node("Cast", ["picture"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["numbers"], ["means"], axes=axes, keepdims=0),
        helper.make_node("MatMul", ["means", "gains"], ["scores"]),
    ]
    gains = numpy_helper.from_array(np.eye(3, outputs, dtype=np.float32) * np.float32(gain), "gains")
    pictures = [
        helper.make_tensor_value_info(name, KINDS[kind], ["count", *sides])
        for name in ("picture", "mask", "more")[:inputs]
    ]
    answer = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["count", outputs])
    graph = helper.make_graph(nodes, "means", pictures, [answer], [gains])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)
    return path
