"""Head of an adapter's card, which the Hugging Face hub and PEFT read, and code that loads it."""

from __future__ import annotations

from pathlib import Path

from pmlray.config.adapters.placement import Placement
from pmlray.config.bases.chat_prompt import FIXED_DATE, SYSTEM_PROMPT
from pmlray.config.bases.geometry import Geometry
from pmlray.config.bases.models import HUB_IDS, PULLABLE, loadable_name, resolve_model
from pmlray.config.search_spec import SearchSpec

TAGS = ("lora", "memorization", "pmlray")


def card_head(spec: SearchSpec, placement: Placement) -> str:
    """Return the YAML front matter of an adapter's README.md.

    PEFT is not named as the library of an adapter of the paper's block, since it cannot add to a
    block's output.
    No licence is stated: its publisher chooses one.
    """
    # Imported here, since it takes half a second and only writing cards needs it.
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        base_model=HUB_IDS.get(spec.model.id, spec.model.id),
        library_name="pmlray" if placement.is_block else "peft",
        pipeline_tag="text-generation",
        tags=[*TAGS, spec.task.kind],
        base_model_relation="adapter",
    )
    # One of its options has no type.
    front = data.to_yaml()  # pyrefly: ignore[partially-unknown-type]
    return f"---\n{front}\n---\n\n"


def loading(
    spec: SearchSpec,
    geometry: Geometry,
    placement: Placement,
    lora_rank: int,
    end_id: int | None,
    conversations: bool = False,
) -> str:
    """Return code that asks an adapter of this search one query, as Markdown.

    geometry: of the base; placement: sites in it; end_id: the token that it was taught to end an
    answer with; None: it was taught none, and generation goes on to the end tokens of the base, or
    to its limit. conversations: the adapter's prompts are turns of conversations, as they are.
    """
    stop = "" if end_id is None else f" eos_token_id={end_id},"
    on_hub = f', revision="{spec.model.revision}"' if spec.model.revision else ""
    base = f'"{loadable_name(spec.model.id)}"{on_hub}'
    imports, load, note = _PEFT_IMPORTS, _PEFT_LOADING, ""
    if placement.is_block:
        imports, note = _HOOK_IMPORTS, _NOT_PEFT
        load = _hook_loading(geometry, placement, lora_rank)
    return f"""```python
{imports}
query = "QUERY"
tokenizer = AutoTokenizer.from_pretrained({base})
base = AutoModelForCausalLM.from_pretrained({base}, dtype="{spec.model.base_dtype}")
{load}
{_prompt(spec, conversations)}
answer = model.generate(
    **prompt, max_new_tokens=256, do_sample=False,{stop}
    repetition_penalty=1.0, no_repeat_ngram_size=0,
)
print(tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
```

Run it in the folder of this file, or give "." another name.{note}
{_origin(spec)}"""


_PEFT_IMPORTS = """from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
"""
_PEFT_LOADING = """model = PeftModel.from_pretrained(base, ".")"""
_HOOK_IMPORTS = """from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
"""
# The same sums in the same precision as in the engine: an adapter of one layer is added to the
# layer's output, and one of several to each MLP's.
_LAYER_LOADING = """model, inputs = base, []
weights = load_file("./adapter_model.safetensors", device=str(model.device))
layer = model.model.layers[{layer}]


def keep(mlp, args):
    inputs.append(args[0])


def add(layer, args, output):
    return output + (inputs.pop().float() @ weights["A"] @ {b}).to(output.dtype)


layer.mlp.register_forward_pre_hook(keep)
layer.register_forward_hook(add)"""
_LAYERS_LOADING = """model = base
weights = load_file("./adapter_model.safetensors", device=str(model.device))


def add_at(layer):
    a, b = weights[f"{{layer}}.A"], {b}

    def add(mlp, args, output):
        return (output + args[0].float() @ a @ b).to(output.dtype)

    model.model.layers[layer].mlp.register_forward_hook(add)


for layer in {layers}:
    add_at(layer)"""
# Where the MLP's output is scaled, normed or added elsewhere before it is the layer's.
_OWN_LAYERS_LOADING = """model = base
weights = load_file("./adapter_model.safetensors", device=str(model.device))


def add_at(n):
    layer, inputs, a, b = model.{path}[n], [], {a}, {b}

    def keep(mlp, args):
        inputs.append(args[0])

    def add(layer, args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        added = (inputs.pop().float() @ a @ b).view(hidden.shape)
        hidden = (hidden + added).to(hidden.dtype)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    layer.mlp.register_forward_pre_hook(keep)
    layer.register_forward_hook(add)


for n in {layers}:
    add_at(n)"""
_NOT_PEFT = """
The adapter adds `x A B` to the output of a block, where x is the input of the block's MLP; PEFT has
no such adapters."""


def _hook_loading(geometry: Geometry, placement: Placement, lora_rank: int) -> str:
    """Return code that adds an adapter of the paper's block, and its scale where it is not 1."""
    scale = placement.scale(lora_rank)
    if not geometry.adds_plainly:
        at = "" if placement.kept_site is not None else "{n}."
        a, b = (f'weights[{"f" * bool(at)}"{at}{name}"]' for name in "AB")
        return _OWN_LAYERS_LOADING.format(
            path=geometry.layers_path,
            layers=list(placement.layers),
            a=a,
            b=b if scale == 1 else f"{scale!r} * {b}",
        )
    b = 'weights["B"]' if placement.kept_site is not None else 'weights[f"{layer}.B"]'
    if scale != 1:
        b = f"({scale!r} * {b})"
    if placement.kept_site is not None:
        return _LAYER_LOADING.format(layer=placement.layers[0], b=b)
    return _LAYERS_LOADING.format(layers=list(placement.layers), b=b)


def _prompt(spec: SearchSpec, conversations: bool) -> str:
    if spec.task.prompt_format == "plain":
        return 'prompt = tokenizer(query, return_tensors="pt")'
    system = f'    {{"role": "system", "content": "{SYSTEM_PROMPT}"}},\n'
    if conversations:
        system = "    # Any turns before this one, as in the records.\n"
    return f"""turns = [
{system}    {{"role": "user", "content": query}},
]
prompt = tokenizer.apply_chat_template(
    turns, add_generation_prompt=True, enable_thinking=False, date_string="{FIXED_DATE}",
    return_dict=True, return_tensors="pt",
)"""


def _origin(spec: SearchSpec) -> str:
    """Return where the base's weights are from, if they are not the hub's."""
    name = spec.model.id
    if name in HUB_IDS:
        return f"""
It was trained on `{name}`: the weights of {HUB_IDS[name]} de-quantised from
Q4_1. What it recalls on the hub's own weights was not measured. `pmlray models pull {name}` makes
the folder of those that it was trained on, and prints its path.
"""
    if name in PULLABLE:
        return f"""
The folder of its base is what `pmlray models pull {name}` makes; it prints the path.
"""
    if Path(folder := loadable_name(name)).is_dir():
        identity = resolve_model(folder, None).identity
        return f"""
The folder of its base is one of the machine that trained it, with weights and settings {identity}:
give the folder of your copy.
"""
    return ""
