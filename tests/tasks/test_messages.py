"""Messages as ids: what is new is encoded once, by the model's own template."""

import pytest
from small_tokenizer import TEMPLATE, make

from tis_jax.models import CharacterTokenizer
from tis_jax.tasks.messages import opening_ids, reply_ids

CHAT = make("smollm", chat_template=TEMPLATE)
CHARACTERS = CharacterTokenizer("0123456789+=")


def test_the_reply_is_what_the_template_puts_behind_a_turn():
  said = [{"role": "tool", "content": "24"}]
  opening = opening_ids(CHAT, ["48/2?"], chat=True)
  turn = [*CHAT.encode("123 the"), CHAT.eos_id]
  reply = reply_ids(CHAT, said, chat=True, ended=True)
  messages = [
    {"role": "user", "content": "48/2?"},
    {"role": "assistant", "content": "123 the"},
    *said,
  ]
  # Nothing was sampled otherwise than it is written, so the whole is the same.
  assert opening + turn + reply == CHAT.encode(CHAT.render(messages))


def test_a_turn_that_was_cut_is_ended_by_the_template():
  ended = reply_ids(CHAT, ["24"], chat=True, ended=True)
  cut = reply_ids(CHAT, ["24"], chat=True, ended=False)
  assert cut == [CHAT.eos_id, *ended]


def test_text_without_a_template_follows_as_it_stands():
  assert opening_ids(CHARACTERS, ["1+", "2="], chat=False) == CHARACTERS.encode("1+2=")
  for ended in (True, False):
    assert reply_ids(CHARACTERS, ["24"], chat=False, ended=ended) == [4, 6]
  assert reply_ids(CHARACTERS, [], chat=False, ended=True) == []


def test_what_cannot_be_said_is_refused_in_words():
  with pytest.raises(TypeError, match="has a role"):
    opening_ids(CHARACTERS, [{"role": "user", "content": "1"}], chat=False)
  with pytest.raises(ValueError, match="not in"):
    reply_ids(CHARACTERS, ["one"], chat=False, ended=True)
  with pytest.raises(ValueError, match="no chat template"):
    opening_ids(make("smollm"), ["1"], chat=True)
  mute = make("smollm", chat_template="{{ messages[-1]['content'] }}")
  with pytest.raises(ValueError, match="does not show what the assistant said"):
    reply_ids(mute, ["24"], chat=True, ended=True)
