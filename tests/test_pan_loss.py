"""PAN's loss beside recorded numbers of two other programs, beside a slow obvious version, and under odd inputs."""
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from visionlab.core.checks import InputError
from visionlab.pan import loss as module
from visionlab.pan.loss import PANLoss, ohem_mask, word_pixels

GOLDEN = sorted((Path(__file__).parent/'golden').glob('pan_loss_*.npz'))
PEERS = [('official', 'whai'), ('seed', 'wz')]
CONVENTIONS = ('paper', 'official', 'seed')


def golden_case(path, dtype):
    d = np.load(path)
    labels = [torch.from_numpy(d[n]) for n in ('text_instances', 'kernel_instances', 'training_mask')]
    return d, torch.from_numpy(d['logits']).to(dtype).requires_grad_(), labels


# --- recorded numbers -------------------------------------------------------------------------------------------------

def test_golden_files_are_here(): assert len(GOLDEN) == 5


@pytest.mark.parametrize('convention,peer', PEERS)
@pytest.mark.parametrize('path', GOLDEN, ids=lambda p: p.stem)
@pytest.mark.parametrize('dtype,name,tol', [(torch.float64, 'f64', 1e-13), (torch.float32, 'f32', 1e-6)])
def test_golden(path, convention, peer, dtype, name, tol):
    d, x, labels = golden_case(path, dtype)
    loss = PANLoss(convention=convention)
    parts = loss.parts(x, *labels)
    assert set(parts) == {'text', 'kernel', 'agg', 'dis'} | ({'reg'} if convention == 'official' else set())
    close = lambda a, b: assert_close(a.detach().double(), torch.as_tensor(b, dtype=torch.float64), rtol=0, atol=tol)
    for k, v in parts.items(): close(v, d[f'{peer}_{name}_loss_{k}'])
    total = loss(x, *labels)
    close(total, d[f'{peer}_{name}_total'])
    close(loss(x, *labels), d[f'{peer}_{name}_total'])  # a second call sees the same labels
    g, = torch.autograd.grad(total, x)
    close(g.flatten(2).norm(dim=2), d[f'{peer}_f64_grad_l2'])
    close(g.flatten(2).sum(2), d[f'{peer}_f64_grad_sum'])
    if f'{peer}_f64_grad' in d: close(g, d[f'{peer}_f64_grad'])
    kept = ohem_mask(x[:, 0], labels[0] > 0, labels[2] > 0)
    assert_close(kept, torch.from_numpy(d[f'{peer}_ohem_mask']) > 0)


# --- a slow and obvious version ---------------------------------------------------------------------------------------

def slow_image(pred, text, kernel, mask, convention, ratio=3, delta_agg=.5, delta_dis=3., bce=False):
    "The parts for one image, word by word, as the formulas say"
    valid, words = mask > 0, text > 0
    n = min(int(ratio*(words & valid).sum()), int((~words).sum()))
    kept = valid
    if n: kept = ((pred[0] >= pred[0][~words].sort(descending=True).values[n-1]) | words) & valid
    def dice(x, q, m):
        p, q = x.sigmoid()*m, q*m
        return 1 - 2*(p*q).sum()/((p*p).sum() + .001 + (q*q).sum() + .001)
    near = words if convention == 'official' else pred[0].detach().sigmoid() > .5
    out = dict(text=dice(pred[0], words.to(pred), kept.to(pred)), kernel=dice(pred[1], (kernel > 0).to(pred), (near & valid).to(pred)))
    if convention != 'seed':
        text = torch.where(valid, text, 0)
        kernel = torch.where(kernel > 0, text, 0)
    e, pulls, means = pred[2:], [], []
    for i in text.unique().tolist():
        t, k = text == i, kernel == i
        if i <= 0 or not k.any(): continue
        means.append(e[:, k].mean(1))
        pulls.append(((e[:, t] - means[-1][:, None]).norm(dim=0) - delta_agg).relu().pow(2).add(1).log().mean())
    zero, m = pred.sum()*0, len(means)
    push = [((delta_dis - (a - b).norm()).relu()**2 + 1).log() for i, a in enumerate(means) for j, b in enumerate(means) if i != j]
    out['agg'] = sum(pulls)/m if m else zero
    out['dis'] = sum(push)/len(push)*(.5 if convention == 'seed' else 1) if push else zero
    if convention == 'official': out['reg'] = .001*sum((a.norm() + 1).log() for a in means)/(m + 1) if m else zero
    if bce: out['bce'] = -torch.where(words, torch.nn.functional.logsigmoid(pred[0]), torch.nn.functional.logsigmoid(-pred[0]))[kept].sum()/max(int(kept.sum()), 1)
    return out


