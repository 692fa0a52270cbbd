"One thread: networks as small as these spend more time waiting for a second one than it saves"
import torch

torch.set_num_threads(1)
