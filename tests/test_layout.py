"""The package keeps its layout: nine floors, few modules at the top, imports at the top of their modules."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / 'promptir_basicsr'
FILES = sorted(PACKAGE.rglob('*.py'))

# Module, what it imports inside a function, and why.
LATE = {
    ('archs/fast/kernels.py', 'triton'): 'not on every platform',
    ('archs/fast/kernels.py', 'promptir_basicsr.archs.fast'): 'its kernels need Triton',
    ('checkpoints/hub.py', 'huggingface_hub'): 'extra hub',
    ('commands/demo.py', 'gradio'): 'extra web',
    ('commands/demo.py', 'starlette'): 'comes with gradio',
    ('demo/app.py', 'gradio'): 'extra web',
    ('explain/run.py', 'promptir_basicsr.explain.chapters'): 'draws with matplotlib, extra explain',
    ('explain/run.py', 'promptir_basicsr.explain.writer'): 'draws with matplotlib, extra explain',
    ('explain/scores.py', 'sklearn'): 'extra explain',
    ('export/graphs.py', 'onnx'): 'extra export',
    ('export/graphs.py', 'onnx_ir'): 'extra export',
    ('export/graphs.py', 'onnxscript'): 'extra export',
    ('export/graphs.py', 'onnxruntime'): 'extra export',
    ('metrics/pyiqa_metric.py', 'pyiqa'): 'where a metric of it is asked for',
    ('optim/optimizers.py', 'pytorch_optimizer'): 'a second of imports, where an option file asks for it',
    ('pictures/decode.py', 'pillow_heif'): 'extra heif',
    ('commands/compare.py', 'promptir_basicsr.explain.figures'): 'extra explain',
    ('host/trainer.py', 'wandb'): 'where the option file asks for it',
    ('runtime/compilation.py', 'torch._dynamo'): 'takes seconds, for torch.compile alone',
    ('runtime/compilation.py', 'torch._inductor'): 'takes seconds, for torch.compile alone',
}
# Modules that import others by name: the command and the package itself, once a verb needs them; networks that an
# option file names by module and class.
BY_NAME = {'__init__.py', 'archs/elsewhere.py', 'cli.py', 'core/compat.py'}


def late_imports(path: Path) -> set[str]:
    found: set[str] = set()
    for function in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        for node in ast.walk(function):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or '']
            found.update(names)
    return found


def shortened(name: str) -> str:
    """Of our modules and torch's the path, of other packages the package."""
    if name.startswith('torch.'):
        return '.'.join(name.split('.')[:2])
    return name if name.startswith('promptir_basicsr') else name.partition('.')[0]


def test_imports_inside_functions_are_those_with_a_reason() -> None:
    found = {(path.relative_to(PACKAGE).as_posix(), shortened(name)) for path in FILES for name in late_imports(path)}
    assert found == LATE.keys()


def test_only_some_import_by_name() -> None:
    found = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Attribute) and node.attr == 'import_module':
                found.add(path.relative_to(PACKAGE).as_posix())
    assert found == BY_NAME


def test_names_and_sizes() -> None:
    top = {path.stem for path in PACKAGE.glob('*.py')}
    assert top == {'__init__', '__main__', 'cli', 'install_basicsr'}
    assert [path for path in FILES if path.stem.endswith('_util')] == []
    lines = {path.relative_to(PACKAGE).as_posix(): path.read_text(encoding='utf-8').count('\n') for path in FILES}
    assert {name: count for name, count in lines.items() if count > 650} == {}
