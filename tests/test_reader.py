"""The reader of FOTS: a word alone and in a batch, beams beside all rows of columns, what letters follow, lexicons."""
import math
from collections import defaultdict
from itertools import groupby, product

import numpy as np
import pytest
import torch

from visionlab.core.checks import InputError
from visionlab.fots.config import Charset
from visionlab.fots.reader import CTCReader, Lexicon, beam_search, greedy_letters, read_lexicon, text_log_probability

letters26 = 'abcdefghijklmnopqrstuvwxyz'


@pytest.mark.parametrize('height', [8, 16])
def test_a_word_is_read_the_same_alone_and_in_a_batch(height):
    torch.manual_seed(0)
    reader = CTCReader(letters26, width=8, height=height).eval()
    widths = torch.tensor([33, 1, 7, 20])
    words = torch.randn(4, 32, height, 33)*(torch.arange(33) < widths[:, None])[:, None, None]
    with torch.no_grad():
        whole = reader(words, widths)
        for w, n, out in zip(words, widths, whole): torch.testing.assert_close(reader(w[None, ..., :n], n[None])[0], out[:n], rtol=1e-4, atol=1e-5)


def test_filling_has_no_gradient_and_no_words_do_no_harm():
    reader = CTCReader('ab', width=4)
    widths, words = torch.tensor([9, 4]), torch.randn(2, 32, 8, 9)
    words = (words*(torch.arange(9) < widths[:, None])[:, None, None]).requires_grad_()
    inside = (torch.arange(9) < widths[:, None])[..., None]
    (reader.eval()(words, widths)*inside).square().sum().backward()
    assert words.grad[0].abs().sum() > 0 and words.grad[1, ..., :4].abs().sum() > 0
    empty = torch.zeros(0, 32, 8, 8, requires_grad=True)
    out = reader.train()(empty, torch.zeros(0, dtype=torch.long))
    assert out.shape == (0, 1, 3) and reader.text(out, []) == ([], pytest.approx(np.zeros(0)))
    out.sum().backward()


def test_beam_finds_the_likeliest_text():
    rng = np.random.default_rng(3)
    for t, k in ((1, 2), (4, 3), (6, 3), (5, 4)):
        for sharp in (.3, 1, 3):
            p = rng.dirichlet(np.full(k + 1, sharp), t)
            sums = defaultdict(float)
            for row in product(range(k + 1), repeat=t): sums[tuple(c for c, _ in groupby(row) if c)] += np.prod(p[range(t), row])
            text, score = beam_search(np.log(p), beam=10_000, least=0.)
            assert text == max(sums, key=sums.get) and math.exp(score) == pytest.approx(sums[text])


def test_prior_counts_each_letter_once():
    "With a prior that halves every letter, the score of a text is its probability times 0.5 a letter"
    p = np.random.default_rng(1).dirichlet(np.ones(3), 4)
    half = lambda text, c: math.log(.5) if c else 0.
    sums = defaultdict(float)
    for row in product(range(3), repeat=4): sums[tuple(c for c, _ in groupby(row) if c)] += np.prod(p[range(4), row])
    paid = {t: v*.5**len(t) for t, v in sums.items()}
    text, score = beam_search(np.log(p), 1000, half, 0.)
    assert text == max(paid, key=paid.get) and math.exp(score) == pytest.approx(paid[text])


def test_greedy_is_one_word_at_a_time():
    rng, chars = np.random.default_rng(2), Charset('abc')
    logits, widths = rng.normal(0, 3, (20, 15, 4)), rng.integers(1, 16, 20)
    texts, scores = greedy_letters(logits, widths, chars)
    for l, w, text, score in zip(logits, widths, texts, scores):
        p = torch.tensor(l[:w]).softmax(-1).numpy()
        assert text == ''.join(chars.characters[c-1] for c, _ in groupby(p.argmax(-1)) if c)
        assert score == pytest.approx(np.exp(np.log(p.max(-1)).mean()), rel=1e-4)


def test_texts_have_the_probability_that_ctc_gives_them():
    p = np.random.default_rng(4).dirichlet(np.ones(3), 5)
    sums = defaultdict(float)
    for row in product(range(3), repeat=5): sums[tuple(c for c, _ in groupby(row) if c)] += np.prod(p[range(5), row])
    got = text_log_probability(np.log(p), ['a', 'ab', 'bb', 'aaaa', 'xa', ''], Charset('ab'))
    assert np.exp(got[:3]) == pytest.approx([sums[(1,)], sums[(1, 2)], sums[(2, 2)]], rel=1e-4)
    assert np.isneginf(got[3:5]).all() and math.exp(got[5]) == pytest.approx(sums[()], rel=1e-4)


def test_letter_model_travels_with_the_weights():
    a, b = CTCReader('abc', width=4), CTCReader('abc', width=4)
    a.letters.learn([[1, 2, 3], [1, 2, 1]])
    b.letters.log_probability((1,), 2)                      # tables of its own, to be forgotten
    b.load_state_dict(a.state_dict())
    for before in ((), (1,), (1, 2), (3, 3, 3, 3)):
        p = [math.exp(b.letters.log_probability(before, c)) for c in range(4)]
        assert sum(p) == pytest.approx(1) and p == pytest.approx([math.exp(a.letters.log_probability(before, c)) for c in range(4)])
    assert b.letters.log_probability((1, 2), 3) > b.letters.log_probability((1, 2), 2)


def test_unknown_characters_and_both_cases():
    assert Charset('abc').encode('aBç') == ([1, 2], 'ç')
    assert Charset('aA').encode('aA') == ([1, 2], '')
    assert Charset().decode(Charset().encode('Total, 3.50 €')[0]) == 'Total, 3.50 '
    with pytest.raises(InputError, match="holds 'a' twice"): Charset('aba')


def test_lexicon():
    words = Lexicon(['Street', 'Sheet', ' Street', '', 'Tree'])
    assert len(words) == 3
    assert [words.nearest(t) for t in ('STREET', 'Stree', 'treee', 'q', '')] == ['Street', 'Street', 'Tree', '', '']
    with pytest.raises(InputError, match='at least one word'): Lexicon([])


def test_lexicon_files(tmp_path):
    (tmp_path/'words.txt').write_text('\ufeffone\r\ntwo\r\n', encoding='utf-8')
    assert read_lexicon(tmp_path/'words.txt').words == ['one', 'two']
    (tmp_path/'empty.txt').write_text('')
    with pytest.raises(InputError, match='holds no word'): read_lexicon(tmp_path/'empty.txt')


def test_half_precision():
    torch.manual_seed(0)
    reader, words, widths = CTCReader('abc', width=8).eval(), torch.randn(3, 32, 8, 12), torch.tensor([12, 12, 12])
    with torch.no_grad():
        whole = reader(words, widths)
        with torch.autocast('cpu', torch.bfloat16): half = reader(words, widths)
    assert half.dtype == torch.float32 and (half - whole).abs().max() < .1
