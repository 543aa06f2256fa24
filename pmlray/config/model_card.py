"""The head of an adapter's card, which the Hugging Face hub and PEFT read."""

from __future__ import annotations

from pmlray.config.search_spec import SearchSpec

TAGS = ("lora", "memorization", "pmlray")


def card_head(spec: SearchSpec) -> str:
    """YAML between two rules, for the start of an adapter's README.md.

    An `mlp` adapter adds to a block's output, which PEFT cannot, so that PEFT is not named as what
    loads it. No licence is stated: that is for who publishes it.
    """
    # Half a second, which only writers of cards need to wait.
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        base_model=spec.model.id,
        library_name="peft" if spec.probe.placement == "down_proj" else "pmlray",
        pipeline_tag="text-generation",
        tags=[*TAGS, spec.task.kind],
        base_model_relation="adapter",
    )
    front = data.to_yaml()  # pyright: ignore[reportUnknownMemberType] - a default is untyped
    return f"---\n{front}\n---\n\n"


def loading(spec: SearchSpec) -> str:
    """How to use an adapter of this search, as Markdown."""
    if spec.probe.placement == "mlp":
        return (
            "It adds `x A B` to the output of a block's MLP, in a layout of its own; `pmlray recall"
            " FOLDER RECORDS` runs it.\n"
        )
    revision = f', revision="{spec.model.revision}"' if spec.model.revision else ""
    return f"""```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("{spec.model.id}"{revision})
model = PeftModel.from_pretrained(base, "FOLDER")  # where this file lies, or its repository
```
"""