def random_case(seed, b=3, h=20, w=24, dtype=torch.float64):
    "Overlapping random boxes with gaps between ids, missing kernels, kernels without text, masked parts, blank images"
    r = np.random.default_rng(seed)
    text, kernel, mask = np.zeros((b, h, w), np.int64), np.zeros((b, h, w), np.int64), np.ones((b, h, w), np.int64)
    for i in range(b):
        for j in r.permutation(60)[:r.integers(0, 8)] + 1:
            y, x, dy, dx = r.integers(0, h-4), r.integers(0, w-6), r.integers(3, 8), r.integers(4, 12)
            if r.random() < .9: text[i, y:y+dy, x:x+dx] = j
            if r.random() < .8: kernel[i, y+1:y+dy-1, x+1:x+dx-1] = j
        if r.random() < .7: mask[i, r.integers(0, h):, r.integers(0, w):] = 0
    pred = torch.randn(b, 6, h, w, generator=torch.Generator().manual_seed(seed), dtype=dtype)*2
    if seed % 2: pred = (pred*4).round()/4   # many equal scores
    return pred.requires_grad_(), *(torch.from_numpy(a) for a in (text, kernel, mask))


@pytest.mark.parametrize('convention', CONVENTIONS)
@pytest.mark.parametrize('seed', range(12))
def test_slow_version(seed, convention):
    pred, text, kernel, mask = random_case(seed)
    ratio = (3, 1, .5, 2.5)[seed % 4]
    if seed % 2: pred = (pred + 1e-3).detach().requires_grad_()   # no score exactly 0, where rounding decides what is predicted text
    loss = PANLoss(convention=convention, ohem_ratio=ratio, bce_weight=.7, alpha=.4, beta=.3, reduction='none')
    parts, total = loss.parts(pred, text, kernel, mask), loss(pred, text, kernel, mask)
    slow = [slow_image(*x, convention, ratio, bce=True) for x in zip(pred, text, kernel, mask)]
    assert set(parts) == set(slow[0])
    for k in parts: assert_close(parts[k], torch.stack([s[k] for s in slow]), rtol=1e-12, atol=1e-13)
    weight = dict(text=1, kernel=.4, agg=.3, dis=.3, reg=.3, bce=.7)
    slow_total = torch.stack([sum(weight[k]*v for k, v in s.items()) for s in slow])
    assert_close(total, slow_total, rtol=1e-12, atol=1e-13)
    side = torch.rand(len(total), dtype=total.dtype)   # images weighted differently, so that none can answer for another
    ours, = torch.autograd.grad((total*side).sum(), pred)
    theirs, = torch.autograd.grad((slow_total*side).sum(), pred)
    assert_close(ours, theirs, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize('convention', CONVENTIONS)
def test_gradcheck(convention):
    pred, text, kernel, mask = random_case(5, b=2, h=7, w=8)
    text[0, 1:4, 1:6], kernel[0, 2, 2:5], text[0, 5:7, 2:7], kernel[0, 5:7, 3:5] = 4, 4, 9, 9
    pred = torch.randn_like(pred).requires_grad_()
    loss = PANLoss(convention=convention, bce_weight=.5, reduction='none')
    assert torch.autograd.gradcheck(lambda x: loss(x, text, kernel, mask), (pred,))


# --- both ways to number words, and the other device's branch ---------------------------------------------------------

@pytest.mark.parametrize('seed', range(8))
def test_sorting_and_table_number_words_alike(seed):
    _, text, kernel, _ = random_case(seed)
    text, kernel = text.flatten(1) - int(seed % 3 == 0), kernel.flatten(1)   # some ids below 0 too
    for a, b in zip(module._slots_by_table(text, kernel), module._slots_by_sort(text, kernel)): assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))


