"""NVIDIA's pickles, read as data: instructions -> inert records. Nothing of a pickle is ever run.

A pickle is a program for a stack machine, and Python's unpickler runs what the program asks for. :class:`StackMachine`
cannot import, call or set anything: a global becomes its name and nothing else, a call becomes a record of a name and
arguments, and names and instructions outside the short lists below are refused. NVIDIA's modules carry their own source
code; here it is a string that nothing uses. Tensors stay offsets into the file until they are requested, so the other
networks of a file (G, D, the augmentation) take no memory beyond the file's own.
"""

import io
import pickletools
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

MOST_INSTRUCTIONS = 1_000_000  # a pickle of 1024 px has 66,000; bounds what small instructions can expand to
LARGEST_HEADER = 4096  # bytes before the numbers of a storage; usually about 250

MODULE = "torch_utils.persistence._reconstruct_persistent_obj"
PARAMETER = "torch._utils._rebuild_parameter"
TENSOR = "torch._utils._rebuild_tensor_v2"
_BYTES = "torch.storage._load_from_bytes"
_DICTS = frozenset({"collections.OrderedDict", "dnnlib.util.EasyDict"})
# the globals that pickle a NumPy number or array, before and since NumPy 2
_NUMPY = frozenset(
    f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")
)
_NUMPY |= {"numpy.dtype", "numpy.ndarray"}
NAMES = _DICTS | _NUMPY | {MODULE, PARAMETER, TENSOR, _BYTES, "builtins.set"}
# storages, and the bytes of a number in them
_WIDTHS = {"Double": 8, "Long": 8, "Float": 4, "Int": 4, "Half": 2, "BFloat16": 2, "Short": 2, "Char": 1, "Byte": 1}
_STORAGES = {f"torch.{kind}Storage": width for kind, width in (_WIDTHS | {"Bool": 1}).items()}

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_ARGUMENTS = frozenset({"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"})
_BLOBS = {"BINBYTES": 5, "SHORT_BINBYTES": 2}  # bytes from the instruction to its content


class Name(NamedTuple):
    """A global that the pickle names, ``module.name``."""

    text: str


@dataclass(frozen=True, eq=False)
class Call:
    """A call that the pickle asks for."""

    name: str
    args: tuple[Any, ...]


class _Blob(NamedTuple):
    """Bytes of the file."""

    start: int
    end: int


class Storage(NamedTuple):
    """The numbers of a tensor: their kind (``torch.FloatStorage``) and their place in the file."""

    kind: str
    length: int
    start: int
    end: int


class RefusedError(Exception):
    """The pickle holds something that a StyleGAN2 pickle has no use for."""


