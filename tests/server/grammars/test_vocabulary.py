"""A vocabulary's sizes and ends."""

import pytest

from saccade_server.grammars.vocabulary import Vocabulary


@pytest.mark.parametrize(("size", "words"), [(1, 1), (32, 1), (33, 2), (300, 10)])
def test_the_mask_has_a_bit_for_every_logit(size, words):
    vocabulary = Vocabulary.of([b"a"] * 40, (), (0,), size)
    assert vocabulary.words == words
    assert vocabulary.tokenizer.vocab_size == size


def test_ends_beyond_the_logits_are_dropped():
    assert Vocabulary.of([b"a", b"b"], (), (1, 1, 7), 3).ends == (1,)


@pytest.mark.parametrize("ends", [(), (3,)])
def test_an_answer_must_be_able_to_end(ends):
    with pytest.raises(ValueError, match="ends"):
        Vocabulary.of([b"a", b"b"], (), ends, 3)
