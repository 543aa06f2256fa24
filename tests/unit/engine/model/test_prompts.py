"""Where an answer ends: by the chat template, else by the tokenizer, else nowhere."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from transformers.models.auto.tokenization_auto import AutoTokenizer

from pmlray.engine.model.prompts import end_token_id, end_token_ids, render_prompt
from pmlray.engine.model.rendered_facts import rendered_facts
from pmlray.errors import DataError, ModelError
from pmlray.memory import PlacedPair

TURNS = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}END\n{% endfor %}"


@pytest.fixture
def tokenizer(tiny_folder: str) -> Any:
    """The tiny model's, with an end of turn of its own beside its end token."""
    found = AutoTokenizer.from_pretrained(tiny_folder)
    found.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    return found


def model(**ends: Any) -> Any:
    return SimpleNamespace(
        config=SimpleNamespace(eos_token_id=ends.get("config")),
        generation_config=SimpleNamespace(eos_token_id=ends.get("generation")),
    )


def test_the_end_is_what_the_template_puts_after_an_answer(tokenizer: Any) -> None:
    turn = tokenizer.convert_tokens_to_ids("<turn>")
    tokenizer.chat_template = TURNS.replace("END", "<turn>")
    assert end_token_id(tokenizer, "plain") == tokenizer.eos_token_id != turn
    assert end_token_id(tokenizer, "chat") == turn
    # What is trained after an answer is what the template has there, right after its last token.
    prompt = render_prompt(tokenizer, "q", "chat")
    whole = tokenizer.apply_chat_template(
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], tokenize=False
    )
    ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
    answer = tokenizer("a", add_special_tokens=False)["input_ids"]
    place = max(i for i in range(len(ids)) if ids[i : i + len(answer)] == answer)
    assert ids[place + len(answer)] == turn and turn in prompt
    # A template without a special token ends answers as plain text does.
    tokenizer.chat_template = TURNS.replace("END", "###")
    assert end_token_id(tokenizer, "chat") == tokenizer.eos_token_id


def test_turns_of_a_conversation_are_rendered_as_transformers_renders_them(tokenizer: Any) -> None:
    alternate = "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}"
    generated = "{% if add_generation_prompt %}[assistant]{% endif %}"
    tokenizer.chat_template = TURNS.replace("END", "<turn>") + generated
    turns = (("system", "Be short."), ("user", "a?"), ("assistant", "b"), ("user", "c?"))
    for asked in (turns, turns[1:], turns[3:]):
        messages = [{"role": role, "content": content} for role, content in asked]
        wanted = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        assert render_prompt(tokenizer, asked, "chat") == wanted
    assert render_prompt(tokenizer, turns[3:], "chat") != render_prompt(tokenizer, "c?", "chat")
    tokenizer.chat_template = alternate + TURNS
    with pytest.raises(DataError, match=r"does not render the turns system, user.*\(user first\)"):
        render_prompt(tokenizer, turns[:2], "chat")
    rows = [PlacedPair("line 1", turns[3:], "x"), PlacedPair("line 2", turns, "y")]
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: the base's chat template does not"):
        rendered_facts(rows, "a.jsonl", tokenizer, "chat")


def test_generation_stops_at_every_end_that_a_base_names(tokenizer: Any) -> None:
    turn = tokenizer.convert_tokens_to_ids("<turn>")
    tokenizer.chat_template = TURNS.replace("END", "<turn>")
    eos = tokenizer.eos_token_id
    assert end_token_ids(tokenizer, model()) == {eos, turn}
    assert end_token_ids(tokenizer, model(config=7, generation=[8, 9])) == {eos, turn, 7, 8, 9}
    tokenizer.eos_token = None
    assert end_token_ids(tokenizer, model(generation=9)) == {9}
    assert end_token_ids(tokenizer, model()) == frozenset()
    with pytest.raises(ModelError, match="names no end token"):
        end_token_id(tokenizer, "plain")
