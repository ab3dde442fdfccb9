"""What a system exports (:meth:`System.exports`) as a file for programs that have no v2f.

    Exported --torch.export--> a graph of any batch --> model.pt2, for torch | model.onnx, for ONNX Runtime

The graph is traced in eval mode, in float32, on the CPU. The file contains no path of the machine that wrote it.
"""

import io
import warnings
from typing import Any, Literal

import torch

from v2f.errors import V2FError, first_line
from v2f.system import Exported

Format = Literal["torch-export", "onnx"]
FILES: dict[Format, str] = {"torch-export": "model.pt2", "onnx": "model.onnx"}


def content(exported: Exported, format: Format) -> bytes:
    """The file of a graph; V2FError if it cannot be traced or ONNX's packages are missing."""
    if format == "onnx":
        _needs_onnx()
    graph = _traced(exported)
    return _onnx(graph, exported) if format == "onnx" else _pt2(graph)


def _traced(exported: Exported) -> torch.export.ExportedProgram:
    """The graph for a batch of any size, without the paths of the source."""
    batch = torch.export.Dim("batch", min=1)
    free = tuple({0: batch} for _ in exported.inputs)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of LSTM layers, which keep their weights in a list as well
            graph = torch.export.export(exported.graph.eval(), tuple(exported.inputs.values()), dynamic_shapes=free)
    except Exception as error:  # torch raises no common type
        raise V2FError(f"the graph that this system exports cannot be traced: {first_line(error)}") from error
    for module in graph.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
    return graph


def _pt2(graph: torch.export.ExportedProgram) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the same
        torch.export.save(graph, buffer)
    return buffer.getvalue()


def _onnx(graph: torch.export.ExportedProgram, exported: Exported) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program: Any = torch.onnx.export(
            graph, input_names=list(exported.inputs), output_names=[exported.makes], dynamo=True, verbose=False
        )
    file: bytes = program.model_proto.SerializeToString()
    return file


def _needs_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise V2FError(
            f"--format onnx: the package {error.name} is not installed; `pip install 'v2f[onnx]'`, or use "
            "--format torch-export, which needs no more packages"
        ) from error
