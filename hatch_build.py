"""Compiles the CPU kernels into the wheel; without a compiler the wheel is complete but the kernels come at first use.

The C++ sources travel in the wheel too (kcode_backend/kernels/csrc), so that a compiler found later can still be used, and so do
the CUDA kernels (kcode_backend/cuda/csrc), which are always compiled on the user's machine.
"""

from __future__ import annotations

import importlib.util
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.builders.wheel import WheelBuilderConfig

NO_KERNELS = (
    "kcode: the CPU kernels are not part of this installation ({reason}). They are compiled at first use if a C++ compiler is "
    "found then; until one is, the engine runs its torch reference, hundreds of times slower."
)


def _load_build(root: Path) -> ModuleType:
    """kernels/build.py by its path: the package's own dependencies are not installed while a wheel is built."""
    spec = importlib.util.spec_from_file_location("kcode_kernels_build", root / "backend/kcode_backend/kernels/build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class KernelBuildHook(BuildHookInterface[WheelBuilderConfig]):
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, object]) -> None:
        """version is "editable" for development installs: the library then stays in the source tree."""
        if self.target_name != "wheel":
            return
        included = build_data["force_include"]
        assert isinstance(included, dict)
        root = Path(self.root)
        csrc = root / "backend" / "csrc" / "cpu"
        build = _load_build(root)
        package = root / "backend" / "kcode_backend" / "kernels"
        folder = package if version == "editable" else Path(self.directory) / "kernels"
        library = folder / build.library_name(csrc)
        if version != "editable":
            included[str(csrc)] = "kcode_backend/kernels/csrc"
            included[str(root / "backend" / "csrc" / "cuda")] = "kcode_backend/cuda/csrc"
        compiler = build.find_compiler()
        if compiler is None:
            self.app.display_warning(NO_KERNELS.format(reason="no C++ compiler: c++, g++ or clang++"))
            return
        try:
            if not library.is_file():
                build.compile_library(csrc, library, compiler)
        except (build.CompileError, OSError) as error:
            self.app.display_warning(NO_KERNELS.format(reason=error))
            return
        if version != "editable":
            included[str(library)] = f"kcode_backend/kernels/{library.name}"
            build_data["pure_python"] = False
            build_data["tag"] = "py3-none-" + sysconfig.get_platform().replace("-", "_").replace(".", "_")
