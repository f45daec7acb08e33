from __future__ import annotations

from bae_lens.activations.read_once import ReadOnce
from tests.helpers import HOOK, make_model, make_tokens


def test_a_model_that_reads_once_gives_what_the_model_gives():
    model, tokens = make_model(), make_tokens()
    once = ReadOnce(model)
    _, expected = model.run_with_cache(tokens, names_filter=[HOOK])
    for _ in range(2):
        output, cache = once.run_with_cache(tokens, names_filter=[HOOK], prepend_bos=False)
        assert output is None
        assert (cache[HOOK] == expected[HOOK]).all()
    assert once.cfg is model.cfg
    _, other = once.run_with_cache(tokens, names_filter=["hook_embed"], prepend_bos=False)
    assert set(other) == {"hook_embed"}
