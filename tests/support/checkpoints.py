"""PyTorch checkpoints of Whisper."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray


def hf_name(name: str) -> str:
    """The name that transformers gives a tensor of OpenAI's, written out case by case."""
    parts = name.split(".")
    if parts[1] == "positional_embedding":
        return f"model.{parts[0]}.embed_positions.weight"
    if parts[1] == "token_embedding":
        return "model.decoder.embed_tokens.weight"
    if parts[1] == "ln" or parts[1] == "ln_post":
        return f"model.{parts[0]}.layer_norm.{parts[2]}"
    if parts[1].startswith("conv"):
        return f"model.{name}"
    side, _, layer, kind, *rest = parts
    prefix = f"model.{side}.layers.{layer}"
    attention = {"attn": "self_attn", "cross_attn": "encoder_attn"}
    if kind in attention:
        role = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}[rest[0]]
        return f"{prefix}.{attention[kind]}.{role}.{rest[1]}"
    if kind == "mlp":
        return f"{prefix}.{ {'0': 'fc1', '2': 'fc2'}[rest[0]] }.{rest[1]}"
    norm = {
        "attn_ln": "self_attn_layer_norm",
        "cross_attn_ln": "encoder_attn_layer_norm",
        "mlp_ln": "final_layer_norm",
    }[kind]
    return f"{prefix}.{norm}.{rest[0]}"


def write_checkpoint(tensors: Mapping[str, NDArray[Any]], folder: Path) -> None:
    """Write ``tensors``, under OpenAI's names, as transformers saves them, in float32."""
    folder.mkdir()
    state = torch.nn.Module().state_dict()  # which carries its versions in an attribute
    state.update(
        {hf_name(name): torch.tensor(tensors[name], dtype=torch.float32) for name in tensors}
    )
    state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"]
    torch.save(state, folder / "pytorch_model.bin")