def test_huge_ids_take_the_sorting_road():
    pred, text, kernel, mask = random_case(3)
    loss = PANLoss()
    assert module._slots_by_table(text.flatten(1)*10**14, kernel.flatten(1)) is None
    assert_close(loss(pred, text*10**14, kernel*10**14, mask), loss(pred, text, kernel, mask), rtol=0, atol=1e-15)


class _Elsewhere:
    "A tensor's scores that claim to lie on another device, so that the branch for GPUs runs on the processor"
    def __init__(self, x): self.x, self.device = x, torch.device('meta')
    def masked_fill(self, *a): return self.x.masked_fill(*a)


def test_both_thresholds_agree():
    r = torch.Generator().manual_seed(0)
    scores, among = torch.randn(4, 500, generator=r).mul(3).round(), torch.rand(4, 500, generator=r) > .3
    among[2] = False
    n = torch.stack([torch.tensor(1), among[1].sum(), torch.tensor(0), torch.tensor(77)])
    assert_close(module._nth_largest(_Elsewhere(scores), among, n), module._nth_largest(scores, among, n))


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
@pytest.mark.parametrize('convention', CONVENTIONS)
def test_cuda_agrees_and_waits_once(convention):
    pred, text, kernel, mask = random_case(1)
    loss = PANLoss(convention=convention, bce_weight=.5)
    total = loss(pred, text, kernel, mask)
    expected, = torch.autograd.grad(total, pred)
    there = [x.detach().cuda() for x in (pred, text, kernel, mask)]
    there[0].requires_grad_()
    loss(*there).backward()   # warm up
    there[0].grad = None
    torch.cuda.set_sync_debug_mode('warn')
    try:
        with pytest.warns(UserWarning) as waits:
            got = loss(*there)
            got.backward()
    finally: torch.cuda.set_sync_debug_mode('default')
    assert sum('synchroniz' in str(w.message) for w in waits) <= 1
    assert_close(got.cpu(), total)
    assert_close(there[0].grad.cpu(), expected)


# --- odd inputs -------------------------------------------------------------------------------------------------------

def test_the_callers_tensors_stay():
    pred, text, kernel, mask = random_case(0)
    before = [x.detach().clone() for x in (pred, text, kernel, mask)]
    for c in CONVENTIONS: PANLoss(convention=c, bce_weight=1.)(pred, text, kernel, mask).backward()
    for a, b in zip((pred.detach(), text, kernel, mask), before): assert torch.equal(a, b)


@pytest.mark.parametrize('dtype', [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16])
def test_any_integer_type(dtype):
    pred, text, kernel, mask = random_case(2)
    for other in (dtype, torch.int64):
        assert PANLoss()(pred, text.to(dtype), kernel.to(other), mask.to(torch.uint8)) == PANLoss()(pred, text, kernel, mask)


@pytest.mark.parametrize('form', [torch.bool, torch.uint8, torch.int64, torch.float16, torch.float64])
def test_any_mask_type(form):
    pred, text, kernel, mask = random_case(2)
    assert PANLoss()(pred, text, kernel, mask.to(form)) == PANLoss()(pred, text, kernel, mask)


@pytest.mark.parametrize('convention', CONVENTIONS)
@pytest.mark.parametrize('case', ['all ignored', 'no text', 'all text', 'one pixel', 'same embedding'])
@pytest.mark.parametrize('bce', [0., 1.])
def test_finite_everywhere(convention, case, bce):
    pred, text, kernel, mask = random_case(4)
    if case == 'all ignored': mask = mask*0
    if case == 'no text': text, kernel = text*0, kernel*0
    if case == 'all text': text = kernel = torch.ones_like(text)
    if case == 'one pixel': pred, text, kernel, mask = (x[..., :1, :1] for x in (pred, text, kernel, mask))
    if case == 'same embedding': pred = torch.cat([pred[:, :2], pred[:, 2:]*0], 1)
    pred = pred.detach().float().requires_grad_()
    total = PANLoss(convention=convention, bce_weight=bce)(pred, text, kernel, mask)
    total.backward()
    assert total.isfinite() and pred.grad.isfinite().all()
    if case == 'no text':
        assert bool(pred.grad[:, 0].any()) == bool(bce)
        assert_close(total - bce*PANLoss(bce_weight=1.).parts(pred, text, kernel, mask)['bce'].mean(), torch.tensor(1.5))


