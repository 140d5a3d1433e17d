"""What `distrib export` and `ensemble` find out before they begin."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from distrib.errors import MissingPartError
from distrib.export.wishes import check_bundle_wishes


@pytest.mark.parametrize(("name", "package", "pip"), [
    ("onnx", "onnxruntime", "onnxruntime"), ("onnx", "onnxscript", "onnxscript"), ("openvino", "openvino", "openvino"),
    ("openvino-int8", "nncf", r"'distrib\[int8\]'"), ("onnx-int8", "onnxruntime", "onnxruntime")])
def test_packages_of_formats_are_looked_for_first(name: str, package: str, pip: str, tmp_path: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    for one in ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf"):
        monkeypatch.setitem(sys.modules, one, sys)  # there, whatever is installed
    check_bundle_wishes(tmp_path / "out", ["torch", name], 1e-3, 1, 0.1, 1)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPartError, match=rf"'{name}' needs the package {package}, which is not installed\. No "
                                               rf"bundle was written\. Install it with pip install {pip}, or choose "):
        check_bundle_wishes(tmp_path / "out", ["torch", name], 1e-3, 1, 0.1, 1)
    check_bundle_wishes(tmp_path / "out", ["torch"], 1e-3, 1, 0.1, 1)
