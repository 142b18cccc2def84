"""Find the small faults that one statement can be given, by its syntax tree."""

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass

NEGATED = {
    ast.Lt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.Gt: ast.LtE,
    ast.LtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
SHIFTED = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}
OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}
EXTREMES = {"min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum", "amin": "amax", "amax": "amin"}
SYMMETRIC = {*EXTREMES, "equal", "allclose", "isclose", "gcd", "array_equal", "hypot"}
UNSWAPPED = {"isinstance", "issubclass", "hasattr", "getattr", "setattr", "cast", "zip"}
LOGS = {"say", "tell", "note", "info", "warning", "warn", "debug", "print"}
UNCHANGED_ARGUMENTS = {"timeout", "stacklevel"}
BODIES = ("body", "orelse", "finalbody", "handlers", "cases", "decorator_list")


@dataclass(frozen=True)
class Fault:
    """`node`'s source text becomes `new`."""

    kind: str
    node: ast.AST
    new: str


@dataclass(frozen=True)
class Statement:
    """One statement of a function, without the statements inside it: of an `if`, its condition.

    `text` is the same for the same code, however its lines are broken.
    """

    function: str
    node: ast.stmt
    text: str

    @property
    def lines(self) -> range:
        """The lines it stands on, without those of its body."""
        ends = [getattr(node, "end_lineno", 0) for node in _own_nodes(self.node)]
        return range(self.node.lineno, max([self.node.lineno, *ends]) + 1)


def statements(tree: ast.AST, within: str = "") -> Iterator[Statement]:
    """Every statement inside a function, in the order of the file; docstrings, assertions and definitions left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from statements(node, f"{within}.{node.name}".lstrip("."))
            continue
        inside_function = within and not isinstance(tree, ast.ClassDef)
        if isinstance(node, ast.stmt) and inside_function and not _is_inert(node):
            yield Statement(within, node, _text(node))
        if isinstance(node, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield from statements(node, within)


def faults(statement: Statement) -> list[Fault]:
    """The faults of a statement, always in the same order for the same `text`."""
    node = statement.node
    found = list(_of_statement(node))
    if isinstance(node, ast.Raise):
        return found  # the rest is its message
    own = list(_own_nodes(node))
    bounds = {id(end) for inner in own if isinstance(inner, ast.Slice) for end in (inner.lower, inner.upper)}
    for fault in (fault for inner in own for fault in _of_expression(inner)):
        kind = "slice" if id(fault.node) in bounds else "return" if _returns_constant(node, fault) else fault.kind
        found.append(Fault(kind, fault.node, fault.new))
    return found


def with_fault(source: str, fault: Fault) -> str:
    """The file's text with the fault in it."""
    lines = source.encode().splitlines(keepends=True)
    first, last = fault.node.lineno - 1, fault.node.end_lineno - 1  # type: ignore[attr-defined]
    head = b"".join([*lines[:first], lines[first][: fault.node.col_offset]])  # type: ignore[attr-defined]
    tail = b"".join([lines[last][fault.node.end_col_offset :], *lines[last + 1 :]])  # type: ignore[attr-defined]
    return (head + fault.new.encode() + tail).decode()


def _returns_constant(statement: ast.stmt, fault: Fault) -> bool:
    return isinstance(statement, ast.Return) and fault.node is statement.value and fault.kind == "constant"


def _is_inert(node: ast.stmt) -> bool:
    match node:
        case ast.Import() | ast.ImportFrom() | ast.Global() | ast.Nonlocal() | ast.Assert() | ast.Pass() | ast.Try():
            return True
        case ast.Expr(value=ast.Constant()):
            return True
    return False


def _text(node: ast.stmt) -> str:
    bare = copy.copy(node)
    for name in BODIES:
        if hasattr(bare, name):
            setattr(bare, name, [ast.Expr(ast.Constant(...))] if name == "body" else [])
    return ast.unparse(bare).removesuffix("\n    ...")