def test_extreme_logits_and_a_nan():
    pred, text, kernel, mask = random_case(4)
    x = (pred.detach().float()*1e4).requires_grad_()
    PANLoss(bce_weight=1.)(x, text, kernel, mask).backward()
    assert x.grad.isfinite().all()
    x = pred.detach().clone(); x[0, 0, 0, 0] = math.nan
    assert PANLoss()(x, text, kernel, mask).isnan()   # a broken prediction must not pass for a number


def test_images_do_not_influence_each_other():
    pred, text, kernel, mask = random_case(7, b=5)
    loss = PANLoss(reduction='none')
    alone = torch.cat([loss(*(x[i:i+1] for x in (pred, text, kernel, mask))) for i in range(5)])
    assert_close(loss(pred, text, kernel, mask), alone, rtol=0, atol=1e-14)


def test_reductions_and_last_parts():
    pred, text, kernel, mask = random_case(8)
    each, mean, total = (PANLoss(reduction=r)(pred, text, kernel, mask) for r in ('none', 'mean', 'sum'))
    assert each.shape == (3,)
    assert_close(each.mean(), mean)
    assert_close(each.sum(), total)
    loss = PANLoss()
    loss(pred, text, kernel, mask)
    assert not any(v.requires_grad for v in loss.last_parts.values())
    for k, v in loss.parts(pred, text, kernel, mask).items(): assert_close(loss.last_parts[k], v.detach(), rtol=0, atol=0)


def test_smaller_predictions_are_enlarged():
    pred, text, kernel, mask = random_case(9, h=32, w=48)
    small = torch.randn(3, 6, 8, 12, dtype=torch.float64, requires_grad=True)
    large = torch.nn.functional.interpolate(small, size=(32, 48), mode='bilinear', align_corners=False)
    a, b = (PANLoss()(x, text, kernel, mask) for x in (small, large))
    assert_close(a, b)
    assert_close(*(torch.autograd.grad(x, small)[0] for x in (a, b)))


@pytest.mark.parametrize('half', [torch.bfloat16, torch.float16])
def test_half_precision(half):
    pred, text, kernel, mask = random_case(10)
    x = pred.detach().to(half).requires_grad_()
    with torch.autocast('cpu', torch.bfloat16): total = PANLoss(bce_weight=1.)(x, text, kernel, mask)
    total.backward()
    y = x.detach().float().requires_grad_()
    PANLoss(bce_weight=1.)(y, text, kernel, mask).backward()
    assert total.dtype == torch.float32 and x.grad.dtype == half
    assert_close(x.grad.float(), y.grad, rtol=1e-2, atol=1e-6)
    assert PANLoss()(pred, text, kernel, mask).dtype == torch.float64


def test_memory_layouts():
    pred, text, kernel, mask = random_case(11)
    last = pred.detach().to(memory_format=torch.channels_last).requires_grad_()
    total = PANLoss()(last, text.transpose(1, 2).contiguous().transpose(1, 2), kernel, mask)
    assert_close(total, PANLoss()(pred, text, kernel, mask))
    assert_close(torch.autograd.grad(total, last)[0], torch.autograd.grad(PANLoss()(pred, text, kernel, mask), pred)[0])


