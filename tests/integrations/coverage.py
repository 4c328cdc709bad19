"""Architectures of timm and transformers, converted and trained for a step: run it by hand.

    python -m tests.integrations.coverage [part of a name ...]

It is no part of the tests, for it takes some minutes. It runs where both packages are installed, as
in the environment that `make examples` makes. No weights are downloaded; models have random ones
and are as small as they can be. Of each it tries

- sparsify(model, 0.9, example_input=...), a training step, a rewire, another step;
- densify: the same outputs as the sparse model, and the state_dict loads into a new model.

It prints a line for each, with how many layers became sparse, the sparsity over them and over the
whole model, and why others stayed dense.
"""

from __future__ import annotations

import copy
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from dsr_kernels import densify, sparsify, summary
from dsr_kernels.rewiring import DSR

Case = tuple[Callable[[], nn.Module], Any]

# Name -> (side of the image, arguments of timm.create_model).
TIMM: dict[str, tuple[int, dict[str, Any]]] = {
    "resnet18": (64, {}),
    "resnet50": (64, {}),
    "resnext50_32x4d": (64, {}),
    "wide_resnet50_2": (64, {}),
    "seresnet18": (64, {}),
    "regnetx_002": (64, {}),
    "regnety_002": (64, {}),
    "densenet121": (64, {}),
    "vgg11_bn": (64, {}),
    "mobilenetv2_050": (64, {}),
    "mobilenetv3_small_100": (64, {}),
    "mobilenetv4_conv_small": (64, {}),
    "efficientnet_b0": (64, {}),
    "tf_efficientnetv2_b0": (64, {}),
    "mnasnet_small": (64, {}),
    "ghostnet_050": (64, {}),
    "repvgg_a0": (64, {}),
    "convnext_atto": (64, {}),
    "convnextv2_atto": (64, {}),
    "edgenext_xx_small": (64, {}),
    "resmlp_12_224": (224, {}),
    "mixer_s32_224": (224, {}),
    "poolformer_s12": (64, {}),
    "vit_tiny_patch16_224": (64, {"img_size": 64}),
    "deit_tiny_patch16_224": (64, {"img_size": 64}),
    "deit3_small_patch16_224": (64, {"img_size": 64}),
    "beit_base_patch16_224": (64, {"img_size": 64}),
    "eva02_tiny_patch14_224": (56, {"img_size": 56}),
    "xcit_nano_12_p16_224": (64, {"img_size": 64}),
    "swin_tiny_patch4_window7_224": (224, {}),
    "swinv2_cr_tiny_ns_224": (224, {}),
    "swinv2_tiny_window8_256": (256, {}),
    "cait_xxs24_224": (64, {"img_size": 64}),
    "coat_tiny": (224, {}),
    "levit_128s": (224, {}),
}


def of_timm(name: str) -> Case:
    import timm

    side, arguments = TIMM[name]
    images = torch.randn(2, 3, side, side)
    return lambda: timm.create_model(name, num_classes=10, **arguments), images


def _tokens() -> torch.Tensor:
    return torch.randint(5, 90, (2, 8))


