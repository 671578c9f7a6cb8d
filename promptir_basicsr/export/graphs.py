"""Networks as graphs: trace them for images of any size, convert them to files, and run these.

Shapes: B batch, H W height and width, T degradations.
"""

import contextlib
import copy
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from promptir_basicsr.archs.layers.formulation import set_formulation
from promptir_basicsr.archs.traits import Conditioned, traits_of, unwrapped
from promptir_basicsr.core.errors import OptionError

METADATA_FILE = 'metadata.json'
"""Name of the metadata inside a file of torch.export."""

_TRACED = (43, 59)  # size of two images; different sides that are not multiples
_AXES = ('batch', '', 'height', 'width')  # names of an image's axes in ONNX
_SHORT = 300  # characters of a PyTorch error message

Run = Callable[[Tensor, Tensor | None], Tensor]
"""Called with images (B, C, H, W) and weights of degradations (B, T) or None."""


class AnySize(nn.Module):
    """Wrapper of a network that can be traced once for images of any size.

    Images are padded at the right and bottom like in `pad_to_multiple`: by reflection as far as possible, then by
    their last row or column; the output is cropped back. Ordinary padding would branch on the size. This wrapper looks
    up rows and columns instead, and their number is a data-dependent value for the tracer.

    Args:
        net: keeps the size of its images, or classifies them.
        multiple: number that the network's input sides must be multiples of.
        takes_degradation: whether it takes weights of degradations, as an input or from a sensor.
        fixed: whether it will be traced for one size only.
    """

    def __init__(self, net: nn.Module, multiple: int, takes_degradation: bool, fixed: bool = False) -> None:
        super().__init__()
        self.net, self.multiple, self.takes_degradation, self.fixed = net, multiple, takes_degradation, fixed

    def forward(self, image: Tensor, degradation: Tensor | None = None) -> Tensor:
        """Restore image: (B, C, H, W), [0, 1], with degradation: (B, T), >= 0. Returns (B, C, H, W), not clamped."""
        if self.takes_degradation and degradation is None:  # the sensor sees the image as it is
            net: Conditioned = unwrapped(self.net)
            degradation = net.degradation_weights(self._continued(image, 1))
        x = self._continued(image, self.multiple)
        y = self.net(x, degradation) if self.takes_degradation else self.net(x)
        if y.ndim != 4:
            return y
        rows, columns = (torch.arange(side, device=image.device) for side in image.shape[-2:])
        return y.index_select(2, rows).index_select(3, columns)

    def _continued(self, image: Tensor, multiple: int) -> Tensor:
        """Pad the image to sides that are multiples."""
        for axis in (2, 3):
            last = image.shape[axis] - 1
            count: Any = last // multiple + 1
            if not self.fixed:
                count = torch.scalar_tensor(count, dtype=torch.int64, device='cpu').item()
                torch._check(count >= 1)
            places = torch.arange(count * multiple, device=image.device)
            image = image.index_select(axis, (last - (places - last).abs()).clamp_min(0))
        return image


@dataclass(frozen=True)
class Traced:
    """A traced network.

    Attributes:
        program: its graph.
        inputs, output: their names.
    """

    program: ExportedProgram
    inputs: tuple[str, ...]
    output: str


def trace(net: nn.Module, labels: bool, size: tuple[int, int] | None, channels: int = 3) -> Traced:
    """Trace a network in the plain formulation.

    Args:
        net: not changed.
        labels: add the degradation as a second input.
        size: the only height and width; None for any size and batch size.
        channels: of an image.

    Raises:
        OptionError: the network cannot be traced; the message suggests a fix.
    """
    kind, plain = type(net).__name__, copy.deepcopy(net).cpu().float().eval().requires_grad_(False)
    set_formulation(plain, 'plain')
    traits = traits_of(plain)
    shape = (2, channels, *_TRACED) if size is None else (1, channels, *size)
    inputs: dict[str, Tensor] = {'image': torch.linspace(0, 1, shape[2] * shape[3]).view(shape[2:]).expand(shape)}
    free: dict[str, Any] = {'image': {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}}
    if labels:
        count = traits.num_degradations
        inputs['degradation'] = torch.full((shape[0], count), 1 / count)
        free['degradation'] = {0: Dim.DYNAMIC}
    module = AnySize(plain, traits.size_multiple, traits.takes_degradation, size is not None).eval()
    try:
        with torch.no_grad(), quietly():
            program = torch.export.export(
                module, tuple(inputs.values()), dynamic_shapes=free if size is None else None, strict=False
            )
    except Exception as error:  # a network may do anything that cannot be traced
        advice = (
            'It depends on the size of the image. Set a fixed size: `--fixed HEIGHTxWIDTH`.'
            if size is None
            else 'Its code cannot be converted to a graph.'
        )
        raise OptionError(f'{kind} cannot be exported: {_reason(error)} {advice}') from error
    for node in program.graph.nodes:
        node.meta.pop('stack_trace', None)  # names of files on this machine
    (output,) = next(node for node in program.graph.nodes if node.op == 'output').args[0]
    return Traced(program, tuple(inputs), 'logits' if output.meta['val'].ndim == 2 else 'restored')