class StackMachine:
    """The stack machine of a pickle, without every instruction that could do more than build data.

    All its results are None, bool, int, float, str, tuple, list, dict with str keys, or one of the records above.
    :class:`RefusedError` says what is not allowed; ValueError, TypeError, KeyError and IndexError mean that the pickle
    is malformed. Containers may contain themselves: only follow paths of known length.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.left = MOST_INSTRUCTIONS

    def read(self, file: io.BytesIO, names: Collection[str], persistent: bool = False) -> Any:
        """The next pickle of ``file``. It may use the globals in ``names``, and persistent ids if ``persistent``."""
        stack = _Stack()
        argument: Any
        for instruction, argument, position in pickletools.genops(file):
            self.left -= 1
            if self.left < 0:
                raise RefusedError(f"has more than {MOST_INSTRUCTIONS:,} instructions")
            operation = instruction.name
            if operation == "STOP":
                return stack.take(1)[0]
            if operation in _ARGUMENTS:
                stack.append(argument)
            elif operation in _CONSTANTS:
                stack.append(_CONSTANTS[operation])
            elif operation in _BLOBS:
                start = (position or 0) + _BLOBS[operation]
                stack.append(_Blob(start, start + len(argument)))
            elif operation in ("GLOBAL", "STACK_GLOBAL"):
                parts = argument.split(" ", 1) if operation == "GLOBAL" else stack.take(2)
                name = ".".join(_of(str, part) for part in parts)
                if name not in names:
                    raise RefusedError(f"asks for {preview(name)}")
                stack.append(Name(name))
            elif operation in ("REDUCE", "NEWOBJ"):
                called, args = stack.take(2)
                stack.append(self.call(_of(Name, called).text, _of(tuple, args)))
            elif operation == "BUILD":  # sets a state; NumPy's number formats have one
                stack.take(1)
                if _of(Call, stack[-1]).name not in _NUMPY:
                    raise RefusedError(f"sets the state of {stack[-1].name}")
            elif operation == "BINPERSID" and persistent:
                pass  # the id itself is the result
            elif operation not in ("PROTO", "FRAME") and not stack.run(operation, argument):
                raise RefusedError(f"has the instruction {operation}")
        raise ValueError("the pickle does not end")

    def call(self, name: str, args: tuple[Any, ...]) -> Any:
        """The record that stands for a call's result."""
        if name in _DICTS:
            if args:
                raise ValueError("a dict is filled by later instructions")
            return {}
        if name == _BYTES:
            (blob,) = args
            return self.storage(_of(_Blob, blob))
        return Call(name, args)

    def storage(self, blob: _Blob) -> Storage:
        """The storage that ``torch.save`` wrote in its format before version 1.6: five pickles, then numbers."""
        file = io.BytesIO(self.data[blob.start : min(blob.end, blob.start + LARGEST_HEADER)])
        magic, version, system = (self.read(file, frozenset()) for _ in range(3))
        if (magic, version) != (0x1950A86A20F9469CFC6C, 1001) or _of(dict, system).get("little_endian") is not True:
            raise ValueError("not the format of a storage")
        tag, kind, key, _, count, view = _of(tuple, self.read(file, _STORAGES, persistent=True))
        keys = _of(list, self.read(file, frozenset()))
        written = int.from_bytes(file.read(8), "little")
        start = blob.start + file.tell()
        if tag != "storage" or len(keys) != 1 or keys[0] != _of(str, key) or view is not None:
            raise ValueError("not one storage")
        if written != _of(int, count) or start + count * _STORAGES[_of(Name, kind).text] != blob.end:
            raise ValueError("the storage's length is wrong")
        return Storage(kind.text, count, start, blob.end)


class _Stack(list[Any]):
    """The values on the machine's stack, with its marks and its memo."""

    def __init__(self) -> None:
        super().__init__()
        self.marks: list[int] = []  # heights of the stack
        self.memo: dict[int, Any] = {}

    def take(self, count: int) -> list[Any]:
        """The topmost ``count`` values, removed; IndexError if there are fewer."""
        if not 0 <= count <= len(self):
            raise IndexError("the stack holds fewer values")
        taken = self[len(self) - count :]
        del self[len(self) - count :]
        return taken

    def to_mark(self) -> list[Any]:
        """The values above the last mark, removed with the mark."""
        return self.take(len(self) - self.marks.pop())

    def run(self, operation: str, argument: Any) -> bool:
        """Run an instruction on containers, marks or the memo; False if ``operation`` is not one of those."""
        if operation == "EMPTY_DICT":
            self.append({})
        elif operation in ("EMPTY_LIST", "EMPTY_SET"):  # hashing a set of unknown things might never end
            self.append([])
        elif operation == "MARK":
            self.marks.append(len(self))
        elif operation == "TUPLE":
            self.append(tuple(self.to_mark()))
        elif operation in ("TUPLE1", "TUPLE2", "TUPLE3"):
            self.append(tuple(self.take(int(operation[-1]))))
        elif operation in ("APPEND", "APPENDS", "ADDITEMS"):
            items = self.take(1) if operation == "APPEND" else self.to_mark()
            _of(list, self[-1]).extend(items)
        elif operation in ("SETITEM", "SETITEMS"):
            items = self.take(2) if operation == "SETITEM" else self.to_mark()
            pairs = zip(items[::2], items[1::2], strict=True)
            _of(dict, self[-1]).update({_of(str, key): value for key, value in pairs})
        elif operation in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self[-1]
        elif operation == "MEMOIZE":
            self.memo[len(self.memo)] = self[-1]
        elif operation in ("BINGET", "LONG_BINGET"):
            self.append(self.memo[argument])
        else:
            return False
        return True


def _of(kind: type, value: Any) -> Any:
    """``value`` if its type is exactly ``kind`` (a record is also a tuple, a bool also an int), else TypeError."""
    if type(value) is not kind:
        raise TypeError(f"{type(value).__name__} in place of {kind.__name__}")
    return value


def preview(value: Any) -> str:
    """A value of an untrusted file, shortened and escaped for an error message."""
    if isinstance(value, str):
        return ascii(value[:80])[1:-1] + ("..." if len(value) > 80 else "")
    return repr(value)[:80] if value is None or isinstance(value, (bool, int, float)) else type(value).__name__
