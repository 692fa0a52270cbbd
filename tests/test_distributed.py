"Several real processes on one machine, as `torchrun` and `accelerate launch` start them: hazards 20 to 23"
import os, signal, subprocess, sys
from pathlib import Path

import pytest, torch

import ranks
from self_supervised.callback import ranks as of_ranks
from self_supervised.data.arrays import tensor_dls
from self_supervised.callback.distributed import RankDL, Stream, check_batches, join_ranks, rank_part
from self_supervised.evaluate.features import embed

HERE = Path(__file__).parent
TORCHRUN = '-m torch.distributed.run --standalone --nproc-per-node 2'.split()
# `accelerate launch --cpu` starts one process, however many are asked for; `--multi_gpu` starts them with or without GPUs
ACCELERATE = '-m accelerate.commands.launch --multi_gpu --num_processes 4 --num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port 0'.split()

def launch(launcher, out, *names, timeout=240):
    "Run what `ranks.py` calls `names`; nothing is left running, whatever happens"
    env = os.environ|dict(OMP_NUM_THREADS='1', PYTHONPATH=os.pathsep.join([str(HERE.parent), os.environ.get('PYTHONPATH','')]), CUDA_VISIBLE_DEVICES='', MPLBACKEND='Agg')
    p = subprocess.Popen([sys.executable, *launcher, HERE/'ranks.py', out, *names], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    try: said,_ = p.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        p.terminate()   # the launcher ends its processes, which have sessions of their own
        try: said,_ = p.communicate(timeout=60)
        except subprocess.TimeoutExpired:   # a loader's worker holds the output
            os.killpg(p.pid, signal.SIGKILL)
            said = ''
        pytest.fail(f"{names} hang: {said[-2000:]}")
    assert p.returncode==0, said[-4000:]

@pytest.fixture(scope='module')
def two(tmp_path_factory):
    "name → what each of two processes has to say; one launch for all"
    out = tmp_path_factory.mktemp('two')
    launch(TORCHRUN, out, *'as_it_comes joint accumulated bad_batch resumed tars unused extra_heads simsiam stream files watched command'.split())
    return lambda name: [torch.load(out/f'{name}-{r}.pt') for r in range(2)]

def check_same(ranks):
    "Parameters, target, buffers, optimizer and the loss that was logged, to the last bit"
    a,*others = ranks
    for b in others:
        assert [k for k in a['model'] if not torch.equal(a['model'][k], b['model'][k])]==[]
        assert a['opt'] and all(torch.equal(s[k], t[k]) for s,t in zip(a['opt'], b['opt']) for k in s)
        assert torch.equal(torch.stack(a['logged']), torch.stack(b['logged'])) and len(a['logged'])>0

def test_fifty_steps_leave_the_same_on_every_rank(two):
    res = two('as_it_comes')
    check_same(res)
    assert len(res[0]['losses'])==48 and any(k.startswith('target') and 'running_var' in k for k in res[0]['model'])

def test_no_two_ranks_see_the_same(two):
    a,b = two('as_it_comes')
    # The same dice would move the same corner of other pictures: compare what the views did, on the pictures of one rank
    assert not any(torch.equal(v, w) for v,w in zip(a['views'], b['views']))
    key = lambda xs: {tuple(x.flatten().tolist()) for x in xs}
    seen = [key(torch.cat(r['pictures'][:8])) for r in (a,b)]
    assert not seen[0]&seen[1] and len(seen[0]|seen[1])==8*2*ranks.BS

def test_dice_differ_between_ranks(two):
    "Views of one picture, drawn by both"
    a,b = two('as_it_comes')
    assert not torch.equal(a['view_of_one'], b['view_of_one'])

def test_validation_is_the_same_everywhere_and_changes_nothing(two):
    a,b = two('as_it_comes')
    assert a['valid']==b['valid'] and a['valid'][0]==a['valid'][1]
    assert a['untouched'] and b['untouched']

def test_the_learner_is_left_as_it_was(two):
    a,b = two('as_it_comes')
    for r in (a,b): assert r['wrapped']=='BYOLModel' and r['n_loaders']==2 and 'distributed_trainer' not in r['cbs'] and r['pct']==pytest.approx(1)

def alone(monkeypatch, bs=2*ranks.BS, parts=2, **kwargs):
    "The same run in this process: its batch is the batches of all ranks"
    monkeypatch.setattr('self_supervised.data.arrays.TensorDL', ranks.JointDL)
    monkeypatch.setattr(ranks.JointDL, 'parts', parts)
    torch.manual_seed(0)
    return ranks.result(ranks.train(ranks.tiny('none'), ranks.fixed_augs(), bs=bs, **kwargs))

def check_joint(one, many, steps, groups=1):
    check_same(many)
    losses = torch.stack([torch.stack(r['losses']) for r in many]).mean(0).view(steps, groups).mean(1)
    # float32: sums of another order differ by 1e-7 at first, and by what 50 steps make of it
    torch.testing.assert_close(torch.stack(one['losses'])[:1], losses[:1], rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.stack(one['losses']), losses, rtol=0, atol=1e-5)
    for k,v in one['model'].items(): torch.testing.assert_close(v, many[0]['model'][k], rtol=0, atol=5e-4, msg=k)
    assert not torch.allclose(torch.stack(many[0]['losses']), torch.stack(many[1]['losses']), atol=1e-3)   # the ranks did see different halves

def test_two_ranks_train_as_one_process_with_the_joint_batch(two, monkeypatch): check_joint(alone(monkeypatch), two('joint'), 50)
def test_accumulated_gradients_too(two, monkeypatch): check_joint(alone(monkeypatch), two('accumulated'), 50, groups=2)

def test_four_ranks_started_by_accelerate(tmp_path, monkeypatch):
    launch(ACCELERATE, tmp_path, 'joint4', 'as_it_comes', 'bad_batch')
    joint,own,bad = ([torch.load(tmp_path/f'{name}-{r}.pt') for r in range(4)] for name in ('joint4','as_it_comes','bad_batch'))
    check_joint(alone(monkeypatch, parts=4), joint, 50)
    check_same(own)
    assert not any(torch.equal(own[0]['view_of_one'], o['view_of_one']) for o in own[1:])
    check_same(bad)
    assert all(r['skipped']==1 and all(v.isfinite().all() for v in r['model'].values()) for r in bad)

def test_a_bad_batch_on_one_rank_is_skipped_by_all(two):
    res = two('bad_batch')
    check_same(res)
    for r in res:
        assert r['skipped']==1 and len(r['losses'])==9
        assert all(v.isfinite().all() for v in r['model'].values())

def test_a_run_that_dies_goes_on_to_the_same_end(two):
    for r in two('resumed'):
        assert all(torch.equal(v, r['whole'][k]) for k,v in r['resumed'].items())
        assert r['log'][0]==r['log'][1] and len(r['log'][0])==4

def test_an_old_python_waits_for_gloo_before_it_forks(monkeypatch):
    "Before 3.11.10 a loader's worker could hang at its start: once in about 100 runs of `tars` on a busy machine"
    waits = []
    monkeypatch.setattr(of_ranks, 'several', lambda: True)
    monkeypatch.setattr(of_ranks.time, 'sleep', waits.append)
    pid = os.fork()
    if not pid: os._exit(0)
    os.waitpid(pid, 0)
    assert len(waits)==(sys.version_info<(3,11,10))

def test_shards_are_shared_out(two):
    a,b = two('tars')
    check_same((a,b))
    assert not a['read']&b['read'] and len(a['read']|b['read'])==96

@pytest.mark.parametrize('name', ['unused','extra_heads','simsiam'])
def test_parameters_without_a_gradient_and_a_model_without_a_target(two, name): check_same(two(name))

def test_shards_of_different_size(two):
    "The epoch ends, and the schedule runs, for all as for the one with least"
    res = two('stream')
    check_same(res)
    assert all(len(r['losses'])==2*3 for r in res)
    assert all(r['n_loaders']==1 for r in res)     # the empty one that BYOL lent is gone

def test_files_are_written_once(two): assert [r['files'] for r in two('files')]==[['history.csv','models/after.pth'], []]

def test_the_command_writes_one_folder(two):
    "`torchrun --no-python byol_pretrain`: the batch is shared, one process judges and writes"
    first = two('command')[0]
    assert first['folders']==['run'] and first['files']=='checkpoints embedding.png encoder.safetensors history.csv neighbors.png report.html results.json settings.json views.png'.split()

@pytest.mark.parametrize('n,bs,drop_last,world', [(100,8,True,2), (101,8,True,3), (97,8,False,2), (24,8,True,2), (5,8,False,4)])
def test_each_rank_has_its_part_and_knows_its_length(n, bs, drop_last, world):
    x = torch.arange(n).float()[:,None]
    for dl in (tensor_dls(x, bs=min(bs,n), seed=3, device='cpu').train.new(drop_last=drop_last, shuffle=False),
               torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=min(bs,n), drop_last=drop_last, collate_fn=lambda o: (torch.stack([i for i, in o]),))):
        parts = [RankDL(dl, rank=r, world_size=world, device='cpu') for r in range(world)]
        batches = [list(p) for p in parts]
        assert len({len(b) for b in batches})==1 and all(len(p)==len(b) for p,b in zip(parts, batches))
        seen = torch.cat([torch.cat([b[0] for b in bs]) if bs else torch.zeros(0,1) for bs in batches])[:,0].tolist()
        assert set(seen)<=set(range(n)) and (drop_last or set(seen)==set(range(n))) and len(seen)-len(set(seen))<world