def onnx_bytes(traced: Traced, metadata: Mapping[str, Any], opset: int | None) -> bytes:
    """Convert a traced network to an ONNX file.

    Raises:
        OptionError: a part of the network is not supported by ONNX, or by this opset.
    """
    import onnx
    import onnx_ir.passes.common as passes
    from onnxscript.optimizer import fold_constants_ir

    try:
        with quietly():
            # The optimizer of torch.onnx drops small added numbers, such as 1e-8 in a logarithm.
            exported: Any = torch.onnx.export(
                traced.program,
                dynamo=True,
                verbose=False,
                optimize=False,
                opset_version=opset,
                input_names=list(traced.inputs),
                output_names=[traced.output],
            )
            graph = exported.model
            passes.InlinePass()(graph)
            fold_constants_ir(graph)
            passes.RemoveUnusedNodesPass()(graph)
            passes.CommonSubexpressionEliminationPass()(graph)
            passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(graph)
            passes.DeduplicateInitializersPass()(graph)
            model = exported.model_proto
            onnx.checker.check_model(model)
    except Exception as error:  # the converter wraps errors of several libraries
        raise OptionError(f'The network cannot be converted to ONNX: {_reason(error)}') from error
    _tidy(model)
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    onnx.helper.set_model_props(model, texts)
    return model.SerializeToString()


def program_bytes(traced: Traced, metadata: Mapping[str, Any]) -> bytes:
    """Convert a traced network to a file of torch.export; its `METADATA_FILE` is JSON."""
    buffer = io.BytesIO()
    with quietly():
        torch.export.save(traced.program, buffer, extra_files={METADATA_FILE: json.dumps(dict(metadata))})
    return buffer.getvalue()


def run_onnx(content: bytes) -> Run:
    """Load an ONNX file as a function, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised as exceptions
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=['CPUExecutionProvider'])

    def run(image: Tensor, degradation: Tensor | None) -> Tensor:
        inputs = {'image': image.numpy()} | ({} if degradation is None else {'degradation': degradation.numpy()})
        try:
            return torch.from_numpy(session.run(None, inputs)[0])
        except Exception as error:  # it has one error class per status
            raise OptionError(
                f'onnxruntime cannot run the network on {tuple(image.shape)}: {_reason(error)}'
            ) from error

    return run


def run_program(content: bytes) -> Run:
    """Load a file of torch.export as a function."""
    with quietly():
        module = torch.export.load(io.BytesIO(content)).module()

    def run(image: Tensor, degradation: Tensor | None) -> Tensor:
        with torch.no_grad():
            try:
                return module(image) if degradation is None else module(image, degradation)
            except (AssertionError, RuntimeError) as error:
                raise OptionError(f'The graph cannot be run on {tuple(image.shape)}: {_reason(error)}') from error

    return run


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Context without PyTorch's warnings and output; errors are raised as exceptions."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    silent = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.disable(level)


def _tidy(model: Any) -> None:
    """Rename the axes, and remove metadata of PyTorch."""
    for value in (*model.graph.input, *model.graph.output):
        for axis, dimension in zip(_AXES, value.type.tensor_type.shape.dim, strict=False):
            if dimension.dim_param:
                dimension.dim_param = axis or dimension.dim_param
    del model.graph.value_info[:]
    for part in (*model.graph.input, *model.graph.output, *model.graph.initializer, *model.graph.node, model.graph):
        del part.metadata_props[:]
        part.doc_string = ''


def _reason(error: Exception) -> str:
    """The first line of an error, as a sentence."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    line = (str(cause).strip() or type(cause).__name__).partition('\n')[0].strip()
    line = line if len(line) <= _SHORT else f'{line[:_SHORT]}...'
    return line if line.endswith(('.', '...')) else f'{line}.'
