"""Head of an adapter's card, which the Hugging Face hub and PEFT read."""

from __future__ import annotations

from pmlray.config.base_models import HUB_IDS
from pmlray.config.search_spec import SearchSpec

TAGS = ("lora", "memorization", "pmlray")


def card_head(spec: SearchSpec) -> str:
    """Return the YAML front matter of an adapter's README.md.

    PEFT is not named as the library of an `mlp` adapter, since it cannot add to a block's output.
    No licence is stated: its publisher chooses one.
    """
    # Imported here, since it takes half a second and only writing cards needs it.
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        base_model=HUB_IDS.get(spec.model.id, spec.model.id),
        library_name="peft" if spec.probe.placement == "down_proj" else "pmlray",
        pipeline_tag="text-generation",
        tags=[*TAGS, spec.task.kind],
        base_model_relation="adapter",
    )
    # One of its options has no type.
    front = data.to_yaml()  # pyrefly: ignore[partially-unknown-type]
    return f"---\n{front}\n---\n\n"


def loading(spec: SearchSpec) -> str:
    """Return instructions for using an adapter of this search, as Markdown."""
    if spec.probe.placement == "mlp":
        return (
            "It adds `x A B` to the output of a block's MLP, in a layout of its own; `pmlray recall"
            " --adapter FOLDER --records FILE` runs it.\n"
        )
    base = HUB_IDS.get(spec.model.id, spec.model.id)
    revision = f', revision="{spec.model.revision}"' if spec.model.revision else ""
    return f"""```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("{base}"{revision})
model = PeftModel.from_pretrained(base, "FOLDER")  # where this file lies, or its repository
```
{_rounded(spec)}"""


def _rounded(spec: SearchSpec) -> str:
    if spec.model.id not in HUB_IDS:
        return ""
    return f"""
It was trained on `{spec.model.id}`: the weights of {HUB_IDS[spec.model.id]} de-quantised from
Q4_1. What it recalls on the hub's own weights was not measured.
"""