def of_transformers() -> dict[str, Callable[[], Case]]:
    """By name: what makes a tiny model, and what it is called with."""
    import transformers as hf

    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**size, "intermediate_size": 64, "vocab_size": 100}
    image = {**size, "intermediate_size": 64, "image_size": 32, "patch_size": 8}
    ids: dict[str, Any] = {"input_ids": _tokens()}
    pixels = torch.randn(2, 3, 32, 32)
    gpt = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 100, "n_positions": 32}
    t5 = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
    bert = {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2, "vocab_size": 100}
    clip = {"text_config": text, "vision_config": image, "projection_dim": 16}
    whisper = {
        **{"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "vocab_size": 100},
        **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "pad_token_id": 0},
        **{"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_source_positions": 16},
        **{"num_mel_bins": 16, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1},
    }
    return {
        "BERT": lambda: (
            lambda: hf.BertForSequenceClassification(hf.BertConfig(**text)),
            ids,
        ),
        "RoBERTa": lambda: (
            lambda: hf.RobertaForSequenceClassification(hf.RobertaConfig(**text)),
            ids,
        ),
        "DistilBERT": lambda: (
            lambda: hf.DistilBertForSequenceClassification(hf.DistilBertConfig(**bert)),
            ids,
        ),
        "GPT-2": lambda: (lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**gpt)), ids),
        "Llama": lambda: (lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**text)), ids),
        "T5": lambda: (
            lambda: hf.T5ForConditionalGeneration(hf.T5Config(**t5, vocab_size=100)),
            {**ids, "decoder_input_ids": _tokens()},
        ),
        "ViT": lambda: (lambda: hf.ViTForImageClassification(hf.ViTConfig(**image)), pixels),
        "CLIP": lambda: (
            lambda: hf.CLIPModel(hf.CLIPConfig(**clip)),
            {**ids, "pixel_values": pixels},
        ),
        "Whisper": lambda: (
            lambda: hf.WhisperForConditionalGeneration(hf.WhisperConfig(**whisper)),
            {"input_features": torch.randn(2, 16, 32), "decoder_input_ids": _tokens()},
        ),
    }


def call(model: nn.Module, example: Any) -> torch.Tensor:
    """The first floating-point tensor of what the model returns."""
    out = model(**example) if isinstance(example, dict) else model(example)
    if isinstance(out, torch.Tensor):
        return out
    values = out.values() if isinstance(out, dict) else out
    return next(v for v in values if isinstance(v, torch.Tensor) and v.is_floating_point())


def step(model: nn.Module, example: Any, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    call(model, example).square().mean().backward()
    optimizer.step()


def attempt(build: Callable[[], nn.Module], example: Any) -> str:
    """Tries one architecture; one line of what came out. Raises whatever goes wrong."""
    torch.manual_seed(0)
    model = build()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        sparse = sparsify(model, 0.9, example_input=example)
    reasons = [str(w.message) for w in said if "these layers stay dense" in str(w.message)]
    optimizer = torch.optim.SGD(sparse.parameters(), 1e-3, momentum=0.9)
    rewirer = DSR(sparse, optimizer, prune_fraction=0.1, every=1)
    before = rewirer.nnz
    for _ in range(2):
        step(sparse, example, optimizer)
        rewirer.step()
    assert rewirer.nnz == before, "the number of non-zeros changed"
    dense = densify(sparse)
    with torch.no_grad():
        ours, theirs = (call(m.eval(), example) for m in (sparse, dense))
    scale = theirs.abs().max()
    assert (ours - theirs).abs().max() <= 1e-3 * scale + 1e-5, "densify computes something else"
    build().load_state_dict(copy.deepcopy(dense.state_dict()))
    table = summary(sparse)
    line = f"{len(table.sparse_layers)} layers sparse, {table.sparsity:.3f}"
    line += f" over them, {table.model_sparsity:.3f} over the model"
    return "; ".join([line, *(text.partition("dense: ")[2][:300] for text in reasons)])


def main(parts: list[str]) -> int:
    """Tries every architecture whose name has one of the parts; 0 if all that ran passed."""
    cases: dict[str, Callable[[], Case]] = {}
    cases |= {f"timm {name}": (lambda name=name: of_timm(name)) for name in TIMM}
    cases |= {f"hf {name}": make for name, make in of_transformers().items()}
    passed = tried = 0
    for name, make in cases.items():
        if parts and not any(part in name for part in parts):
            continue
        tried, start = tried + 1, time.time()
        try:
            line = attempt(*make())
            passed += 1
        except Exception as error:
            line = f"FAILED {type(error).__name__}: {str(error)[:400]}"
        print(f"{name} ({time.time() - start:.0f} s): {line}", flush=True)
    print(f"{passed} of {tried}")
    return int(passed < tried)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
