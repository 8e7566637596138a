"""The most memory that something holds at once: the accelerator's in use, else this process's.

The process's high-water mark can be set back on Linux alone (proc(5), clear_refs 5); elsewhere the
peak is unknown, 0. Weights count, and so does what was there before.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MARK, KIB = "VmHWM:", 1024


@dataclass
class Peak:
    """Bytes, once the context has ended; 0 where they cannot be read."""

    bytes: int = 0


_open: list[Peak] = []


@contextmanager
def peak() -> Iterator[Peak]:
    """Fills in the most memory that was held inside; contexts may lie in each other."""
    _told(_high())
    found = Peak()
    known = _set_back()
    _open.append(found)
    try:
        yield found
    finally:
        _open.pop()
        found.bytes = max(found.bytes, _high()) if known else 0
        _told(found.bytes)
        _set_back()


def _told(high: int) -> None:
    """What is around hears how high the mark was before it is set back."""
    if _open:
        _open[-1].bytes = max(_open[-1].bytes, high)


def _cuda() -> Any:
    """PyTorch's CUDA, where this process uses it: asking must not be what starts it."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


def _high() -> int:
    if (cuda := _cuda()) is not None:
        return max(cuda.max_memory_allocated(i) for i in range(cuda.device_count()))
    try:
        lines = STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * KIB for line in lines if line.startswith(MARK)), 0)


def _set_back() -> bool:
    """Sets the mark to what is held now; whether that could be done."""
    if (cuda := _cuda()) is not None:
        for i in range(cuda.device_count()):
            cuda.reset_peak_memory_stats(i)
        return True
    try:
        RESET.write_text("5", encoding="ascii")
    except OSError:
        return False
    return True