def _own_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Expressions of a statement that run with it: no inner statements, annotations, texts or log lines."""
    for name, value in ast.iter_fields(node):
        if name in (*BODIES, "annotation") and isinstance(node, ast.stmt):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, ast.JoinedStr | ast.stmt) or _is_log(child):
                continue
            if isinstance(child, ast.keyword) and child.arg in UNCHANGED_ARGUMENTS:
                continue
            yield child
            yield from _own_nodes(child)


def _name(function: ast.expr) -> str:
    return ast.unparse(function).rpartition(".")[2]


def _is_log(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    return _name(node.func).lstrip("_") in LOGS or ast.unparse(node.func).startswith("progress.")


def _of_statement(node: ast.stmt) -> Iterator[Fault]:
    match node:
        case ast.Raise() | ast.Continue() | ast.Break() | ast.AugAssign() | ast.Assign(targets=[ast.Subscript()]):
            yield Fault("deleted", node, "pass")
        case ast.Expr(value=ast.Call()) if not _is_log(node.value):
            yield Fault("deleted", node, "pass")
    if isinstance(node, ast.AugAssign) and type(node.op) in OPERATORS:
        changed = copy.copy(node)
        changed.op = OPERATORS[type(node.op)]()
        yield Fault(_arithmetic(node.op), node, ast.unparse(changed))


def _arithmetic(operator: ast.operator) -> str:
    return "plus and minus" if isinstance(operator, ast.Add | ast.Sub) else "times and over"


def _of_expression(node: ast.AST) -> Iterator[Fault]:
    match node:
        case ast.Compare(ops=[operator]):
            yield _changed("comparison", node, ops=[NEGATED[type(operator)]()])
            if type(operator) in SHIFTED:
                yield _changed("boundary", node, ops=[SHIFTED[type(operator)]()])
        case ast.BinOp(op=operator) if type(operator) in OPERATORS and not _joins_texts(node):
            yield _changed(_arithmetic(operator), node, op=OPERATORS[type(operator)]())
        case ast.BoolOp(op=operator):
            yield _changed("and, or", node, op=ast.Or() if isinstance(operator, ast.And) else ast.And())
        case ast.UnaryOp(op=ast.Not()):
            yield Fault("not dropped", node, f"({ast.unparse(node.operand)})")
        case ast.Constant(value=bool() as value):
            yield Fault("constant", node, str(not value))
        case ast.Constant(value=int() | float() as value):
            yield Fault("constant", node, repr(value + 1))
        case ast.Slice():
            for end in (node.lower, node.upper):
                if end is not None and not isinstance(end, ast.Constant):
                    yield Fault("slice", end, f"({ast.unparse(end)} + 1)")
        case ast.Call():
            yield from _of_call(node)


def _changed(kind: str, node: ast.expr, **fields: object) -> Fault:
    new = copy.copy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    return Fault(kind, node, f"({ast.unparse(new)})")


def _joins_texts(node: ast.BinOp) -> bool:
    """Whether `+` or `/` joins strings, lists or paths, where the other operator is no fault but a TypeError."""
    return any(
        isinstance(side, ast.JoinedStr | ast.List | ast.Tuple | ast.ListComp)
        or (isinstance(side, ast.Constant) and isinstance(side.value, str | bytes))
        or (isinstance(side, ast.BinOp) and _joins_texts(side))
        for side in (node.left, node.right)
    )


def _of_call(node: ast.Call) -> Iterator[Fault]:
    name = _name(node.func)
    if name in EXTREMES:
        other = ast.unparse(node.func).removesuffix(name) + EXTREMES[name]
        yield Fault("min and max", node.func, other)
    match node.args:
        case [first, second] if not isinstance(first, ast.Starred) and not isinstance(second, ast.Starred):
            if name not in SYMMETRIC | UNSWAPPED and ast.dump(first) != ast.dump(second):
                new = copy.copy(node)
                new.args = [second, first]
                yield Fault("swapped", node, ast.unparse(new))
