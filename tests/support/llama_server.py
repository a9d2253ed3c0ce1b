"""llama.cpp's own HTTP server, with a model of made-up weights: it writes nonsense.

``python -m tests.support.llama_server MODEL`` makes the model, serves it until standard input ends,
and prints the server's URL.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

KEY = "made-up-key"
EMBEDDING, HEADS, FEED_FORWARD, CONTEXT = 32, 2, 64, 16_384
SPECIAL = ["<unk>", "<s>", "</s>"]
TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"
)
"""How a conversation becomes one text."""


def make_model(path: Path) -> None:
    """Write a GGUF file: a Llama of one layer whose tokens are bytes."""
    from gguf import GGUFWriter, TokenType

    writer = GGUFWriter(path, "llama")
    writer.add_name("made-up")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(EMBEDDING)
    writer.add_block_count(1)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(EMBEDDING // HEADS)

    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    kinds = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, *[TokenType.BYTE] * 256]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(TEMPLATE)

    rng = np.random.default_rng(7)
    shapes = {
        "token_embd.weight": (len(tokens), EMBEDDING),
        "output.weight": (len(tokens), EMBEDDING),
        **{f"blk.0.attn_{name}.weight": (EMBEDDING, EMBEDDING) for name in ("q", "k", "v")},
        "blk.0.attn_output.weight": (EMBEDDING, EMBEDDING),
        "blk.0.ffn_gate.weight": (FEED_FORWARD, EMBEDDING),
        "blk.0.ffn_up.weight": (FEED_FORWARD, EMBEDDING),
        "blk.0.ffn_down.weight": (EMBEDDING, FEED_FORWARD),
    }
    for name, shape in shapes.items():
        writer.add_tensor(name, rng.normal(0, 0.2, shape).astype(np.float32))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(EMBEDDING, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@contextmanager
def llama_server(folder: Path) -> Iterator[str]:
    """The URL of its API, in a process of its own; its logs are in ``folder``."""
    with (folder / "llama.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.llama_server", str(folder / "made-up.gguf")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            lines = (line.strip() for line in process.stdout)
            address = next((line for line in lines if line.startswith("http://")), None)
            assert address is not None, (folder / "llama.log").read_text()
            yield f"{address}/v1"
        finally:
            process.stdin.close()
            process.wait()


def main(path: Path) -> None:
    import xllamacpp

    make_model(path)
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx = CONTEXT
    params.n_parallel = 1
    params.warmup = False
    params.cpuparams.n_threads = 1
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [KEY]
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)  # noqa: T201 - that is its answer
    sys.stdin.read()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