def test_embed_sees_all_pictures_from_within_a_fit():
    x = torch.rand(50, 3)
    assert torch.equal(embed(torch.nn.Identity(), RankDL(tensor_dls(x, bs=8, device='cpu').train, rank=1, world_size=2, device='cpu'))[0], x)

# Without other processes

def test_a_single_process_is_rank_0_of_1(): assert join_ranks()==(0,1)

def test_a_part_is_taken_once():
    dl = tensor_dls(torch.arange(12.)[:,None], bs=3, seed=1, device='cpu').train
    part = rank_part(dl)
    assert isinstance(part, RankDL) and rank_part(part) is part and part.dl is dl and rank_part([], None)==[]

class Numbers(torch.utils.data.IterableDataset):
    def __len__(self): return 6
    def __iter__(self): return iter(torch.arange(6.))

def test_a_stream_keeps_its_batches_and_their_size():
    part = rank_part(torch.utils.data.DataLoader(Numbers(), batch_size=2))
    assert isinstance(part, Stream) and len(part)==3 and len(list(part))==3 and part.batch_size==2

def test_a_part_that_fills_no_batch_is_refused():
    few = tensor_dls(torch.rand(12,3), bs=8, device='cpu').train
    with pytest.raises(ValueError, match='^bs=8 .*6 pictures for each of 2 processes'): check_batches(RankDL(few, rank=0, world_size=2, device='cpu'))

def test_ranks_judge_health_alike(two):
    "One rank alone saw a collapse: it stopped, or went back to another network, and the other did not"
    a,b = two('watched')
    assert a==b and len(a['rows'])==3 and a['n']
