"""What of the vLLM backend needs no vLLM; the rest is in test_vllm.py."""

import base64
import subprocess
import sys
from pathlib import Path

import pytest

from captioner.chat import Question
from captioner.completions import messages
from captioner.vllm_model import VllmModel, split_settings
from pipeline.errors import UserError
from tests.support.shards import jpeg, png


def refused(text: str) -> str:
    """The one line that the user reads."""
    with pytest.raises(UserError) as error:
        VllmModel(text)
    line = str(error.value)
    assert "\n" not in line
    assert "pip install 'recaption[vllm]'" in line
    return line


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Installs a package named vllm that holds nothing but the code given."""

    def install(code: str) -> None:
        for folder in ("", "v1", "v1/engine"):
            (tmp_path / "vllm" / folder).mkdir(exist_ok=True)
            (tmp_path / "vllm" / folder / "__init__.py").write_text("")
        (tmp_path / "vllm/__init__.py").write_text(code)
        for name in [name for name in sys.modules if name.split(".")[0] == "vllm"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.syspath_prepend(tmp_path)

    yield install
    for name in [name for name in sys.modules if name.split(".")[0] == "vllm"]:
        del sys.modules[name]


def test_without_vllm(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    assert "vLLM is not installed" in refused("any")


@pytest.mark.parametrize("version", ["0.2.5", "0.29.1", "0.9.0.1", "0.29.0rc2+cpu"])
def test_an_old_vllm(installed, version):
    installed(f"__version__ = {version!r}")
    assert f"vLLM {version} is too old" in refused("any")


def test_a_broken_vllm(installed):
    installed("raise RuntimeError('operator torchvision::nms\\ndoes not exist')")
    assert "cannot be imported: RuntimeError: operator torchvision::nms does" in refused("any")
    installed("__version__ = '1.0.0'")  # new enough, and nothing in it
    assert "not installed here: No module named 'vllm.v1.engine.async_llm'" in refused("any")


def test_settings_stand_in_the_name():
    assert split_settings("/models/a b") == ("/models/a b", {})
    name = 'org/model?max_model_len=4096&dtype=float32&enforce_eager=true&limit_mm_per_prompt={"image":2}'
    assert split_settings(name) == (
        "org/model",
        {
            "max_model_len": 4096,
            "dtype": "float32",
            "enforce_eager": True,
            "limit_mm_per_prompt": {"image": 2},
        },
    )
    for bad in ("m?dtype", "m?=1&&", "m?a=1&b"):
        with pytest.raises(UserError, match="malformed"):
            split_settings(bad)


def test_messages_put_the_image_before_the_text():
    assert messages(Question("k", "Hi.")) == [
        {"role": "user", "content": [{"type": "text", "text": "Hi."}]}
    ]
    for image, kind in ((jpeg(), "jpeg"), (png(), "png")):
        system, user = messages(Question("k", "Describe.", system="Be terse.", image=image))
        assert system == {"role": "system", "content": "Be terse."}
        picture, text = user["content"]
        head, data = picture["image_url"]["url"].split(",")
        assert head == f"data:image/{kind};base64"
        assert base64.b64decode(data) == image
        assert text == {"type": "text", "text": "Describe."}


def test_importing_it_loads_no_engine():
    code = "import sys, captioner.vllm_model as m; sys.exit('torch' in sys.modules or 'vllm' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=root).returncode == 0