def test_a_thousand_words():
    side, n = 160, 1000
    ids = torch.zeros(2, side, side, dtype=torch.int32)
    for i in range(n): ids[0, i//40*6:i//40*6+5, i % 40*4:i % 40*4+3] = i*7 + 300
    kernel = torch.zeros_like(ids)
    kernel[:, 1::6, 1::4] = ids[:, 1::6, 1::4]
    pred = torch.randn(2, 6, side, side, requires_grad=True)
    assert word_pixels(ids.flatten(1), kernel.flatten(1)).words == n
    total = PANLoss()(pred, ids, kernel, torch.ones_like(ids))
    total.backward()
    assert total.isfinite() and pred.grad.isfinite().all()
    slow = slow_dis(pred[0].detach().double(), ids[0].long(), kernel[0].long())
    assert_close(PANLoss().parts(pred, ids, kernel, torch.ones_like(ids))['dis'][0].double(), slow, rtol=1e-5, atol=0)


def slow_dis(pred, text, kernel):
    means = torch.stack([pred[2:, kernel == i].mean(1) for i in kernel.unique()[1:]])
    return torch.log1p((3 - torch.pdist(means)).relu()**2).mean()


def test_large_words_in_single_precision():
    "Sums over a quarter of a million pixels in float32 stay close to double precision"
    ids = torch.ones(1, 512, 512, dtype=torch.int32); ids[:, :, 400:] = 2
    x = torch.randn(1, 6, 512, 512) + 3
    a, b = (PANLoss(convention='official').parts(v, ids, ids, ids) for v in (x, x.double()))
    for k in a: assert_close(a[k].double(), b[k], rtol=1e-4, atol=1e-5)


def test_copy_and_state():
    import copy
    pred, text, kernel, mask = random_case(1)
    loss = PANLoss(convention='official')
    total = loss(pred, text, kernel, mask)
    assert copy.deepcopy(loss)(pred, text, kernel, mask) == total
    assert not loss.state_dict()


@pytest.mark.parametrize('bad,word', [
    (dict(convention='papr'), "'paper'"), (dict(reduction='Mean'), "'mean'"), (dict(alpha=-1), 'alpha'), (dict(delta_agg=math.nan), 'delta_agg'),
    (dict(ohem_ratio=0), 'ohem_ratio'), (dict(bce_weight='1'), 'bce_weight')])
def test_bad_options(bad, word):
    with pytest.raises(InputError, match=word): PANLoss(**bad)


def test_bad_inputs():
    pred, text, kernel, mask = random_case(1)
    for args, word in [((pred[:, :4], text, kernel, mask), 'pred'), ((pred[0], text, kernel, mask), 'pred'), ((pred.long(), text, kernel, mask), 'float logits'),
                       ((pred, text[:2], kernel, mask), '"text"'), ((pred, text, kernel, mask[:, None]), '"mask"'), ((pred, text, kernel.numpy(), mask), '"kernel"'),
                       ((pred, text.float(), kernel, mask), 'ids'), ((pred, text, kernel > 0, mask), 'ids'), ((pred, text[:, 2:], kernel[:, 2:], mask[:, 2:]), 'larger'),
                       ((pred[:0], text[:0], kernel[:0], mask[:0]), 'empty')]:
        with pytest.raises(InputError, match=word): PANLoss()(*args)


def test_hard_pixels_of_any_shape_and_precision():
    pred, text, _, mask = random_case(3)
    a = ohem_mask(pred[:, 0], text > 0, mask > 0)
    assert a.shape == text.shape and a.dtype == torch.bool
    assert torch.equal(a.flatten(1), ohem_mask(pred[:, 0].flatten(1), (text > 0).flatten(1), (mask > 0).flatten(1)))
    b = pred[:, 0].detach().bfloat16()
    assert torch.equal(ohem_mask(b, text > 0, mask > 0), ohem_mask(b.double(), text > 0, mask > 0))


def test_threshold_of_large_rows():
    "Rows long enough for the sampled search, among them some that mislead a sample of every 64th value"
    r = np.random.default_rng(0)
    n = 40000
    odd = np.where(np.arange(n) % 64 == 0, 5., r.normal(size=n))
    for x in (r.normal(size=n), odd, np.sort(r.normal(size=n)), np.zeros(n), r.integers(0, 3, n), np.where(r.random(n) < .9, -20, r.normal(size=n))):
        for k in (1, 2, n//100, n//3, n-1, n): assert module._nth_of_row(x.astype(np.float32), k) == np.sort(x.astype(np.float32))[-k]
