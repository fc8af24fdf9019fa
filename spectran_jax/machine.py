"""What figures depend on beside the settings: the code, the versions and the machine."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import jax

from spectran_jax.digest import code_digest

_OF_A_RUN = ("code", "jax", "processor", "device", "devices")


def describe_machine() -> dict[str, Any]:
    """The code's digest, cores, processor, platform, versions, device."""
    return {
        "code": code_digest()[:12],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "processor": _processor(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
    }


def made_with() -> dict[str, Any]:
    """What a run notes of itself: the code's digest, JAX's version, processor, kind and number of devices."""
    machine = describe_machine()
    return {name: machine[name] for name in _OF_A_RUN}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
